"""Programs run as they are: arguments, workers, other ranks, tests; and the examples give Lightning's numbers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples" / "compat"
OLD_ARGUMENTS = ("--max_epochs", "3", "--gradient_clip_val", "1.0")
WITH_BOTH = (
    "autoencoder",
    "gan",
    "datamodule",
    "finetuning",
    "several_loaders",
    "transfer_learning",
    "kfold",
    "fabric_loop",
    "command_line",
    "swa",
    "dqn",
    "ddp",
)
ALONE = ("ddp",)
"""Programs that start further ranks, each with the whole command line."""


def run(*words: str | Path, python: Path | str = sys.executable, code: int = 0, folder: Path | None = None) -> str:
    """Standard output of a command of Python, which must end with `code`."""
    done = subprocess.run([python, *words], capture_output=True, text=True, timeout=240, check=False, cwd=folder)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


def run_program(*words: str | Path, code: int = 0, folder: Path | None = None) -> str:
    return run("-m", "fulgur.compat", *words, code=code, folder=folder)


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


WORKERS = """
import multiprocessing, sys
import lightning as L
import data_of_program
def work(queue):
    import pytorch_lightning
    queue.put((pytorch_lightning.Trainer.__module__, L.__version__))
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    process = context.Process(target=work, args=(queue,))
    process.start()
    print(*queue.get(timeout=60))
    process.join()
"""
LOADED = """
from torch.utils.data import DataLoader
from data_of_program import Data
if __name__ == "__main__":
    print([batch.tolist() for batch in DataLoader(Data(), num_workers=1, multiprocessing_context="spawn")])
"""
DATA = """
import lightning.pytorch as pl
from torch.utils.data import Dataset
class Data(Dataset):
    def __len__(self): return 2
    def __getitem__(self, index): return index
"""
RANKS = """
import sys
import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel
if __name__ == "__main__":
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=1, limit_val_batches=1, **off)
    trainer.fit(BoringModel())
    print(f"rank {trainer.global_rank} of {trainer.world_size} {sys.argv[1:]}\\n", end="", flush=True)
