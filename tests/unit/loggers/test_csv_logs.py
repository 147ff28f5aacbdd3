"""CSVLogger: where its files lie, what is in them, and what is left after a kill."""

from __future__ import annotations

import builtins
import copy
import csv
import os
import pickle
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
import yaml

from fulgur.loggers import CSVLogger
from fulgur.loggers.run_dir import split_url
from fulgur.rank import rank_zero_only


@pytest.fixture
def _on_rank_one() -> Iterator[None]:
    rank_zero_only.rank = 1
    yield
    rank_zero_only.rank = None


def lines_of(logger: CSVLogger) -> list[str]:
    return Path(logger.log_dir, "metrics.csv").read_text().splitlines()


def rows_of(logger: CSVLogger) -> list[dict[str, str]]:
    with open(os.path.join(logger.log_dir, "metrics.csv"), newline="") as file:
        return list(csv.DictReader(file))


# directories and versions


def test_log_dir_is_save_dir_name_version(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    assert logger.save_dir == str(tmp_path)
    assert logger.root_dir == str(tmp_path / "lightning_logs")
    assert logger.log_dir == str(tmp_path / "lightning_logs" / "version_0")
    assert (logger.name, logger.version) == ("lightning_logs", 0)


@pytest.mark.parametrize("name", [None, ""])
def test_no_name_drops_the_level(tmp_path: Path, name: str | None) -> None:
    assert CSVLogger(tmp_path, name).log_dir == str(tmp_path / "version_0")


def test_version_that_is_a_string_is_taken_as_it_is(tmp_path: Path) -> None:
    assert CSVLogger(tmp_path, "n", "best").log_dir == str(tmp_path / "n" / "best")


def test_asking_for_the_version_creates_nothing(tmp_path: Path) -> None:
    assert CSVLogger(tmp_path).version == 0
    assert os.listdir(tmp_path) == []


def test_experiment_creates_the_directory_and_no_file(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    assert logger.experiment.log_dir == logger.log_dir
    assert os.listdir(logger.log_dir) == []


def test_two_loggers_in_one_directory_get_different_versions(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path), CSVLogger(tmp_path)]
    for logger in loggers:
        _ = logger.experiment
    assert [logger.version for logger in loggers] == [0, 1]


def test_home_and_variables_in_save_dir_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", str(tmp_path))
    assert CSVLogger("$WHERE/logs").save_dir == str(tmp_path / "logs")


# rows


def test_each_call_makes_a_row_even_at_the_same_step(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"train": 0.5, "epoch": 0}, step=3)
    logger.log_metrics({"val": 0.25, "epoch": 0}, step=3)
    logger.save()
    assert lines_of(logger) == ["epoch,step,train,val", "0,3,0.5,", "0,3,,0.25"]


def test_known_names_are_appended(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    for step in range(3):
        logger.log_metrics({"b": step / 2, "a": 1}, step)
        logger.save()
    assert lines_of(logger) == ["a,b,step", "1,0.0,0", "1,0.5,1", "1,1.0,2"]


def test_missing_names_leave_their_column_empty(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1, "b": 2}, 0)
    logger.save()
    logger.log_metrics({"b": 3}, 1)
    logger.save()
    assert lines_of(logger) == ["a,b,step", "1,2,0", ",3,1"]


def test_new_name_widens_the_whole_file(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    for step, metrics in enumerate([{"b": 1}, {"c": 2}, {"a": 3, "b": 4}, {"c": 5}]):
        logger.log_metrics(metrics, step)
        logger.save()
    assert lines_of(logger) == ["a,b,c,step", ",1,,0", ",,2,1", "3,4,,2", ",,5,3"]
    assert os.listdir(logger.log_dir) == ["metrics.csv"]


def test_values_with_commas_and_line_breaks_survive_widening(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"note": 'a, "b"\nc'}, 0)
    logger.save()
    logger.log_metrics({"loss": 1.0}, 1)
    logger.save()
    assert rows_of(logger)[0] == {"loss": "", "note": 'a, "b"\nc', "step": "0"}


