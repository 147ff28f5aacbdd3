"""Fine-tuning by freezing: the backbone is frozen at first, and joins the optimizer later, by a callback."""

import json

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Unfreeze(Callback):
    """Makes the backbone trainable at the beginning of an epoch."""

    def __init__(self, at_epoch):
        self.at_epoch = at_epoch

    def on_fit_start(self, trainer, pl_module):
        for parameter in pl_module.backbone.parameters():
            parameter.requires_grad = False

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch != self.at_epoch:
            return
        for parameter in pl_module.backbone.parameters():
            parameter.requires_grad = True
        (optimizer,) = trainer.optimizers
        optimizer.add_param_group({"params": list(pl_module.backbone.parameters()), "lr": 1e-3})


class Regressor(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 12), nn.Tanh())
        self.head = nn.Linear(12, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.head(self.backbone(x)), y)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=1e-2)


if __name__ == "__main__":
    pl.seed_everything(4, workers=True)
    x = torch.randn(80, 4)
    data = DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=20)
    model = Regressor()
    for parameter in model.backbone.parameters():
        parameter.requires_grad = False
    before = model.backbone[0].weight.detach().clone()
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        callbacks=[Unfreeze(at_epoch=2)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, data)
    moved = (model.backbone[0].weight.detach() - before).abs().sum().item()
    loss = trainer.callback_metrics["loss"].item()
    print(json.dumps({"loss": loss, "moved": moved, "groups": len(trainer.optimizers[0].param_groups)}))
