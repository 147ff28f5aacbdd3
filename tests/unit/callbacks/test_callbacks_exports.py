from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fulgur.callbacks


def test_importing_the_package_imports_no_callback() -> None:
    code = "import sys, fulgur.callbacks; sys.exit(sum(n.startswith('fulgur.callbacks.') for n in sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


def test_every_name_listed_resolves() -> None:
    assert all(getattr(fulgur.callbacks, name).__name__ == name for name in fulgur.callbacks.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchCallback"):
        _ = fulgur.callbacks.NoSuchCallback
