"""chemprop: a message-passing network on twenty molecules, fitted, tested, and asked through `trainer.predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from chemprop import data, models, nn
from lightning.pytorch.callbacks import ModelCheckpoint
from told import QUIET, numbers, tell

SMILES = [
    *("CCO", "CCN", "CCC", "CCCl", "CCBr", "c1ccccc1", "Cc1ccccc1", "CC(=O)O", "CC(=O)N", "C1CCCCC1"),
    *("CCCC", "CCCCO", "c1ccncc1", "OCC(O)CO", "CC(C)O", "CC#N", "C=CC=C", "COC", "CSC", "O=C1CCCN1"),
]


def loader(start: int, stop: int, *, shuffle: bool = False) -> Any:
    points = [data.MoleculeDatapoint.from_smi(smiles, [len(smiles) * 0.3]) for smiles in SMILES[start:stop]]
    return data.build_dataloader(data.MoleculeDataset(points), batch_size=4, num_workers=0, shuffle=shuffle, seed=3)


def train(folder: Path) -> dict[str, Any]:
    pl.seed_everything(7)
    model = models.MPNN(
        nn.BondMessagePassing(d_h=24), nn.MeanAggregation(), nn.RegressionFFN(input_dim=24, hidden_dim=16)
    )
    saving = ModelCheckpoint(folder, "best-{epoch}-{val_loss:.2f}", monitor="val_loss", mode="min", save_last=True)
    trainer = pl.Trainer(max_epochs=3, callbacks=[saving], num_sanity_val_steps=0, log_every_n_steps=1, **QUIET)
    trainer.fit(model, loader(0, 14, shuffle=True), loader(14, 17))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    tested = trainer.test(model, loader(17, 20), verbose=False)
    predicted = trainer.predict(model, loader(17, 20))
    return {
        "logged": logged,
        "tested": tested,
        "predicted": numbers(torch.cat(predicted)),
        "steps": trainer.global_step,
        "best": Path(saving.best_model_path).name,
        "rate": trainer.optimizers[0].param_groups[0]["lr"],
    }


def load(folder: Path) -> dict[str, Any]:
    model = models.MPNN.load_from_checkpoint(folder / "last.ckpt")
    predicted = pl.Trainer(**QUIET, enable_checkpointing=False).predict(model, loader(10, 20))
    return {"predicted": numbers(torch.cat(predicted))}


if __name__ == "__main__":
    tell(train, load)
