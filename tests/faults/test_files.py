"""Runs whose disk or store fails: what was saved before is never harmed, and the run does what its user chose."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint
from fulgur.checkpoint.io import AsyncCheckpointIO, TorchCheckpointIO
from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.location import list_files
from fulgur.checkpoint.newest import find_newest
from fulgur.checkpoint.verify import verify_checkpoint
from fulgur.errors import CheckpointError

N_STEPS = 6
DATA = torch.randn(N_STEPS, 30, generator=torch.Generator().manual_seed(0))
QUICK = TorchCheckpointIO(pause_s=0.001)


class Net(fl.LightningModule):
    """Keeps its weights of every step, and does something of the test's after one, once it is saved."""

    def __init__(self, after: dict[int, Callable[[], None]] | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(30, 100)
        self.after = after or {}
        self.weights: dict[int, torch.Tensor] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step in self.after:
            wait_for_writes()
            self.after[self.global_step]()
        return self.layer(batch).square().mean()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.weights[self.global_step] = self.layer.weight.detach().clone()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def wait_for_writes() -> None:
    for thread in threading.enumerate():
        if thread.name == "fulgur-checkpoint":
            thread.join()


def fit(net: Net, callback: ModelCheckpoint, *, plugin: Any = QUICK, ckpt_path: str | None = None) -> fl.Trainer:
    trainer = fl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[callback],
        plugins=[plugin],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net, DataLoader(DATA, 1), ckpt_path=ckpt_path)
    return trainer


def every_step(directory: Any, **arguments: Any) -> ModelCheckpoint:
    return ModelCheckpoint(directory, filename="{step}", every_n_train_steps=1, save_top_k=-1, **arguments)


def check(directory: Any, net: Net, steps: list[int]) -> None:
    """Exactly the files of these steps are there, each whole and with the weights of its step."""
    names = [name for name in list_files(directory) if name != "filling"]
    assert names == [f"step={step}.ckpt" for step in steps]
    for step in steps:
        path = f"{directory}/step={step}.ckpt"
        assert verify_checkpoint(path).kind == "good"
        assert torch.equal(load_checkpoint(path)["state_dict"]["layer.weight"], net.weights[step])


both_ways = pytest.mark.parametrize("is_async", [False, True], ids=["at once", "asynchronous"])


# ------------------------------------------------------------------------------------------------------ a full disk


@both_ways
def test_full_disk_ends_the_run_and_harms_no_earlier_file(small_disk: Any, is_async: bool) -> None:
    net = Net({2: small_disk.fill})
    with pytest.raises(CheckpointError, match=r"step=3\.ckpt' could not be written in 3 tries: OSError"):
        fit(net, every_step(small_disk.path, async_save=is_async))
    assert net.global_step in ((4, 5) if is_async else (3,))
    check(small_disk.path, net, [1, 2])


@both_ways
def test_full_disk_does_not_end_a_run_that_is_to_go_on(small_disk: Any, is_async: bool) -> None:
    callback = every_step(small_disk.path, async_save=is_async, on_save_error="continue")
    net = Net({2: small_disk.fill, 4: small_disk.empty})
    with pytest.warns(UserWarning, match=r"step=[34]\.ckpt' could not be written.*Training goes on") as told:
        fit(net, callback)
    assert len(told) == 2
    check(small_disk.path, net, [1, 2, 5, 6])


@both_ways
def test_ranking_forgets_the_file_that_could_not_be_written(small_disk: Any, is_async: bool) -> None:
    callback = ModelCheckpoint(
        small_disk.path, filename="{step}", monitor="step", mode="max", save_top_k=2, every_n_train_steps=1,
        async_save=is_async,
    )  # fmt: skip
    net = Net({3: small_disk.fill})
    with pytest.raises(CheckpointError):
        fit(net, callback)
    assert callback.best_model_path == str(small_disk.path / "step=3.ckpt")
    assert sorted(callback.best_k_models) == [str(small_disk.path / f"step={step}.ckpt") for step in (2, 3)]
    check(small_disk.path, net, [2, 3])


