"""A rank that raises or is killed in any hook takes all others along, quickly, and is the one that is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from fulgur.testing import BoringModel, run_ranks

TORCHRUN = Path(sys.executable).with_name("torchrun")
LIMIT_S = 15.0
HOOKS = {  # with the rank that fails there
    "prepare_data": 0,
    "setup": 1,
    "configure_model": 1,
    "configure_optimizers": 0,
    "on_train_start": 1,
    "training_step": 0,
    "on_train_batch_end": 1,
    "validation_step": 1,
    "on_validation_end": 0,
    "on_save_checkpoint": 1,
    "test_step": 1,
    "on_fit_end": 0,
    "teardown": 1,
}
PROGRAM = """
import functools, json, os, signal, sys, time
import torch
import fulgur as fl
from fulgur.callbacks import ModelCheckpoint
from fulgur.testing import BoringModel

torch.set_num_threads(1)

class Model(BoringModel):
    def __init__(self, hook, how, rank, nap_s=0.0):
        super().__init__()
        self.hook, self.how, self.rank, self.nap_s = hook, how, rank, nap_s
        setattr(self, hook, functools.partial(self.fail, getattr(self, hook)))

    def fail(self, proper, *args, **kwargs):
        rank = int(os.environ["LOCAL_RANK"])
        if not self.trainer.sanity_checking and rank == self.rank:
            time.sleep(self.nap_s / 2)
            with open("failed", "w") as file:
                file.write(f"{time.time()} {os.getpid()}")
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(f"rank {rank} cannot do {self.hook}")
        time.sleep(self.nap_s)
        return proper(*args, **kwargs)

def run(strategy, hook, *how):
    trainer = fl.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_epochs=1, limit_train_batches=3, limit_val_batches=2,
        limit_test_batches=2, callbacks=ModelCheckpoint("saved"), logger=False, enable_progress_bar=False,
        enable_model_summary=False)
    if hook == "test_step":
        trainer.test(Model(hook, *how), verbose=False)
    else:
        trainer.fit(Model(hook, *how))
"""
FORKED = """
def try_all(hooks):
    from torch.distributed.tensor import DTensor
    BoringModel().configure_optimizers()  # once here, not in every process: torch imports much for it
    for hook, rank in hooks.items():
        for how in ("raise", "kill"):
            begun, error = time.monotonic(), None
            try:
                run("ddp_fork", hook, how, rank)
            except Exception as raised:
                error = [type(raised).__name__, str(raised)]
            print(json.dumps({"case": [hook, how], "error": error, "took": time.monotonic() - begun}), flush=True)

if __name__ == "__main__":
    try_all(json.loads(sys.argv[1]))
