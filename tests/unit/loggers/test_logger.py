"""The interface of loggers, the stand-ins for them, and what importing the package costs."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest

import fulgur.loggers
from fulgur.loggers.logger import DummyExperiment, DummyLogger, Logger, rank_zero_experiment
from fulgur.rank import rank_zero_only


class Recorder(Logger):
    name, version = "recorder", 0

    def __init__(self) -> None:
        self.saved = 0

    @property
    @rank_zero_experiment
    def experiment(self) -> list[str]:
        """The record."""
        return ["real"]

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass

    def save(self) -> None:
        self.saved += 1


@pytest.fixture
def _on_rank_one() -> Iterator[None]:
    rank_zero_only.rank = 1
    yield
    rank_zero_only.rank = None


def test_logger_needs_the_four_abstract_parts() -> None:
    assert Logger.__abstractmethods__ == {"name", "version", "log_metrics", "log_hyperparams"}


def test_logger_that_writes_no_files_has_no_directories() -> None:
    logger = Recorder()
    assert (logger.save_dir, logger.root_dir, logger.log_dir, logger.group_separator) == (None, None, None, "/")


def test_finalize_saves() -> None:
    logger = Recorder()
    logger.finalize("success")
    assert logger.saved == 1


def test_experiment_is_real_on_rank_zero() -> None:
    assert Recorder().experiment == ["real"]
    assert Recorder.experiment.__doc__ == "The record."


@pytest.mark.usefixtures("_on_rank_one")
def test_experiment_is_a_dummy_on_other_ranks() -> None:
    experiment = Recorder().experiment
    assert isinstance(experiment, DummyExperiment)
    assert experiment.add_image("x", 1, global_step=2) is None
    assert experiment["key"][0].log(1) is None
    experiment["key"] = 3


def test_dummy_experiment_can_be_copied_and_pickled() -> None:
    assert isinstance(copy.deepcopy(DummyExperiment()), DummyExperiment)
    assert isinstance(pickle.loads(pickle.dumps(DummyExperiment())), DummyExperiment)


def test_dummy_logger_takes_every_call() -> None:
    logger = DummyLogger()
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_hyperparams({"lr": 0.1}, 3, key="value")
    logger.watch(None, log="all")
    logger[0].experiment.add_scalar("x", 1.0)
    logger.finalize("success")
    assert (logger.name, logger.version, logger.save_dir, logger.log_dir) == ("", "", None, None)


def test_dummy_logger_can_be_copied_and_pickled() -> None:
    assert isinstance(copy.deepcopy(DummyLogger()), DummyLogger)
    assert isinstance(pickle.loads(pickle.dumps(DummyLogger())), DummyLogger)


def test_every_public_name_resolves() -> None:
    assert {name: getattr(fulgur.loggers, name).__name__ for name in fulgur.loggers.__all__} == {
        name: name for name in fulgur.loggers.__all__
    }
    assert set(fulgur.loggers.__all__) <= set(dir(fulgur.loggers))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchLogger"):
        _ = fulgur.loggers.NoSuchLogger


@pytest.mark.parametrize("use", ["pass", "fulgur.loggers.CSVLogger('x')", "fulgur.loggers.TensorBoardLogger('x')"])
def test_optional_packages_are_not_imported_before_files_are_written(use: str) -> None:
    heavy = "{'yaml', 'tensorboard', 'fsspec', 'torch.utils.tensorboard'}"
    program = f"import sys, torch; before = set(sys.modules); import fulgur.loggers; {use}\n"
    program += f"assert not (set(sys.modules) - before) & {heavy}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