def test_full_disk_while_the_last_file_is_written_is_an_error_of_fit(small_disk: Any) -> None:
    net = Net({5: small_disk.fill})
    with pytest.raises(CheckpointError, match=r"step=6\.ckpt"):
        fit(net, every_step(small_disk.path, async_save=True))
    check(small_disk.path, net, [1, 2, 3, 4, 5])


def test_save_by_hand_that_fails_in_the_background_ends_the_run_at_a_step(small_disk: Any, tmp_path: Path) -> None:
    def save() -> None:
        small_disk.fill()
        net.trainer.save_checkpoint(small_disk.path / "a.ckpt")
        wait_for_writes()

    net = Net({2: save})
    with pytest.raises(CheckpointError, match=r"a\.ckpt' could not be written in 3 tries"):
        fit(net, ModelCheckpoint(tmp_path / "other", save_top_k=0), plugin=AsyncCheckpointIO(QUICK))
    assert net.global_step == 3  # in the middle of which the write failed


@both_ways
def test_read_only_directory_ends_the_run_and_harms_no_earlier_file(small_disk: Any, is_async: bool) -> None:
    net = Net({2: small_disk.make_read_only})
    with pytest.raises(CheckpointError, match=r"step=3\.ckpt' could not be written in 3 tries: (OSError|Permission)"):
        fit(net, every_step(small_disk.path, async_save=is_async))
    check(small_disk.path, net, [1, 2])


# ---------------------------------------------------------------------------------------------------------- stores


@both_ways
def test_store_that_fails_at_every_second_write_gets_all_files(flaky_store: str, is_async: bool) -> None:
    net = Net()
    fit(net, every_step(flaky_store, async_save=is_async))
    check(flaky_store, net, [1, 2, 3, 4, 5, 6])


def test_store_that_fails_at_every_second_write_loses_a_file_without_a_second_try(flaky_store: str) -> None:
    net = Net()
    once = TorchCheckpointIO(num_tries=1)
    with pytest.warns(UserWarning, match=r"ConnectionResetError: the server has gone away"):
        fit(net, every_step(flaky_store, on_save_error="continue"), plugin=once)
    check(flaky_store, net, [2, 4, 6])


@both_ways
def test_run_on_s3_is_saved_pruned_and_resumed(s3: tuple[str, Callable[[], None]], is_async: bool) -> None:
    url, _ = s3
    callback = ModelCheckpoint(
        url, filename="{step}", monitor="step", mode="max", save_top_k=2, every_n_train_steps=1, save_last=True,
        async_save=is_async,
    )  # fmt: skip
    net = Net()
    fit(net, callback)
    assert list_files(url) == ["last.ckpt", "step=5.ckpt", "step=6.ckpt"]
    assert verify_checkpoint(f"{url}/step=5.ckpt").kind == "good"
    assert callback.best_model_path == f"{url}/step=6.ckpt"
    resumed = Net()
    fit(resumed, ModelCheckpoint(url, filename="{step}"), ckpt_path=f"{url}/step=5.ckpt")
    assert torch.equal(resumed.weights[6], net.weights[6])


def test_damaged_file_on_s3_is_passed_over(s3: tuple[str, Callable[[], None]]) -> None:
    url, _ = s3
    fit(Net(), every_step(url))
    filesystem = fsspec.filesystem("s3")
    content = filesystem.cat(f"{url}/step=6.ckpt")
    filesystem.pipe(f"{url}/step=6.ckpt", content[:3000] + b"?" + content[3001:])
    filesystem.pipe(f"{url}/step=5.ckpt", content[:3000])
    assert find_newest(url) == f"{url}/step=4.ckpt"


