"""Ray's ranks, read from something that answers as ``ray.train.get_context()`` is documented to."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import fulgur as fl
from fulgur.errors import LayoutError, MisconfigurationException
from fulgur.launch.environments import LightningEnvironment, find_environment
from fulgur.launch.environments.ray import RayEnvironment, RayLightningEnvironment, prepare_trainer

WORKER = {"world_size": 4, "world_rank": 3, "local_world_size": 2, "local_rank": 1, "node_rank": 1}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Numbers of Ray, that may be changed."""
    numbers = dict(WORKER)
    context = SimpleNamespace(**{f"get_{name}": lambda name=name: numbers[name] for name in numbers})
    _be_ray(monkeypatch, lambda: context)
    monkeypatch.setenv("MASTER_ADDR", "node-a")
    monkeypatch.setenv("MASTER_PORT", "4321")
    return numbers


def _be_ray(monkeypatch: pytest.MonkeyPatch, get_context: Any) -> None:
    train = ModuleType("ray.train")
    train.get_context = get_context  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray.train", train)


def test_worker_is_found_and_its_ranks_are_read(worker: dict[str, int]) -> None:
    environment = find_environment()
    assert isinstance(environment, RayEnvironment)
    assert environment.creates_processes_externally
    assert (environment.world_size(), environment.global_rank()) == (4, 3)
    assert (environment.local_rank(), environment.node_rank()) == (1, 1)
    assert (environment.local_world_size(), environment.num_nodes()) == (2, 2)
    assert (environment.main_address, environment.main_port) == ("node-a", 4321)


def test_name_of_rays_own_package_is_known() -> None:
    assert RayLightningEnvironment is RayEnvironment


def test_driver_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise RuntimeError("`get_context` cannot be used outside of a Ray Train training function.")

    _be_ray(monkeypatch, refuse)
    assert isinstance(find_environment(), LightningEnvironment)


def test_driver_of_rays_first_api_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer() -> int:
        warnings.warn("`get_world_size` is meant to only be called inside a function", stacklevel=2)
        return 1

    _be_ray(monkeypatch, lambda: SimpleNamespace(get_world_size=answer))
    assert not RayEnvironment.detect()


def test_trainer_takes_rays_layout(worker: dict[str, int]) -> None:
    trainer = fl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    assert (trainer.num_devices, trainer.num_nodes, trainer.world_size) == (2, 2, 4)
    assert trainer.global_rank == 3
    assert prepare_trainer(trainer) is trainer


def test_devices_that_contradict_ray_are_refused(worker: dict[str, int]) -> None:
    with pytest.raises(LayoutError, match=r"Ray Train has started 4 on 2 machines \(get_world_size\(\)=4\)"):
        fl.Trainer(accelerator="cpu", devices=3, logger=False)


def test_trainer_that_trains_alone_beside_other_workers_is_refused(worker: dict[str, int]) -> None:
    trainer = fl.Trainer(accelerator="cpu", strategy="single_device", logger=False)
    with pytest.raises(
        MisconfigurationException, match="Ray Train has started 4 workers, and this Trainer is one of 1"
    ):
        prepare_trainer(trainer)


def test_unequal_shares_of_machines_are_refused(worker: dict[str, int]) -> None:
    worker["local_world_size"] = 3
    with pytest.raises(LayoutError, match="has put 3 of 4 workers on this machine"):
        RayEnvironment()


def test_prepare_trainer_outside_of_a_worker_is_refused() -> None:
    trainer = fl.Trainer(accelerator="cpu", devices=1, logger=False)
    with pytest.raises(MisconfigurationException, match="outside of a worker of Ray Train"):
        prepare_trainer(trainer)