"""


def test_a_program_has_its_own_arguments_path_and_name(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    program = "import sys, lightning\nprint(sys.argv[1:], sys.path[0], __name__, __file__, lightning.__version__)"
    write(folder, program=program)
    printed = run_program("--version", "1.9.5", folder / "program.py", "--max_epochs", "3", "-m", "x")
    assert printed.split("\n")[0] == (
        f"['--max_epochs', '3', '-m', 'x'] {folder} __main__ {folder / 'program.py'} 1.9.5"
    )


def test_a_package_runs_as_a_module(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    write(tmp_path / "package", __init__="", __main__="import sys, lightning\nprint(__spec__.name, sys.argv[1:])")
    assert run_program("-m", "package", "--a", "b") == "package.__main__ ['--a', 'b']\n"
    assert run("-m", "fulgur.cli", "run", "-m", "package", "c") == "package.__main__ ['c']\n"


def test_the_exit_code_is_the_programs_own(tmp_path: Path) -> None:
    write(tmp_path, program="import sys; sys.exit(7)")
    run_program(tmp_path / "program.py", code=7)
    run_program(code=2)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_import_the_old_names(tmp_path: Path, method: str) -> None:
    write(tmp_path, program=WORKERS, data_of_program=DATA)
    assert run_program(tmp_path / "program.py", method) == "fulgur.trainer 2.6.0\n"


def test_spawned_loader_workers_import_the_old_names(tmp_path: Path) -> None:
    write(tmp_path, program=LOADED, data_of_program=DATA)
    assert run_program(tmp_path / "program.py") == "[[0], [1]]\n"


def test_spawned_workers_of_a_program_that_installs_by_itself(tmp_path: Path) -> None:
    installing = "import fulgur.compat\nfulgur.compat.install('2.1.0')\n" + WORKERS
    write(tmp_path, program=installing, data_of_program=DATA)
    assert run(tmp_path / "program.py", "spawn") == "fulgur.trainer 2.1.0\n"


def test_every_rank_runs_the_program(tmp_path: Path) -> None:
    write(tmp_path, program=RANKS)
    printed = run_program(tmp_path / "program.py", "--a")
    assert sorted(printed.splitlines()) == ["rank 0 of 2 ['--a']", "rank 1 of 2 ['--a']"]


def test_every_rank_runs_the_module(tmp_path: Path) -> None:
    write(tmp_path, program=RANKS)
    printed = run_program("-m", "program", "--a")
    assert sorted(printed.splitlines()) == ["rank 0 of 2 ['--a']", "rank 1 of 2 ['--a']"]


def test_a_child_that_imports_fulgur_first_has_the_old_names(tmp_path: Path) -> None:
    child = "import fulgur, lightning; print(lightning.__version__)"
    program = f"import subprocess, sys\nprint(subprocess.check_output([sys.executable, '-c', {child!r}], text=True))"
    write(tmp_path, program=program)
    assert run_program("--version", "2.4.1", tmp_path / "program.py").strip() == "2.4.1"


def test_pytest_collects_tests_written_for_it(tmp_path: Path) -> None:
    test = "import lightning\ndef test_it(old): assert lightning.Trainer is old"
    conftest = "import pytest, pytorch_lightning\n@pytest.fixture\ndef old(): return pytorch_lightning.Trainer"
    write(tmp_path, test_program=test, conftest=conftest)
    run("-m", "pytest", "-q", "-p", "fulgur.compat.pytest", "-p", "no:cacheprovider", tmp_path)


# ------------------------------------------------------------------------------------------------ the examples


PROGRAM = Path(__file__).with_name("run_examples.py")
FILES = [EXAMPLES / f"{name}.py" for name in WITH_BOTH if name not in ALONE]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the examples print on fulgur, by name."""
    folder = tmp_path_factory.mktemp("fulgur")
    return last_line(run_program(PROGRAM, *FILES, folder=folder)) | {
        name: last_line(run_program(EXAMPLES / f"{name}.py", folder=folder)) for name in ALONE
    }


@pytest.fixture(scope="module")
def numbers_of_lightning(lightning_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What they print on Lightning."""
    folder = tmp_path_factory.mktemp("lightning")
    run_there = partial(run, "-W", "ignore", python=lightning_python, folder=folder)
    return last_line(run_there(PROGRAM, *FILES)) | {
        name: last_line(run_there(EXAMPLES / f"{name}.py")) for name in ALONE
    }


def last_line(printed: str) -> Any:
    return json.loads(printed.splitlines()[-1])


def test_every_example_is_run() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted([*WITH_BOTH, "one_x"])


@pytest.mark.parametrize("name", WITH_BOTH)
def test_an_example_trains(name: str, numbers: Any) -> None:
    assert all(math.isfinite(number) for number in flat(numbers[name]).values())


def test_the_example_of_1x_trains() -> None:
    printed = run_program("--version", "1.9.5", EXAMPLES / "one_x.py", *OLD_ARGUMENTS)
    result = json.loads(printed.splitlines()[-1])
    assert result["epochs"] == 3
    assert result["test_loss"] == result["val_loss"]
    assert {"train_loss", "train_mean", "val_acc"} <= set(result)


@pytest.mark.parametrize("name", WITH_BOTH)
def test_an_example_gives_the_numbers_that_it_gives_on_lightning(
    name: str, numbers: Any, numbers_of_lightning: Any
) -> None:
    ours, theirs = flat(numbers[name]), flat(numbers_of_lightning[name])
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, rel=1e-5)


def flat(value: Any, name: str = "") -> dict[str, float]:
    """The numbers in nested lists and dicts, by path."""
    if isinstance(value, dict):
        items: Sequence[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return {name: float(value)}
    return {path: number for key, inner in items for path, number in flat(inner, f"{name}.{key}").items()}
