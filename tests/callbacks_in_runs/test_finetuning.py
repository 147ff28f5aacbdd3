"""Freezing and unfreezing: which parameters learn when, at which rate, through a resume, on two ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fulgur import LightningModule, Trainer
from fulgur.callbacks import BackboneFinetuning, BaseFinetuning, Callback, ModelCheckpoint
from fulgur.errors import MisconfigurationException, PossibleUserWarning
from fulgur.testing import run_ranks


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 1)
        self.rates: list[list[float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (self.head(self.backbone(batch)) - 1).square().mean()

    def on_train_epoch_start(self) -> None:
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.5)


def train(net: Any, *callbacks: Callback, ckpt_path: Any = None, **arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    has_checkpoint = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    defaults: dict[str, Any] = {"max_epochs": 4, "enable_checkpointing": has_checkpoint}
    trainer = Trainer(**quiet, callbacks=list(callbacks), **(defaults | arguments))
    values = torch.randn(8, 2, generator=torch.Generator().manual_seed(5))
    trainer.fit(net, torch.utils.data.DataLoader(values, batch_size=2), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    return trainer


def test_backbone_learns_from_its_epoch_on_with_a_growing_rate() -> None:
    net = Net()
    before = net.backbone[0].weight.detach().clone()
    train(net, BackboneFinetuning(1, backbone_initial_ratio_lr=0.3, train_bn=False), max_epochs=1)
    assert torch.equal(net.backbone[0].weight, before)
    net = Net()
    train(net, BackboneFinetuning(1, backbone_initial_ratio_lr=0.3, train_bn=False), max_epochs=5)
    assert not torch.equal(net.backbone[0].weight, before)
    expected = [[0.1], [0.1, 0.03], [0.1, 0.06], [0.1, 0.1], [0.1, 0.1]]
    assert net.rates == [pytest.approx(rates) for rates in expected]


def test_rate_given_is_taken_as_it_is_and_grows_past_the_heads_on_request() -> None:
    net = Net()
    train(net, BackboneFinetuning(1, lambda epoch: 2.0 * epoch, backbone_initial_lr=0.02, should_align=False))
    assert net.rates == [pytest.approx(rates) for rates in [[0.1], [0.1, 0.02], [0.1, 0.12], [0.1, 0.96]]]


@pytest.mark.parametrize("step", [2, 4, 6, 9, 12])
def test_resumed_run_has_the_same_bits(step: int, tmp_path: Any) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)
    whole, resumed = Net(), Net()
    train(whole, BackboneFinetuning(2, train_bn=False), saver)
    train(resumed, BackboneFinetuning(2, train_bn=False), ckpt_path=tmp_path / f"{step}.ckpt")
    states = whole.state_dict(), resumed.state_dict()
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []
    assert [p.requires_grad for p in resumed.parameters()] == [p.requires_grad for p in whole.parameters()]


def test_state_names_parameters(tmp_path: Any) -> None:
    train(Net(), BackboneFinetuning(1, train_bn=False), ModelCheckpoint(tmp_path, "file", every_n_epochs=4))
    state = torch.load(tmp_path / "file.ckpt", weights_only=True)["callbacks"]["BackboneFinetuning"]
    names = [group["params"] for group in state["internal_optimizer_metadata"][0]]
    assert names == [["head.weight", "head.bias"], ["backbone.0.weight", "backbone.0.bias"]]
    assert state["previous_backbone_lr"] == pytest.approx(0.04)


def test_module_without_a_backbone_is_refused() -> None:
    net = Net()
    net.backbone, net.body = None, net.backbone  # type: ignore[assignment]
    with pytest.raises(MisconfigurationException, match="Net has no such module"):
        train(net, BackboneFinetuning())


@pytest.mark.parametrize("method", ["freeze_before_training", "finetune_function"])
def test_class_without_its_methods_is_refused(method: str) -> None:
    other = {"freeze_before_training", "finetune_function"} - {method}
    kind = type("Mine", (BaseFinetuning,), {name: lambda self, *args: None for name in other})
    with pytest.raises(NotImplementedError, match=f"Mine needs {method}"):
        train(Net(), kind())


def test_function_of_1x_gets_the_index_of_the_optimizer() -> None:
    calls: list[Any] = []

    class Earlier(BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None: ...

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any, opt_idx: int) -> None:  # type: ignore[override]
            calls.append((epoch, opt_idx))

    train(Net(), Earlier(), max_epochs=2)
    assert calls == [(0, 0), (1, 0)]


def test_freezing_leaves_batch_norm_to_learn_on_request() -> None:
    net = Net()
    BaseFinetuning.freeze(net.backbone, train_bn=True)
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["backbone.0.weight", "backbone.0.bias"]
    BaseFinetuning.freeze([net.backbone], train_bn=False)
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert net.backbone[1].track_running_stats is False
    BaseFinetuning.make_trainable(net)
    assert all(p.requires_grad for p in net.parameters())
    assert net.backbone[1].track_running_stats is True


def test_modules_are_found_in_all_containers() -> None:
    net = Net()
    parts = [nn.ModuleDict({"a": net.backbone}), [net.head]]
    assert BaseFinetuning.flatten_modules(parts) == [net.backbone[0], net.backbone[1], net.head]
    assert len(list(BaseFinetuning.filter_params(net, train_bn=False))) == 4


def test_rate_of_a_group_is_a_tenth_of_the_first_ones() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
    BaseFinetuning.unfreeze_and_add_param_group(net.backbone, optimizer)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.01)


def test_parameters_that_the_optimizer_has_stay_in_their_group() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.head.requires_grad_(False)
    with pytest.warns(PossibleUserWarning, match="2 parameters to be unfrozen are in the optimizer already"):
        BaseFinetuning.unfreeze_and_add_param_group(net.head, optimizer)
    assert len(optimizer.param_groups) == 1


class HalfAtTwo(BaseFinetuning):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, train_bn=False)


class Plain(Net):
    """Without batch norm, so that ranks must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 3))


def weights_on_ranks() -> list[torch.Tensor]:
    net = Plain()
    train(net, HalfAtTwo(), strategy="ddp", devices=2)
    return [p.detach() for p in net.parameters()]


def test_gradients_of_what_was_unfrozen_are_averaged_over_ranks() -> None:
    first, second = run_ranks(weights_on_ranks, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], Plain().backbone[0].weight)
