"""``pytest -p fulgur.compat.pytest``: tests written for Lightning run on fulgur.

Installed before the first ``conftest.py`` is imported. ``FULGUR_COMPAT=1.9.5`` in the environment chooses a version.
"""

from __future__ import annotations

import os

import fulgur.compat


def pytest_load_initial_conftests() -> None:
    """Before any module of the tests is imported."""
    fulgur.compat.install(os.environ.get(fulgur.compat.VARIABLE) or None)


def pytest_unconfigure() -> None:
    """After the last test."""
    fulgur.compat.uninstall()
