"""SIGTERM and the signals of SLURM: the run is saved at a step boundary, torn down, and goes on to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from fulgur.errors import RequeueException, SIGTERMException
from fulgur.loggers import CSVLogger, DummyLogger

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


class Net(fl.LightningModule):
    """Sends itself a signal in the hook `where`, as of the step `at`."""

    def __init__(self, where: str = "", at: int = 0, signum: int = signal.SIGTERM) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.where, self.at, self.signum = where, at, signum
        self.events: list[str] = []

    def note(self, event: str) -> None:
        self.events.append(event)
        if event == self.where and self.global_step >= self.at and not self.trainer.sanity_checking:
            os.kill(os.getpid(), self.signum)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("training_step")
        loss = self.net(batch).square().mean()
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.note("on_train_batch_end")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note("validation_step")
        self.log("val_loss", self.net(batch + torch.randn(1)).square().mean())

    def on_train_end(self) -> None:
        self.note("on_train_end")

    def teardown(self, stage: str) -> None:
        self.note("teardown")

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Finalized(DummyLogger):
    """Notes how it was finalized."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: list[str] = []

    def finalize(self, status: str) -> None:
        self.statuses.append(status)


class Runs:
    """Makes runs of six batches an epoch, that save by themselves at their end only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fit(self, module: Net, *, ckpt_path: str | None = "auto", **arguments: Any) -> fl.Trainer:
        torch.manual_seed(0)
        defaults: dict[str, Any] = {
            "logger": CSVLogger(self.folder),
            "callbacks": [ModelCheckpoint(self.folder / "saved", every_n_epochs=2)],
            "max_epochs": 2,
            "num_sanity_val_steps": 0,
            "val_check_interval": 3,
        }
        self.trainer = fl.Trainer(
            accelerator="cpu",
            default_root_dir=self.folder,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            **(defaults | arguments),
        )
        data = torch.arange(1.0, 7).unsqueeze(1) / 6
        self.trainer.fit(module, DataLoader(data, 1, shuffle=True), DataLoader(data, 2), ckpt_path=ckpt_path)
        return self.trainer

    @property
    def saved(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("saved/*"))

    def rows(self) -> str:
        return (self.folder / "lightning_logs/version_0/metrics.csv").read_text()


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@pytest.fixture
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, str]:
    undisturbed, module = Runs(tmp_path_factory.mktemp("whole")), Net()
    undisturbed.fit(module)
    return module, undisturbed.rows()


def assert_same(module: Net, other: Net) -> None:
    torch.testing.assert_close(module.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("where", "at", "step"), [("training_step", 1, 2), ("on_train_batch_end", 4, 4)])
def test_sigterm_saves_at_the_step_boundary_and_the_next_run_goes_on(
    runs: Runs, whole: Any, where: str, at: int, step: int
) -> None:
    module = Net(where, at)
    with pytest.raises(SIGTERMException) as raised:
        runs.fit(module)
    assert raised.value.code == 143
    assert isinstance(raised.value, SystemExit)
    assert module.events[-2:] == ["on_train_batch_end", "teardown"]
    assert runs.trainer.received_sigterm
    assert runs.saved == [f"interrupted-epoch=0-step={step}.ckpt"]
    resumed = Net()
    trainer = runs.fit(resumed)
    assert not trainer.received_sigterm
    assert resumed.events.count("training_step") == 12 - step
    assert_same(resumed, whole[0])
    assert runs.rows() == whole[1]


def test_sigterm_within_a_validation_leaves_at_its_next_batch_and_the_validation_begins_anew(
    runs: Runs, whole: Any
) -> None:
    module = Net("validation_step", 6)
    with pytest.raises(SIGTERMException):
        runs.fit(module)
    assert module.events.count("validation_step") == 3 + 1
    resumed = Net()
    runs.fit(resumed)
    assert resumed.events[0] == "validation_step"
    assert_same(resumed, whole[0])
    assert runs.rows() == whole[1]


def test_sigterm_in_an_accumulation_window_waits_for_its_end(runs: Runs) -> None:
    module = Net("training_step", 1)
    with pytest.raises(SIGTERMException):
        runs.fit(module, accumulate_grad_batches=3)
    assert runs.trainer.global_step == 2
    assert module.events.count("training_step") == 6


@pytest.mark.parametrize("saves", ["nothing", "ModelCheckpoint", "OnExceptionCheckpoint"])
def test_ctrl_c_waits_for_the_window_and_saves_what_a_callback_asks_for(runs: Runs, saves: str) -> None:
    class Once(Net):
        def note(self, event: str) -> None:
            super().note(event)
            self.where = "" if event == self.where else self.where

    module, folder = Once("training_step", 0, signal.SIGINT), runs.folder / "saved"
    by_callback: dict[str, list[fl.Callback]] = {
        "nothing": [ModelCheckpoint(folder)],
        "ModelCheckpoint": [ModelCheckpoint(folder, save_on_exception=True)],
        "OnExceptionCheckpoint": [ModelCheckpoint(folder), OnExceptionCheckpoint(folder)],
    }
    with pytest.raises(KeyboardInterrupt):
        runs.fit(
            module, ckpt_path=None, accumulate_grad_batches=3, callbacks=by_callback[saves], val_check_interval=None
        )
    assert module.events.count("training_step") == 3
    expected = {
        "nothing": [],
        "ModelCheckpoint": ["epoch=0-step=1.ckpt"],
        "OnExceptionCheckpoint": ["on_exception.ckpt"],
    }
    assert runs.saved == expected[saves]


def test_sigterm_after_the_last_step_is_not_lost(runs: Runs) -> None:
    with pytest.raises(SIGTERMException):
        runs.fit(Net("on_train_end", 12))
    assert "interrupted-epoch=2-step=12.ckpt" in runs.saved


def test_next_interruption_replaces_the_file_of_the_one_before_but_not_what_was_resumed_from(runs: Runs) -> None:
    for at in (2, 4, 6):
        with pytest.raises(SIGTERMException):
            runs.fit(Net("on_train_batch_end", at))
    assert runs.saved == ["interrupted-epoch=0-step=4.ckpt", "interrupted-epoch=0-step=6.ckpt"]
    runs.fit(Net())
    assert runs.saved == ["epoch=1-step=12.ckpt", "interrupted-epoch=0-step=6.ckpt"]


def test_without_checkpointing_nothing_is_saved(runs: Runs) -> None:
    with pytest.raises(SIGTERMException):
        runs.fit(Net("training_step"), callbacks=[], enable_checkpointing=False)
    assert list(runs.folder.rglob("*.ckpt")) == []


def test_more_of_sigterm_changes_nothing(runs: Runs) -> None:
    class Twice(Net):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SIGTERMException):
        runs.fit(Twice("training_step", 1))
    assert runs.saved == ["interrupted-epoch=0-step=2.ckpt"]


def test_failing_save_does_not_hide_the_signal(runs: Runs) -> None:
    class Blocking(Net):
        def on_train_start(self) -> None:
            (runs.folder / "saved").write_text("in the way")

    with pytest.raises(SIGTERMException), pytest.warns(match="not saved"):
        runs.fit(Blocking("training_step", 1), ckpt_path=None)


def test_handlers_are_as_before_afterwards_and_the_users_own_is_called(runs: Runs) -> None:
    called: list[int] = []

    def own(signum: int, frame: Any) -> None:
        called.append(signum)

    previous = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(SIGTERMException):
            runs.fit(Net("training_step", 1))
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert called == [signal.SIGTERM]


def test_ignored_signal_stays_ignored(runs: Runs) -> None:
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        trainer = runs.fit(Net("training_step", 1))
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert trainer.global_step == 12


def test_in_another_thread_handlers_are_left_alone(runs: Runs) -> None:
    seen: list[Any] = []

    class Looking(Net):
        def on_train_end(self) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=runs.fit, args=(Looking(),))
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_evaluation_leaves_after_the_batch_and_saves_nothing(runs: Runs) -> None:
    trainer = fl.Trainer(accelerator="cpu", logger=False, default_root_dir=runs.folder, enable_progress_bar=False)
    module = Net("validation_step")
    with pytest.raises(SIGTERMException):
        trainer.validate(module, DataLoader(torch.ones(6, 1), 2))
    assert module.events == ["validation_step", "teardown"]
    assert list(runs.folder.rglob("*.ckpt")) == []


PROGRAM = """
    import os, signal
    import torch, fulgur

    class Model(fulgur.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
        def training_step(self, batch, batch_idx):
            if self.global_step == 3:
                os.killpg(os.getpgrp(), signal.SIGTERM)
            return self.layer(batch).sum()
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)
        def teardown(self, stage):
            print("teardown", flush=True)

    trainer = fulgur.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(5, 1)), ckpt_path="auto")
    print("not reached", flush=True)
