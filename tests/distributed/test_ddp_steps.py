"""Steps of every kind under `DDPStrategy`: several optimizers, accumulation, closures, parameters without gradients."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fulgur import LightningModule, Trainer
from fulgur.errors import MisconfigurationException
from fulgur.testing import run_ranks

QUIET = {
    "accelerator": "cpu",
    "strategy": "ddp",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 1,
}


def world() -> tuple[int, int]:
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def build_data(n_samples: int = 32) -> torch.Tensor:
    return torch.randn(n_samples, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def build_loader(batch_size: int, n_samples: int = 32) -> DataLoader[Any]:
    return DataLoader(TensorDataset(build_data(n_samples)), batch_size=batch_size)


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.double()
        self.first = nn.Linear(4, 4, dtype=torch.float64)
        self.second = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.mse_loss(self(batch[0]), batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TwoOptimizers(Net):
    """An optimizer for each layer; the losses are not the same, as those of a GAN."""

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        y = self(batch[0])
        return F.mse_loss(y, batch[0]) if optimizer_idx == 0 else -y.abs().mean()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.first, self.second)]


class ManualGAN(Net):
    """Two backward passes for one optimizer and one for the other in each step, toggled and by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        generator, critic = self.optimizers()
        x = batch[0]
        with critic.toggle_model():
            critic.zero_grad()
            self.manual_backward(F.mse_loss(self.second(x), x))
            self.manual_backward(self.second(self.first(x).detach()).pow(2).mean())
            self.clip_gradients(critic, gradient_clip_val=0.05, gradient_clip_algorithm="norm")
            critic.step()
        generator.zero_grad()
        self.manual_backward(-self(x).mean())
        generator.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(layer.parameters(), lr=0.01) for layer in (self.first, self.second)]


class ManualAccumulation(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        is_step = batch_idx % 2 == 1
        with optimizer.toggle_model(sync_grad=is_step):
            self.manual_backward(F.mse_loss(self(batch[0]), batch[0]) / 2)
        if is_step:
            optimizer.step()
            optimizer.zero_grad()


class WithLBFGS(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=6, line_search_fn="strong_wolfe")


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> Any:
        return []


class WithBatchNorm(Net):
    """Three kinds of layers of batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64)
        self.images = nn.BatchNorm2d(2, momentum=None, dtype=torch.float64)
        self.bare = nn.BatchNorm1d(4, affine=False, track_running_stats=False, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = self.images(self.norm(self.first(x)).view(-1, 2, 1, 2)).view(-1, 4)
        return self.second(self.bare(images))


def trained(net: Net, n_samples: int = 32, **arguments: Any) -> list[torch.Tensor]:
    """Weights after training with a global batch of 4 samples, whatever the number of ranks."""
    size = world()[1]
    Trainer(devices=size, **{**QUIET, **arguments}).fit(net, build_loader(4 // size, n_samples))
    return [value.detach().clone() for value in net.state_dict().values()]


STEPS: dict[str, Any] = {
    "several optimizers": lambda: trained(TwoOptimizers()),
    "several optimizers, accumulating": lambda: trained(TwoOptimizers(), accumulate_grad_batches=2),
    "a GAN by hand": lambda: trained(ManualGAN()),
    "accumulation by hand": lambda: trained(ManualAccumulation()),
    "LBFGS": lambda: trained(WithLBFGS()),
    "nothing to train": lambda: trained(Frozen()),
    "batch norm over ranks": lambda: trained(WithBatchNorm(), sync_batchnorm=True),
    "accumulation": lambda: trained(Net(), accumulate_grad_batches=3),
    "clipping": lambda: trained(Net(), gradient_clip_val=0.01),
}


def run_steps() -> dict[str, Any]:
    return {name: step() for name, step in STEPS.items()}


@pytest.fixture(scope="module")
def on_one() -> dict[str, Any]:
    (result,) = run_ranks(run_steps, 1, timeout_s=200)
    return result


@pytest.fixture(scope="module")
def on_two() -> list[dict[str, Any]]:
    return run_ranks(run_steps, 2, timeout_s=200)


@pytest.mark.world_size(2)
@pytest.mark.parametrize("name", STEPS)
def test_two_ranks_train_as_one_does(on_one: dict[str, Any], on_two: list[dict[str, Any]], name: str) -> None:
    rtol = 1e-8 if name == "LBFGS" else 1e-11  # its line search makes more of a rounding error
    for rank in on_two:
        for got, wanted in zip(rank[name], on_one[name], strict=True):
            torch.testing.assert_close(got, wanted, rtol=rtol, atol=rtol / 10)
    assert all(torch.equal(a, b) for a, b in zip(on_two[0][name][:4], on_two[1][name][:4], strict=True))


# ------------------------------------------------------------------------------------------- what a step exchanges


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the collectives of this process, those of DistributedDataParallel too."""
    counts: Counter[str] = Counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield counts
    for event in profile.events():
        if event.name.startswith("gloo:"):
            counts[event.name] += 1


class Counted(Net):
    """Counts what is exchanged from the end of batch `from_batch` to that of batch `to_batch`."""

    from_batch, to_batch = 7, 15  # DistributedDataParallel settles its buckets before

    def __init__(self) -> None:
        super().__init__()
        self.collectives: Counter[str] = Counter()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=False)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.from_batch:
            self.counting = counted()
            self.found = self.counting.__enter__()
        elif batch_idx == self.to_batch:
            self.counting.__exit__(None, None, None)
            self.collectives = self.found


