"""`install` and `uninstall`: what they change, and what they leave."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import pickle
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator

import pytest

import fulgur
import fulgur.compat
from fulgur.rank import rank_zero_deprecation, rank_zero_info, rank_zero_warn

PROGRAM = """
import json, sys
before = set(sys.modules)
import fulgur.compat
fulgur.compat.install()
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.fixture
def _installed() -> Iterator[None]:
    fulgur.compat.install()
    yield
    fulgur.compat.uninstall()


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_install_imports_a_handful_of_small_modules() -> None:
    loaded = json.loads(run_python(PROGRAM))
    own = [name for name in loaded if name.startswith("fulgur")]
    assert own == [
        "fulgur",
        "fulgur.compat",
        "fulgur.compat.channel",
        "fulgur.compat.children",
        "fulgur.compat.finder",
        "fulgur.compat.names",
        "fulgur.errors",
        "fulgur.rank",
    ]
    assert {"torch", "multiprocessing", "ast", "difflib", "inspect", "importlib.metadata"}.isdisjoint(loaded)


def test_installing_says_nothing() -> None:
    assert run_python("import fulgur.compat; fulgur.compat.install(); import lightning.pytorch") == ""


def test_importing_one_name_does_not_import_all() -> None:
    program = "import fulgur.compat, sys; fulgur.compat.install(); from lightning.pytorch.callbacks import Timer; "
    loaded = run_python(program + "print('fulgur.trainer' in sys.modules, 'fulgur.callbacks.timer' in sys.modules)")
    assert loaded.split() == ["False", "True"]


@pytest.mark.usefixtures("_installed")
def test_old_packages_are_the_same_objects() -> None:
    import lightning
    import lightning.pytorch as pl
    import pytorch_lightning
    from lightning.pytorch.callbacks import EarlyStopping
    from pytorch_lightning.callbacks.early_stopping import EarlyStopping as Earlier

    assert lightning.Trainer is pl.Trainer is pytorch_lightning.Trainer is fulgur.Trainer
    assert EarlyStopping is Earlier is fulgur.callbacks.EarlyStopping


@pytest.mark.usefixtures("_installed")
def test_submodules_are_attributes_without_an_import_of_their_own() -> None:
    import lightning.pytorch as pl

    assert pl.callbacks.ModelCheckpoint is fulgur.callbacks.ModelCheckpoint
    assert pl.utilities.rank_zero.rank_zero_only is fulgur.rank.rank_zero_only
    assert {"Trainer", "callbacks", "loggers"} <= set(dir(pl))


@pytest.mark.usefixtures("_installed")
def test_classes_pickle_across_old_and_new_names() -> None:
    from pytorch_lightning.callbacks import EarlyStopping

    restored = pickle.loads(pickle.dumps(EarlyStopping("loss", patience=7)))
    assert type(restored) is fulgur.callbacks.EarlyStopping
    assert restored.patience == 7


@pytest.mark.usefixtures("_installed")
def test_a_pickle_that_names_an_old_class_finds_ours() -> None:
    named = pickle.dumps(fulgur.callbacks.EarlyStopping).replace(
        b"fulgur.callbacks.early_stopping", b"lightning.pytorch.callbacks", 1
    )
    # Protocol 4 and later put the length before each text.
    named = b"\x80\x03clightning.pytorch.callbacks\nEarlyStopping\n."
    assert pickle.loads(named) is fulgur.callbacks.EarlyStopping


@pytest.mark.usefixtures("_installed")
def test_hook_classes_know_modules_and_data() -> None:
    from lightning.pytorch.core.hooks import CheckpointHooks, DataHooks, ModelHooks

    assert issubclass(fulgur.LightningModule, ModelHooks)
    assert issubclass(fulgur.LightningModule, CheckpointHooks)
    assert issubclass(fulgur.LightningDataModule, DataHooks)


def test_packages_that_only_begin_like_it_are_left_alone() -> None:
    fulgur.compat.install()
    try:
        with pytest.raises(ModuleNotFoundError, match="No module named 'lightning_nonsense'"):
            __import__("lightning_nonsense")
    finally:
        fulgur.compat.uninstall()


def test_ours_win_over_loaded_packages_and_uninstall_brings_them_back() -> None:
    theirs = types.ModuleType("lightning")
    sys.modules["lightning"] = theirs
    try:
        fulgur.compat.install()
        import lightning

        assert lightning.Trainer is fulgur.Trainer
        fulgur.compat.uninstall()
        assert sys.modules["lightning"] is theirs
    finally:
        sys.modules.pop("lightning", None)


def test_uninstall_leaves_nothing() -> None:
    path, parent = list(sys.meta_path), logging.getLogger("fulgur").parent
    fulgur.compat.install()
    import lightning.pytorch.callbacks  # noqa: F401

    fulgur.compat.uninstall()
    fulgur.compat.uninstall()
    assert [name for name in sys.modules if name.startswith(("lightning.", "pytorch_lightning"))] == []
    assert sys.meta_path == path
    assert logging.getLogger("fulgur").parent is parent
    assert fulgur.compat.installed_version() is None


# ------------------------------------------------------------------------------------------------------- versions


@pytest.mark.usefixtures("_installed")
def test_version_is_one_of_2_6_and_can_be_another() -> None:
    import lightning
    import pytorch_lightning

    assert lightning.__version__.startswith("2.6.")
    fulgur.compat.install(version="1.9.5")
    assert lightning.__version__ == pytorch_lightning.__version__ == lightning.fabric.__version__ == "1.9.5"
    fulgur.compat.install()
    assert lightning.__version__ == "1.9.5"


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning", "pytorch_lightning", "Lightning.Fabric"])
def test_package_metadata_agrees(name: str) -> None:
    assert importlib.metadata.version(name) == fulgur.compat.installed_version()


@pytest.mark.usefixtures("_installed")
def test_metadata_of_other_packages_is_left_alone() -> None:
    assert importlib.metadata.version("torch")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("lightning-nonsense")


# --------------------------------------------------------------------------------------------- lines and warnings


class Lines(logging.Handler):
    """Keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    "name", ["lightning.pytorch", "pytorch_lightning", "lightning.pytorch.utilities.rank_zero", "lightning"]
)
def test_handlers_of_old_loggers_get_the_lines_once(name: str) -> None:
    logger, handler = logging.getLogger(name), Lines()
    logger.addHandler(handler)
    try:
        rank_zero_info("one %s", "line")
    finally:
        logger.removeHandler(handler)
    assert handler.lines == ["one line"]


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning", "pytorch_lightning.utilities.rank_zero"])
def test_levels_of_old_loggers_silence_lines(
    name: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        rank_zero_info("unheard")
        logger.setLevel(level)
        rank_zero_info("heard")
    finally:
        logger.setLevel(level)
    assert [record.getMessage() for record in caplog.records] == ["heard"]


@pytest.mark.usefixtures("_installed")
def test_warnings_are_in_the_categories_that_programs_filter() -> None:
    from lightning.fabric.utilities.rank_zero import LightningDeprecationWarning
    from lightning.pytorch.utilities.warnings import PossibleUserWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", PossibleUserWarning)
        warnings.simplefilter("ignore", LightningDeprecationWarning)
        rank_zero_warn("maybe", PossibleUserWarning)
        rank_zero_deprecation("this test's own")


def test_possible_warnings_are_off_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSSIBLE_USER_WARNINGS", "off")
    rank_zero_warn("not said", fulgur.errors.PossibleUserWarning)
    with pytest.warns(UserWarning, match="said"):
        rank_zero_warn("said")
