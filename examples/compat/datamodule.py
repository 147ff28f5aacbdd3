"""Data in a LightningDataModule, with a scheduler and early stopping around a classifier."""

import json
import os

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split


class BlobsDataModule(L.LightningDataModule):
    def __init__(self, folder="blobs", batch_size=16):
        super().__init__()
        self.save_hyperparameters()

    def prepare_data(self):
        os.makedirs(self.hparams.folder, exist_ok=True)
        generator = torch.Generator().manual_seed(0)
        y = torch.randint(0, 3, (180,), generator=generator)
        x = torch.randn(180, 2, generator=generator) + 3 * F.one_hot(y, 3)[:, :2]
        torch.save({"x": x, "y": y}, os.path.join(self.hparams.folder, "blobs.pt"))

    def setup(self, stage):
        saved = torch.load(os.path.join(self.hparams.folder, "blobs.pt"))
        split = torch.Generator().manual_seed(1)
        parts = random_split(TensorDataset(saved["x"], saved["y"]), [120, 30, 30], generator=split)
        if stage in ("fit", "validate"):
            self.train, self.val = parts[:2]
        if stage == "test":
            self.test = parts[2]

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.hparams.batch_size)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=self.hparams.batch_size)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=self.hparams.batch_size)


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))

    def step(self, batch, name):
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y)
        self.log(f"{name}_loss", loss, on_epoch=True, on_step=False)
        self.log(f"{name}_acc", (logits.argmax(1) == y).float().mean(), on_epoch=True, on_step=False)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def test_step(self, batch, batch_idx):
        self.step(batch, "test")

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


if __name__ == "__main__":
    L.seed_everything(3)
    data = BlobsDataModule()
    trainer = L.Trainer(
        max_epochs=5,
        accelerator="cpu",
        log_every_n_steps=2,
        gradient_clip_val=0.5,
        callbacks=[EarlyStopping("val_loss", patience=2), LearningRateMonitor("epoch")],
        logger=CSVLogger("logs"),
        enable_progress_bar=False,
    )
    trainer.fit(Classifier(), datamodule=data)
    fitted = {name: value.item() for name, value in trainer.callback_metrics.items() if not name.startswith("lr-")}
    tested = trainer.test(datamodule=data, ckpt_path="best", verbose=False)[0]
    print(json.dumps({**fitted, **tested, "epochs": trainer.current_epoch}))
