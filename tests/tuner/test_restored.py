"""After a search everything is as it was, to the same bits; after one that an exception breaks off, too."""

from __future__ import annotations

import copy
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulgur import Callback, seed_everything
from fulgur.callbacks import EarlyStopping, ModelCheckpoint
from fulgur.loggers import CSVLogger
from fulgur.tuner import Tuner
from fulgur.tuner.kept import Kept


def bits(model: Any) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def is_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def draw() -> tuple[Any, ...]:
    return random.random(), np.random.rand(), torch.rand(1).item()


def look(tuner: Tuner, model: Any, which: str) -> Any:
    if which == "lr_find":
        return tuner.lr_find(model, num_training=40, update_attr=False, early_stop_threshold=None)
    return tuner.scale_batch_size(model, max_trials=3)


BOTH = pytest.mark.parametrize("which", ["lr_find", "scale_batch_size"])


def fail_at(n: int) -> dict[str, Any]:
    """A model whose step number `n` raises, but not in a later fit."""

    def on_after_backward(self: Any) -> None:
        if self.trainer.tuning and self.n_steps == n:
            raise KeyError("a step failed")

    return {"on_after_backward": on_after_backward}


def look_in_vain(tuner: Tuner, model: Any, which: str) -> None:
    with pytest.raises(KeyError, match="a step failed"):
        look(tuner, model, which)


@BOTH
@pytest.mark.parametrize("fails", [False, True])
def test_weights_buffers_attributes_and_generators_stay(make_trainer: Any, net: Any, which: str, fails: bool) -> None:
    model, trainer = net(fail_at(5) if fails else None), make_trainer()
    before, modes = bits(model), [part.training for part in model.modules()]
    model.layers[0].weight.requires_grad_(False)
    seed_everything(4, verbose=False)
    expected = draw()
    seed_everything(4, verbose=False)
    (look_in_vain if fails else look)(Tuner(trainer), model, which)
    assert is_same(bits(model), before)
    assert (model.kept, model.n_steps) == ([], 0)
    assert [part.training for part in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in model.parameters())
    assert draw() == expected


@BOTH
@pytest.mark.parametrize("fails", [False, True])
def test_the_trainer_is_as_new(make_trainer: Any, net: Any, which: str, fails: bool) -> None:
    trainer = make_trainer(callbacks=[EarlyStopping("loss")], logger=True, enable_checkpointing=True)
    before, state = dict(vars(trainer)), copy.copy(trainer.state)
    limits, progress = copy.copy(trainer.fit_loop.limits), copy.copy(trainer.fit_loop.progress)
    (look_in_vain if fails else look)(Tuner(trainer), net(fail_at(5) if fails else None), which)
    assert vars(trainer).keys() == before.keys()
    assert all(vars(trainer)[name] is value for name, value in before.items())
    assert (trainer.state, trainer.fit_loop.limits, trainer.fit_loop.progress) == (state, limits, progress)
    assert (trainer.optimizers, trainer.strategy.model) == ([], None)


@BOTH
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_written(make_trainer: Any, net: Any, tmp_path: Path, which: str, fails: bool) -> None:
    saves = {"callbacks": [ModelCheckpoint(every_n_train_steps=1)], "enable_checkpointing": True}
    trainer = make_trainer(logger=CSVLogger(tmp_path), log_every_n_steps=1, **saves)
    (look_in_vain if fails else look)(Tuner(trainer), net(fail_at(5) if fails else None), which)
    assert os.listdir(tmp_path) == []


def test_callbacks_hear_nothing(make_trainer: Any, net: Any) -> None:
    heard: list[str] = []

    class Listener(Callback):
        def setup(self, *args: Any, **kwargs: Any) -> None:
            heard.append("setup")

        def on_train_batch_end(self, *args: Any) -> None:
            heard.append("batch")

        def on_exception(self, *args: Any) -> None:
            heard.append("exception")

    trainer = make_trainer(callbacks=[Listener()])
    Tuner(trainer).lr_find(net({"configure_callbacks": lambda self: Listener()}), num_training=5)
    look_in_vain(Tuner(trainer), net(fail_at(2)), "lr_find")
    assert heard == []


