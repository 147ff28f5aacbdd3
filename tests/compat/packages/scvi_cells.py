"""scvi-tools: a variational autoencoder over the counts of two hundred made-up cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scvi
from anndata import AnnData
from lightning.pytorch.callbacks import LearningRateMonitor
from told import numbers, tell


def cells() -> AnnData:
    random = np.random.default_rng(0)
    counts = random.poisson(random.gamma(2.0, 1.0, (1, 40)) * random.uniform(0.5, 2.0, (200, 1))).astype("float32")
    found = AnnData(counts)
    found.obs["batch"] = ["a", "b"] * 100
    return found


def arguments(max_epochs: int) -> dict[str, Any]:
    return {
        "max_epochs": max_epochs,
        "accelerator": "cpu",
        "check_val_every_n_epoch": 1,
        "early_stopping": True,
        "batch_size": 50,
        "enable_progress_bar": False,
        "plan_kwargs": {"reduce_lr_on_plateau": True},
    }


def train(folder: Path) -> dict[str, Any]:
    scvi.settings.seed = 5
    data = cells()
    scvi.model.SCVI.setup_anndata(data, batch_key="batch")
    model = scvi.model.SCVI(data, n_latent=4, n_hidden=16)
    model.train(callbacks=[LearningRateMonitor()], default_root_dir=str(folder), **arguments(max_epochs=4))
    model.save(folder / "model", overwrite=True)
    model.trainer.save_checkpoint(folder / "run.ckpt")
    return {
        "history": {name: numbers(frame) for name, frame in model.history.items()},
        "latent": numbers(model.get_latent_representation()[:5]),
        "elbo": float(model.get_elbo()),
        "epochs": model.trainer.current_epoch,
        "steps": model.trainer.global_step,
    }


def load(folder: Path) -> dict[str, Any]:
    model = scvi.model.SCVI.load(folder / "model", adata=cells(), accelerator="cpu")
    latent = numbers(model.get_latent_representation()[:5])
    model.train(ckpt_path=str(folder / "run.ckpt"), **arguments(max_epochs=5))
    return {"latent": latent, "epochs": model.trainer.current_epoch}


if __name__ == "__main__":
    tell(train, load)
