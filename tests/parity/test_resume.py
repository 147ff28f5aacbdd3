"""A run resumed from the end of an epoch has the bits of one that was never interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.conftest import (
    N_BATCHES,
    Regression,
    assert_same_bits,
    build_loader,
    build_net,
    generator_states,
    loss_of,
    quiet_trainer,
    seed_generators,
    train_by_hand,
)

from fulgur.callbacks import ModelCheckpoint


def configure(net: Any) -> Any:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=3 * N_BATCHES)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Validating(Regression):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", loss_of(self.net, batch))


def build_module() -> Validating:
    return Validating(build_net(dropout=0.5), configure)


def train(path: Path, *, epochs: int, seed: int = 5, resume: bool = False, **arguments: Any) -> Any:
    """Train to `epochs`, keeping the checkpoint of each epoch's end; from the first epoch's one if `resume`."""
    checkpoints = ModelCheckpoint(dirpath=path, filename="{epoch}", save_top_k=-1)
    trainer = quiet_trainer(max_epochs=epochs, enable_checkpointing=True, callbacks=[checkpoints], **arguments)
    module, first = build_module(), path / "epoch=0.ckpt"
    seed_generators(seed)
    trainer.fit(module, build_loader(shuffle=True), build_loader(), ckpt_path=first if resume else None)
    return trainer


@pytest.mark.parametrize("arguments", [{}, {"accumulate_grad_batches": 4}, {"val_check_interval": 0.5}])
def test_resumed_run_equals_the_uninterrupted_one(arguments: dict[str, Any], tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", epochs=3, **arguments)
    after = generator_states()

    train(tmp_path / "parts", epochs=1, **arguments)
    resumed = train(tmp_path / "parts", epochs=3, resume=True, seed=99, **arguments)

    assert_same_bits(resumed.lightning_module.state_dict(), whole.lightning_module.state_dict(), "state_dict")
    for what in ("optimizers", "lr_schedulers"):
        states = [[part.state_dict() for part in parts_of(trainer, what)] for trainer in (resumed, whole)]
        assert_same_bits(*states, what)
    assert_same_bits(generator_states(), after)
    assert (resumed.global_step, resumed.current_epoch) == (whole.global_step, 3)


def parts_of(trainer: Any, what: str) -> list[Any]:
    if what == "optimizers":
        return list(trainer.optimizers)
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def test_interrupted_and_resumed_run_equals_a_hand_written_loop(tmp_path: Path) -> None:
    expected = build_net(dropout=0.5)
    configured, validation = configure(expected), build_loader()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]

    def validate() -> None:
        expected.eval()
        with torch.no_grad():
            for batch in validation:
                loss_of(expected, batch)
        expected.train()

    def after_step(batch_idx: int) -> None:
        scheduler.step()

    seed_generators()
    loader = build_loader(shuffle=True)
    train_by_hand(expected, optimizer, loader, epochs=3, after_step=after_step, after_epoch=validate)

    train(tmp_path, epochs=1)
    resumed = train(tmp_path, epochs=3, resume=True, seed=99)

    assert_same_bits(resumed.lightning_module.net.state_dict(), expected.state_dict())
    assert_same_bits(resumed.optimizers[0].state_dict(), optimizer.state_dict())


def test_checkpoint_saved_by_hand_after_fit(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", epochs=3)

    first = train(tmp_path / "parts", epochs=2)
    first.save_checkpoint(tmp_path / "parts" / "epoch=0.ckpt")
    resumed = train(tmp_path / "parts", epochs=3, resume=True, seed=99)

    assert_same_bits(resumed.lightning_module.state_dict(), whole.lightning_module.state_dict())
    assert_same_bits(resumed.optimizers[0].state_dict(), whole.optimizers[0].state_dict())
