"""One moment is written once, however many callbacks and signals ask for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from fulgur.checkpoint import write
from fulgur.checkpoint.tools.pruning import plan
from fulgur.errors import SIGTERMException

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


class Broken(Exception):
    """Ends a run within a step."""


class Net(fl.LightningModule):
    """At step `at` sends itself SIGTERM, or breaks off."""

    def __init__(self, at: int = -1, *, breaks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
        self.at, self.breaks = at, breaks

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == self.at and self.breaks:
            raise Broken
        if self.global_step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are written, in order."""
    names: list[str] = []
    original: Any = write._write

    def noting(checkpoint: Any, location: str, *args: Any) -> None:
        names.append(os.path.basename(location))
        original(checkpoint, location, *args)

    monkeypatch.setattr(write, "_write", noting)
    return names


def fit(module: Net, callbacks: list[Any], ckpt_path: str | None = None) -> Net:
    torch.manual_seed(0)
    trainer = fl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        max_epochs=2,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(torch.arange(1.0, 6).unsqueeze(1) / 5, 1, shuffle=True), ckpt_path=ckpt_path)
    return module


def all_that_save(folder: Path, **arguments: Any) -> list[Any]:
    saving = {"save_on_exception": True, "save_last": True, "every_n_epochs": 5} | arguments
    return [ModelCheckpoint(folder / "saved", **saving), OnExceptionCheckpoint(folder / "other")]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.ckpt"))


@pytest.fixture
def whole(tmp_path_factory: pytest.TempPathFactory) -> Net:
    return fit(Net(), [ModelCheckpoint(tmp_path_factory.mktemp("whole"))])


def test_sigterm_writes_the_run_once_for_all_who_save(tmp_path: Path, whole: Net, written: list[str]) -> None:
    with pytest.raises(SIGTERMException):
        fit(Net(3), all_that_save(tmp_path))
    assert written == ["interrupted-epoch=0-step=4.ckpt"]
    names = ["on_exception.ckpt", "epoch=0-step=4.ckpt", "interrupted-epoch=0-step=4.ckpt", "last.ckpt"]
    assert [path.name for path in files(tmp_path)] == names
    assert len({path.stat().st_ino for path in files(tmp_path)}) == 1
    resumed = fit(Net(), [ModelCheckpoint(tmp_path / "resumed")], str(files(tmp_path)[0]))
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_what_a_callback_saved_at_the_same_step_is_not_written_by_sigterm_again(
    tmp_path: Path, whole: Net, written: list[str]
) -> None:
    callbacks = [ModelCheckpoint(tmp_path, every_n_train_steps=1)]
    with pytest.raises(SIGTERMException):
        fit(Net(3), callbacks)
    assert written[-1] == "epoch=0-step=4.ckpt"
    assert [path.name for path in files(tmp_path)] == ["epoch=0-step=4.ckpt"]
    resumed = fit(Net(), [ModelCheckpoint(tmp_path, every_n_train_steps=1)], "auto")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_step_that_breaks_leaves_the_boundary_before_it_as_it_was_saved(
    tmp_path: Path, whole: Net, written: list[str]
) -> None:
    """The state within the step would be further than its counters."""
    with pytest.raises(Broken):
        fit(Net(3, breaks=True), all_that_save(tmp_path, every_n_epochs=0, every_n_train_steps=3, save_last=None))
    assert written == ["epoch=0-step=3.ckpt"]
    resumed = fit(Net(), [ModelCheckpoint(tmp_path / "resumed")], str(tmp_path / "other" / "on_exception.ckpt"))
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_weights_alone_and_disks_without_second_names_get_files_of_their_own(
    tmp_path: Path, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*args: Any, **kwargs: Any) -> None:
        raise OSError("not on this disk")

    monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(SIGTERMException):
        fit(Net(3), all_that_save(tmp_path, save_weights_only=True))
    assert len(written) == len(files(tmp_path)) == 4
    is_full = ["optimizer_states" in torch.load(path, weights_only=True) for path in files(tmp_path)]
    assert is_full == [True, False, True, False]
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def test_file_that_is_saved_after_the_run_has_ended_is_written(tmp_path: Path, written: list[str]) -> None:
    module = Net(3)
    callbacks = all_that_save(tmp_path)
    with pytest.raises(SIGTERMException):
        fit(module, callbacks)
    with torch.no_grad():
        module.net[0].weight.zero_()
    module.trainer.save_checkpoint(tmp_path / "later.ckpt")
    assert written[-1] == "later.ckpt"
    assert not torch.load(tmp_path / "later.ckpt", weights_only=True)["state_dict"]["net.0.weight"].any()


def test_deleting_one_name_leaves_the_others_and_prune_counts_them_as_files_of_one_moment(tmp_path: Path) -> None:
    with pytest.raises(SIGTERMException):
        fit(Net(3), all_that_save(tmp_path))
    write.remove_checkpoint(tmp_path / "other" / "on_exception.ckpt")
    entries = plan(str(tmp_path / "saved"), keep_last=1)
    assert len(entries) == 3
    assert all(entry.kept_for for entry in entries)
