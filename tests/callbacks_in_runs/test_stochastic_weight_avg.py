"""Stochastic weight averaging: against torch's own classes, batch norm, resume, two ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

from fulgur import LightningModule, Trainer
from fulgur.callbacks import Callback, ModelCheckpoint, StochasticWeightAveraging
from fulgur.errors import MisconfigurationException
from fulgur.testing import run_ranks


class Net(LightningModule):
    def __init__(self, *, has_norm: bool = False, has_scheduler: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        norm = [torch.nn.BatchNorm1d(3)] if has_norm else []
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 3), *norm, torch.nn.Linear(3, 1))
        self.has_scheduler = has_scheduler
        self.lrs: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = (self.net(batch) - 1).square().mean()
        self.log("loss", loss)
        return loss

    def on_train_epoch_start(self) -> None:
        self.lrs.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)
        schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)] if self.has_scheduler else []
        return [optimizer], schedulers


def build_loader() -> Any:
    values = torch.randn(8, 2, generator=torch.Generator().manual_seed(5))
    return torch.utils.data.DataLoader(values, batch_size=2)  # type: ignore[arg-type]


def train(net: Net, *callbacks: Callback, ckpt_path: Any = None, **arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    has_checkpoint = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    defaults: dict[str, Any] = {"max_epochs": 5, "enable_checkpointing": has_checkpoint}
    trainer = Trainer(**quiet, callbacks=list(callbacks), **(defaults | arguments))
    trainer.fit(net, build_loader(), ckpt_path=ckpt_path)
    return trainer


def make(**arguments: Any) -> StochasticWeightAveraging:
    return StochasticWeightAveraging(**({"swa_lrs": 0.02, "swa_epoch_start": 3, "annealing_epochs": 2} | arguments))


def by_hand(*, has_norm: bool = False, start: int = 2, n_epochs: int = 5) -> tuple[Net, list[float]]:
    net = Net(has_norm=has_norm)
    [optimizer], [scheduler] = net.configure_optimizers()
    average, lrs, annealing = AveragedModel(net), [], None
    for epoch in range(n_epochs):
        lrs.append(optimizer.param_groups[0]["lr"])
        if epoch == start:
            annealing = SWALR(optimizer, 0.02, 2)  # type: ignore[no-untyped-call]
        if epoch >= start:
            average.update_parameters(net)
        for batch in build_loader():
            optimizer.zero_grad()
            (net.net(batch) - 1).square().mean().backward()
            optimizer.step()
        (annealing or scheduler).step()
    own: Any = average.module
    if has_norm:
        update_bn(build_loader(), own.net)
    return own, lrs


def assert_equal(first: Any, second: Any) -> None:
    assert list(first) == list(second)
    assert [k for k in first if not torch.equal(first[k], second[k])] == []


@pytest.mark.parametrize("has_norm", [False, True])
def test_average_learning_rates_and_statistics_are_torchs(has_norm: bool) -> None:
    net, (own, lrs) = Net(has_norm=has_norm), by_hand(has_norm=has_norm)
    trainer = train(net, make())
    assert_equal(net.state_dict(), own.state_dict())
    assert net.lrs == lrs
    assert (trainer.current_epoch, trainer.global_step) == (5, 20)


def test_start_may_be_a_fraction_of_the_epochs() -> None:
    net = Net()
    train(net, make(swa_epoch_start=0.5))
    assert_equal(net.state_dict(), by_hand(start=2)[0].state_dict())


def test_pass_for_batch_norm_draws_and_logs_nothing() -> None:
    net = Net(has_norm=True)
    trainer = train(net, make())
    state, logged = torch.get_rng_state(), trainer.callback_metrics["loss"]
    other = Net(has_norm=True)
    plain = train(other)
    assert torch.equal(state, torch.get_rng_state())
    assert logged != plain.callback_metrics["loss"]
    assert net.net[1].momentum == 0.1


@pytest.mark.parametrize("has_scheduler", [False, True])
@pytest.mark.parametrize("step", [6, 8, 9, 12, 17])
def test_resumed_run_has_the_same_bits(has_scheduler: bool, step: int, tmp_path: Any) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)
    whole, resumed = (Net(has_norm=True, has_scheduler=has_scheduler) for _ in range(2))
    train(whole, make(), saver)
    train(resumed, make(), ckpt_path=tmp_path / f"{step}.ckpt")
    assert_equal(whole.state_dict(), resumed.state_dict())


def test_state_in_a_checkpoint_has_the_names_of_the_api(tmp_path: Any) -> None:
    train(Net(), make(), ModelCheckpoint(tmp_path, "file", every_n_epochs=5))
    state = torch.load(tmp_path / "file.ckpt", weights_only=True)["callbacks"]["StochasticWeightAveraging"]
    assert set(state) == {"n_averaged", "latest_update_epoch", "scheduler_state", "average_model_state"}
    assert (state["n_averaged"], state["latest_update_epoch"]) == (3, 4)


@pytest.mark.parametrize(("n_steps", "is_average"), [(16, False), (None, True)])
def test_file_of_weights_has_those_that_validations_see(n_steps: int | None, is_average: bool, tmp_path: Any) -> None:
    saver = ModelCheckpoint(tmp_path, "file", every_n_train_steps=16, save_weights_only=True)
    net = Net()
    trainer = train(net, make(), saver)
    if n_steps is None:
        trainer.save_checkpoint(tmp_path / "file.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "file.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[k], net.state_dict()[k]) for k in saved) is is_average


@pytest.mark.parametrize(("arguments", "message"), [
    ({"swa_lrs": 0}, "swa_lrs=0"),
    ({"swa_lrs": [0.1, -1.0]}, "swa_lrs"),
    ({"swa_epoch_start": 0}, "swa_epoch_start=0"),
    ({"swa_epoch_start": 1.5}, "swa_epoch_start=1.5"),
    ({"annealing_strategy": "steps"}, "'steps'"),
    ({"annealing_epochs": -1}, "annealing_epochs=-1"),
    ({"avg_fn": 3}, "avg_fn=3"),
    ({"device": 3}, "device=3"),
])  # fmt: skip
def test_arguments_out_of_range_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        make(**arguments)


def test_fraction_without_a_number_of_epochs_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="fraction of max_epochs"):
        train(Net(), make(swa_epoch_start=0.5), max_epochs=-1, max_steps=3)


def test_two_schedulers_are_refused() -> None:
    net = Net()
    [optimizer], schedulers = net.configure_optimizers()
    net.configure_optimizers = lambda: ([optimizer], schedulers * 2)  # type: ignore[method-assign]
    with pytest.raises(MisconfigurationException, match="returned 1 and 2"):
        train(net, make())


def test_manual_optimization_with_batch_norm_is_refused() -> None:
    net = Net(has_norm=True)
    net.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="optimizes by itself"):
        train(net, make())


def state_on_ranks() -> dict[str, Any]:
    net = Net(has_norm=True)
    train(net, make(), strategy="ddp", devices=2)
    return net.state_dict()


def test_all_ranks_end_with_the_same_weights_and_the_mean_of_their_statistics() -> None:
    first, second = run_ranks(state_on_ranks, 2)
    assert_equal(first, second)
    net, values = Net(has_norm=True), torch.cat(list(build_loader()))
    net.load_state_dict(first)
    # Rank r sees the rows r, r + 2, …; all batches have two rows, so that the mean over both is that over all rows.
    torch.testing.assert_close(first["net.1.running_mean"], net.net[0](values).mean(0).detach())
