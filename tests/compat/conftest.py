"""The training of `workload.py`, and where the environment with Lightning is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
LIGHTNING_PYTHON = FOLDER.parents[1] / ".venv-bench" / "bin" / "python"


@pytest.fixture(scope="session")
def workload() -> Any:
    """The module `workload.py`, which the scripts of this folder import by name."""
    spec = importlib.util.spec_from_file_location("compat_workload", FOLDER / "workload.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def lightning_python() -> Path:
    """The interpreter that has Lightning; the test is skipped where there is none."""
    if not LIGHTNING_PYTHON.exists():
        pytest.skip("needs Lightning in .venv-bench: run `make compat`")
    return LIGHTNING_PYTHON