@BOTH
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}])
def test_a_fit_after_it_has_the_bits_of_one_without(
    make_trainer: Any, net: Any, which: str, fails: bool, options: Any
) -> None:
    plain = net()
    make_trainer(**options).fit(plain)
    model = net(fail_at(7) if fails else None)
    trainer = make_trainer(**options)
    (look_in_vain if fails else look)(Tuner(trainer), model, which)
    model.batch_size = 4
    trainer.fit(model)
    assert is_same(bits(model), bits(plain))
    assert (trainer.global_step, trainer.current_epoch, model.n_steps) == (plain.trainer.global_step, 2, plain.n_steps)


def test_a_fit_with_the_rate_found_has_the_bits_of_one_made_with_it(make_trainer: Any, net: Any) -> None:
    model, trainer = net(), make_trainer()
    found = Tuner(trainer).lr_find(model, num_training=40).suggestion()
    trainer.fit(model)
    plain = net(lr=found)
    make_trainer().fit(plain)
    assert is_same(bits(model), bits(plain))


def test_a_search_between_two_fits_leaves_the_second_as_it_would_have_been(make_trainer: Any, net: Any) -> None:
    def train(searches: bool) -> list[torch.Tensor]:
        model, trainer = net(), make_trainer()
        trainer.fit(model)
        if searches:
            Tuner(trainer).lr_find(model, num_training=30, update_attr=False)
        trainer.fit_loop.limits.max_epochs = 4
        trainer.fit(model)
        assert trainer.current_epoch == 4
        return bits(model)

    assert is_same(train(True), train(False))


def test_layers_that_setup_makes_are_made_again_from_the_same_numbers(make_trainer: Any, net: Any) -> None:
    def setup(self: Any, stage: str) -> None:
        if not hasattr(self, "head"):
            self.head = nn.Linear(1, 1)

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        return self.head(self.layers(batch[0])).square().mean()

    methods = {"setup": setup, "training_step": training_step}
    plain, model, trainer = net(methods), net(methods), make_trainer()
    seed_everything(5, verbose=False)
    make_trainer().fit(plain)
    seed_everything(5, verbose=False)
    Tuner(trainer).lr_find(model, num_training=10, update_attr=False)
    assert not hasattr(model, "head")
    trainer.fit(model)
    assert is_same(bits(model), bits(plain))


def test_generators_of_loaders_stay(make_trainer: Any, net: Any) -> None:
    def loader() -> Any:
        data = TensorDataset(torch.randn(64, 4), torch.randn(64, 1))
        return DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(8))

    plain = net()
    make_trainer().fit(plain, loader())
    model, trainer = net(), make_trainer()
    shared = loader()
    Tuner(trainer).lr_find(model, shared, num_training=20, update_attr=False)
    trainer.fit(model, shared)
    assert is_same(bits(model), bits(plain))


def test_kept_containers_stay_the_same_objects() -> None:
    inner, tensor = [1, 2], torch.ones(2)
    value = {"list": inner, "tensor": tensor, "pair": (inner, {"n": 1})}
    kept = Kept()
    kept.keep(value)
    value["list"] = [9]
    value["pair"][1]["n"] = 7
    inner.append(3)
    tensor.mul_(5)
    value["more"] = 1
    kept.restore()
    assert value == {"list": inner, "tensor": tensor, "pair": (inner, {"n": 1})}
    assert value["list"] is inner
    assert (inner, tensor.tolist()) == ([1, 2], [1.0, 1.0])


def test_kept_optimizers_have_their_state_again() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], lr=0.1)

    def step() -> None:
        weight.grad = torch.ones(3)
        optimizer.step()

    step()
    before = copy.deepcopy(optimizer.state_dict())
    average = optimizer.state[weight]["exp_avg"]
    kept = Kept()
    kept.keep_optimizer(optimizer)
    optimizer.param_groups[0]["lr"] = 5.0
    step()
    optimizer.state[weight]["exp_avg"] = torch.zeros(3)
    kept.restore()
    assert optimizer.state[weight]["exp_avg"] is average
    assert str(optimizer.state_dict()) == str(before)
    assert weight.tolist() == pytest.approx([0.9] * 3)