"""


def test_process_ends_with_143(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, start_new_session=True
    )
    assert done.returncode == 143, done.stderr
    assert done.stdout.splitlines() == ["teardown"]
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == ["interrupted-epoch=0-step=4.ckpt"]


# --------------------------------------------------------------------------------------------------------- SLURM


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `scontrol` that writes down how it was called, in a job of SLURM."""
    calls, folder = tmp_path / "calls", tmp_path / "bin"
    folder.mkdir()
    program = folder / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexit "${{SCONTROL_EXIT:-0}}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "17"}.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "0")
    return calls


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2])
def test_requeue(runs: Runs, whole: Any, scontrol: Path, signum: int) -> None:
    logger = Finalized()
    with pytest.raises(RequeueException) as raised:
        runs.fit(Net("training_step", 1, signum), logger=logger, ckpt_path=None)
    assert raised.value.code == 0
    assert scontrol.read_text() == "requeue 17\n"
    assert set(logger.statuses) == {"finished"}
    assert [path.name for path in runs.folder.glob("*.ckpt")] == ["hpc_ckpt_1.ckpt"]
    with pytest.raises(RequeueException):  # the job again, which goes on by itself
        runs.fit(Net("training_step", 5, signum), logger=False, ckpt_path=None)
    assert sorted(path.name for path in runs.folder.glob("*.ckpt")) == ["hpc_ckpt_1.ckpt", "hpc_ckpt_2.ckpt"]
    resumed = Net()
    trainer = runs.fit(resumed, logger=False, ckpt_path=None)
    assert str(trainer.ckpt_path).endswith("hpc_ckpt_2.ckpt")
    assert_same(resumed, whole[0])


