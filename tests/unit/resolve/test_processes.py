"""From arguments and what the launcher says to devices, machines and strategy."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch

from fulgur import Trainer
from fulgur.checkpoint.io import AsyncCheckpointIO
from fulgur.errors import LayoutError, MisconfigurationException, MissingExtraError
from fulgur.launch.environments import LightningEnvironment, TorchElasticEnvironment
from fulgur.launch.multiprocess import MultiProcessLauncher
from fulgur.launch.script import ScriptLauncher
from fulgur.strategies import DDPStrategy, SingleDeviceStrategy, StrategyRegistry

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "7",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
_PREFIXES = ("SLURM_", "OMPI_", "PMI_", "TORCHELASTIC_", "FULGUR_", "GROUP_")
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in _NAMES or name.startswith(_PREFIXES):
            monkeypatch.delenv(name)


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


def _trainer(**arguments: Any) -> Trainer:
    return Trainer(**{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, **arguments})


# Without a launcher


@pytest.mark.parametrize(("devices", "count"), [("auto", 1), (1, 1), (3, 3), ("2", 2)])
def test_cpu_has_one_device_for_each_process(devices: Any, count: int) -> None:
    trainer = _trainer(devices=devices)
    assert (trainer.num_devices, trainer.world_size, trainer.device_ids) == (count, count, list(range(count)))
    assert trainer.accelerator.name == "cpu"


@pytest.mark.usefixtures("four_gpus")
def test_indices_name_the_gpus() -> None:
    trainer = _trainer(accelerator="cuda", devices=[3, 1], strategy="ddp")
    assert trainer.strategy.parallel_devices == [torch.device("cuda", 3), torch.device("cuda", 1)]
    assert trainer.device_ids == [3, 1]
    assert trainer.strategy.root_device == torch.device("cuda", 3)


@pytest.mark.usefixtures("four_gpus")
def test_auto_takes_all_gpus() -> None:
    assert _trainer(accelerator="cuda").world_size == 4


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({}, SingleDeviceStrategy),
        ({"strategy": "single_device"}, SingleDeviceStrategy),
        ({"devices": 2}, DDPStrategy),
        ({"strategy": "DDP"}, DDPStrategy),
        ({"strategy": "ddp", "devices": 2}, DDPStrategy),
    ],
)
def test_strategy_follows_from_name_and_number(arguments: dict[str, Any], kind: type) -> None:
    assert type(_trainer(**arguments).strategy) is kind


@pytest.mark.parametrize(
    ("name", "launcher", "method"),
    [
        ("ddp", ScriptLauncher, None),
        ("ddp_spawn", MultiProcessLauncher, "spawn"),
        ("ddp_fork", MultiProcessLauncher, "fork"),
        ("ddp_notebook", MultiProcessLauncher, "fork"),
        ("ddp_notebook_find_unused_parameters_true", MultiProcessLauncher, "fork"),
    ],
)
def test_name_says_how_processes_are_started(name: str, launcher: type, method: str | None) -> None:
    found = _trainer(devices=2, strategy=name).strategy.launcher
    assert type(found) is launcher
    assert getattr(found, "start_method", None) == method


def test_suffix_sets_the_argument_of_ddp() -> None:
    strategy: Any = _trainer(devices=2, strategy="ddp_find_unused_parameters_true").strategy
    assert strategy.ddp_kwargs == {"find_unused_parameters": True}


def test_own_name_in_the_registry_works() -> None:
    StrategyRegistry.register("ddp_for_test", DDPStrategy, "for a test", find_unused_parameters=True)
    try:
        strategy: Any = _trainer(devices=2, strategy="ddp_for_test").strategy
    finally:
        StrategyRegistry.remove("ddp_for_test")
    assert strategy.ddp_kwargs == {"find_unused_parameters": True}


def test_one_process_needs_no_launcher() -> None:
    assert _trainer(strategy="ddp").strategy.launcher is None


def test_several_machines_by_hand_take_rank_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NODE_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    trainer = _trainer(devices=2, num_nodes=2)
    assert (trainer.world_size, trainer.node_rank, trainer.global_rank) == (4, 1, 2)
    assert type(trainer.strategy.launcher) is ScriptLauncher


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'ddp_spawn'"):
        _trainer(strategy="dpp_spawn")


def test_strategy_of_a_package_that_is_not_there_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises((MissingExtraError, MisconfigurationException), match="deepspeed"):
        _trainer(strategy="deepspeed", devices=2)


@pytest.mark.usefixtures("four_gpus")
def test_several_processes_on_mps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ValueError, match="'mps'"):
        _trainer(accelerator="mps", strategy="ddp")


def test_prompt_cannot_run_a_program_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(MisconfigurationException, match="ddp_notebook"):
        _trainer(devices=2, strategy="ddp")
    assert _trainer(devices=2).strategy.launcher.start_method == "fork"  # type: ignore[union-attr]


# Instances that contradict arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": DDPStrategy(parallel_devices=[torch.device("cpu")] * 2), "devices": 3}, "devices=3 contradicts"),
        (
            {"strategy": DDPStrategy(parallel_devices=[torch.device("cuda", 0)]), "accelerator": "cpu"},
            "accelerator='cpu' contradicts",
        ),
        ({"strategy": SingleDeviceStrategy("cpu"), "devices": 2}, "devices=2 contradicts"),
        ({"strategy": "single_device", "devices": 2}, "devices=2"),
        ({"strategy": "single_device", "num_nodes": 2}, "num_nodes=2"),
        (
            {
                "strategy": DDPStrategy(cluster_environment=LightningEnvironment()),
                "plugins": [TorchElasticEnvironment()],
                "devices": 2,
            },
            "TorchElasticEnvironment.*LightningEnvironment",
        ),
        (
            {"strategy": DDPStrategy(checkpoint_io=AsyncCheckpointIO()), "plugins": AsyncCheckpointIO(), "devices": 2},
            "bring a CheckpointIO",
        ),
    ],
)
def test_instance_that_contradicts_an_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        _trainer(**arguments)


def test_devices_of_an_instance_count() -> None:
    trainer = _trainer(strategy=DDPStrategy(parallel_devices=[torch.device("cpu")] * 2))
    assert (trainer.world_size, trainer.num_devices) == (2, 2)


def test_environment_may_be_a_plugin() -> None:
    environment = LightningEnvironment()
    assert _trainer(devices=2, plugins=[environment]).strategy.cluster_environment is environment


# Under a launcher


@pytest.mark.usefixtures("torchrun")
@pytest.mark.parametrize("arguments", [{}, {"devices": 2, "num_nodes": 2}, {"strategy": "ddp", "num_nodes": 2}])
def test_layout_comes_from_torchrun(arguments: dict[str, Any]) -> None:
    trainer = _trainer(**arguments)
    assert type(trainer.strategy) is DDPStrategy
    assert trainer.strategy.launcher is None
    assert (trainer.world_size, trainer.num_devices, trainer.num_nodes) == (4, 2, 2)
    assert (trainer.global_rank, trainer.local_rank, trainer.node_rank, trainer.is_global_zero) == (3, 1, 1, False)


@pytest.mark.usefixtures("torchrun")
@pytest.mark.parametrize("arguments", [{"devices": 1}, {"devices": 4}, {"devices": 2}, {"num_nodes": 3}])
def test_arguments_that_contradict_torchrun_are_an_error_that_names_both(arguments: dict[str, Any]) -> None:
    with pytest.raises(LayoutError, match=r"devices=.*num_nodes=.*WORLD_SIZE=4"):
        _trainer(**arguments)


@pytest.mark.usefixtures("torchrun")
def test_process_may_be_told_to_train_by_itself() -> None:
    trainer = _trainer(strategy="single_device", devices=1)
    assert (trainer.world_size, trainer.is_global_zero) == (1, True)


@pytest.mark.usefixtures("torchrun")
def test_process_that_sees_one_gpu_takes_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    trainer = _trainer(accelerator="cuda")
    assert trainer.strategy.root_device == torch.device("cuda", 0)
    assert trainer.world_size == 4


@pytest.mark.usefixtures("torchrun", "four_gpus")
def test_each_process_of_a_machine_has_a_gpu_of_its_own() -> None:
    assert _trainer(accelerator="cuda").strategy.root_device == torch.device("cuda", 1)
