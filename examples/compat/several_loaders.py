"""Several loaders: two at once in training, combined in a dict, and two one after the other in validation."""

import json

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class TwoSources(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        (labelled,), (unlabelled,) = batch["labelled"], batch["unlabelled"]
        loss = (self.layer(labelled) - 1).pow(2).mean() + 0.1 * self.layer(unlabelled).abs().mean()
        self.log("train_loss", loss, batch_size=len(labelled))
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val", self.layer(batch[0]).mean(), on_epoch=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def loader(n, batch_size):
    return DataLoader(TensorDataset(torch.randn(n, 3)), batch_size=batch_size)


if __name__ == "__main__":
    L.seed_everything(5)
    both = CombinedLoader({"labelled": loader(24, 6), "unlabelled": loader(40, 8)}, mode="max_size_cycle")
    model = TwoSources()
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, both, [loader(12, 4), loader(8, 4)])
    sizes = [trainer.num_training_batches, trainer.num_val_batches]
    fitted = {name: value.item() for name, value in trainer.callback_metrics.items()}
    results = trainer.validate(model, [loader(12, 4), loader(8, 4)], verbose=False)
    print(json.dumps({**fitted, "validated": results, "sizes": sizes, "steps": trainer.global_step}))
