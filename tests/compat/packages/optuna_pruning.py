"""optuna with the pruning callback of optuna-integration: the best of six learning rates, the bad ones cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import optuna
import torch
from optuna_integration import PyTorchLightningPruningCallback
from sklearn.datasets import load_digits
from told import QUIET, numbers, tell
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(pl.LightningModule):
    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("val_acc", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def data() -> tuple[TensorDataset, TensorDataset]:
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    return TensorDataset(images[:1200], labels[:1200]), TensorDataset(images[1200:], labels[1200:])


def train(folder: Path) -> dict[str, Any]:
    train_set, val_set = data()

    def objective(trial: optuna.Trial) -> float:
        pl.seed_everything(trial.number)
        model = Classifier(trial.suggest_float("lr", 1e-4, 1.0, log=True))
        pruning = PyTorchLightningPruningCallback(trial, monitor="val_acc")
        trainer = pl.Trainer(max_epochs=4, callbacks=[pruning], enable_checkpointing=False, **QUIET)
        trainer.fit(model, DataLoader(train_set, 32, shuffle=True), DataLoader(val_set, 64))
        trainer.save_checkpoint(folder / f"{trial.number}.ckpt")
        return float(trainer.callback_metrics["val_acc"])

    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=1), pruner=pruner)
    study.optimize(objective, n_trials=6)
    (folder / "best").write_text(str(study.best_trial.number))
    return {
        "states": [trial.state.name for trial in study.trials],
        "best": study.best_trial.number,
        "learning_rates": [trial.params["lr"] for trial in study.trials],
        "reported": [trial.intermediate_values for trial in study.trials],
    }


def load(folder: Path) -> dict[str, Any]:
    _, val_set = data()
    model = Classifier.load_from_checkpoint(folder / f"{(folder / 'best').read_text()}.ckpt")
    with torch.no_grad():
        return {"lr": model.hparams.lr, "outputs": numbers(model.net(val_set.tensors[0][:4].to(model.device)).cpu())}


if __name__ == "__main__":
    tell(train, load)
