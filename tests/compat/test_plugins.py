"""Parts written for Lightning plug in: a logger, a profiler, a checkpoint IO, a strategy, an accelerator."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import fulgur.compat
from fulgur.testing import BoringModel


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    fulgur.compat.install()
    yield
    fulgur.compat.uninstall()


def make_logger() -> dict[str, Any]:
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.loggers.logger import rank_zero_experiment
    from lightning.pytorch.utilities import rank_zero_only

    class ListLogger(Logger):
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[Any] = []

        @property
        def name(self) -> str:
            return "list"

        @property
        def version(self) -> str:
            return "0.1"

        @property
        @rank_zero_experiment
        def experiment(self) -> list[Any]:
            return self.rows

        @rank_zero_only
        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            self.rows.append(params)

        @rank_zero_only
        def log_metrics(self, metrics: Any, step: Any) -> None:
            self.rows.append((step, sorted(metrics)))

        @rank_zero_only
        def finalize(self, status: str) -> None:
            self.rows.append(status)

    return {"logger": ListLogger()}


def make_profiler() -> dict[str, Any]:
    from pytorch_lightning.profilers import Profiler

    class Counting(Profiler):
        def __init__(self) -> None:
            super().__init__()
            self.n_started = 0

        def start(self, action_name: str) -> None:
            self.n_started += 1

        def stop(self, action_name: str) -> None:
            pass

    return {"profiler": Counting()}


def make_checkpoint_io() -> dict[str, Any]:
    from lightning.pytorch.plugins import CheckpointIO

    class Own(CheckpointIO):
        n_saved = 0

        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            self.n_saved += 1
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.save(checkpoint, path)

        def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> Any:
            return torch.load(path, weights_only=False)

        def remove_checkpoint(self, path: Any) -> None:
            pass

    return {"plugins": [Own()], "enable_checkpointing": True}


def make_strategy() -> dict[str, Any]:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class Mine(SingleDeviceStrategy):
        def broadcast(self, obj: Any, src: int = 0) -> Any:
            return super().broadcast(obj, src)

    return {"strategy": Mine(torch.device("cpu"))}


def make_accelerator() -> dict[str, Any]:
    from lightning.pytorch.accelerators import Accelerator

    class Board(Accelerator):
        def setup_device(self, device: Any) -> None:
            pass

        def teardown(self) -> None:
            pass

        @staticmethod
        def parse_devices(devices: Any) -> Any:
            return devices

        @staticmethod
        def get_parallel_devices(devices: Any) -> Any:
            return [torch.device("cpu")] * devices

        @staticmethod
        def auto_device_count() -> int:
            return 1

        @staticmethod
        def is_available() -> bool:
            return True

        @staticmethod
        def name() -> str:  # type: ignore[override]
            return "board"

    return {"accelerator": Board(), "devices": 1}


def train(**arguments: Any) -> Any:
    import lightning.pytorch as pl

    class Logging(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.step(batch)
            self.log("loss", loss)
            return loss

    off = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(**{"accelerator": "cpu", **off, **arguments}, max_steps=2, log_every_n_steps=1)
    trainer.fit(Logging())
    return trainer


@pytest.mark.parametrize("make", [make_logger, make_profiler, make_checkpoint_io, make_strategy, make_accelerator])
def test_a_part_of_the_users_own_trains(make: Callable[[], dict[str, Any]]) -> None:
    assert train(**make()).global_step == 2


def test_a_logger_gets_rows_and_the_end() -> None:
    arguments = make_logger()
    train(**arguments)
    assert arguments["logger"].rows == [(0, ["epoch", "loss"]), (1, ["epoch", "loss"]), "success"]


def test_a_profiler_and_a_checkpoint_io_are_called() -> None:
    profiling, saving = make_profiler(), make_checkpoint_io()
    train(**profiling)
    train(**saving)
    assert profiling["profiler"].n_started > 0
    assert saving["plugins"][0].n_saved == 1


def test_a_strategy_that_is_registered_goes_by_its_name() -> None:
    from lightning.pytorch.strategies import StrategyRegistry

    kind = type(make_strategy()["strategy"])
    StrategyRegistry.register("of_this_test", kind, description="one device", device="cpu")
    try:
        assert type(train(strategy="of_this_test").strategy) is kind
    finally:
        StrategyRegistry.remove("of_this_test")


# ------------------------------------------------------------------- precision, environment, accelerator, layer sync


def test_a_precision_that_overrides_one_of_ours_is_used() -> None:
    from lightning.pytorch.plugins import MixedPrecision

    class Counting(MixedPrecision):
        n_contexts = 0

        def step_context(self) -> Any:
            self.n_contexts += 1
            return super().step_context()

    plugin = Counting("bf16-mixed", "cpu")
    trainer = train(plugins=[plugin])
    assert trainer.precision_plugin is plugin
    assert trainer.precision == "bf16-mixed"
    assert plugin.n_contexts > 0


def test_a_cluster_environment_of_the_users_own_tells_the_rank() -> None:
    from lightning.pytorch.plugins.environments import ClusterEnvironment

    class Alone(ClusterEnvironment):
        creates_processes_externally = True
        main_address = "127.0.0.1"
        main_port = 0

        @staticmethod
        def detect() -> bool:
            return False

        def world_size(self) -> int:
            return 1

        def set_world_size(self, size: int) -> None:
            pass

        def global_rank(self) -> int:
            return 0

        def set_global_rank(self, rank: int) -> None:
            pass

        def local_rank(self) -> int:
            return 0

        def node_rank(self) -> int:
            return 0

    environment = Alone()
    assert train(plugins=[environment]).global_step == 2


def test_an_accelerator_written_with_properties_of_a_class_goes_by_its_registered_name() -> None:
    from lightning.pytorch.accelerators import AcceleratorRegistry

    kind = type(make_accelerator()["accelerator"])
    AcceleratorRegistry.register("board_of_this_test", kind, description="a board")
    try:
        assert type(train(accelerator="board_of_this_test", devices=1).accelerator) is kind
    finally:
        AcceleratorRegistry.remove("board_of_this_test")