def collectives_of_steps() -> list[dict[str, int]]:
    found = []
    for arguments in ({}, {"accumulate_grad_batches": 4}, {"max_time": "00:00:10:00"}):
        net = Counted()
        from fulgur.callbacks import EarlyStopping, ModelCheckpoint

        callbacks = [EarlyStopping("loss"), ModelCheckpoint(train_time_interval=_an_hour(), monitor=None)]
        more = {"callbacks": callbacks, "enable_checkpointing": True, "default_root_dir": os.getcwd()}
        trained(net, 64, **arguments, **more)
        found.append(dict(net.collectives))
    return found


def _an_hour() -> Any:
    from datetime import timedelta

    return timedelta(hours=1)


@pytest.mark.world_size(2)
def test_steps_exchange_what_ddp_does_and_nothing_else() -> None:
    for plain, accumulating, limited in run_ranks(collectives_of_steps, 2):
        assert plain == {"gloo:all_reduce": 8}  # one bucket in each of the batches 8 to 15
        assert accumulating == {"gloo:all_reduce": 2}  # batches 11 and 15 complete a window
        assert limited == plain


# ------------------------------------------------------------------------------------------------------- mistakes


class LeavesOneOut(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.first(batch[0]).pow(2).mean()


def leave_one_out(strategy: str) -> list[torch.Tensor]:
    return trained(LeavesOneOut(), strategy=strategy)


@pytest.mark.world_size(2)
def test_parameters_without_gradients_are_an_error_that_names_the_way_out() -> None:
    with pytest.raises(MisconfigurationException, match="ddp_find_unused_parameters_true"):
        run_ranks(leave_one_out, 2, "ddp")


@pytest.mark.world_size(2)
def test_parameters_without_gradients_are_found_where_asked_for() -> None:
    weights = run_ranks(leave_one_out, 2, "ddp_find_unused_parameters_true")
    fresh = Net()
    assert torch.equal(weights[0][2], fresh.second.weight)
    assert not torch.equal(weights[0][0], fresh.first.weight)


def batch_norms_after_training() -> tuple[list[str], list[str], str]:
    during: list[str] = []

    class Watched(WithBatchNorm):
        def on_train_start(self) -> None:
            during.extend(type(part).__name__ for part in (self.norm, self.images))

    net = Watched()
    original = net.norm
    trained(net, sync_batchnorm=True)
    return during, [type(part).__name__ for part in (net.norm, net.images, net.bare)], str(net.norm is original)


@pytest.mark.world_size(2)
def test_layers_of_batch_norm_are_those_of_before_after_training() -> None:
    for during, after, is_original in run_ranks(batch_norms_after_training, 2):
        assert during == ["SharedBatchNorm", "SharedBatchNorm"]
        assert (after, is_original) == (["BatchNorm1d", "BatchNorm2d", "BatchNorm1d"], "True")


def models_in_steps() -> list[str]:
    seen: list[str] = []

    class Watched(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(f"train {type(self.trainer.model).__name__}")
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(f"validate {type(self.trainer.model).__name__} {self.trainer.model is self}")

    net = Watched()
    trainer = Trainer(devices=world()[1], **QUIET, limit_train_batches=1, num_sanity_val_steps=0)
    trainer.fit(net, build_loader(2))
    trainer.validate(net, build_loader(16), verbose=False)
    return seen


@pytest.mark.world_size(2)
def test_ddp_is_there_in_training_and_gone_in_evaluation() -> None:
    for seen in run_ranks(models_in_steps, 2):
        assert seen == ["train TrainingDDP", "validate Watched True"]


def weights_of_rank_zero() -> list[float]:
    found = []
    for evaluate in (False, True):
        net = Net()
        with torch.no_grad():
            net.first.weight.fill_(float(world()[0]) + 7)
        net.validation_step = lambda batch, batch_idx: None  # type: ignore[method-assign]
        trainer = Trainer(devices=world()[1], **QUIET, limit_train_batches=0)
        if evaluate:
            trainer.test(OnlyTests(net), build_loader(16), verbose=False)
        else:
            trainer.fit(net, build_loader(2))
        found.append(net.first.weight.mean().item())
    return found


class OnlyTests(LightningModule):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])


@pytest.mark.world_size(2)
def test_all_ranks_begin_with_the_weights_of_rank_zero() -> None:
    assert run_ranks(weights_of_rank_zero, 2) == [[7.0, 7.0]] * 2
