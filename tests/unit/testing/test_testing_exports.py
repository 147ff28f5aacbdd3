from __future__ import annotations

import subprocess
import sys

import pytest

import fulgur.testing


def test_every_name_of_all_can_be_had() -> None:
    assert all(getattr(fulgur.testing, name) is not None for name in fulgur.testing.__all__)
    assert dir(fulgur.testing) == sorted(fulgur.testing.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'BoredModel'"):
        fulgur.testing.BoredModel  # noqa: B018


def test_importing_the_kit_imports_nothing_of_it() -> None:
    program = "import sys, fulgur.testing; print([m for m in sys.modules if m.startswith('fulgur.')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['fulgur.testing']"