"""
ONCE = """
if __name__ == "__main__":
    run("ddp", sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
"""


class Started:
    """A program with all that it starts: they inherit a variable of their own."""

    def __init__(self, *command: str | Path) -> None:
        left_out = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
        self.mark = f"FULGUR_TEST_MARK={uuid.uuid4()}"
        name, value = self.mark.split("=")
        kept = {name: value for name, value in os.environ.items() if name not in left_out}
        environment = {**kept, "OMP_NUM_THREADS": "1", name: value}
        self.done = subprocess.run(
            [str(part) for part in command], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        self.ended = time.time()

    def left_running(self) -> list[int]:
        """Processes that are still there: any, whoever has started them."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                is_ours = folder.name.isdigit() and self.mark.encode() in (folder / "environ").read_bytes()
                if is_ours and (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def seconds_after_failure(self) -> float:
        return self.ended - float(Path("failed").read_text().split()[0])


def _write(folder: Path, body: str) -> None:
    (folder / "train.py").write_text(textwrap.dedent(PROGRAM) + textwrap.dedent(body))


# In every hook, with processes that are cheap to start


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Any]:
    folder, before = tmp_path_factory.mktemp("forked"), os.getcwd()
    os.chdir(folder)
    _write(folder, FORKED)
    started = Started(sys.executable, "train.py", json.dumps(HOOKS))
    os.chdir(before)
    assert started.done.returncode == 0, started.done.stderr
    cases = [json.loads(line) for line in started.done.stdout.splitlines() if line.startswith('{"case"')]
    return {**{tuple(case.pop("case")): case for case in cases}, ("left",): started.left_running()}


@pytest.mark.parametrize("hook", HOOKS)
def test_error_in_a_hook_of_one_rank_is_raised_by_the_launcher(forked: dict[Any, Any], hook: str) -> None:
    case = forked[hook, "raise"]
    assert case["error"] == ["ValueError", f"rank {HOOKS[hook]} cannot do {hook}"]
    assert case["took"] < LIMIT_S


@pytest.mark.parametrize("hook", HOOKS)
def test_rank_killed_in_a_hook_is_named_by_the_launcher(forked: dict[Any, Any], hook: str) -> None:
    case = forked[hook, "kill"]
    assert case["error"] == ["RankFailedError", f"Local rank {HOOKS[hook]} failed first: it was ended by SIGKILL."]
    assert case["took"] < LIMIT_S


def test_failures_leave_no_orphan(forked: dict[Any, Any]) -> None:
    assert forked["left",] == []


# As programs are started


@pytest.mark.parametrize(
    ("hook", "how", "rank", "last"),
    [
        ("setup", "raise", 0, "ValueError: rank 0 cannot do setup"),
        ("validation_step", "kill", 1, "Local rank 1 failed first: it was ended by SIGKILL."),
        ("on_save_checkpoint", "raise", 1, "ValueError: rank 1 cannot do on_save_checkpoint"),
        ("teardown", "kill", 1, "Local rank 1 failed first: it was ended by SIGKILL."),
    ],
)
def test_failure_in_a_script_stands_last_and_all_are_gone(
    tmp_path: Path, hook: str, how: str, rank: int, last: str
) -> None:
    _write(tmp_path, ONCE)
    started = Started(sys.executable, "train.py", hook, how, str(rank), "0.5")
    assert started.done.returncode == 1
    assert started.done.stderr.rstrip().endswith(last)
    assert started.seconds_after_failure() < LIMIT_S
    assert not started.left_running()


@pytest.mark.parametrize(
    ("hook", "how", "last"),
    [
        ("on_save_checkpoint", "raise", "ValueError: rank 1 cannot do on_save_checkpoint"),
        # the other rank has a step to end in which it meets nobody, and is told to end by torchrun
        ("validation_step", "kill", "Signal 9 (SIGKILL) received by PID"),
    ],
)
def test_failure_under_torchrun_stands_last_and_all_are_gone(tmp_path: Path, hook: str, how: str, last: str) -> None:
    _write(tmp_path, ONCE)
    started = Started(TORCHRUN, "--standalone", "--nproc-per-node=2", "train.py", hook, how, "1", "1.0")
    assert started.done.returncode == 1
    root_cause = started.done.stderr.split("Root Cause")[1]
    assert "rank      : 1" in root_cause
    assert last in root_cause.rstrip("= \n").splitlines()[-1] + root_cause.rstrip("= \n").splitlines()[-2]
    assert started.seconds_after_failure() < LIMIT_S
    assert not started.left_running()


# A rank that waits within a collective


def _train_beside_a_frozen_rank() -> None:
    import threading

    import fulgur as fl

    class Model(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 1 and self.global_rank == 1:
                Path("frozen").write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGSTOP)
            if batch_idx == 1:
                threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return super().training_step(batch, batch_idx)

    trainer = fl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Model(), BoringModel().train_dataloader())


def test_sigterm_ends_a_rank_that_waits_for_one_that_gives_no_sign_of_life() -> None:
    with pytest.raises(ChildProcessError, match=r"rank 0 ended with exit code 143 before it returned") as caught:
        run_ranks(_train_beside_a_frozen_rank, 2, timeout_s=40)
    assert "Rank 0 got SIGTERM and ends at once: the ranks [1] are gone" in str(caught.value)
