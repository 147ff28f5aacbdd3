"""A loop of one's own with Fabric: accumulation, clipping, validation, and going on from a checkpoint."""

import json

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))

    def forward(self, x):
        return self.layers(x)


class Counter:
    def __init__(self):
        self.steps, self.epochs = 0, []

    def on_step(self):
        self.steps += 1

    def on_epoch_end(self, epoch, **values):
        self.epochs.append({"epoch": epoch, **values})


def build(fabric):
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    model, optimizer = fabric.setup(model, optimizer)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "epoch": 0}


def train_epoch(fabric, state, loader, window=2):
    model, optimizer = state["model"], state["optimizer"]
    model.train()
    norms = []
    for index, (x, y) in enumerate(loader):
        is_last = (index + 1) % window == 0 or index + 1 == len(loader)
        with fabric.no_backward_sync(model, enabled=not is_last):
            loss = F.cross_entropy(model(x), y)
            fabric.backward(loss / window)
        if is_last:
            norms.append(fabric.clip_gradients(model, optimizer, max_norm=0.5).item())
            optimizer.step()
            optimizer.zero_grad()
            fabric.call("on_step")
    state["scheduler"].step()
    state["epoch"] += 1
    return sum(norms) / len(norms)


@torch.no_grad()
def validate(fabric, model, loader):
    model.eval()
    loss = sum(F.cross_entropy(model(x), y, reduction="sum") for x, y in loader)
    right = sum((model(x).argmax(1) == y).sum() for x, y in loader)
    totals = fabric.all_reduce({"loss": loss, "right": right.float()}, reduce_op="sum")
    return {name: (value / len(loader.dataset)).item() for name, value in totals.items()}


def main(precision):
    counter = Counter()
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision, callbacks=[counter])
    fabric.launch()
    fabric.seed_everything(7)
    x = torch.randn(150, 4)
    data = TensorDataset(x, (x[:, :3] + 0.3 * torch.randn(150, 3)).argmax(1))
    train = DataLoader(TensorDataset(*data[:120]), batch_size=16, shuffle=True)
    val = DataLoader(TensorDataset(*data[120:]), batch_size=16)
    train, val = fabric.setup_dataloaders(train, val)
    state = build(fabric)
    while state["epoch"] < 3:
        norm = train_epoch(fabric, state, train)
        fabric.call("on_epoch_end", state["epoch"], norm=norm, **validate(fabric, state["model"], val))
    fabric.save(f"{precision}.ckpt", state)

    resumed = build(fabric)
    left = fabric.load(f"{precision}.ckpt", resumed)
    assert not left
    for _ in range(2):
        train_epoch(fabric, resumed, train)
    last = validate(fabric, resumed["model"], val)
    return {"epochs": counter.epochs, "steps": counter.steps, "resumed": last, "epoch": resumed["epoch"]}


if __name__ == "__main__":
    print(json.dumps({precision: main(precision) for precision in ("32-true", "bf16-mixed", "64-true")}))
