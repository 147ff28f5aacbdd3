"""torchdata's StatefulDataLoader, which keeps its own position: resumed within an epoch to the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint
from fulgur.testing import run_ranks

pytest.importorskip("torchdata")

pytestmark = [
    # torchdata's own
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]


class Noisy(Dataset[Any]):
    """Augments in the main process; the state of the loader does not have the generators of its workers."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        is_main = torch.utils.data.get_worker_info() is None
        return torch.tensor([float(index)]) + (0.001 * torch.rand(1) if is_main else 0.0)


class Counting(IterableDataset[Any]):
    """A stream that knows its place."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while self.at < 12:
            value = self.at
            self.at += 1
            if value % step == first:
                yield torch.tensor([float(value)])
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Seen(fl.LightningModule):
    """Its weights depend on every batch and on the order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch.flatten().tolist())
        loss = (self.layer(batch / 10) - batch.cos()).square().mean()
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.5)


def build(kind: str, num_workers: int) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    if kind == "stream":
        return StatefulDataLoader(Counting(), batch_size=2, num_workers=num_workers)
    return StatefulDataLoader(Noisy(), batch_size=2, shuffle=True, num_workers=num_workers)


def fit(loader: Any, folder: Path | None = None, *, resume_from: Path | None = None, **settings: Any) -> Any:
    saver = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = fl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[] if folder is None else [saver],
        enable_checkpointing=folder is not None,
        **quiet,
        **settings,
    )
    fl.seed_everything(7, workers=True)
    module = Seen()
    trainer.fit(module, loader, ckpt_path=resume_from)
    return module, trainer


@pytest.mark.parametrize("kind", ["map", "stream"])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("step", [1, 4, 6, 9])
def test_resumed_run_has_the_same_bits(step: int, num_workers: int, kind: str, tmp_path: Path) -> None:
    whole, of_whole = fit(build(kind, num_workers), tmp_path)
    resumed, of_resumed = fit(build(kind, num_workers), resume_from=tmp_path / f"{step}.ckpt")
    assert len(whole.seen) == 12
    assert resumed.seen == whole.seen[step:]
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert of_resumed.callback_metrics == of_whole.callback_metrics


def test_each_sample_comes_once_an_epoch(tmp_path: Path) -> None:
    module, _ = fit(build("map", 2))
    for epoch in (module.seen[:6], module.seen[6:]):
        assert sorted(round(value) for batch in epoch for value in batch) == list(range(12))


def on_two_ranks(folder: str) -> tuple[list[list[float]], list[list[float]], bool]:
    settings: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    whole, _ = fit(build("map", 0), Path(folder), **settings)
    resumed, _ = fit(build("map", 0), resume_from=Path(folder) / "4.ckpt", **settings)
    return whole.seen, resumed.seen, torch.equal(resumed.layer.weight, whole.layer.weight)


def test_ranks_share_the_samples_and_resume_where_they_were(tmp_path: Path) -> None:
    results = run_ranks(on_two_ranks, 2, str(tmp_path))
    for whole, resumed, has_same_weights in results:
        assert resumed == whole[4:]
        assert has_same_weights
    (first, *_), (second, *_) = results
    in_epoch = [value for seen in (first, second) for batch in seen[: len(seen) // 2] for value in batch]
    assert sorted(round(value) for value in in_epoch) == list(range(12))
