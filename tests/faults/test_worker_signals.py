"""Signals to all processes of a run at once, as a scheduler and a terminal send them: loader workers endure them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals of POSIX"),
    pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc"),
]

PROGRAM = """
    import multiprocessing, sys, time
    import torch, fulgur
    from fulgur.callbacks import ModelCheckpoint
    from torch.utils.data import DataLoader, Dataset

    class Data(Dataset):
        def __init__(self, hangs):
            self.hangs = hangs
        def __len__(self):
            return 40
        def __getitem__(self, index):
            if self.hangs and index == 6:
                time.sleep(1000)
            return torch.ones(1)

    class Model(fulgur.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
        def training_step(self, batch, batch_idx):
            if batch_idx == 4:
                print(*(child.pid for child in multiprocessing.active_children()), flush=True)
                wait(self.trainer)
            return self.layer(batch).sum()
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def wait(trainer):
        while not trainer._signals:
            time.sleep(0.01)
        time.sleep(0.3)  # the workers have got it, too

    def main(persists, context, hangs=False):
        torch.set_num_threads(1)
        loader = DataLoader(Data(hangs), num_workers=2, persistent_workers=persists, multiprocessing_context=context)
        trainer = fulgur.Trainer(
            accelerator="cpu", max_epochs=1, accumulate_grad_batches=10, logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[ModelCheckpoint("saved", save_on_exception=True)],
        )
        trainer.fit(Model(), loader)
        print("not reached", flush=True)
"""


class Running:
    """A program in a process group of its own, at the point where its fifth batch waits for a signal."""

    def __init__(self, folder: Path, main: str) -> None:
        path = folder / "program.py"
        path.write_text(textwrap.dedent(PROGRAM) + f"\nif __name__ == '__main__':\n    {main}\n")
        self.errors = folder / "errors"
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(path)], cwd=folder, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        output: IO[bytes] | None = self.process.stdout
        assert output is not None
        self.output = output
        self.workers = [int(pid) for pid in self.output.readline().split()]

    def signal(self, signum: int) -> None:
        os.killpg(self.process.pid, signum)

    def wait(self) -> int:
        return self.process.wait(timeout=60)

    @property
    def said(self) -> str:
        return self.errors.read_text()

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.output.close()


@pytest.fixture
def start(tmp_path: Path) -> Any:
    started: list[Running] = []

    def start(main: str) -> Running:
        started.append(Running(tmp_path, main))
        return started[-1]

    yield start
    for running in started:
        running.end()


def until(is_so: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    end = time.monotonic() + timeout_s
    while not is_so() and time.monotonic() < end:
        time.sleep(0.05)
    return is_so()


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie, which somebody else has to collect."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def assert_none_left(running: Running) -> None:
    assert len(running.workers) == 2
    assert until(lambda: not any(map(is_alive, running.workers))), "workers are left"


@pytest.mark.parametrize(("persists", "context"), [(False, "fork"), (True, "fork"), (True, "spawn")])
def test_sigterm_to_the_whole_group_saves_and_ends_with_143(
    start: Any, tmp_path: Path, persists: bool, context: str
) -> None:
    running = start(f"main({persists}, {context!r})")
    running.signal(signal.SIGTERM)
    assert running.wait() == 143, running.said
    assert "interrupted-epoch=0-step=1.ckpt" in os.listdir(tmp_path / "saved")
    assert running.output.read() == b""
    assert_none_left(running)


@pytest.mark.parametrize(("persists", "context"), [(False, "fork"), (True, "spawn")])
def test_ctrl_c_in_a_terminal_stops_at_the_step_and_saves(
    start: Any, tmp_path: Path, persists: bool, context: str
) -> None:
    running = start(f"main({persists}, {context!r})")
    running.signal(signal.SIGINT)
    assert running.wait() == -signal.SIGINT, running.said
    assert os.listdir(tmp_path / "saved") == ["epoch=0-step=1.ckpt"]
    assert "DataLoader worker" not in running.said
    assert_none_left(running)


def test_worker_whose_parent_is_killed_ends(start: Any) -> None:
    running = start("main(True, 'fork')")
    os.kill(running.process.pid, signal.SIGKILL)
    running.wait()
    assert_none_left(running)


def test_worker_that_hangs_is_ended_by_its_loader(start: Any) -> None:
    """It is not before that second signal that the loader is given up."""
    running = start("main(False, 'fork', hangs=True)")
    running.signal(signal.SIGINT)
    assert until(lambda: "Stopping at the next step" in running.said), running.said
    os.kill(running.process.pid, signal.SIGINT)
    assert running.wait() == -signal.SIGINT, running.said
    assert_none_left(running)


def test_process_that_ends_takes_workers_along_that_are_alive(start: Any) -> None:
    program = (
        "from fulgur.data.workers import seed_workers; import os\n"
        "    loader = DataLoader(Data(False), num_workers=2, persistent_workers=True, multiprocessing_context='fork')\n"
        "    seed_workers(loader); batches = iter(loader); next(batches)\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)"
    )
    running = start(program)
    assert running.wait() == 0, running.said
    assert running.said == ""
    assert_none_left(running)
