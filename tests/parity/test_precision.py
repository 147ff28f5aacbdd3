"""Every precision gives the bits of a loop that does the same by hand."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from tests.parity.conftest import (
    N_BATCHES,
    Regression,
    adam,
    assert_same_bits,
    assert_same_training,
    build_loader,
    build_net,
    loss_of,
    quiet_trainer,
    sgd,
    train_by_hand,
)
from torch import nn
from torch.nn.utils import clip_grad_norm_

from fulgur.errors import MisconfigurationException
from fulgur.precision import Precision


@pytest.mark.parametrize(
    ("precision", "dtype", "configure"),
    [
        ("32-true", torch.float32, adam),
        ("64-true", torch.float64, adam),
        ("bf16-true", torch.bfloat16, adam),
        ("16-true", torch.float16, sgd),  # Adam's epsilon is 0 in float16
    ],
)
def test_true_precisions(precision: Any, dtype: torch.dtype, configure: Any) -> None:
    expected, module = build_net().to(dtype), Regression(build_net(), configure)
    trainer = quiet_trainer(precision=precision)
    optimizer = configure(expected)
    batches = [[tensor.to(dtype) for tensor in batch] for batch in build_loader()]
    losses = train_by_hand(expected, optimizer, batches)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_bits(module.losses, losses)
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("accumulate", [1, 4])
def test_bf16_mixed(accumulate: int) -> None:
    expected, module = build_net(), Regression(build_net())
    trainer = quiet_trainer(precision="bf16-mixed", accumulate_grad_batches=accumulate, gradient_clip_val=0.1)
    optimizer = adam(expected)
    for _ in range(2):
        for batch_idx, batch in enumerate(build_loader()):
            if batch_idx % accumulate == 0:
                optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(expected, batch)
            length = min(accumulate, N_BATCHES - batch_idx // accumulate * accumulate)
            (loss / length).backward()
            if (batch_idx + 1) % accumulate == 0 or batch_idx == N_BATCHES - 1:
                clip_grad_norm_(expected.parameters(), 0.1)
                optimizer.step()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_new_tensors_in_a_step_have_the_true_precision() -> None:
    class Creating(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen = (batch[0].dtype, torch.zeros(1).dtype)
            return super().training_step(batch, batch_idx)

    module = Creating(build_net())

    quiet_trainer(precision="bf16-true", max_steps=1).fit(module, build_loader())

    assert module.seen == (torch.bfloat16, torch.bfloat16)


def test_16_mixed_on_the_cpu_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"precision='16-mixed' needs CUDA.*precision='bf16-mixed'"):
        quiet_trainer(precision="16-mixed")


# ----------------------------------------------------------------------------------------------- with a loss scaler


class ScaledPrecision(Precision):
    """float16 with a scaler, on any device: what "16-mixed" does, where there is no CUDA too."""

    name = "16-mixed"

    def __init__(self, device: str, init_scale: float = 2.0**10) -> None:
        self.device = device
        self.scaler = build_scaler(device, init_scale)

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def step_context(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, dtype=torch.float16)

    def init_context(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        assert self.scaler is not None
        return self.scaler.state_dict()


def build_scaler(device: str, init_scale: float) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(device, init_scale=init_scale, growth_interval=3)


def scale_by_hand(net: Any, optimizer: Any, scaler: Any, device: str, *, accumulate: int = 1, clip: float = 0) -> None:
    for _ in range(2):
        for batch_idx, batch in enumerate(build_loader()):
            if batch_idx % accumulate == 0:
                optimizer.zero_grad()
            with torch.autocast(device, dtype=torch.float16):
                loss = loss_of(net, [tensor.to(device) for tensor in batch])
            length = min(accumulate, N_BATCHES - batch_idx // accumulate * accumulate)
            scaler.scale(loss / length).backward()
            if (batch_idx + 1) % accumulate == 0 or batch_idx == N_BATCHES - 1:
                scaler.unscale_(optimizer)
                if clip:
                    clip_grad_norm_(net.parameters(), clip)
                scaler.step(optimizer)
                scaler.update()


@pytest.mark.parametrize("init_scale", [2.0**10, 2.0**40], ids=["fits", "overflows"])
@pytest.mark.parametrize(("accumulate", "clip"), [(1, 0.0), (1, 0.05), (4, 0.05)])
def test_scaled_loss(accumulate: int, clip: float, init_scale: float) -> None:
    expected, module, precision = build_net(), Regression(build_net()), ScaledPrecision("cpu", init_scale)
    trainer = quiet_trainer(plugins=[precision], accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    optimizer, scaler = adam(expected), build_scaler("cpu", init_scale)
    scale_by_hand(expected, optimizer, scaler, "cpu", accumulate=accumulate, clip=clip)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert precision.state_dict() == scaler.state_dict()


def test_scaled_loss_with_an_overridden_optimizer_step() -> None:
    class Stepping(Regression):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)

    expected, module, precision = build_net(), Stepping(build_net()), ScaledPrecision("cpu")
    trainer = quiet_trainer(plugins=[precision], gradient_clip_val=0.05)
    optimizer, scaler = adam(expected), build_scaler("cpu", 2.0**10)
    scale_by_hand(expected, optimizer, scaler, "cpu", clip=0.05)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert precision.state_dict() == scaler.state_dict()


def test_scaled_loss_in_manual_optimization() -> None:
    class Manual(Regression):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss_of(self.net, batch))
            optimizer.step()

    expected, module, precision = build_net(), Manual(build_net()), ScaledPrecision("cpu")
    trainer = quiet_trainer(plugins=[precision])
    optimizer, scaler = adam(expected), build_scaler("cpu", 2.0**10)
    scale_by_hand(expected, optimizer, scaler, "cpu")

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert precision.state_dict() == scaler.state_dict()


def test_clipping_by_hand_sees_gradients_without_the_scale() -> None:
    class Clipping(Regression):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss_of(self.net, batch))
            self.clip_gradients(optimizer, gradient_clip_val=0.05)
            optimizer.step()

    expected, module, precision = build_net(), Clipping(build_net()), ScaledPrecision("cpu")
    trainer = quiet_trainer(plugins=[precision])
    optimizer, scaler = adam(expected), build_scaler("cpu", 2.0**10)
    scale_by_hand(expected, optimizer, scaler, "cpu", clip=0.05)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert precision.state_dict() == scaler.state_dict()


def test_optimizer_that_steps_twice_in_a_batch_under_one_scale() -> None:
    class Twice(Regression):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            for _ in range(2):
                optimizer.zero_grad()
                self.manual_backward(loss_of(self.net, batch))
                optimizer.step()

    expected, module, precision = build_net(), Twice(build_net()), ScaledPrecision("cpu")
    trainer = quiet_trainer(plugins=[precision])
    optimizer, scaler = adam(expected), build_scaler("cpu", 2.0**10)
    for _ in range(2):
        for batch in build_loader():
            for turn in range(2):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.float16):
                    loss = loss_of(expected, batch)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                if turn == 0:
                    scaler.update(scaler.get_scale())
            scaler.update()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert precision.state_dict() == scaler.state_dict()


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.heads = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])

    def optimizers(self) -> list[Any]:
        return [torch.optim.SGD(head.parameters(), lr=0.1) for head in self.heads]


def test_scaled_losses_of_two_manual_optimizers_share_one_scale_in_a_batch() -> None:
    """Both backwards come before both steps: the second step must still be unscaled by the scale of its backward."""

    class Manual(Regression):
        def __init__(self) -> None:
            super().__init__(TwoHeads(), lambda net: net.optimizers())
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            for head in self.net.heads:  # type: ignore[union-attr]
                self.manual_backward(loss_of(head, batch))
            for optimizer in self.optimizers():
                optimizer.step()

    expected, module, precision = TwoHeads(), Manual(), ScaledPrecision("cpu")
    trainer, optimizers, scaler = quiet_trainer(plugins=[precision]), expected.optimizers(), build_scaler("cpu", 2**10)
    for _ in range(2):
        for batch in build_loader():
            for head, optimizer in zip(expected.heads, optimizers, strict=True):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.float16):
                    loss = loss_of(head, batch)
                scaler.scale(loss).backward()
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, *optimizers)
    assert precision.state_dict() == scaler.state_dict()


def test_scaled_losses_of_two_automatic_optimizers() -> None:
    class Automatic(Regression):
        def __init__(self) -> None:
            super().__init__(TwoHeads(), lambda net: net.optimizers())

        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]
            return loss_of(self.net.heads[optimizer_idx], batch)  # type: ignore[index]

    expected, module, precision = TwoHeads(), Automatic(), ScaledPrecision("cpu")
    trainer, optimizers, scaler = quiet_trainer(plugins=[precision]), expected.optimizers(), build_scaler("cpu", 2**10)
    for _ in range(2):
        for batch in build_loader():
            for head, optimizer in zip(expected.heads, optimizers, strict=True):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.float16):
                    loss = loss_of(head, batch)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, *optimizers)
    assert precision.state_dict() == scaler.state_dict()


def test_manual_forward_after_a_step_uses_the_new_weights_under_autocast() -> None:
    """Autocast keeps the weights it has cast, and a manual training_step is all within it."""

    class Twice(Regression):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()

            def closure() -> Any:
                optimizer.zero_grad()
                loss = loss_of(self.net, batch)
                self.manual_backward(loss)
                return loss

            closure()
            optimizer.step()
            optimizer.step(closure)

    expected, module, trainer = build_net(), Twice(build_net()), quiet_trainer(precision="bf16-mixed")
    optimizer = adam(expected)
    for _ in range(2):
        for batch in build_loader():
            for _ in range(2):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = loss_of(expected, batch)
                loss.backward()
                optimizer.step()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


@pytest.mark.gpu
@pytest.mark.parametrize(("accumulate", "clip"), [(1, 0.0), (1, 0.05), (4, 0.05)])
def test_16_mixed_on_cuda(accumulate: int, clip: float) -> None:
    expected, module = build_net().cuda(), Regression(build_net())
    trainer = quiet_trainer(
        accelerator="cuda",
        devices=1,
        precision="16-mixed",
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
    )
    optimizer, scaler = adam(expected), torch.amp.GradScaler("cuda")
    scale_by_hand(expected, optimizer, scaler, "cuda", accumulate=accumulate, clip=clip)

    trainer.fit(module, build_loader())

    assert_same_bits(module.net.state_dict(), expected.cpu().state_dict())
    assert trainer.precision_plugin.state_dict() == scaler.state_dict()
