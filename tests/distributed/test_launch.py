"""Programs that start their own ranks, as a user runs them: scripts, modules, entry points, torchrun, spawn, fork."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TORCHRUN = Path(sys.executable).with_name("torchrun")
HEADER = """
import json, os, signal, sys, time
import torch
import fulgur as fl
from fulgur.callbacks import ModelCheckpoint
from fulgur.testing import BoringModel

torch.set_num_threads(1)
QUIET = dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)

def note(name, **what):
    with open(f"{name}.json", "w") as file:
        json.dump(what, file)

def trainer(devices=2, **more):
    arguments = {**QUIET, "max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 1, "limit_test_batches": 2}
    return fl.Trainer(devices=devices, **{**arguments, "enable_checkpointing": False, **more})
"""
PLAIN = """
class Model(BoringModel):
    def prepare_data(self):
        time.sleep(0.5)
        note(f"prepared{os.environ['LOCAL_RANK']}", by=os.environ["LOCAL_RANK"])

    def setup(self, stage):
        assert os.path.exists("prepared0.json")

def main():
    t, model = trainer(), Model()
    t.fit(model)
    t.test(model, verbose=False)
    second = trainer(devices="auto")
    second.fit(model)
    if t.is_global_zero:
        alone = trainer(devices=1, strategy="single_device")
        alone.validate(BoringModel(), verbose=False)
        note("alone", world=alone.world_size)
    note(f"rank{t.global_rank}", world=[t.world_size, second.world_size], steps=t.global_step, argv=sys.argv[1:],
         weight=model.layer.weight.sum().item(), pid=os.getpid(), outside=os.environ.get("WORLD_SIZE"))

if __name__ == "__main__":
    main()
"""
SHORT = """
if __name__ == "__main__":
    t, model = trainer(), BoringModel()
    t.fit(model)
    note(f"rank{t.global_rank}", world=[t.world_size] * 2, steps=t.global_step, argv=sys.argv[1:], pid=os.getpid(),
         weight=model.layer.weight.sum().item())
"""
FAILING = """
class Model(BoringModel):
    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            note(f"pid{self.global_rank}", pid=os.getpid())
            if self.global_rank == int(sys.argv[2]):
                time.sleep(0.3)
                if sys.argv[1] == "raise":
                    raise ValueError(f"rank {self.global_rank} cannot go on")
                if sys.argv[1] == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
            if sys.argv[1] == "all":
                raise ValueError(f"rank {self.global_rank} cannot go on")
            if sys.argv[1] == "wait":
                time.sleep(0.05)
        return super().training_step(batch, batch_idx)

if __name__ == "__main__":
    t = trainer(max_epochs=100000 if sys.argv[1] == "wait" else 1)
    try:
        t.fit(Model())
    except ValueError:
        if sys.argv[1] != "all":
            raise
        t.test(BoringModel(), verbose=False)
        note(f"rank{t.global_rank}", went_on=True)
"""


def _write(folder: Path, body: str, name: str = "train.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(HEADER) + textwrap.dedent(body))
    return path


def _environment(**more: str) -> dict[str, str]:
    left_out = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def _run(*command: str | Path, timeout_s: float = 90, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        env=_environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _notes(folder: Path, name: str = "rank") -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob(f"{name}*.json"))]


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _wait_for(condition: Any, timeout_s: float = 60) -> bool:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


# Ways to start


def _check_two_ranks(folder: Path, arguments: list[str]) -> None:
    first, second = _notes(folder)
    assert first["world"] == second["world"] == [2, 2]
    assert first["steps"] == second["steps"] == 4
    assert first["weight"] == second["weight"]
    assert first["argv"] == second["argv"] == arguments
    assert first["pid"] != second["pid"]


def test_script_starts_its_second_rank_for_all_its_trainers(tmp_path: Path) -> None:
    _write(tmp_path, "os.makedirs('inner', exist_ok=True)\nos.chdir('inner')\n" + PLAIN)
    done = _run(sys.executable, "train.py", "--lr", "1 2")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "inner"
    _check_two_ranks(folder, ["--lr", "1 2"])
    assert _notes(folder, "prepared") == [{"by": "0"}]
    assert _notes(folder, "alone") == [{"world": 1}]
    assert _notes(folder)[0]["outside"] is None


def test_module_is_started_as_a_module(tmp_path: Path) -> None:
    _write(tmp_path, "from package.other import VALUE\n" + SHORT, "package/train.py")
    (tmp_path / "package" / "other.py").write_text("VALUE = 1\n")
    (tmp_path / "package" / "__init__.py").write_text("")
    done = _run(sys.executable, "-m", "package.train", "x")
    assert done.returncode == 0, done.stderr
    _check_two_ranks(tmp_path, ["x"])


def test_entry_point_without_a_suffix_is_started_again(tmp_path: Path) -> None:
    path = _write(tmp_path, SHORT, "bin/train-it")
    path.write_text(f"#!{sys.executable}\n" + path.read_text())
    path.chmod(0o755)
    done = _run(path, "x")
    assert done.returncode == 0, done.stderr
    _check_two_ranks(tmp_path, ["x"])


def test_torchrun_gives_the_layout(tmp_path: Path) -> None:
    _write(tmp_path, SHORT.replace("trainer()", "trainer(devices='auto')"))
    done = _run(TORCHRUN, "--standalone", "--nproc-per-node=2", "train.py", "x")
    assert done.returncode == 0, done.stderr
    _check_two_ranks(tmp_path, ["x"])


def test_devices_that_contradict_torchrun_end_the_job(tmp_path: Path) -> None:
    _write(tmp_path, SHORT.replace("trainer()", "trainer(devices=1)"))
    done = _run(TORCHRUN, "--standalone", "--nproc-per-node=2", "train.py")
    assert done.returncode != 0
    assert "devices=1 on num_nodes=1 is 1 process, but torchrun has started 2" in done.stderr
    assert not _notes(tmp_path)


def test_code_from_the_command_line_is_refused_with_the_way_out() -> None:
    code = textwrap.dedent(HEADER) + "trainer().fit(BoringModel())"
    done = _run(sys.executable, "-c", code)
    assert done.returncode == 1
    assert "this one came from python -c. Put it into a file" in done.stderr


def test_second_trainer_with_other_devices_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, "trainer().fit(BoringModel())\ntrainer(devices=1).test(BoringModel(), verbose=False)\n")
    done = _run(sys.executable, "train.py")
    assert done.returncode == 1
    assert "already runs as 2 processes (devices=2, num_nodes=1)" in done.stderr


# Failures


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Path]:
    yield _write(tmp_path, FAILING)
    for pid in _notes(tmp_path, "pid"):
        if _is_running(pid["pid"]):
            os.kill(pid["pid"], signal.SIGKILL)


@pytest.mark.parametrize("rank", [0, 1])
def test_error_of_one_rank_stands_last_and_all_are_gone(failing: Path, tmp_path: Path, rank: int) -> None:
    done = _run(sys.executable, failing.name, "raise", str(rank))
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(f"ValueError: rank {rank} cannot go on")
    assert not [note for note in _notes(tmp_path, "pid") if _is_running(note["pid"])]


def test_killed_rank_is_named_last_and_all_are_gone(failing: Path, tmp_path: Path) -> None:
    done = _run(sys.executable, failing.name, "kill", "1")
    assert done.returncode == 1
    assert "Local rank 1 failed first: it was ended by SIGKILL." in done.stderr.rstrip().splitlines()[-1]
    assert not [note for note in _notes(tmp_path, "pid") if _is_running(note["pid"])]


def test_killed_starter_leaves_no_orphan(failing: Path, tmp_path: Path) -> None:
    done = _run(sys.executable, failing.name, "kill", "0")
    assert done.returncode == -signal.SIGKILL
    pids = [note["pid"] for note in _notes(tmp_path, "pid")]
    assert _wait_for(lambda: not any(map(_is_running, pids)), 10)


def test_error_of_all_ranks_may_be_caught_and_the_program_goes_on(failing: Path, tmp_path: Path) -> None:
    done = _run(sys.executable, failing.name, "all", "9")
    assert done.returncode == 0, done.stderr
    assert _notes(tmp_path) == [{"went_on": True}] * 2


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_signal_to_the_starter_ends_all_with_the_code_of_the_signal(
    failing: Path, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, failing.name, "wait", "9"], env=_environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        assert _wait_for(lambda: len(_notes_if_whole(tmp_path)) == 2)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, errors
    assert not [note for note in _notes(tmp_path, "pid") if _is_running(note["pid"])]


def _notes_if_whole(folder: Path) -> list[Any]:
    try:
        return _notes(folder, "pid")
    except json.JSONDecodeError:
        return []


# Processes that are started as functions


SHIPPED = """
class Model(BoringModel):
    def training_step(self, batch, batch_idx):
        loss = self(batch).mean() * 0 + self.layer.weight.sum()  # each step of SGD moves each weight by 0.1
        self.log("train_loss", loss)
        self.log("world", float(self.trainer.world_size))
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", super().validation_step(batch, batch_idx)["x"])

if __name__ == "__main__":
    best = ModelCheckpoint(dirpath="saved", monitor="val_loss")
    t, model = trainer(strategy=sys.argv[1], callbacks=best, enable_checkpointing=True), Model()
    before = model.layer.weight.mean().item()
    t.fit(model)
    once = model.layer.weight.mean().item()
    if sys.argv[1] == "ddp_fork":  # cheap enough to do it three times
        t.test(ckpt_path="best", verbose=False)
        t.fit_loop.max_epochs = 2
        t.fit(model)
    note("rank0", changed=before != once, once=once, step=t.global_step, epoch=t.current_epoch, world=t.world_size,
         metrics=sorted(t.callback_metrics), seen=t.callback_metrics["world"].item(), status=str(t.state.status),
         best=os.path.exists(best.best_model_path), again=once != model.layer.weight.mean().item(),
         mine=torch.distributed.is_initialized(), moved=before - once)
"""


@pytest.mark.parametrize(("strategy", "n_epochs"), [("ddp_spawn", 1), ("ddp_fork", 2)])
def test_starter_gets_what_the_ranks_found_out(tmp_path: Path, strategy: str, n_epochs: int) -> None:
    _write(tmp_path, SHIPPED)
    done = _run(sys.executable, "train.py", strategy)
    assert done.returncode == 0, done.stderr
    (found,) = _notes(tmp_path)
    assert (found["step"], found["epoch"], found["world"], found["seen"]) == (4 * n_epochs, n_epochs, 2, 2.0)
    assert found["metrics"] == ["train_loss", "val_loss", "world"]
    assert found["changed"]
    assert found["again"] == (n_epochs == 2)
    assert found["best"]
    assert not found["mine"]
    assert found["moved"] == pytest.approx(4 * 0.1, abs=1e-5)  # twice that, if the ranks shared their weights


def test_error_of_a_rank_is_raised_where_it_was_started(tmp_path: Path) -> None:
    _write(tmp_path, FAILING.replace("trainer(max", 'trainer(strategy="ddp_spawn", max'))
    done = _run(sys.executable, "train.py", "raise", "1")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: rank 1 cannot go on")
    assert not [note for note in _notes(tmp_path, "pid") if _is_running(note["pid"])]


def test_killed_rank_of_spawn_is_named(tmp_path: Path) -> None:
    _write(tmp_path, FAILING.replace("trainer(max", 'trainer(strategy="ddp_fork", max'))
    done = _run(sys.executable, "train.py", "kill", "1")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("Local rank 1 failed first: it was ended by SIGKILL.")


def test_program_without_a_guard_is_told_what_to_do(tmp_path: Path) -> None:
    _write(tmp_path, 'trainer(strategy="ddp_spawn").fit(BoringModel())\n')
    done = _run(sys.executable, "train.py")
    assert done.returncode == 1
    assert "Put the code of the program below `if __name__ == '__main__':`" in done.stderr


def test_what_cannot_be_sent_is_named(tmp_path: Path) -> None:
    _write(
        tmp_path,
        """
        if __name__ == "__main__":
            model = BoringModel()
            model.activation = lambda x: x
            trainer(strategy="ddp_spawn").fit(model)
        """,
    )
    done = _run(sys.executable, "train.py")
    assert done.returncode == 1
    assert "sends the Trainer, the model and the loaders to other processes" in done.stderr


# Data that is prepared once


def test_failure_to_prepare_data_ends_all(tmp_path: Path) -> None:
    _write(
        tmp_path,
        """
        class Model(BoringModel):
            def prepare_data(self):
                time.sleep(0.5)
                raise OSError("no space left")

        if __name__ == "__main__":
            trainer().fit(Model())
        """,
    )
    done = _run(sys.executable, "train.py")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("OSError: no space left")
