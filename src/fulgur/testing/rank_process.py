"""What a rank of `run_ranks` does, from its start to its end. Runs in the other process."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import sys
import warnings
from dataclasses import dataclass, replace
from typing import Any

from fulgur.launch.failing import RankFailure, describe_error


@dataclass(frozen=True)
class Task:
    """What a rank is to do, and where.

    Attributes:
        work: The pickled function and its arguments.
        home: Name of the module of the function, and its file, for modules that cannot be imported by name.
        variables: The whole environment.
        folder: Working directory.
        files: Where output and stacks go, without the ending.
        filters: Warning filters, the first wins.
        timeout_s: After this time the stacks of all threads are written.
    """

    work: bytes
    home: tuple[str, str | None]
    variables: dict[str, str]
    folder: str
    files: str
    filters: list[tuple[Any, ...]]
    timeout_s: float


def run_task(pipe: Any, task: Task) -> None:
    """Run the function and send what it returned or raised; leave when the starter says so."""
    os.setpgid(0, 0)
    multiprocessing.set_start_method(None, force=True)  # loader workers start as anywhere, not as this process did
    stacks = open(f"{task.files}.stacks", "w")  # noqa: SIM115  (open until the process ends)
    faulthandler.dump_traceback_later(task.timeout_s, file=stacks)
    _redirect(task.files)
    try:
        _enter(task)
        _import_home(*task.home)
        function, args = pickle.loads(task.work)
        answer = pickle.dumps(function(*args))
    except BaseException as error:
        pipe.send_bytes(pickle.dumps(_failure(error)))
        pipe.close()
        return
    pipe.send_bytes(answer)
    _wait_for_starter(pipe)
    _leave_process_group()


def _enter(task: Task) -> None:
    import torch

    os.environ.clear()
    os.environ.update(task.variables)
    os.chdir(task.folder)
    torch.set_num_threads(1)
    warnings.resetwarnings()
    for action, message, category, module, lineno in reversed(task.filters):
        warnings.filterwarnings(action, message, category, module, lineno)


def _redirect(files: str) -> None:
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        number = os.open(f"{files}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(number, 1 if name == "out" else 2)
        os.close(number)
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _import_home(name: str, file: str | None) -> None:
    """Make the module of the function importable: that of a test has a name which only the test runner knows."""
    import importlib.util

    if name in sys.modules or file is None:
        return
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is not None and found.origin == file:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _failure(error: BaseException) -> RankFailure:
    found = describe_error(error)
    if isinstance(error, Exception):
        return found
    return replace(found, error=None, text=f"the rank left by {error!r}.\n{found.text}")


def _wait_for_starter(pipe: Any) -> None:
    try:
        pipe.recv()
    except EOFError:
        return


def _leave_process_group() -> None:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
