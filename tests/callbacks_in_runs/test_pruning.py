"""Pruning against torch's own functions, in checkpoints, through a resume, on two ranks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fulgur import LightningModule, Trainer
from fulgur.callbacks import Callback, ModelCheckpoint, ModelPruning
from fulgur.errors import MisconfigurationException, PossibleUserWarning
from fulgur.testing import run_ranks


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (self.net(batch) - 1).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.5)


def build_loader() -> Any:
    values = torch.randn(8, 2, generator=torch.Generator().manual_seed(5))
    return torch.utils.data.DataLoader(values, batch_size=2)  # type: ignore[arg-type]


def train(*callbacks: Any, ckpt_path: Any = None, validates: bool = False, **arguments: Any) -> Net:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    defaults = {"max_epochs": 3, "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)}
    net = Net()
    trainer = Trainer(**quiet, callbacks=list(callbacks), **(defaults | arguments))  # type: ignore[arg-type]
    trainer.fit(net, build_loader(), build_loader() if validates else None, ckpt_path=ckpt_path)
    return net


def by_hand(cut: Any, after: Any = lambda net: None, n_epochs: int = 3) -> Net:
    net = Net()
    optimizer: Any = net.configure_optimizers()
    for _ in range(n_epochs):
        for batch in build_loader():
            optimizer.zero_grad()
            net.training_step(batch, 0).backward()
            optimizer.step()
        cut([(m, name) for m in net.net for name in ("weight", "bias")])
        after(net)
    for module in net.net:
        for name in ("weight", "bias"):
            prune.remove(module, name)  # type: ignore[no-untyped-call]
    return net


def assert_equal(first: Any, second: Any) -> None:
    assert list(first) == list(second)
    assert [k for k in first if not torch.equal(first[k], second[k])] == []


def sorted_state(net: Net) -> dict[str, Any]:
    return dict(sorted(net.state_dict().items()))


def test_global_pruning_is_torchs() -> None:
    net = train(ModelPruning("l1_unstructured", amount=0.3, use_lottery_ticket_hypothesis=False))
    own = by_hand(lambda places: prune.global_unstructured(places, prune.L1Unstructured, amount=0.3))
    assert_equal(sorted_state(net), sorted_state(own))
    assert sum(int((p == 0).sum()) for p in net.parameters()) == 22  # of 33: 10, then 7 of 23, then 5 of 16


def test_structured_pruning_of_given_parameters_is_torchs() -> None:
    class Given(ModelPruning):
        def _find_places(self, root: Any) -> Any:
            self._given = [(root.net[0], "weight")]
            return super()._find_places(root)

    callback = Given(
        "ln_structured", amount=2, use_global_unstructured=False, pruning_dim=0, pruning_norm=1,
        use_lottery_ticket_hypothesis=False,
    )  # fmt: skip
    net = train(callback, max_epochs=1)
    own = Net()
    own.load_state_dict(train(max_epochs=1).state_dict())
    prune.ln_structured(own.net[0], "weight", amount=2, n=1, dim=0)  # type: ignore[no-untyped-call]
    assert torch.equal(net.net[0].weight, own.net[0].weight)


def test_what_is_left_goes_back_to_its_first_values() -> None:
    net, first = train(ModelPruning("l1_unstructured", amount=0.3), max_epochs=1), Net()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, first.get_parameter(name) * (parameter != 0))


def test_functions_of_the_epoch_decide() -> None:
    asked: list[int] = []
    callback = ModelPruning(
        "l1_unstructured", amount=lambda epoch: asked.append(epoch) or 3, apply_pruning=lambda epoch: epoch != 1,
        use_lottery_ticket_hypothesis=lambda epoch: False,
    )  # fmt: skip
    net = train(callback)
    assert asked == [0, 1, 2]
    assert sum(int((p == 0).sum()) for p in net.parameters()) == 6


@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoint_holds_masked_weights_under_their_own_names(weights_only: bool, tmp_path: Any) -> None:
    callback = ModelPruning("l1_unstructured", amount=0.5, use_lottery_ticket_hypothesis=False)
    saver = ModelCheckpoint(tmp_path, "file", every_n_epochs=1, save_weights_only=weights_only)
    train(callback, saver, max_epochs=1)
    state = torch.load(tmp_path / "file.ckpt", weights_only=True)["state_dict"]
    assert set(state) == set(Net().state_dict())
    assert sum(int((value == 0).sum()) for value in state.values()) == 16


def test_file_of_weights_keeps_the_masks_that_are_to_stay(tmp_path: Any) -> None:
    callback = ModelPruning("l1_unstructured", make_pruning_permanent=False)
    train(callback, ModelCheckpoint(tmp_path, "file", every_n_epochs=1, save_weights_only=True), max_epochs=1)
    assert "net.0.weight_mask" in torch.load(tmp_path / "file.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("sets_back", [True, False])
@pytest.mark.parametrize("step", [2, 4, 6, 8])
def test_resumed_run_has_the_same_bits(step: int, sets_back: bool, tmp_path: Any) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)

    def make() -> ModelPruning:
        return ModelPruning("random_unstructured", amount=0.3, use_lottery_ticket_hypothesis=sets_back)

    whole = train(make(), saver)
    resumed = train(make(), ckpt_path=tmp_path / f"{step}.ckpt")
    assert_equal(sorted_state(whole), sorted_state(resumed))


@pytest.mark.parametrize("n_steps", [2, 6, 7])
def test_run_cut_within_an_epoch_and_gone_on_with_has_the_same_bits(n_steps: int, tmp_path: Any) -> None:
    callbacks = [ModelPruning("random_unstructured", amount=0.3), ModelCheckpoint(tmp_path, "cut", every_n_epochs=1)]
    with warnings_of_nothing_pruned(n_steps < 4):
        train(*callbacks, max_steps=n_steps)
    resumed = train(ModelPruning("random_unstructured", amount=0.3), ckpt_path=tmp_path / "cut.ckpt")
    assert_equal(sorted_state(train(ModelPruning("random_unstructured", amount=0.3))), sorted_state(resumed))


def warnings_of_nothing_pruned(is_expected: bool) -> Any:
    return pytest.warns(PossibleUserWarning, match="has pruned nothing") if is_expected else nullcontext()


class StopsAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


@pytest.mark.parametrize(("n_steps", "n_zeros"), [(4, 10), (6, 10), (7, 10)])
def test_validation_of_a_run_that_stops_within_an_epoch_does_not_prune(
    n_steps: int, n_zeros: int, tmp_path: Any
) -> None:
    def make() -> ModelPruning:
        return ModelPruning("l1_unstructured", amount=0.3, prune_on_train_epoch_end=False)

    cut = train(make(), StopsAt(n_steps), ModelCheckpoint(tmp_path, "cut", save_last=True), validates=True)
    assert sum(int((p == 0).sum()) for p in cut.parameters()) == n_zeros
    resumed = train(make(), ckpt_path=tmp_path / "last.ckpt", validates=True)
    assert_equal(sorted_state(train(make(), validates=True)), sorted_state(resumed))


def test_file_saved_after_the_end_is_gone_on_from_with_its_masks(tmp_path: Any) -> None:
    def make() -> ModelPruning:
        return ModelPruning("l1_unstructured", amount=0.3, use_lottery_ticket_hypothesis=False)

    net, quiet = Net(), {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, callbacks=make(), **quiet)  # type: ignore[arg-type]
    trainer.fit(net, build_loader())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert_equal(sorted_state(train(make())), sorted_state(train(make(), ckpt_path=tmp_path / "end.ckpt")))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"pruning_fn": "l1_unstructurd"}, "l1_unstructured"),
    ({"pruning_fn": len}, "neither a name nor"),
    ({"pruning_fn": "ln_structured"}, "pruning_dim"),
    ({"pruning_fn": "ln_structured", "pruning_dim": 0}, "pruning_norm"),
    ({"pruning_fn": "random_structured", "pruning_dim": 0}, "use_global_unstructured"),
    ({"verbose": 3}, "verbose=3"),
    ({"amount": 1.5}, "amount=1.5"),
])  # fmt: skip
def test_arguments_that_cannot_work_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        ModelPruning(**({"pruning_fn": "l1_unstructured"} | arguments))


def test_parameters_that_are_not_there_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="is no parameter of Net"):
        train(ModelPruning("l1_unstructured", parameters_to_prune=[(nn.Linear(1, 1), "weight")]))
    with pytest.raises(MisconfigurationException, match="parameter named kernel"):
        train(ModelPruning("l1_unstructured", parameter_names=["kernel"]))


def weights_on_ranks() -> dict[str, Any]:
    callback = ModelPruning("random_unstructured", use_lottery_ticket_hypothesis=False)
    torch.manual_seed(0)
    return sorted_state(train(callback, strategy="ddp", devices=2))


def test_all_ranks_have_the_same_masks() -> None:
    assert_equal(*run_ranks(weights_on_ranks, 2))
