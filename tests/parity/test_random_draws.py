"""Random numbers are drawn in the order of a hand-written loop, and by nobody else."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tests.parity.conftest import (
    Regression,
    adam,
    assert_same_bits,
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
from torch.utils.data import DataLoader, Dataset

from fulgur import Trainer
from fulgur.callbacks import ModelCheckpoint
from fulgur.loggers import CSVLogger


class Augmented(Dataset[Any]):
    """Adds noise from Python's and torch's generator to every sample, each time anew."""

    def __init__(self) -> None:
        self.samples = build_samples()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        x, y = self.samples[index]
        return x + 0.1 * torch.randn(3) + random.random(), y


class Logging(Regression):
    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", loss_of(self.net, batch), prog_bar=True)


def loader_for() -> DataLoader[Any]:
    return DataLoader(Augmented(), batch_size=4, shuffle=True)


def test_shuffle_dropout_and_augmentation_in_the_main_process() -> None:
    expected, module, trainer = build_net(dropout=0.5), Regression(build_net(dropout=0.5)), quiet_trainer()
    optimizer = adam(expected)
    seed_generators()
    losses = train_by_hand(expected, optimizer, loader_for())
    after = generator_states()

    seed_generators()
    trainer.fit(module, loader_for())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_bits(module.losses, losses)
    assert_same_bits(generator_states(), after)


def test_logging_bar_summary_checkpoints_and_sanity_check_draw_nothing(tmp_path: Any, capsys: Any) -> None:
    """Validation batches are a plain list here, so that not even a loader draws."""
    expected, module = build_net(dropout=0.5), Logging(build_net(dropout=0.5))
    module.example_input_array = torch.zeros(2, 3)
    validation = list(build_loader())
    optimizer = adam(expected)
    seed_generators()
    losses = train_by_hand(expected, optimizer, loader_for())
    after = generator_states()

    seed_generators()
    checkpoints = ModelCheckpoint(dirpath=tmp_path / "saved", monitor="val_loss", save_top_k=-1, save_last=True)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=CSVLogger(tmp_path),
        callbacks=[checkpoints],
        log_every_n_steps=1,
        num_sanity_val_steps=-1,
        val_check_interval=0.5,
    )
    trainer.fit(module, loader_for(), validation)

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_bits(module.losses, losses)
    assert_same_bits(generator_states(), after)
    assert len(list((tmp_path / "saved").glob("epoch*.ckpt"))) == 4


def test_sanity_check_that_draws_is_isolated() -> None:
    class Drawing(Regression):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            torch.rand(1), random.random()

    expected, module = build_net(dropout=0.5), Drawing(build_net(dropout=0.5))
    trainer = quiet_trainer(max_epochs=1, check_val_every_n_epoch=2)
    optimizer = adam(expected)
    seed_generators()
    train_by_hand(expected, optimizer, loader_for(), epochs=1)
    after = generator_states()

    seed_generators()
    trainer.fit(module, loader_for(), loader_for())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_bits(generator_states(), after)


def test_validation_draws_what_a_hand_written_validation_draws() -> None:
    """A DataLoader draws a seed each time it is iterated over, in a hand-written loop too."""

    class Validating(Regression):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            loss_of(self.net, batch)

    expected, module = build_net(dropout=0.5), Validating(build_net(dropout=0.5))
    trainer = quiet_trainer(val_check_interval=3)
    optimizer, validation = adam(expected), loader_for()

    def validate(batch_idx: int) -> None:
        if batch_idx in (2, 5):
            expected.eval()
            with torch.no_grad():
                for batch in validation:
                    loss_of(expected, batch)
            expected.train()

    seed_generators()
    train_by_hand(expected, optimizer, loader_for(), after_step=validate)
    after = generator_states()

    seed_generators()
    trainer.fit(module, loader_for(), loader_for())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_bits(generator_states(), after)


def test_two_loader_workers() -> None:
    """What workers draw is seeded by place, so that it does not depend on their number; here they draw nothing."""
    expected, module = build_net(dropout=0.5), Regression(build_net(dropout=0.5))
    trainer = quiet_trainer(max_epochs=1)
    optimizer = adam(expected)
    seed_generators()
    losses = train_by_hand(expected, optimizer, build_loader(shuffle=True, num_workers=2), epochs=1)
    after = generator_states()

    seed_generators()
    trainer.fit(module, build_loader(shuffle=True, num_workers=2))

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_bits(module.losses, losses)
    assert_same_bits(generator_states(), after)


@pytest.mark.parametrize("n_batches", [1, 3, 6])
def test_limited_epoch_draws_no_batch_that_it_does_not_use(n_batches: int) -> None:
    expected, module = build_net(dropout=0.5), Regression(build_net(dropout=0.5))
    trainer = quiet_trainer(limit_train_batches=n_batches)
    optimizer = adam(expected)
    seed_generators()
    for _ in range(2):
        batches = iter(loader_for())
        for _ in range(n_batches):
            train_by_hand(expected, optimizer, [next(batches)], epochs=1)
    after = generator_states()

    seed_generators()
    trainer.fit(module, loader_for())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_bits(generator_states(), after)


def test_unsized_loader_is_read_one_batch_ahead() -> None:
    class Unsized:
        def __iter__(self) -> Any:
            return iter(loader_for())

    expected, module, trainer = build_net(dropout=0.5), Regression(build_net(dropout=0.5)), quiet_trainer()
    optimizer = adam(expected)
    seed_generators()
    for _ in range(2):
        batches = iter(loader_for())
        following = next(batches, None)
        while following is not None:
            batch, following = following, next(batches, None)
            train_by_hand(expected, optimizer, [batch], epochs=1)
    after = generator_states()

    seed_generators()
    trainer.fit(module, Unsized())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_bits(generator_states(), after)


def test_iterator_step_over_a_sized_loader_draws_no_batch_early() -> None:
    class Drawing(Regression):
        def training_step(self, dataloader_iter: Any) -> Any:
            batch, batch_idx, _ = next(dataloader_iter)
            return super().training_step(batch, batch_idx)

    expected, module, trainer = build_net(dropout=0.5), Drawing(build_net(dropout=0.5)), quiet_trainer()
    optimizer = adam(expected)
    seed_generators()
    train_by_hand(expected, optimizer, loader_for())
    after = generator_states()

    seed_generators()
    trainer.fit(module, loader_for())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_bits(generator_states(), after)
