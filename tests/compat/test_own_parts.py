"""Strategies, precisions and layer syncs that override what such classes override: it takes part in the run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fulgur
import fulgur.compat
from fulgur.errors import MisconfigurationException
from fulgur.testing import BoringModel, run_ranks


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    fulgur.compat.install()
    yield
    fulgur.compat.uninstall()


def quiet(**arguments: Any) -> Any:
    off = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return fulgur.Trainer(**{**off, "max_steps": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0, **arguments})  # type: ignore[arg-type]


def trained(**arguments: Any) -> torch.Tensor:
    torch.manual_seed(0)
    model = BoringModel()
    quiet(accelerator="cpu", **arguments).fit(model, DataLoader(torch.ones(4, 32), 2))
    return model.layer.weight.detach()


def make_strategy(told: list[str]) -> Any:
    """A strategy from the base class alone, with the methods that are abstract there and some more."""
    from lightning.pytorch.strategies import Strategy

    class Own(Strategy):
        strategy_name = "own"

        @property
        def root_device(self) -> torch.device:
            return torch.device("cpu")

        @property
        def is_global_zero(self) -> bool:
            return True

        def setup_environment(self) -> None:
            told.append("setup_environment")
            super().setup_environment()

        def model_to_device(self) -> None:
            told.append("model_to_device")
            assert self.lightning_module is not None
            super().model_to_device()

        def batch_to_device(self, batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:
            told.append("batch_to_device")
            return super().batch_to_device(batch, device, dataloader_idx)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            told.append("training_step")
            return super().training_step(*args, **kwargs)

        def validation_step(self, *args: Any, **kwargs: Any) -> Any:
            told.append("validation_step")
            return super().validation_step(*args, **kwargs)

        def backward(self, closure_loss: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            assert isinstance(optimizer, torch.optim.SGD)
            told.append("backward")
            super().backward(closure_loss, optimizer, *args, **kwargs)

        def optimizer_step(self, optimizer: Any, closure: Any, model: Any = None, **kwargs: Any) -> Any:
            told.append("optimizer_step")
            return super().optimizer_step(optimizer, closure, model, **kwargs)

        def lightning_module_state_dict(self) -> dict[str, Any]:
            told.append("lightning_module_state_dict")
            return super().lightning_module_state_dict()

        def process_dataloader(self, dataloader: Any) -> Any:
            told.append("process_dataloader")
            return super().process_dataloader(dataloader)

        def barrier(self, *args: Any, **kwargs: Any) -> None:
            pass

        def broadcast(self, obj: Any, src: int = 0) -> Any:
            return obj

        def all_gather(self, tensor: Any, group: Any = None, sync_grads: bool = False) -> Any:
            return tensor

        def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
            return tensor

        def teardown(self) -> None:
            told.append("teardown")
            super().teardown()

    return Own()


def test_a_strategy_of_the_base_class_trains_to_the_same_weights() -> None:
    told: list[str] = []
    assert torch.equal(trained(strategy=make_strategy(told)), trained())
    assert told[:2] == ["setup_environment", "model_to_device"]
    step = ["batch_to_device", "optimizer_step", "training_step", "backward"]
    steps = [name for name in told if name in step]
    assert sorted(steps[:8]) == sorted(step * 2)
    assert [name for name in told if name in step[1:]] == step[1:] * 2
    assert "validation_step" in told
    assert told.count("process_dataloader") == 2
    assert told[-1] == "teardown"


def test_what_a_strategy_says_is_the_model_s_state_is_saved(tmp_path: Any) -> None:
    told: list[str] = []
    trainer = quiet(strategy=make_strategy(told))
    trainer.fit(BoringModel())
    trainer.save_checkpoint(tmp_path / "file.ckpt")
    assert "lightning_module_state_dict" in told


def test_a_strategy_brings_its_precision_and_accelerator() -> None:
    from lightning.pytorch.accelerators import CPUAccelerator
    from lightning.pytorch.plugins import DoublePrecision
    from lightning.pytorch.strategies import SingleDeviceStrategy

    strategy = SingleDeviceStrategy("cpu", accelerator=CPUAccelerator(), precision_plugin=DoublePrecision())
    trainer = quiet(strategy=strategy)
    assert trainer.accelerator is strategy.own_accelerator
    assert trainer.precision == "64-true"
    trainer = quiet(strategy=strategy)  # again, by another Trainer
    assert trainer.precision_plugin is strategy.own_precision


def test_a_strategy_s_precision_that_contradicts_the_trainer_s_is_an_error() -> None:
    from lightning.pytorch.plugins import DoublePrecision
    from lightning.pytorch.strategies import DDPStrategy

    with pytest.raises(ValueError, match="both set the precision"):
        quiet(strategy=DDPStrategy(precision_plugin=DoublePrecision()), precision="bf16-true", accelerator="cpu")


def test_a_strategy_s_accelerator_that_contradicts_the_trainer_s_is_an_error() -> None:
    from lightning.pytorch.accelerators import CPUAccelerator
    from lightning.pytorch.strategies import DDPStrategy

    with pytest.raises(MisconfigurationException, match="accelerator='mps' contradicts the CPUAccelerator"):
        quiet(strategy=DDPStrategy(accelerator=CPUAccelerator()), accelerator="mps")


def test_states_of_optimizers_are_loaded_by_the_strategy() -> None:
    class Adam(BoringModel):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.1)

    first, second = quiet(accelerator="cpu"), quiet(accelerator="cpu", max_steps=1)
    first.fit(Adam())
    second.fit(Adam())
    states = [optimizer.state_dict() for optimizer in first.strategy.optimizers]
    second.strategy.load_optimizer_state_dict({"optimizer_states": states})
    assert [s["step"].item() for s in second.optimizers[0].state.values()] == [2.0, 2.0]


# --------------------------------------------------------------------------------------------------- precision


def make_precision(told: list[str]) -> Any:
    from lightning.pytorch.plugins import Precision

    class Own(Precision):
        precision = "own-16"

        def convert_module(self, module: Any) -> Any:
            told.append("convert_module")
            return super().convert_module(module)

        def convert_input(self, data: Any) -> Any:
            told.append("convert_input")
            return super().convert_input(data)

        @contextmanager
        def forward_context(self) -> Any:
            told.append("forward_context")
            with super().forward_context():
                yield

        def backward(self, tensor: Any, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            told.append("backward")
            super().backward(tensor, model, optimizer, *args, **kwargs)

        def optimizer_step(self, optimizer: Any, model: Any, closure: Any, **kwargs: Any) -> Any:
            told.append("optimizer_step")
            return super().optimizer_step(optimizer, model, closure, **kwargs)

        def clip_gradients(self, optimizer: Any, clip_val: Any = 0.0, gradient_clip_algorithm: Any = "norm") -> None:
            told.append(f"clip_gradients({clip_val})")
            super().clip_gradients(optimizer, clip_val, gradient_clip_algorithm)

    return Own()


def test_a_precision_of_the_base_class_takes_part_in_each_step() -> None:
    told: list[str] = []
    plugin = make_precision(told)
    weights = trained(plugins=[plugin], gradient_clip_val=0.1, limit_val_batches=0)
    assert torch.equal(weights, trained(gradient_clip_val=0.1, limit_val_batches=0))
    assert plugin.name == "own-16"
    step = ["optimizer_step", "forward_context", "backward", "clip_gradients(0.1)"]
    assert told[0] == "convert_module"
    assert [name for name in told if name in step] == step * 2
    assert told.count("convert_input") >= 2


def test_a_context_around_autocast_is_made_anew_for_each_step() -> None:
    from lightning.pytorch.plugins import MixedPrecision

    seen: list[bool] = []

    class Noting(MixedPrecision):
        @contextmanager
        def forward_context(self) -> Any:
            with super().forward_context():
                seen.append(torch.is_autocast_enabled("cpu"))
                yield

    quiet(plugins=[Noting("bf16-mixed", "cpu")], accelerator="cpu", limit_val_batches=0).fit(BoringModel())
    assert seen == [True, True]


def test_a_precision_steps_under_manual_optimization_too() -> None:
    told: list[str] = []

    class Manual(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.step(batch))
            optimizer.step()

    quiet(plugins=[make_precision(told)], accelerator="cpu", limit_val_batches=0).fit(Manual())
    assert told.count("optimizer_step") == 2


def test_two_parts_that_both_take_the_step_are_an_error() -> None:
    trainer = quiet(strategy=make_strategy([]), plugins=[make_precision([])])
    with pytest.raises(MisconfigurationException, match="optimizer_step of its own, and Own too"):
        trainer.fit(BoringModel())


# ---------------------------------------------------------------------------------------------------- layer sync


class Normed(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)

    def forward(self, x: Any) -> Any:
        return super().forward(self.norm(x))


def _train_synced(plugin: bool) -> tuple[str, str, list[float]]:
    fulgur.compat.install()
    from lightning.pytorch.plugins import TorchSyncBatchNorm

    inside: list[str] = []

    class Looking(Normed):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            inside.append(type(self.norm).__name__)

    torch.manual_seed(0)
    model = Looking()
    how: Any = {"plugins": [TorchSyncBatchNorm()]} if plugin else {"sync_batchnorm": True}
    trainer = quiet(accelerator="cpu", devices=2, strategy="ddp", limit_val_batches=0, **how)
    data = torch.arange(8.0)[:, None] * torch.ones(1, 32)
    trainer.fit(model, DataLoader(data, 2))
    return inside[0], type(model.norm).__name__, model.norm.running_mean[:2].tolist()  # type: ignore[union-attr,index]


@pytest.mark.timeout(120)
def test_a_layer_sync_does_what_sync_batchnorm_does() -> None:
    (first, _), (second, _) = run_ranks(_train_synced, 2, True), run_ranks(_train_synced, 2, False)
    assert first == second
    assert first[:2] == ("SharedBatchNorm", "BatchNorm1d")


def test_a_layer_sync_of_the_user_s_own_contradicts_sync_batchnorm() -> None:
    from lightning.pytorch.plugins import LayerSync

    class Own(LayerSync):
        def apply(self, model: Any) -> Any:
            return copy.copy(model)

        def revert(self, model: Any) -> Any:
            return model

    with pytest.raises(MisconfigurationException, match="sync_batchnorm=True and the plugin Own"):
        quiet(plugins=[Own()], sync_batchnorm=True, accelerator="cpu")
    with pytest.raises(MisconfigurationException, match="2 layer syncs"):
        quiet(plugins=[Own(), Own()], accelerator="cpu")


@pytest.mark.timeout(120)
def test_a_strategy_of_the_user_s_own_goes_to_processes_that_are_started() -> None:
    from tests.compat.own_ddp import Counting, Telling

    trainer = quiet(accelerator="cpu", devices=2, strategy=Counting(start_method="spawn"), limit_val_batches=0)
    trainer.fit(Telling())
    assert trainer.global_step == 2
