"""Runs a function on several ranks, as a launcher would, and brings back what each returned."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, get_context
from pathlib import Path
from typing import Any

from fulgur.launch.failing import RankFailure, describe_end
from fulgur.testing.rank_process import Task, run_task

_PRELOADED = (
    "torch",
    "torch.distributed",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint.default_planner",
    "torch.nn.parallel",
    "torch.utils.data",
    "fulgur.trainer",
    "fulgur.testing.boring",
    "fulgur.testing.rank_process",
)
_GRACE_S = 1.0
"""How long the other ranks have, after one has failed, to tell that they had failed before."""


def run_ranks(
    function: Callable[..., Any],
    n_ranks: int,
    *args: Any,
    timeout_s: float = 60.0,
    env: Mapping[str, str | None] | None = None,
) -> list[Any]:
    """Run ``function(*args)`` on `n_ranks` fresh processes, each in the environment that torchrun would give it.

    So ``Trainer(accelerator="cpu", devices=n_ranks, strategy="ddp")`` works within it, and so does
    ``torch.distributed.init_process_group("gloo")``. Ranks have one thread each, the working directory, the warning
    filters and the environment of the caller. They start from a server that has torch and fulgur loaded: the first call
    takes seconds, each further one about 0.1 s.

    Args:
        function: Defined at the top of a module, so that it can be found by name in another process.
        n_ranks: Number of processes. >= 1.
        *args: The same for all ranks. Whatever can be pickled.
        timeout_s: After this time in seconds all ranks are killed.
        env: Further variables of the environment; None removes one.

    Returns:
        What each rank returned, by rank.

    Raises:
        TimeoutError: Ranks were still running; the message shows where each of them was.
        ChildProcessError: A rank was killed, or left by `SystemExit`.
        Exception: What the first failing rank raised, with its traceback as the cause.

    Example:
        >>> import operator
        >>> run_ranks(operator.add, 2, 20, 1)
        [21, 21]
    """
    if n_ranks < 1:
        raise ValueError(f"n_ranks={n_ranks} leaves nothing to run. Use 1 or more.")
    with tempfile.TemporaryDirectory(prefix="fulgur-ranks-") as folder:
        store = _open_store()
        world = _World(Path(folder), time.monotonic() + timeout_s)
        try:
            for rank in range(n_ranks):
                variables = _environment(rank, n_ranks, store.port, env or {})
                world.start(_build_task(function, args, variables, Path(folder, str(rank)), timeout_s))
            return world.results(timeout_s)
        finally:
            world.end()


def _open_store() -> Any:
    """The store of the agent: kept by the starter, as torchrun does, so that no port can be taken in between."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _environment(rank: int, n_ranks: int, port: int, more: Mapping[str, str | None]) -> dict[str, str]:
    own = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n_ranks),
        "LOCAL_WORLD_SIZE": str(n_ranks),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "run_ranks",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }
    merged: dict[str, str | None] = {**os.environ, **own, **more}
    return {name: value for name, value in merged.items() if value is not None}


def _build_task(
    function: Callable[..., Any], args: tuple[Any, ...], variables: dict[str, str], files: Path, timeout_s: float
) -> Task:
    module = sys.modules.get(function.__module__)
    try:
        work = pickle.dumps((function, args))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"run_ranks cannot send {function!r} and its arguments to another process: {error}. The function must "
            "stand at the top of a module, and the arguments must be plain data."
        ) from error
    filters = [(f[0], _pattern(f[1]), f[2], _pattern(f[3]), f[4]) for f in warnings.filters]
    home = (function.__module__, getattr(module, "__file__", None))
    return Task(work, home, variables, os.getcwd(), str(files), filters, timeout_s)


