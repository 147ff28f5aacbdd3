"""A program as they were written for 1.x: argparse, outputs collected for an epoch's end, arguments of that time."""

import json
from argparse import ArgumentParser

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks.early_stopping import EarlyStopping
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class OldModel(pl.LightningModule):
    def __init__(self, hparams):
        super().__init__()
        self.save_hyperparameters(hparams)
        self.layer_1 = nn.Linear(5, 8)
        self.layer_2 = nn.Linear(8, 2)

    @staticmethod
    def add_model_specific_args(parent_parser):
        parser = ArgumentParser(parents=[parent_parser], add_help=False)
        parser.add_argument("--learning_rate", type=float, default=0.05)
        return parser

    def forward(self, x):
        return self.layer_2(torch.relu(self.layer_1(x)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        return {"loss": loss, "log": {"train_loss": loss}, "progress_bar": {"train_loss": loss}}

    def training_epoch_end(self, outputs):
        self.log("train_mean", torch.stack([output["loss"] for output in outputs]).mean())

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        return {"val_loss": F.cross_entropy(logits, y), "correct": (logits.argmax(1) == y).float().sum(), "n": len(y)}

    def validation_epoch_end(self, outputs):
        loss = torch.stack([output["val_loss"] for output in outputs]).mean()
        accuracy = torch.stack([output["correct"] for output in outputs]).sum() / sum(o["n"] for o in outputs)
        return {"val_loss": loss, "log": {"val_loss": loss, "val_acc": accuracy}}

    def test_step(self, batch, batch_idx):
        return self.validation_step(batch, batch_idx)

    def test_epoch_end(self, outputs):
        loss = torch.stack([output["val_loss"] for output in outputs]).mean()
        self.log("test_loss", loss)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def main(args):
    pl.seed_everything(8)
    x = torch.randn(100, 5)
    data = TensorDataset(x, (x.sum(1) > 0).long())
    trainer = pl.Trainer.from_argparse_args(
        args,
        gpus=None,
        progress_bar_refresh_rate=0,
        weights_summary=None,
        checkpoint_callback=False,
        logger=False,
        callbacks=[EarlyStopping(monitor="val_loss", patience=5)],
    )
    model = OldModel(args)
    trainer.fit(
        model, train_dataloader=DataLoader(data, batch_size=20), val_dataloaders=DataLoader(data, batch_size=50)
    )
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    tested = trainer.test(model, test_dataloaders=DataLoader(data, batch_size=50), verbose=False)[0]
    print(json.dumps({**metrics, **tested, "epochs": trainer.current_epoch}))


if __name__ == "__main__":
    parser = ArgumentParser()
    parser = OldModel.add_model_specific_args(parser)
    parser = pl.Trainer.add_argparse_args(parser)
    main(parser.parse_args())