def test_tensors_become_numbers(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": torch.tensor(0.25), "count": torch.tensor(3)}, 0)
    logger.save()
    assert lines_of(logger) == ["count,loss,step", "3,0.25,0"]


def test_floats_are_written_exactly(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"x": 0.1 + 0.2, "nan": float("nan"), "inf": float("inf")}, 0)
    logger.save()
    assert rows_of(logger) == [{"inf": "inf", "nan": "nan", "step": "0", "x": repr(0.1 + 0.2)}]


def test_prefix_is_joined_to_names_but_not_to_step(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, prefix="run")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.save()
    assert lines_of(logger)[0] == "run-loss,step"


def test_step_counts_rows_if_nobody_gives_it(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    for _ in range(2):
        logger.log_metrics({"x": 0})
        logger.save()
    assert [row["step"] for row in rows_of(logger)] == ["0", "1"]


def test_rows_are_flushed_at_every_nth_step_without_save(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=3)
    logger.log_metrics({"x": 0}, 1)
    assert os.listdir(logger.log_dir) == []
    logger.log_metrics({"x": 0}, 2)
    assert len(rows_of(logger)) == 2


def test_rows_are_flushed_after_n_of_them_whatever_their_steps(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=2)
    for _ in range(2):
        logger.log_metrics({"x": 0}, 10)
    assert len(rows_of(logger)) == 2


def test_flush_interval_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="flush_logs_every_n_steps=0"):
        CSVLogger(tmp_path, flush_logs_every_n_steps=0)


def test_rows_after_finalize_go_to_the_same_file(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"train": 1}, 0)
    logger.finalize("success")
    logger.log_metrics({"test": 2}, 1)
    logger.finalize("success")
    assert lines_of(logger) == ["step,test,train", "0,,1", "1,2,"]


def test_finalize_of_an_unused_logger_creates_nothing(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.save()
    logger.finalize("success")
    assert os.listdir(tmp_path) == []


def test_save_reads_nothing_and_opens_nothing_for_known_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"x": 0}, 0)
    logger.save()
    opened: list[Any] = []
    monkeypatch.setattr(builtins, "open", lambda *args, **kwargs: opened.append(args))
    logger.log_metrics({"x": 1}, 1)
    logger.save()
    assert opened == []
    assert logger.experiment.metrics == []


def test_metrics_of_an_earlier_run_are_moved_aside(tmp_path: Path) -> None:
    first = CSVLogger(tmp_path, version=0)
    first.log_metrics({"x": 1}, 0)
    first.finalize("success")
    second = CSVLogger(tmp_path, version=0)
    with pytest.warns(UserWarning, match=r"moved to .*metrics_0\.csv"):
        second.log_metrics({"y": 2}, 0)
    second.finalize("success")
    assert lines_of(second) == ["step,y", "0,2"]
    assert Path(second.log_dir, "metrics_0.csv").read_text() == "step,x\n0,1\n"


def test_directory_with_other_files_is_no_reason_to_warn(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version="v")
    os.makedirs(os.path.join(logger.log_dir, "checkpoints"))
    logger.log_metrics({"x": 1}, 0)
    logger.finalize("success")
    assert lines_of(logger) == ["step,x", "0,1"]


# hyperparameters


def test_hparams_file_exists_only_if_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"x": 1}, 0)
    logger.finalize("success")
    assert os.listdir(logger.log_dir) == ["metrics.csv"]


def test_hparams_of_several_calls_are_merged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1, "depth": 2})
    logger.log_hyperparams(Namespace(lr=0.2, path=Path("data")))
    text = Path(logger.log_dir, "hparams.yaml").read_text()
    assert yaml.safe_load(text) == {"lr": 0.2, "depth": 2, "path": "data"}


# ranks and copies


@pytest.mark.usefixtures("_on_rank_one")
def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"x": 1}, 0)
    logger.log_hyperparams({"lr": 0.1})
    logger.experiment.save()
    logger.finalize("success")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda logger: pickle.loads(pickle.dumps(logger))])
