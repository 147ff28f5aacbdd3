"""Files of a real run, a store in memory, and the program that the tools are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fulgur
from fulgur.callbacks import EarlyStopping, ModelCheckpoint
from fulgur.checkpoint.tools.commands import main


class Net(fulgur.LightningModule):
    """Tied weights, a buffer that is no float, and a hyperparameter that is no plain data."""

    def __init__(self, width: int = 4, root: Path = Path("/data"), betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.into = nn.Linear(3, width)
        self.out = nn.Linear(width, 3)
        self.tied = self.out
        self.norm = nn.BatchNorm1d(3)

    def forward(self, batch: Tensor) -> Tensor:
        return self.norm(self.out(self.into(batch))).pow(2).mean() + self.out.weight.pow(2).mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", -float(self.global_step))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01, betas=self.hparams.betas)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def build_loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(torch.randn(16, 3, generator=generator), batch_size=4)  # type: ignore[arg-type]


def build_trainer(**arguments: Any) -> fulgur.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return fulgur.Trainer(**{"max_epochs": 3, "enable_checkpointing": False, **quiet, **arguments})


@dataclass(frozen=True)
class Workshop:
    """What tests build runs from."""

    Net: type[Net] = Net
    loader: Callable[[], Any] = build_loader
    trainer: Callable[..., fulgur.Trainer] = build_trainer


@pytest.fixture(scope="session")
def workshop() -> Workshop:
    return Workshop()


@pytest.fixture(scope="session")
def _finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    torch.manual_seed(0)
    saver = ModelCheckpoint(directory, "{epoch}", monitor="val_loss", save_top_k=-1, save_last="link")
    trainer = build_trainer(callbacks=[saver, EarlyStopping("val_loss", patience=9)], enable_checkpointing=True)
    trainer.fit(Net(), build_loader(), build_loader())
    trainer.save_checkpoint(directory / "weights.ckpt", weights_only=True)
    return directory


@pytest.fixture
def run_dir(_finished_run: Path, tmp_path: Path) -> Path:
    """``epoch=0.ckpt`` to ``epoch=2.ckpt`` of a run with 4 batches an epoch, and ``last.ckpt``, a link to the third."""
    directory = tmp_path / "run"
    shutil.copytree(_finished_run, directory, symlinks=True)
    (directory / "weights.ckpt").rename(tmp_path / "weights.ckpt")
    return directory


@pytest.fixture
def weights_only(run_dir: Path) -> Path:
    """A checkpoint of the same run, saved with weights only."""
    return run_dir.parent / "weights.ckpt"


@pytest.fixture
def store() -> Iterator[str]:
    """URL of a directory of a store."""
    filesystem = fsspec.filesystem("memory")
    yield "memory://runs"
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


@dataclass(frozen=True)
class Said:
    """What the program has printed."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Calls the program within this process."""

    def call(*words: object) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call
