"""The same file goes on with any number of ranks that have the same global batch, at the same sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint
from fulgur.errors import CheckpointError
from fulgur.testing import run_ranks

N = 29
GLOBAL_BATCH = 8
EPOCHS = 3


class Points(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([float(index), 1.0], dtype=torch.float64)


class Line(fl.LightningModule):
    """Notes what it saw, and logs a mean over the epoch."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Dropout(dropout), nn.Linear(2, 1)).double()
        self.seen: list[list[int]] = []
        self.means: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch[:, 0].long().tolist())
        loss = (self.layer(batch / 10) - 1).pow(2).mean()
        self.log("loss", loss, on_epoch=True, on_step=False)
        return loss

    def on_train_epoch_end(self) -> None:
        self.means.append(float(self.trainer.callback_metrics["loss"]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.9), "interval": "step"}
        ]


def fit(n_ranks: int, folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train up to `max_steps`, from the file if one is given, and leave a file after every step."""
    torch.manual_seed(5)
    kind, batch = options.get("kind", "shuffled"), options.get("batch", GLOBAL_BATCH)
    loader = DataLoader(Points(), batch_size=batch // n_ranks, shuffle=kind != "in_order")
    module = Line(options.get("dropout", 0.0))
    trainer = fl.Trainer(
        accelerator="cpu",
        devices=n_ranks,
        strategy="ddp" if n_ranks > 1 else "auto",
        max_epochs=EPOCHS,
        max_steps=options.get("max_steps", -1),
        accumulate_grad_batches=options.get("accumulate", 1),
        callbacks=[
            ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, ckpt_path=options.get("resume_from"))
    weights = torch.cat([p.detach().flatten() for p in module.parameters()]).tolist()
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    return {"weights": weights, "seen": module.seen, "means": module.means, "rates": rates}


def run(n_ranks: int, folder: Path, **options: Any) -> list[dict[str, Any]]:
    if n_ranks == 1:
        return [fit(1, str(folder), options)]
    return run_ranks(fit, n_ranks, n_ranks, str(folder), options)


def steps(by_rank: list[dict[str, Any]]) -> list[list[int]]:
    """What all ranks together saw in each step, a copy of a sample left out."""
    return [sorted(set().union(*step)) for step in zip(*(own["seen"] for own in by_rank), strict=True)]


@pytest.mark.world_size(4)
def test_one_two_four_and_one_rank_go_on_from_each_other(tmp_path: Path) -> None:
    whole = run(1, tmp_path / "whole")
    seen: list[list[int]] = []
    path, stop = None, 0
    for leg, (n_ranks, stop) in enumerate(((1, 2), (2, 5), (4, 6), (2, 8), (1, 9), (4, -1))):
        folder = tmp_path / str(leg)
        by_rank = run(n_ranks, folder, max_steps=stop, resume_from=path)
        seen += steps(by_rank)
        path = str(folder / f"{stop}.ckpt")
    assert seen == steps(whole)
    for own in by_rank:
        assert own["weights"] == pytest.approx(whole[0]["weights"], abs=1e-12)
        assert own["rates"] == whole[0]["rates"]
        assert own["means"][-1] == pytest.approx(whole[0]["means"][-1], abs=1e-12)
    for epoch in range(EPOCHS):
        assert sorted(i for step in seen[4 * epoch : 4 * epoch + 4] for i in step) == list(range(N))


@pytest.mark.world_size(2)
def test_as_many_ranks_go_on_with_the_same_bits(tmp_path: Path) -> None:
    whole = run(2, tmp_path / "whole", dropout=0.5)
    assert whole[0]["weights"] == whole[1]["weights"]
    for step in (1, 4, 6):
        resumed = run(2, tmp_path / str(step), dropout=0.5, resume_from=str(tmp_path / "whole" / f"{step}.ckpt"))
        for own, of_whole in zip(resumed, whole, strict=True):
            assert own["weights"] == of_whole["weights"]
            assert own["seen"] == of_whole["seen"][step:]
            assert own["means"] == of_whole["means"][(step - 1) // 4 :]


@pytest.mark.world_size(2)
def test_ranks_draw_different_dropout(tmp_path: Path) -> None:
    one = run(1, tmp_path / "one", dropout=0.5)
    two = run(2, tmp_path / "two", dropout=0.5)
    assert one[0]["weights"] != pytest.approx(two[0]["weights"], abs=1e-6)
    loaded = torch.load(tmp_path / "two" / "1.ckpt", weights_only=True)
    states = [rank["rng"]["torch"] for rank in loaded["fulgur"]["ranks"]]
    assert not torch.equal(states[0], states[1])


@pytest.mark.world_size(2)
def test_another_global_batch_goes_on_at_the_same_sample_or_says_why_not(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    by_rank = run(2, folder, batch=8, max_steps=2)
    rest = run(2, tmp_path / "rest", batch=4, resume_from=str(folder / "2.ckpt"))
    seen = [i for step in steps(by_rank) for i in step]
    in_epoch = [i for step in steps(rest)[:4] for i in step]
    assert sorted(seen + in_epoch) == list(range(N))
    with pytest.raises(CheckpointError, match=r"after 2 steps of 8 samples.*a step has 6 samples now"):
        run(2, tmp_path / "refused", batch=6, resume_from=str(folder / "2.ckpt"))


@pytest.mark.world_size(2)
def test_a_file_of_an_epochs_end_goes_on_with_any_batch(tmp_path: Path) -> None:
    run(2, tmp_path / "first", max_steps=4)
    rest = run(2, tmp_path / "rest", batch=6, resume_from=str(tmp_path / "first" / "4.ckpt"))
    assert sorted(i for step in steps(rest)[:5] for i in step) == list(range(N))
