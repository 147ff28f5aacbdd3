"""Every old name is there, or in the list of those that are missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import fulgur.compat
from fulgur.compat import names

DATA = Path(__file__).parent / "data"


def listed(file: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (DATA / file).read_text().splitlines())
    return [line for line in lines if line]


NAMES = listed("names.txt")
MISSING = listed("names_missing.txt")


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    fulgur.compat.install()
    yield
    fulgur.compat.uninstall()


def find(path: str) -> Any:
    """What ``from module import name`` gives; for ``module.Class.attribute`` the attribute."""
    module, _, name = path.rpartition(".")
    owner = module.rpartition(".")[2]
    if owner.lstrip("_")[:1].isupper():
        return getattr(find(module), name)
    scope: dict[str, Any] = {}
    exec(f"from {module} import {name} as found", scope)
    return scope["found"]


def is_there(path: str) -> bool:
    try:
        find(path)
    except (ImportError, AttributeError):
        return False
    return True


def test_the_list_of_missing_names_is_exact() -> None:
    """It can only shrink: a name that comes leaves the list, and none may join it."""
    assert [path for path in NAMES if not is_there(path)] == MISSING


def test_the_list_of_names_is_the_one_that_programs_were_looked_through_for() -> None:
    assert len(NAMES) == len(set(NAMES)) == 453


@pytest.mark.parametrize("path", sorted(set(NAMES) - set(MISSING)))
def test_an_old_name_gives_the_same_object_under_the_second_name_of_its_package(path: str) -> None:
    seconds = {old: new for new, old in names.ALIASES.items()}
    for package, second in seconds.items():
        if path.startswith(f"{package}."):
            assert find(path) is find(path.replace(package, second, 1))


@pytest.mark.parametrize("module", sorted(names.TABLE))
def test_every_name_of_the_table_can_be_imported(module: str) -> None:
    made = import_module(module)
    assert [name for name in names.homes_in(module) if getattr(made, name, None) is None] == []


def test_a_missing_name_says_so_and_names_the_nearest() -> None:
    text = "fulgur has no 'EarlyStoping' to import from 'lightning.pytorch.callbacks'. The nearest there is "
    with pytest.raises(ImportError, match=re.escape(text + "lightning.pytorch.callbacks.EarlyStopping")):
        find("lightning.pytorch.callbacks.EarlyStoping")


def test_a_name_that_is_elsewhere_is_found_there() -> None:
    with pytest.raises(ImportError, match=r"There is lightning\.pytorch\.callbacks\.ModelCheckpoint"):
        find("pytorch_lightning.loggers.ModelCheckpoint")


@pytest.mark.parametrize("path", MISSING)
def test_what_is_missing_is_an_import_error_of_ours(path: str) -> None:
    with pytest.raises((ImportError, AttributeError), match=r"fulgur|has no attribute"):
        find(path)


def test_what_no_version_has_any_more_names_the_way_out() -> None:
    with pytest.raises(ImportError, match="pip install torchmetrics"):
        import_module("pytorch_lightning.metrics")


def test_hasattr_is_false_for_a_missing_name() -> None:
    assert not hasattr(import_module("lightning.pytorch"), "nonsense")


def test_star_import_gives_the_public_names() -> None:
    scope: dict[str, Any] = {}
    exec("from lightning.pytorch.callbacks.early_stopping import *", scope)
    assert {name for name in scope if not name.startswith("_")} == {"EarlyStopping", "EarlyStoppingReason"}
