"""The command that starts a further rank is the one that started the program."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fulgur.errors import MisconfigurationException
from fulgur.launch.command import find_command, find_folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that this program was started by a command."""

    def start(original: list[str], argv: list[str], *, file: str = "", spec: Any = None) -> None:
        main = ModuleType("__main__")
        main.__file__, main.__spec__ = file, spec
        monkeypatch.setitem(sys.modules, "__main__", main)
        monkeypatch.setattr(sys, "orig_argv", original)
        monkeypatch.setattr(sys, "argv", argv)

    return start


def test_script_keeps_interpreter_options_and_gets_its_whole_path(started: Any) -> None:
    started(["python", "-W", "error", "train.py", "--lr", "1"], ["train.py", "--lr", "1"], file="/project/train.py")
    assert find_command(1) == [sys.executable, "-W", "error", "/project/train.py", "--lr", "1"]


def test_module_stays_a_module(started: Any) -> None:
    spec = SimpleNamespace(name="package.train")
    argv = ["/project/package/train.py", "x"]
    started(["python", "-m", "package.train", "x"], argv, file="/project/package/train.py", spec=spec)
    assert find_command(1) == [sys.executable, "-m", "package.train", "x"]


def test_entry_point_is_run_by_this_interpreter(started: Any) -> None:
    started(["/bin/python", "/bin/train-it", "x"], ["/bin/train-it", "x"], file="/bin/train-it")
    assert find_command(1) == [sys.executable, "/bin/train-it", "x"]


def test_folder_with_a_main_is_run_as_a_folder(started: Any) -> None:
    started(["python", "project", "x"], ["project", "x"], file="/srv/project/__main__.py")
    assert find_command(1) == [sys.executable, "/srv/project", "x"]


def test_arguments_that_the_program_has_changed_are_passed_as_they_are_now(started: Any) -> None:
    started(["python", "train.py", "a"], ["train.py", "b"], file="/project/train.py")
    assert find_command(1)[-1] == "b"


@pytest.mark.parametrize(("program", "way_out"), [("-c", "Put it into a file"), ("-", "Put it into a file")])
def test_program_without_a_file_is_refused(started: Any, program: str, way_out: str) -> None:
    started(["python", program], [program])
    with pytest.raises(MisconfigurationException, match=way_out):
        find_command(1)


def test_prompt_is_refused(started: Any) -> None:
    started(["python"], [""])
    with pytest.raises(MisconfigurationException, match="ddp_notebook"):
        find_command(1)


def test_hydra_makes_no_second_folder(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModuleType("hydra.core.hydra_config")
    config.HydraConfig = SimpleNamespace(initialized=lambda: True)  # type: ignore[attr-defined]
    tools = ModuleType("hydra.utils")
    tools.get_original_cwd = lambda: "/start"  # type: ignore[attr-defined]
    for name, module in {
        "hydra": ModuleType("hydra"),
        "hydra.core": ModuleType("hydra.core"),
        "hydra.core.hydra_config": config,
        "hydra.utils": tools,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    started(["python", "train.py"], ["train.py"], file="/project/train.py")
    assert find_command(3)[2:] == [
        f'hydra.run.dir="{os.getcwd()}"',
        "hydra.job.name=train_ddp_process_3",
        "hydra.output_subdir=null",
    ]
    assert find_folder() == "/start"


def test_program_is_started_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from multiprocessing import process

    monkeypatch.setattr(process, "ORIGINAL_DIR", "/begin")
    assert find_folder() == "/begin"
