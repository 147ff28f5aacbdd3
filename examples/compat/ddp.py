"""Two processes train one model; each prints nothing but rank 0, which tells what all of them have found."""

import json

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Regression(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.ranks_seen = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.mse_loss(self.net(x), y), sync_dist=True)

    def on_train_end(self):
        ranks = self.all_gather(torch.tensor([self.global_rank]))
        self.ranks_seen = sorted(ranks.flatten().tolist())

    def train_dataloader(self):
        dataset = make_dataset(64, 1)
        sampler = DistributedSampler(dataset, self.trainer.world_size, self.trainer.global_rank, shuffle=True, seed=3)
        return DataLoader(dataset, batch_size=8, sampler=sampler)

    def val_dataloader(self):
        dataset = make_dataset(32, 2)
        sampler = DistributedSampler(dataset, self.trainer.world_size, self.trainer.global_rank, shuffle=False)
        return DataLoader(dataset, batch_size=8, sampler=sampler)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@rank_zero_only
def tell(numbers):
    print(json.dumps(numbers), flush=True)


def make_dataset(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True))


if __name__ == "__main__":
    L.seed_everything(9)
    model = Regression()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo", find_unused_parameters=False),
        use_distributed_sampler=False,
        max_epochs=3,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model)
    weights = sum(float(p.detach().abs().sum()) for p in model.parameters())
    agreed = trainer.strategy.broadcast(weights) == weights
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    tell({**metrics, "weights": weights, "agreed": agreed, "ranks": model.ranks_seen, "steps": trainer.global_step})
    trainer.strategy.barrier()
