"""Transfer learning: a network is trained on one task, its weights go into another module by its checkpoint."""

import json

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Source(pl.LightningModule):
    def __init__(self, width=16):
        super().__init__()
        self.save_hyperparameters()
        self.features = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.BatchNorm1d(width))
        self.out = nn.Linear(width, 4)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.out(self.features(x)), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=int(steps))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Target(pl.LightningModule):
    def __init__(self, path):
        super().__init__()
        self.pretrained = Source.load_from_checkpoint(path)
        self.pretrained.freeze()
        self.head = nn.Linear(self.pretrained.hparams.width, 2)

    def training_step(self, batch, batch_idx):
        x, y = batch
        with torch.no_grad():
            features = self.pretrained.features(x)
        loss = F.cross_entropy(self.head(features), y)
        self.log("target_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


def make_loader(n_classes):
    x = torch.randn(96, 6)
    return DataLoader(TensorDataset(x, x[:, :n_classes].argmax(1)), batch_size=16)


def make_trainer(epochs):
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )


if __name__ == "__main__":
    pl.seed_everything(6)
    first = make_trainer(3)
    first.fit(Source(), make_loader(4))
    first.save_checkpoint("source.ckpt")
    second = make_trainer(3)
    model = Target("source.ckpt")
    second.fit(model, make_loader(2))
    metrics = {**first.callback_metrics, **second.callback_metrics}
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    in_eval = not model.pretrained.training
    print(json.dumps({**{k: v.item() for k, v in metrics.items()}, "frozen": frozen, "in_eval": in_eval}))
