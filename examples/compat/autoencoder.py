"""An autoencoder: the first thing that most tutorials build. Run it with ``python -m fulgur.compat autoencoder.py``."""

import json

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class LitAutoEncoder(L.LightningModule):
    def __init__(self, n_features=16, n_code=3, lr=1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(n_features, 8), nn.ReLU(), nn.Linear(8, n_code))
        self.decoder = nn.Sequential(nn.Linear(n_code, 8), nn.ReLU(), nn.Linear(8, n_features))

    def forward(self, x):
        return self.encoder(x)

    def training_step(self, batch, batch_idx):
        loss = self.reconstruct(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.reconstruct(batch))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.reconstruct(batch))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def reconstruct(self, batch):
        (x,) = batch
        return F.mse_loss(self.decoder(self.encoder(x)), x)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def make_data(n):
    low = torch.randn(n, 3)
    return TensorDataset(low @ torch.randn(3, 16))


if __name__ == "__main__":
    L.seed_everything(1)
    train, val, test = make_data(96), make_data(32), make_data(32)
    checkpoint = L.pytorch.callbacks.ModelCheckpoint(monitor="val_loss", dirpath="autoencoder")
    trainer = L.Trainer(
        max_epochs=4, accelerator="cpu", callbacks=[checkpoint], logger=False, enable_progress_bar=False
    )
    trainer.fit(LitAutoEncoder(), DataLoader(train, batch_size=16), DataLoader(val, batch_size=16))
    best = LitAutoEncoder.load_from_checkpoint(checkpoint.best_model_path)
    result = trainer.test(best, DataLoader(test, batch_size=16), verbose=False)[0]
    codes = torch.cat(trainer.predict(best, DataLoader(test, batch_size=16)))
    print(json.dumps({**result, "codes": codes.abs().mean().item(), "steps": trainer.global_step}))