def test_copy_goes_on_in_the_same_file_without_repeating_rows(tmp_path: Path, duplicate: Any) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"x": 1}, 0)
    other = duplicate(logger)
    other.log_metrics({"y": 2}, 1)
    other.finalize("success")
    logger.finalize("success")
    assert lines_of(logger) == ["step,x,y", "0,1,", "1,,2"]


# kills


def run_and_die(program: str) -> None:
    code = f"import os, signal\nfrom fulgur.loggers import CSVLogger\nlogger = CSVLogger('logs', version=0)\n{program}"
    code += "\nos.kill(os.getpid(), signal.SIGKILL)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert result.returncode == -signal.SIGKILL


def test_saved_rows_survive_a_kill() -> None:
    run_and_die("""
for step in range(5):
    logger.log_metrics({"x": step}, step)
    if step == 3:
        logger.save()
""")
    assert lines_of(CSVLogger("logs", version=0)) == ["step,x", "0,0", "1,1", "2,2", "3,3"]


def test_kill_while_the_file_is_widened_keeps_every_saved_row() -> None:
    run_and_die("""
logger.log_metrics({"x": 1}, 0)
logger.save()
os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
logger.log_metrics({"y": 1}, 1)
logger.save()
""")
    assert lines_of(CSVLogger("logs", version=0)) == ["step,x", "0,1"]


def test_kill_while_hparams_are_written_keeps_the_old_ones() -> None:
    run_and_die("""
logger.log_hyperparams({"lr": 0.1})
os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
logger.log_hyperparams({"lr": 0.2})
""")
    assert Path("logs/lightning_logs/version_0/hparams.yaml").read_text() == "lr: 0.1\n"


# URLs


@pytest.fixture
def url() -> str:
    return f"memory://{uuid4().hex}"


def remote_text(url: str) -> str:
    fs, path = split_url(url)
    return fs.cat_file(path).decode()


def test_files_are_written_behind_a_url(url: str) -> None:
    logger = CSVLogger(url, "n")
    logger.log_hyperparams({"lr": 0.1})
    for step in range(3):
        logger.log_metrics({"x": step}, step)
        logger.save()
    logger.finalize("success")
    assert logger.log_dir == f"{url}/n/version_0"
    assert remote_text(f"{url}/n/version_0/metrics.csv") == "step,x\n0,0\n1,1\n2,2\n"
    assert remote_text(f"{url}/n/version_0/hparams.yaml") == "lr: 0.1\n"


def test_loggers_behind_one_url_get_different_versions(url: str) -> None:
    loggers = [CSVLogger(url), CSVLogger(url)]
    for logger in loggers:
        _ = logger.experiment
    assert [logger.version for logger in loggers] == [0, 1]


def test_first_rows_are_uploaded_at_once_and_later_ones_wait(url: str) -> None:
    logger = CSVLogger(url)
    for step in range(2):
        logger.log_metrics({"x": step}, step)
        logger.save()
    assert remote_text(f"{logger.log_dir}/metrics.csv") == "step,x\n0,0\n"
    logger.finalize("success")
    assert remote_text(f"{logger.log_dir}/metrics.csv") == "step,x\n0,0\n1,1\n"


def test_local_copy_of_a_remote_file_goes_away_with_the_logger(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    logger = CSVLogger(url)
    logger.log_metrics({"x": 1}, 0)
    logger.finalize("success")
    assert len(os.listdir(tmp_path)) == 1
    del logger
    assert os.listdir(tmp_path) == []


def test_copy_of_a_remote_logger_goes_on_with_the_same_rows(url: str) -> None:
    logger = CSVLogger(url)
    logger.log_metrics({"x": 1}, 0)
    other = pickle.loads(pickle.dumps(logger))
    other.log_metrics({"x": 2}, 1)
    other.finalize("success")
    assert remote_text(f"{logger.log_dir}/metrics.csv") == "step,x\n0,1\n1,2\n"
