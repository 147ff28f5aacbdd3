"""Stochastic weight averaging over the last epochs, with batch normalization and a schedule of its own."""

import json

import lightning as L
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Classifier(L.LightningModule):
    def __init__(self, hidden=16, lr=0.05):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(5, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.net(x), y), on_epoch=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)]


def make_loader(n, seed, batch_size):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=batch_size)


if __name__ == "__main__":
    L.seed_everything(11)
    model = Classifier()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=6,
        callbacks=[StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=3, annealing_epochs=2)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, make_loader(96, 1, 16), make_loader(48, 2, 16))
    after = trainer.validate(model, make_loader(48, 2, 16), verbose=False)[0]
    weights = sum(float(p.detach().abs().sum()) for p in model.parameters())
    running = float(model.net[1].running_mean.abs().sum())
    lr = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else None
    print(
        json.dumps(
            {
                "train_loss": trainer.callback_metrics.get("train_loss", torch.tensor(0.0)).item(),
                "val_loss": after["val_loss"],
                "weights": weights,
                "running_mean": running,
                "lr": lr,
            }
        )
    )