def _pattern(expression: Any) -> str:
    return str(getattr(expression, "pattern", expression) or "")


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Numerical libraries that the server loads must not start threads, which a fork would lose."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    previous = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass
class _World:
    """The processes of one call."""

    folder: Path
    deadline: float
    processes: list[Any] = field(default_factory=list)
    pipes: list[Any] = field(default_factory=list)
    answers: dict[int, Any] = field(default_factory=dict)

    def start(self, task: Task) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload([*_PRELOADED, *(["pytest"] if "pytest" in sys.modules else [])])
        with _single_threaded():
            forkserver.ensure_running()
        ours, theirs = context.Pipe()
        process = context.Process(target=run_task, args=(theirs, task), name=f"rank {len(self.processes)}")
        process.start()
        theirs.close()
        self.processes.append(process)
        self.pipes.append(ours)

    def results(self, timeout_s: float) -> list[Any]:
        while len(self.answers) < len(self.pipes) and not self._failures():
            if not self._receive(self.deadline):
                raise self._timeout(timeout_s)
        until = min(self.deadline, time.monotonic() + _GRACE_S)
        while self._failures() and len(self.answers) < len(self.pipes) and self._receive(until):
            pass
        if self._failures():
            raise self._first_error()
        return self._let_go(timeout_s)

    def _failures(self) -> list[RankFailure]:
        return [answer for answer in self.answers.values() if isinstance(answer, RankFailure)]

    def _receive(self, until: float) -> bool:
        """Take what has come by then. Returns whether anything has."""
        open_pipes = {pipe: rank for rank, pipe in enumerate(self.pipes) if rank not in self.answers}
        ready: list[Any] = connection.wait(list(open_pipes), timeout=max(0.0, until - time.monotonic()))
        for pipe in ready:
            rank = open_pipes[pipe]
            try:
                self.answers[rank] = pickle.loads(pipe.recv_bytes())
            except (EOFError, ConnectionResetError):
                self.answers[rank] = describe_end(self.processes[rank], f"rank {rank} {{}} before it returned.")
        return bool(ready)

    def _let_go(self, timeout_s: float) -> list[Any]:
        """Let all ranks leave their process group together, and end."""
        for pipe in self.pipes:
            with suppress(BrokenPipeError):
                pipe.send(None)
        for process in self.processes:
            process.join(timeout=max(0.0, self.deadline - time.monotonic()))
        if any(process.exitcode is None for process in self.processes):
            self.answers.clear()
            raise self._timeout(timeout_s)
        self._pass_output_on()
        return [self.answers[rank] for rank in range(len(self.pipes))]

    def _first_error(self) -> BaseException:
        failed = {rank: answer for rank, answer in self.answers.items() if isinstance(answer, RankFailure)}
        rank = min(failed, key=lambda rank: failed[rank].at)
        self._pass_output_on()
        failure = failed[rank]
        if failure.error is None:
            return ChildProcessError(failure.text + self._end_of_stderr(rank))
        error: BaseException = pickle.loads(failure.error)
        error.__cause__ = _RemoteTraceback(f"on rank {rank} of {len(self.pipes)}:\n{failure.text}")
        return error

    def _timeout(self, timeout_s: float) -> TimeoutError:
        alive = [rank for rank, process in enumerate(self.processes) if process.exitcode is None]
        running = [rank for rank in alive if rank not in self.answers]
        dumps = [Path(self.folder, f"{rank}.stacks") for rank in running]
        patience = time.monotonic() + 2.0
        while time.monotonic() < patience and not all(file.exists() and file.stat().st_size for file in dumps):
            time.sleep(0.02)
        self._pass_output_on()
        shown = "".join(
            f"\n--- rank {rank}:\n{file.read_text(errors='replace') if file.exists() else '(it had not begun)'}"
            for rank, file in zip(running, dumps, strict=True)
        )
        return TimeoutError(
            f"After {timeout_s:g} s, of {len(self.pipes)} ranks these were still running: "
            f"{', '.join(map(str, running))}.{shown}"
        )

    def _pass_output_on(self) -> None:
        for rank in range(len(self.processes)):
            for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
                file = Path(self.folder, f"{rank}.{name}")
                if file.exists():
                    stream.write(file.read_text(errors="replace"))

    def _end_of_stderr(self, rank: int) -> str:
        file = Path(self.folder, f"{rank}.err")
        text = file.read_text(errors="replace")[-2000:].strip() if file.exists() else ""
        return f" Its last lines:\n{text}" if text else ""

    def end(self) -> None:
        """Kill what is left, with everything that it has started."""
        for process in self.processes:
            if process.exitcode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                process.join(timeout=10.0)
        for pipe in self.pipes:
            pipe.close()


class _RemoteTraceback(Exception):
    """Shows the traceback of another process above the error that came from there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)

    def __str__(self) -> str:
        return "\n" + str(self.args[0])
