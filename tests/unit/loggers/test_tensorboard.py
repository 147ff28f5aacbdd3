"""TensorBoardLogger, read back with TensorBoard's own reader."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
import yaml
from torch import nn

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from fulgur.errors import MissingExtraError
from fulgur.loggers import TensorBoardLogger
from fulgur.loggers.run_dir import split_url
from fulgur.loggers.tensorboard import is_tensorboard_available
from fulgur.rank import rank_zero_only


@pytest.fixture
def _on_rank_one() -> Iterator[None]:
    rank_zero_only.rank = 1
    yield
    rank_zero_only.rank = None


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[TensorBoardLogger]:
    logger = TensorBoardLogger(tmp_path, "n")
    yield logger
    logger.finalize("success")


def events_of(path: str) -> EventAccumulator:
    return EventAccumulator(path, size_guidance={"scalars": 0, "tensors": 0}).Reload()


def scalars_of(path: str) -> dict[str, list[tuple[int, float]]]:
    events = events_of(path)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def shown_hparams_of(path: str) -> dict[str, Any]:
    content = events_of(path).PluginTagToContent("hparams")["_hparams_/session_start_info"]
    info = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in info.hparams.items()}


def event_files(path: str) -> list[str]:
    return [name for name in os.listdir(path) if name.startswith("events.out.tfevents.")]


def hparams_file(logger: TensorBoardLogger) -> Any:
    return yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text())


# directories and versions


def test_log_dir_is_save_dir_name_version(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    assert (logger.save_dir, logger.name, logger.version) == (str(tmp_path), "lightning_logs", 0)
    assert logger.root_dir == str(tmp_path / "lightning_logs")
    assert logger.log_dir == str(tmp_path / "lightning_logs" / "version_0")


def test_sub_dir_holds_the_event_files(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, version="best", sub_dir="fold_1")
    _ = logger.experiment
    logger.finalize("success")
    assert logger.log_dir == str(tmp_path / "lightning_logs" / "best" / "fold_1")
    assert len(event_files(logger.log_dir)) == 1


@pytest.mark.parametrize("name", [None, ""])
def test_no_name_drops_the_level(tmp_path: Path, name: str | None) -> None:
    assert TensorBoardLogger(tmp_path, name).log_dir == str(tmp_path / "version_0")


def test_home_and_variables_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", str(tmp_path))
    monkeypatch.setenv("FOLD", "fold_1")
    logger = TensorBoardLogger("$WHERE", version="v", sub_dir="$FOLD")
    assert logger.log_dir == str(tmp_path / "lightning_logs" / "v" / "fold_1")


def test_experiment_creates_the_event_file(logger: TensorBoardLogger) -> None:
    _ = logger.experiment
    assert len(event_files(logger.log_dir)) == 1


def test_two_loggers_in_one_directory_get_different_versions(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path), TensorBoardLogger(tmp_path)]
    for logger in loggers:
        _ = logger.experiment
        logger.finalize("success")
    assert [logger.version for logger in loggers] == [0, 1]


def test_asking_for_the_version_creates_nothing(tmp_path: Path) -> None:
    assert TensorBoardLogger(tmp_path).version == 0
    assert os.listdir(tmp_path) == []


def test_existing_version_gets_another_event_file(tmp_path: Path) -> None:
    for step in range(2):
        logger = TensorBoardLogger(tmp_path, version=0)
        logger.log_metrics({"x": step}, step)
        logger.finalize("success")
    assert len(event_files(logger.log_dir)) == 2
    assert scalars_of(logger.log_dir)["x"] == [(0, 0.0), (1, 1.0)]


def test_arguments_reach_the_summary_writer(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, filename_suffix=".mine", max_queue=3)
    assert logger.experiment.max_queue == 3
    logger.finalize("success")
    assert event_files(logger.log_dir)[0].endswith(".mine")


def test_files_are_written_behind_a_url() -> None:
    url = f"memory://{uuid4().hex}"
    logger = TensorBoardLogger(url, "n")
    logger.log_metrics({"x": 1.0}, 0)
    logger.finalize("success")
    fs, path = split_url(f"{url}/n/version_0")
    names = sorted(entry.rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))
    assert [name.split(".")[0] for name in names] == ["events", "hparams"]


# metrics


def test_metrics_are_read_back(logger: TensorBoardLogger) -> None:
    logger.log_metrics({"loss": 0.5, "epoch": 0}, step=0)
    logger.log_metrics({"loss": torch.tensor(0.25), "acc": 1}, step=1)
    logger.save()
    assert scalars_of(logger.log_dir) == {
        "loss": [(0, 0.5), (1, 0.25)],
        "epoch": [(0, 0.0)],
        "acc": [(1, 1.0)],
    }


def test_save_puts_events_on_disk_before_the_end(logger: TensorBoardLogger) -> None:
    logger.log_metrics({"loss": 0.5}, step=0)
    size = os.path.getsize(os.path.join(logger.log_dir, event_files(logger.log_dir)[0]))
    logger.log_metrics({"loss": 0.5}, step=1)
    logger.save()
    assert os.path.getsize(os.path.join(logger.log_dir, event_files(logger.log_dir)[0])) > size


def test_prefix_is_joined_to_names(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, prefix="run")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert list(scalars_of(logger.log_dir)) == ["run-loss"]


def test_dict_makes_one_chart_with_several_curves(logger: TensorBoardLogger) -> None:
    logger.log_metrics({"loss": {"train": 0.5, "val": torch.tensor(0.75)}}, step=2)
    logger.save()
    assert scalars_of(os.path.join(logger.log_dir, "loss_train")) == {"loss": [(2, 0.5)]}
    assert scalars_of(os.path.join(logger.log_dir, "loss_val")) == {"loss": [(2, 0.75)]}


@pytest.mark.parametrize("value", ["text", None, [1, 2], torch.zeros(3)])
def test_value_that_is_no_scalar_is_refused_by_name(logger: TensorBoardLogger, value: object) -> None:
    with pytest.raises(ValueError, match="metric 'loss' has the value"):
        logger.log_metrics({"loss": value}, 0)


def test_metrics_after_finalize_go_to_the_same_directory(logger: TensorBoardLogger) -> None:
    logger.log_metrics({"train": 1.0}, 0)
    logger.finalize("success")
    logger.log_metrics({"test": 2.0}, 1)
    logger.finalize("success")
    assert set(scalars_of(logger.log_dir)) == {"train", "test"}


def test_finalize_of_an_unused_logger_creates_nothing(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.save()
    logger.finalize("success")
    assert os.listdir(tmp_path) == []


# hyperparameters


def test_hparams_file_is_written_even_if_there_are_none(logger: TensorBoardLogger) -> None:
    logger.log_metrics({"x": 1.0}, 0)
    logger.save()
    assert hparams_file(logger) == {}


def test_hparams_file_of_an_earlier_run_is_kept_if_there_are_none(tmp_path: Path) -> None:
    first, second = TensorBoardLogger(tmp_path, version=0), TensorBoardLogger(tmp_path, version=0)
    first.log_hyperparams({"lr": 0.1})
    first.finalize("success")
    second.log_metrics({"x": 1.0}, 0)
    second.finalize("success")
    assert hparams_file(second) == {"lr": 0.1}


def test_hparams_are_nested_in_the_file_and_flat_in_tensorboard(logger: TensorBoardLogger) -> None:
    logger.log_hyperparams(Namespace(optimizer={"lr": 0.5, "betas": (0.9, 0.99)}, name="net", nesterov=True, n=None))
    logger.save()
    assert hparams_file(logger) == {
        "optimizer": {"lr": 0.5, "betas": [0.9, 0.99]},
        "name": "net",
        "nesterov": True,
        "n": None,
    }
    assert shown_hparams_of(logger.log_dir) == {
        "optimizer/lr": 0.5,
        "optimizer/betas": "(0.9, 0.99)",
        "name": "net",
        "nesterov": 1.0,
        "n": "None",
    }


def test_hparams_without_metrics_come_with_the_placeholder(logger: TensorBoardLogger) -> None:
    logger.log_hyperparams({"lr": 0.5})
    logger.save()
    assert scalars_of(logger.log_dir) == {"hp_metric": [(0, -1.0)]}


def test_hparams_repeated_after_training_do_not_reset_the_metric(logger: TensorBoardLogger) -> None:
    logger.log_hyperparams({"lr": 0.5})
    logger.log_metrics({"hp_metric": 0.9}, 5)
    logger.log_hyperparams({"lr": 0.5})
    logger.save()
    assert scalars_of(logger.log_dir)["hp_metric"] == [(0, -1.0), (5, pytest.approx(0.9))]


def test_hparams_without_metrics_and_placeholder_only_go_to_the_file(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    logger.log_hyperparams({"lr": 0.5})
    logger.finalize("success")
    assert scalars_of(logger.log_dir) == {}
    assert hparams_file(logger) == {"lr": 0.5}


def test_metrics_given_with_hparams_replace_the_placeholder(logger: TensorBoardLogger) -> None:
    logger.log_hyperparams({"lr": 0.5}, {"val_acc": 0.0, "val_loss": torch.tensor(2.0)}, step=3)
    logger.save()
    assert scalars_of(logger.log_dir) == {"val_acc": [(3, 0.0)], "val_loss": [(3, 2.0)]}
    assert shown_hparams_of(logger.log_dir) == {"lr": 0.5}


def test_single_metric_given_with_hparams_is_hp_metric(logger: TensorBoardLogger) -> None:
    logger.log_hyperparams({"lr": 0.5}, 0.25)
    logger.save()
    assert scalars_of(logger.log_dir) == {"hp_metric": [(0, 0.25)]}


def test_hparams_of_several_calls_are_merged_in_the_file(logger: TensorBoardLogger) -> None:
    logger.log_hyperparams({"lr": 0.5, "depth": 2})
    logger.log_hyperparams({"lr": 0.25})
    assert hparams_file(logger) == {"lr": 0.25, "depth": 2}


# graphs


class Net(nn.Module):
    """As much of a LightningModule as the logger uses."""

    example_input_array: torch.Tensor | None = None
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Dropout())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch + 1

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch / 2


def graph_logger(tmp_path: Path) -> TensorBoardLogger:
    return TensorBoardLogger(tmp_path, log_graph=True)


@pytest.mark.parametrize("given", ["attribute", "argument"])
def test_graph_is_traced_with_the_example_input(tmp_path: Path, given: str) -> None:
    logger, net = graph_logger(tmp_path), Net()
    if given == "attribute":
        net.example_input_array = torch.zeros(3, 4)
        logger.log_graph(net)
    else:
        logger.log_graph(net, torch.zeros(3, 4))
    logger.finalize("success")
    assert events_of(logger.log_dir).Tags()["graph"]


def test_graph_of_a_plain_module_is_traced(tmp_path: Path) -> None:
    logger = graph_logger(tmp_path)
    logger.log_graph(nn.Linear(4, 2), torch.zeros(3, 4))
    logger.finalize("success")
    assert events_of(logger.log_dir).Tags()["graph"]


def test_tracing_leaves_the_model_and_the_generators_as_they_were(tmp_path: Path) -> None:
    logger, net = graph_logger(tmp_path), Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    logger.log_graph(net, torch.ones(3, 4))
    logger.finalize("success")
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_tracing_warns_of_nothing(tmp_path: Path) -> None:
    logger = graph_logger(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        logger.log_graph(Net(), torch.ones(3, 4))
    logger.finalize("success")


def test_graph_is_off_by_default(logger: TensorBoardLogger) -> None:
    logger.log_graph(Net(), torch.zeros(3, 4))
    assert not os.path.exists(logger.log_dir)


def test_graph_without_an_example_input_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="example_input_array"):
        graph_logger(tmp_path).log_graph(Net())


# ranks, copies, availability


@pytest.mark.usefixtures("_on_rank_one")
def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    logger.log_metrics({"x": 1.0}, 0)
    logger.log_hyperparams({"lr": 0.1}, {"acc": 0.0})
    logger.log_graph(Net(), torch.zeros(3, 4))
    logger.experiment.add_scalar("y", 1.0, 0)
    logger.finalize("success")
    assert os.listdir(tmp_path) == []


def test_pickled_logger_goes_on_with_a_writer_of_its_own(logger: TensorBoardLogger) -> None:
    logger.log_metrics({"x": 1.0}, 0)
    other = pickle.loads(pickle.dumps(logger))
    other.log_metrics({"x": 2.0}, 1)
    other.finalize("success")
    logger.finalize("success")
    assert other.log_dir == logger.log_dir
    assert scalars_of(logger.log_dir)["x"] == [(0, 1.0), (1, 2.0)]


def test_missing_tensorboard_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_tensorboard_available()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert not is_tensorboard_available()
    with pytest.raises(MissingExtraError, match=r"pip install 'fulgur\[tensorboard\]'"):
        TensorBoardLogger("logs")


def test_logger_dropped_without_finalize_warns_of_nothing(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"x": 1.0}, 0)
    logger.save()
    del logger
    gc.collect()


# going on with an earlier version


def resumed(logger: TensorBoardLogger, position: dict[str, Any], step: int) -> TensorBoardLogger:
    another = TensorBoardLogger(logger.save_dir, "n")
    another.resume_at(position, step)
    return another


def test_points_after_the_position_are_gone_and_those_at_its_step_stay_once(logger: TensorBoardLogger) -> None:
    logger.log_metrics({"loss": 1.0, "pair": {"a": 1.0, "b": 2.0}}, step=3)
    position = logger.position()
    logger.log_metrics({"val": 5.0}, step=3)  # a validation after the checkpoint
    logger.log_metrics({"loss": 2.0, "pair": {"a": 3.0, "c": 2.0}}, step=4)
    logger.finalize("failed")
    another = resumed(logger, position, 3)
    for metrics, step in (({"val": 5.0}, 3), ({"loss": 2.0, "pair": {"a": 3.0, "c": 2.0}}, 4)):
        another.log_metrics(metrics, step=step)
    another.finalize("success")
    assert scalars_of(another.log_dir) == {"loss": [(3, 1.0), (4, 2.0)], "val": [(3, 5.0)]}
    assert scalars_of(os.path.join(another.log_dir, "pair_a"))["pair"] == [(3, 1.0), (4, 3.0)]
    assert scalars_of(os.path.join(another.log_dir, "pair_c"))["pair"] == [(4, 2.0)]


def test_points_on_an_axis_that_is_ahead_stay(logger: TensorBoardLogger) -> None:
    logger.log_metrics({"of_batches": 1.0}, step=100)
    logger.log_metrics({"loss": 1.0}, step=3)
    position = logger.position()
    logger.finalize("failed")
    another = resumed(logger, position, 3)
    another.log_metrics({"loss": 2.0}, step=4)
    another.finalize("success")
    assert scalars_of(another.log_dir) == {"of_batches": [(100, 1.0)], "loss": [(3, 1.0), (4, 2.0)]}


def test_position_of_a_version_that_tells_no_sizes_drops_the_points_after_its_step(logger: TensorBoardLogger) -> None:
    for step in (1, 2):
        logger.log_metrics({"loss": float(step)}, step=step)
    logger.finalize("failed")
    another = resumed(logger, {"version": 0}, 1)
    another.log_metrics({"loss": 7.0}, step=2)
    another.finalize("success")
    assert scalars_of(another.log_dir) == {"loss": [(1, 1.0), (2, 7.0)]}