def test_server_that_goes_away_ends_the_run_with_an_error_that_names_the_file(
    s3: tuple[str, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, stop = s3
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    monkeypatch.setattr("fulgur.checkpoint.write.time.sleep", lambda pause_s: None)
    net = Net({2: stop})
    with pytest.raises(
        CheckpointError, match=r"s3://bucket-\d+/run/step=3\.ckpt' could not be asked for it in 3 tries"
    ):
        fit(net, every_step(url))
    assert net.global_step == 3


# --------------------------------------------------------------------------------------------------- while training


class SlowCheckpointIO(TorchCheckpointIO):
    """Takes longer for a file than the run for some steps."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        time.sleep(0.05)
        super().save_checkpoint(checkpoint, path, storage_options)


def test_slow_writes_hold_the_weights_of_their_moments(tmp_path: Path) -> None:
    net = Net()
    fit(net, every_step(tmp_path / "run", async_save=True), plugin=SlowCheckpointIO())
    check(tmp_path / "run", net, [1, 2, 3, 4, 5, 6])


def test_best_file_is_there_when_fit_returns(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "run", async_save=True, save_last=True)
    trainer = fit(Net(), callback, plugin=SlowCheckpointIO())
    assert verify_checkpoint(callback.best_model_path).kind == "good"
    assert verify_checkpoint(callback.last_model_path).kind == "good"
    assert trainer.strategy.checkpoint_io.__class__ is SlowCheckpointIO


def test_last_save_is_awaited_when_the_run_breaks(tmp_path: Path) -> None:
    def break_off() -> None:
        raise RuntimeError("broken")

    net = Net({4: break_off})
    with pytest.raises(RuntimeError, match="broken"):
        fit(net, every_step(tmp_path / "run", async_save=True), plugin=SlowCheckpointIO())
    check(tmp_path / "run", net, [1, 2, 3, 4])
    assert not [thread for thread in threading.enumerate() if thread.name == "fulgur-checkpoint"]


def test_plugin_of_the_trainer_makes_all_saves_asynchronous(tmp_path: Path) -> None:
    def save() -> None:
        net.trainer.save_checkpoint(tmp_path / "by_hand.ckpt")
        assert not (tmp_path / "by_hand.ckpt").exists()

    net = Net({3: save})
    fit(net, every_step(tmp_path / "run"), plugin=AsyncCheckpointIO(SlowCheckpointIO()))
    check(tmp_path / "run", net, [1, 2, 3, 4, 5, 6])
    assert torch.equal(load_checkpoint(tmp_path / "by_hand.ckpt")["state_dict"]["layer.weight"], net.weights[3])


def test_obsolete_file_stays_until_the_new_one_is_written(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    class Watching(SlowCheckpointIO):
        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            seen.append(os.listdir(tmp_path / "run") if seen else [])
            super().save_checkpoint(checkpoint, path, storage_options)

    callback = ModelCheckpoint(tmp_path / "run", filename="{step}", every_n_train_steps=1, async_save=True)
    fit(Net(), callback, plugin=Watching())
    assert seen == [[], *([f"step={step}.ckpt"] for step in range(1, N_STEPS))]
    assert os.listdir(tmp_path / "run") == [f"step={N_STEPS}.ckpt"]


def test_link_to_the_last_file_comes_after_the_file(tmp_path: Path) -> None:
    callback = ModelCheckpoint(
        tmp_path / "run", filename="{step}", every_n_train_steps=2, save_last="link", async_save=True
    )
    fit(Net(), callback, plugin=SlowCheckpointIO())
    assert os.readlink(tmp_path / "run" / "last.ckpt") == "step=6.ckpt"
    assert load_checkpoint(callback.last_model_path)["global_step"] == 6


def test_asynchronous_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    net = Net()
    fit(net, every_step(tmp_path / "run", async_save=True), plugin=SlowCheckpointIO())
    for step in range(1, N_STEPS):
        resumed = Net()
        path = str(tmp_path / "run" / f"step={step}.ckpt")
        fit(resumed, ModelCheckpoint(tmp_path / f"resumed{step}", save_top_k=0), ckpt_path=path)
        assert sorted(resumed.weights) == list(range(step + 1, N_STEPS + 1))
        assert all(torch.equal(resumed.weights[later], net.weights[later]) for later in resumed.weights)


def test_unknown_choice_is_refused() -> None:
    with pytest.raises(fl.errors.MisconfigurationException, match="on_save_error='ignore' is not possible"):
        ModelCheckpoint(on_save_error="ignore")  # type: ignore[arg-type]
