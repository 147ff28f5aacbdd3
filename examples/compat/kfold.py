"""K-fold cross-validation: a Trainer and a model for each fold, and the mean of their scores."""

import copy
import json

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset


class Line(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def step(self, batch):
        x, y = batch
        return F.mse_loss(self.layer(x), y)

    def training_step(self, batch, batch_idx):
        return self.step(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def folds(n, k):
    indices = torch.randperm(n).tolist()
    for i in range(k):
        held_out = indices[i::k]
        yield [index for index in indices if index not in held_out], held_out


if __name__ == "__main__":
    L.seed_everything(7)
    x = torch.randn(60, 2)
    data = TensorDataset(x, x @ torch.tensor([[1.0], [-2.0]]) + 0.1 * torch.randn(60, 1))
    start = Line()
    scores = []
    for fold, (train, val) in enumerate(folds(len(data), 3)):
        model = copy.deepcopy(start)
        best = ModelCheckpoint(dirpath=f"fold{fold}", monitor="val_loss", filename="{epoch}")
        trainer = L.Trainer(
            max_epochs=3,
            accelerator="cpu",
            callbacks=[best],
            logger=False,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(Subset(data, train), batch_size=10), DataLoader(Subset(data, val), batch_size=10))
        scores.append(trainer.validate(ckpt_path="best", dataloaders=DataLoader(Subset(data, val)), verbose=False)[0])
    losses = [score["val_loss"] for score in scores]
    print(json.dumps({"losses": losses, "mean": sum(losses) / len(losses)}))
