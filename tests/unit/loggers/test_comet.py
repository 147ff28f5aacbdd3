"""Experiments of Comet, offline, with their archives read back."""

from __future__ import annotations

import importlib.util
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgur.errors import FulgurDeprecationWarning, MisconfigurationException, MissingExtraError
from fulgur.loggers import CometLogger
from fulgur.rank import rank_zero_only

pytestmark = [
    pytest.mark.usefixtures("_no_network"),
    pytest.mark.skipif(importlib.util.find_spec("comet_ml") is None, reason="needs comet_ml"),
]

QUIET: dict[str, Any] = {
    "online": False,
    "log_code": False,
    "log_git_metadata": False,
    "log_git_patch": False,
    "log_env_details": False,
    "parse_args": False,
    "auto_output_logging": False,
    "display_summary_level": 0,
}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CometLogger]]:
    """Loggers into archives, which are ended after the test."""
    made: list[CometLogger] = []

    def build(**kwargs: Any) -> CometLogger:
        made.append(CometLogger(**(QUIET | {"project": "digits", "offline_directory": str(tmp_path / "c")} | kwargs)))
        return made[-1]

    for name in ("COMET_API_KEY", "COMET_PROJECT_NAME", "COMET_EXPERIMENT_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield build
    for logger in made:
        if logger._experiment is not None:
            logger.experiment.end()


def archived(logger: CometLogger, tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the archive says of the experiment, and the messages in it."""
    logger.experiment.end()
    (path,) = (tmp_path / "c").glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read("experiment.json"))
        return about, [json.loads(line)["payload"] for line in archive.read("messages.json").splitlines()]


def metrics(messages: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    found = [m["metric"] for m in messages if "metric" in m]
    keys = ("metricName", "metricValue", "step", "epoch")
    return [tuple(m.get(key) for key in keys) for m in found if not m["metricName"].startswith(("sys.", "process "))]


def test_an_experiment_is_in_the_archive(tmp_path: Path, make: Any, fit: Any) -> None:
    logger = make(name="first")
    fit(logger)
    about, messages = archived(logger, tmp_path)
    assert metrics(messages) == [("loss", float(i), i, 0) for i in range(3)]
    parameters = {m["param"]["paramName"]: m["param"]["paramValue"] for m in messages if "param" in m}
    assert parameters["width"] == 3
    assert about["project_name"] == "digits"
    assert (logger.name, logger.version, logger.save_dir) == ("digits", about["offline_id"], str(tmp_path / "c"))


def test_nothing_is_begun_before_it_is_needed(tmp_path: Path, make: Any) -> None:
    logger = make()
    logger.finalize("success")
    assert (logger.name, logger.version, logger.position()) == ("digits", None, {})
    assert list(tmp_path.iterdir()) == []


def test_prefix(tmp_path: Path, make: Any) -> None:
    logger = make(prefix="a")
    logger.log_metrics({"x": 1.0}, step=2)
    assert metrics(archived(logger, tmp_path)[1]) == [("a_x", 1.0, 2, None)]


def test_nested_hyperparameters(tmp_path: Path, make: Any) -> None:
    logger = make()
    logger.log_hyperparams({"net": {"width": 3}, "path": Path("x")})
    messages = archived(logger, tmp_path)[1]
    parameters = {m["param"]["paramName"]: m["param"]["paramValue"] for m in messages if "param" in m}
    assert {name.replace("/", "|"): value for name, value in parameters.items()} == {"net|width": 3, "path": "x"}


def test_key_that_is_chosen(make: Any) -> None:
    key = "a" * 32
    logger = make(experiment_key=key)
    assert logger.find_versions() == [key]
    logger.log_metrics({"x": 1.0})
    assert logger.version == logger.experiment.get_key() == key
    assert logger.position() == {"version": key}


def test_resuming_goes_on_with_the_same_key(make: Any) -> None:
    logger = make()
    logger.resume_at({"version": "b" * 32}, 3)
    assert logger.experiment.get_key() == "b" * 32


def test_a_pickled_logger_keeps_its_key(make: Any) -> None:
    logger = make()
    logger.log_metrics({"x": 1.0})
    assert pickle.loads(pickle.dumps(logger)).version == logger.version


def test_only_rank_zero_begins_an_experiment(tmp_path: Path, make: Any) -> None:
    logger = make()
    rank_zero_only.rank = 1
    try:
        logger.log_metrics({"x": 1.0}, step=0)
        logger.log_hyperparams({"lr": 0.1})
        logger.finalize("success")
    finally:
        rank_zero_only.rank = None
    assert logger._experiment is None
    assert list(tmp_path.iterdir()) == []


def test_older_names_of_arguments() -> None:
    with pytest.warns(FulgurDeprecationWarning, match=r"CometLogger\(.*=...\) is now"):
        logger = CometLogger(project_name="digits", offline=True, save_dir="c", experiment_name="first")
    assert (logger.name, logger.save_dir, logger._online, logger._kwargs["name"]) == ("digits", "c", False, "first")


def test_an_unknown_mode() -> None:
    with pytest.raises(MisconfigurationException, match="mode='new': use 'get_or_create', 'get' or 'create'"):
        CometLogger(mode="new")  # type: ignore[arg-type]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("fulgur.loggers.comet.find_spec", lambda name: None if name == "comet_ml" else find(name))
    with pytest.raises(MissingExtraError, match=r"CometLogger needs the package 'comet_ml'.*fulgur\[comet\]"):
        CometLogger()
