"""Which batches are trained on, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import pytest
import torch
from tests.parity.conftest import (
    N_BATCHES,
    Regression,
    accumulate_by_hand,
    adam,
    assert_same_training,
    build_loader,
    build_net,
    build_samples,
    generator_states,
    loss_of,
    quiet_trainer,
    seed_generators,
    train_by_hand,
)
from torch.utils.data import DataLoader, IterableDataset

from fulgur.data.combine import CombinedLoader

# ---------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("max_steps", [1, 4, N_BATCHES, N_BATCHES + 3])
def test_max_steps_within_an_epoch(max_steps: int) -> None:
    expected, module = build_net(dropout=0.2), Regression(build_net(dropout=0.2))
    trainer, optimizer = quiet_trainer(max_epochs=-1, max_steps=max_steps), adam(expected)
    seed_generators()
    for start in range(0, max_steps, N_BATCHES):
        batches = islice(build_loader(shuffle=True), min(N_BATCHES, max_steps - start))
        train_by_hand(expected, optimizer, batches, epochs=1)

    seed_generators()
    trainer.fit(module, build_loader(shuffle=True))

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == max_steps


def test_max_steps_counts_windows() -> None:
    expected, module = build_net(), Regression(build_net())
    trainer, optimizer = quiet_trainer(max_epochs=-1, max_steps=3, accumulate_grad_batches=4), adam(expected)
    accumulate_by_hand(expected, optimizer, build_loader(), 4, epochs=1)
    accumulate_by_hand(expected, optimizer, list(build_loader())[:4], 4, epochs=1)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


@pytest.mark.parametrize(("limit", "n_batches"), [(4, 4), (0.5, 3), (1.0, 6), (100, 6)])
def test_limit_train_batches(limit: Any, n_batches: int) -> None:
    expected, module = build_net(), Regression(build_net())
    trainer, optimizer = quiet_trainer(limit_train_batches=limit), adam(expected)
    train_by_hand(expected, optimizer, list(build_loader())[:n_batches])

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == 2 * n_batches


@pytest.mark.filterwarnings("ignore:.*overfit_batches.*")
@pytest.mark.parametrize(("overfit", "n_batches"), [(2, 2), (0.5, 3)])
def test_overfit_batches_takes_the_same_batches_in_order(overfit: Any, n_batches: int) -> None:
    expected, module = build_net(), Regression(build_net())
    trainer, optimizer = quiet_trainer(overfit_batches=overfit), adam(expected)
    train_by_hand(expected, optimizer, list(build_loader())[:n_batches])

    trainer.fit(module, build_loader(shuffle=True))

    assert_same_training(trainer, module.net, expected, optimizer)


def test_fast_dev_run() -> None:
    expected, module, trainer = build_net(), Regression(build_net()), quiet_trainer(fast_dev_run=2)
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, list(build_loader())[:2], epochs=1)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_should_stop_ends_training_after_its_step() -> None:
    class Stopping(Regression):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.trainer.should_stop = self.trainer.global_step == 8

    expected, module, trainer = build_net(), Stopping(build_net()), quiet_trainer(max_epochs=5)
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, islice(cycle(build_loader()), 8), epochs=1)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_epoch_that_on_train_batch_start_ends() -> None:
    class Refusing(Regression):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            return -1 if batch_idx == 3 else None

    expected, module, trainer = build_net(), Refusing(build_net()), quiet_trainer()
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, list(build_loader())[:3])

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == 6


# --------------------------------------------------------------------------------------------------------- loaders


def test_list_of_batches() -> None:
    expected, module, trainer = build_net(), Regression(build_net()), quiet_trainer()
    optimizer, batches = adam(expected), list(build_loader())
    train_by_hand(expected, optimizer, batches)

    trainer.fit(module, batches)

    assert_same_training(trainer, module.net, expected, optimizer)


def test_iterable_dataset() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter([build_samples()[index] for index in range(22)])

    def build_stream() -> DataLoader[Any]:
        return DataLoader(Stream(), batch_size=4)

    expected, module, trainer = build_net(), Regression(build_net()), quiet_trainer()
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, build_stream())

    trainer.fit(module, build_stream())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_loader_with_a_generator_of_its_own() -> None:
    def build() -> DataLoader[Any]:
        return build_loader(shuffle=True, generator=torch.Generator().manual_seed(1))

    expected, module, trainer = build_net(dropout=0.2), Regression(build_net(dropout=0.2)), quiet_trainer()
    optimizer = adam(expected)
    seed_generators()
    train_by_hand(expected, optimizer, build())
    after = generator_states()

    seed_generators()
    trainer.fit(module, build())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert torch.equal(generator_states()[1], after[1])


def test_loaders_reloaded_every_epoch() -> None:
    class Reloading(Regression):
        def train_dataloader(self) -> Any:
            return build_loader(10 + 4 * self.current_epoch, shuffle=True)

    expected, module = build_net(dropout=0.2), Reloading(build_net(dropout=0.2))
    trainer, optimizer = quiet_trainer(reload_dataloaders_every_n_epochs=1, max_epochs=3), adam(expected)
    seed_generators()
    for epoch in range(3):
        train_by_hand(expected, optimizer, build_loader(10 + 4 * epoch, shuffle=True), epochs=1)

    seed_generators()
    trainer.fit(module)

    assert_same_training(trainer, module.net, expected, optimizer)


class Combined(Regression):
    """The loss of batches from two loaders, one of which may have ended."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return combined_loss(self.net, batch)