def test_requeued_job_goes_on_by_auto_with_its_log(runs: Runs, whole: Any, scontrol: Path) -> None:
    with pytest.raises(RequeueException):
        runs.fit(Net("training_step", 4, signal.SIGUSR1))
    resumed = Net()
    runs.fit(resumed)
    assert resumed.events.count("training_step") == 12 - 5
    assert_same(resumed, whole[0])
    assert runs.rows() == whole[1]


def test_job_of_an_array(runs: Runs, scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(RequeueException):
        runs.fit(Net("training_step", 1, signal.SIGUSR1))
    assert scontrol.read_text() == "requeue 5_3\n"


def test_refused_requeue_is_said_and_the_job_fails(runs: Runs, scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCONTROL_EXIT", "1")
    with pytest.raises(SIGTERMException) as raised, pytest.warns(match="could not be queued again"):
        runs.fit(Net("training_step", 1, signal.SIGUSR1))
    assert raised.value.code == 143
    assert (runs.folder / "hpc_ckpt_1.ckpt").exists()


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_somebody_at_a_prompt_is_not_requeued(
    runs: Runs, scontrol: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SLURM_JOB_NAME", name)
    called: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda signum, frame: called.append(signum))
    try:
        runs.fit(Net("training_step", 11, signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert called == [signal.SIGUSR1]
    assert not scontrol.exists()


def test_hpc_without_a_file_is_an_error(runs: Runs) -> None:
    with pytest.raises(ValueError, match="hpc_ckpt_<number>"):
        runs.fit(Net(), ckpt_path="hpc")
