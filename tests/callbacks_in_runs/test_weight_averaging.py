"""Averages of weights: against torch's own, in validations, in checkpoints, through a resume, on two ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fulgur import LightningModule, Trainer
from fulgur.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from fulgur.errors import MisconfigurationException, PossibleUserWarning
from fulgur.testing import run_ranks


class Net(LightningModule):
    """Batch norm, so that there are buffers, and a loss whose gradient depends on the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
        self.validated_with: list[torch.Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (self.net(batch) - 1).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated_with.append(self.net[0].weight.detach().clone())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def build_loader(n: int = 8, batch_size: int = 2) -> Any:
    values = torch.randn(n, 2, generator=torch.Generator().manual_seed(5))
    return torch.utils.data.DataLoader(values, batch_size=batch_size)  # type: ignore[arg-type]


def train(*callbacks: Callback, val: bool = False, ckpt_path: Any = None, **arguments: Any) -> tuple[Net, Trainer]:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    has_checkpoint = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    defaults: dict[str, Any] = {"max_epochs": 2, "enable_checkpointing": has_checkpoint, "num_sanity_val_steps": 0}
    trainer, net = Trainer(**quiet, callbacks=list(callbacks), **(defaults | arguments)), Net()
    trainer.fit(net, build_loader(), build_loader(2) if val else None, ckpt_path=ckpt_path)
    return net, trainer


def by_hand(update_at: Any, *, n_epochs: int = 2, **kwargs: Any) -> tuple[Net, AveragedModel]:
    """The same training with torch's class alone."""
    net = Net()
    average, optimizer = AveragedModel(net, use_buffers=True, **kwargs), torch.optim.SGD(net.parameters(), lr=0.1)
    step = 0
    for _ in range(n_epochs):
        for batch in build_loader():
            optimizer.zero_grad()
            net.training_step(batch, 0).backward()
            optimizer.step()
            if update_at(step):
                average.update_parameters(net)
            step += 1
    return net, average


def assert_equal(first: Any, second: Any) -> None:
    assert list(first) == list(second)
    assert [k for k in first if not torch.equal(first[k], second[k])] == []


def test_average_of_all_steps_is_torchs() -> None:
    net, _ = train(WeightAveraging())
    assert_equal(net.state_dict(), by_hand(lambda step: True)[1].module.state_dict())


def test_ema_is_torchs() -> None:
    net, _ = train(EMAWeightAveraging(decay=0.8))
    own = by_hand(lambda step: True, multi_avg_fn=get_ema_multi_avg_fn(0.8))[1]
    assert_equal(net.state_dict(), own.module.state_dict())


def test_ema_updates_at_the_steps_asked_for() -> None:
    net, _ = train(EMAWeightAveraging(decay=0.8, update_every_n_steps=2, update_starting_at_step=3))
    own = by_hand(lambda step: step in (4, 6), multi_avg_fn=get_ema_multi_avg_fn(0.8))[1]
    assert_equal(net.state_dict(), own.module.state_dict())


def test_ema_updates_at_the_ends_of_epochs_asked_for() -> None:
    callback = EMAWeightAveraging(decay=0.5, update_every_n_steps=0, update_starting_at_epoch=1)
    net, _ = train(callback, max_epochs=3)
    own = by_hand(lambda step: step in (7, 11), n_epochs=3, multi_avg_fn=get_ema_multi_avg_fn(0.5))[1]
    assert_equal(net.state_dict(), own.module.state_dict())


def test_a_window_of_batches_is_one_update() -> None:
    steps: list[int | None] = []

    class Listening(WeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            steps.append(step_idx)
            return False

    train(Listening(), accumulate_grad_batches=2, max_epochs=1)
    assert steps == [0, 1, None]


def test_validation_runs_with_the_average_and_training_goes_on_with_the_weights() -> None:
    net, _ = train(EMAWeightAveraging(decay=0.5), val=True)
    plain = by_hand(lambda step: step < 4, multi_avg_fn=get_ema_multi_avg_fn(0.5))[1]
    whole = by_hand(lambda step: True, multi_avg_fn=get_ema_multi_avg_fn(0.5))[1]
    assert torch.equal(net.validated_with[0], plain.module.net[0].weight)  # type: ignore[index, union-attr]
    assert torch.equal(net.validated_with[1], whole.module.net[0].weight)  # type: ignore[index, union-attr]


def test_without_an_update_the_weights_stay_as_trained() -> None:
    net, _ = train(EMAWeightAveraging(update_starting_at_step=100), val=True)
    assert_equal(net.state_dict(), by_hand(lambda step: False)[0].state_dict())


def test_checkpoint_holds_the_average_as_its_weights(tmp_path: Any) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=4, auto_insert_metric_name=False)
    train(EMAWeightAveraging(decay=0.5), saver)
    checkpoint = torch.load(tmp_path / "4.ckpt", weights_only=True)
    net, average = by_hand(lambda step: True, n_epochs=1, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    assert_equal(checkpoint["state_dict"], average.module.state_dict())
    assert_equal(checkpoint["current_model_state"], net.state_dict())
    assert checkpoint["averaging_state"] == {"n_averaged": torch.tensor(4)}


def weights_file(*callbacks: Callback, folder: Any, val: bool = False, **arguments: Any) -> dict[str, Any]:
    """What a ``save_weights_only`` file of step 4 holds."""
    saver = ModelCheckpoint(
        folder, "{step}", save_top_k=-1, every_n_train_steps=4, auto_insert_metric_name=False, save_weights_only=True
    )
    train(*callbacks, saver, val=val, **arguments)
    content: dict[str, Any] = torch.load(folder / "4.ckpt", weights_only=True)
    return content


def test_file_of_weights_holds_the_average_alone(tmp_path: Any) -> None:
    content = weights_file(EMAWeightAveraging(decay=0.5), folder=tmp_path)
    _, average = by_hand(lambda step: True, n_epochs=1, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    assert_equal(content["state_dict"], average.module.state_dict())
    assert not content.keys() & {"current_model_state", "averaging_state", "callbacks", "optimizer_states"}


def test_file_of_weights_before_the_first_update_holds_the_weights(tmp_path: Any) -> None:
    content = weights_file(EMAWeightAveraging(update_starting_at_step=100), folder=tmp_path)
    assert_equal(content["state_dict"], by_hand(lambda step: False, n_epochs=1)[0].state_dict())


def test_file_of_weights_after_training_holds_the_average(tmp_path: Any) -> None:
    net, trainer = train(EMAWeightAveraging(decay=0.5))
    trainer.save_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    _, average = by_hand(lambda step: True, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    content = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert_equal(content["state_dict"], average.module.state_dict())
    assert_equal(content["state_dict"], net.state_dict())


@pytest.mark.parametrize("step", [1, 3, 4, 6])
@pytest.mark.parametrize("make", [WeightAveraging, lambda: EMAWeightAveraging(decay=0.7, update_every_n_steps=2)])
def test_resumed_run_has_the_same_bits(make: Any, step: int, tmp_path: Any) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)
    whole, first = train(make(), saver)
    resumed, second = train(make(), ckpt_path=tmp_path / f"{step}.ckpt")
    assert_equal(whole.state_dict(), resumed.state_dict())
    for trainer, name in ((first, "a.ckpt"), (second, "b.ckpt")):
        trainer.save_checkpoint(tmp_path / name)
    saved = [torch.load(tmp_path / name, weights_only=True)["current_model_state"] for name in ("a.ckpt", "b.ckpt")]
    assert_equal(saved[0], by_hand(lambda step: True)[0].state_dict())
    assert_equal(*saved)


@pytest.mark.parametrize("n_steps", [2, 5, 7])
def test_run_cut_within_an_epoch_and_gone_on_with_updates_once_at_its_end(n_steps: int, tmp_path: Any) -> None:
    def make() -> EMAWeightAveraging:
        return EMAWeightAveraging(decay=0.5, update_every_n_steps=0, update_starting_at_epoch=0)

    train(make(), ModelCheckpoint(tmp_path, "cut", every_n_epochs=1), max_steps=n_steps, max_epochs=3)
    resumed, _ = train(make(), ckpt_path=tmp_path / "cut.ckpt", max_epochs=3)
    own = by_hand(lambda step: step % 4 == 3, n_epochs=3, multi_avg_fn=get_ema_multi_avg_fn(0.5))[1]
    assert_equal(resumed.state_dict(), own.module.state_dict())


def test_file_without_an_average_begins_one_and_says_so(tmp_path: Any) -> None:
    saver = ModelCheckpoint(tmp_path, "file")
    train(saver, max_epochs=1)
    with pytest.warns(PossibleUserWarning, match="holds no average"):
        train(WeightAveraging(), ckpt_path=tmp_path / "file.ckpt")


def test_exception_during_validation_leaves_the_trained_weights() -> None:
    class Breaks(Callback):
        def on_validation_batch_end(self, *args: Any) -> None:
            raise RuntimeError("broken")

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    net, callbacks = Net(), [EMAWeightAveraging(decay=0.5), Breaks()]
    trainer = Trainer(**quiet, callbacks=callbacks, enable_checkpointing=False, num_sanity_val_steps=0)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(net, build_loader(), build_loader(2))
    own = by_hand(lambda step: False, n_epochs=1)[0]
    assert_equal(dict(net.named_parameters()), dict(own.named_parameters()))


@pytest.mark.parametrize("arguments", [{"decay": 1.5}, {"update_every_n_steps": -1}])
def test_values_out_of_range_are_refused(arguments: Any) -> None:
    with pytest.raises(ValueError, match=str(next(iter(arguments.values())))):
        EMAWeightAveraging(**arguments)


def test_strategy_that_splits_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from fulgur.strategies import SingleDeviceStrategy

    monkeypatch.setattr(SingleDeviceStrategy, "restores_after_setup", True)
    with pytest.raises(MisconfigurationException, match="whole model on each rank"):
        train(WeightAveraging())


def average_on_ranks() -> list[torch.Tensor]:
    net, _ = train(EMAWeightAveraging(decay=0.5, use_buffers=False), strategy="ddp", devices=2, max_epochs=1)
    return [p.detach() for p in net.parameters()]


def test_all_ranks_end_with_the_same_average() -> None:
    first, second = run_ranks(average_on_ranks, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