def combined_loss(net: Any, batch: Any) -> Any:
    return sum(loss_of(net, batch[key]) for key in ("a", "b") if batch[key] is not None)


def combine_by_hand(mode: str) -> list[dict[str, Any]]:
    long, short = list(build_loader()), list(build_loader(10))
    if mode == "min_size":
        pairs = list(zip(long, short, strict=False))
    elif mode == "max_size_cycle":
        pairs = list(zip(long, cycle(short), strict=False))
    else:
        pairs = list(zip(long, [*short, None, None, None], strict=True))
    return [{"a": a, "b": b} for a, b in pairs]


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size"])
def test_combined_loaders(mode: Any, accumulate: int) -> None:
    expected, module = build_net(), Combined(build_net())
    trainer, optimizer = quiet_trainer(accumulate_grad_batches=accumulate), adam(expected)
    batches = combine_by_hand(mode)
    for _ in range(2):
        for batch_idx, batch in enumerate(batches):
            if batch_idx % accumulate == 0:
                optimizer.zero_grad()
            length = min(accumulate, len(batches) - batch_idx // accumulate * accumulate)
            (combined_loss(expected, batch) / length).backward()
            if (batch_idx + 1) % accumulate == 0 or batch_idx == len(batches) - 1:
                optimizer.step()

    trainer.fit(module, CombinedLoader({"a": build_loader(), "b": build_loader(10)}, mode))

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == 2 * -(-len(batches) // accumulate)


def test_dict_of_shuffled_loaders_draws_as_iterating_over_them_side_by_side_does() -> None:
    def build() -> dict[str, Any]:
        return {"a": build_loader(shuffle=True), "b": build_loader(shuffle=True)}

    expected, module, trainer = build_net(dropout=0.2), Combined(build_net(dropout=0.2)), quiet_trainer()
    optimizer = adam(expected)
    seed_generators()
    for _ in range(2):
        loaders = build()
        for a, b in zip(loaders["a"], loaders["b"], strict=True):
            optimizer.zero_grad()
            combined_loss(expected, {"a": a, "b": b}).backward()
            optimizer.step()

    seed_generators()
    trainer.fit(module, build())

    assert_same_training(trainer, module.net, expected, optimizer)


# -------------------------------------------------------------------------------------- steps that get the iterator


class Drawing(Regression):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("is_sized", [True, False])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_iterator_step(accumulate: int, is_sized: bool) -> None:
    class Unsized:
        def __iter__(self) -> Iterator[Any]:
            return iter(build_loader())

    expected, module = build_net(), Drawing(build_net())
    trainer, optimizer = quiet_trainer(accumulate_grad_batches=accumulate), adam(expected)
    accumulate_by_hand(expected, optimizer, build_loader(), accumulate)

    trainer.fit(module, build_loader() if is_sized else Unsized())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == 2 * N_BATCHES // accumulate


def test_iterator_step_that_draws_two_batches() -> None:
    class DrawingTwo(Regression):
        def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
            return sum(loss_of(self.net, next(dataloader_iter)[0]) for _ in range(2))

    def configure(net: Any) -> Any:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    expected, module, trainer = build_net(), DrawingTwo(build_net(), configure), quiet_trainer()
    [optimizer], [scheduler] = configure(expected)
    batches = list(build_loader())
    for _ in range(2):
        for first in range(0, N_BATCHES, 2):
            optimizer.zero_grad()
            sum(loss_of(expected, batch) for batch in batches[first : first + 2]).backward()
            optimizer.step()
        scheduler.step()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == N_BATCHES


def test_iterator_step_in_manual_optimization() -> None:
    class Manual(Drawing):
        def __init__(self, net: Any) -> None:
            super().__init__(net)
            self.automatic_optimization = False

        def training_step(self, dataloader_iter: Any) -> None:  # type: ignore[override]
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss_of(self.net, next(dataloader_iter)[0]))
            optimizer.step()

    expected, module, trainer = build_net(), Manual(build_net()), quiet_trainer()
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, build_loader())

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
