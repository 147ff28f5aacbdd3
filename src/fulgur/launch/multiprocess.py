"""Starts the ranks of this machine as functions: by spawn, fork or forkserver. This process is none of them."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection, current_process, get_context
from typing import Any

from fulgur.errors import MisconfigurationException, RankFailedError, SIGTERMException
from fulgur.launch.environments.environment import ClusterEnvironment
from fulgur.launch.failing import RankFailure, describe_end
from fulgur.launch.family import Layout
from fulgur.launch.launcher import Launcher
from fulgur.launch.meeting import open_store, rank_variables
from fulgur.launch.rank_process import Work, run_rank
from fulgur.launch.shipping import take_over

_MOMENT_S = 1.0
"""How long a failure of another rank may take to be seen, after a first one has been."""
_TERMINATE_S = 3.0
"""How long a process has to end after SIGTERM."""
_STOP_S = 30.0
"""How long the ranks have to end after Ctrl-C or SIGTERM: they may be saving."""


class MultiProcessLauncher(Launcher):
    """Runs the function in new processes of this machine, anew for each call.

    When it has ended, the Trainer of this process has what the one of rank 0 found out: weights, counters, metrics,
    states of the callbacks.

    Args:
        environment: Says on which machine this is.
        layout: How many processes there are to be.
        start_method: "spawn", "fork" or "forkserver".
    """

    is_rank = False

    def __init__(self, environment: ClusterEnvironment, layout: Layout, start_method: str) -> None:
        self.environment, self.layout, self.start_method = environment, layout, start_method
        self._ranks: list[_Rank] = []

    @property
    def is_interactive_compatible(self) -> bool:
        """Whether the processes have what was defined at the prompt: only forked ones."""
        return self.start_method == "fork"

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self._check_can_start()
        store = open_store(self.environment, self.layout.num_nodes)
        variables = rank_variables(self.environment, store, self.layout.num_devices, self.layout.num_nodes)
        work = Work(function, args, kwargs, trainer, self.layout, variables, is_forked=self.start_method == "fork")
        try:
            self._start(work)
            shipped = self._wait()
        finally:
            self._end()
        return take_over(trainer, shipped)

    def kill(self, signum: int) -> None:
        for rank in self._ranks:
            rank.send(signum)

    def __getstate__(self) -> dict[str, Any]:
        """A rank does not know the processes of its siblings."""
        return {**self.__dict__, "_ranks": []}

    # ------------------------------------------------------------------------------------------------ starting

    def _check_can_start(self) -> None:
        if getattr(current_process(), "_inheriting", False):
            raise MisconfigurationException(
                f"This program starts processes by {self.start_method}, which import it first, and they came to the "
                "call that starts them. Put the code of the program below `if __name__ == '__main__':`."
            )
        torch = sys.modules["torch"]
        if self.start_method == "fork" and torch.cuda.is_initialized():
            raise RuntimeError(
                "The process has used CUDA already, and a forked process cannot use it then. Do nothing with CUDA "
                "before trainer.fit (torch.cuda.is_available() and device counts are fine), or restart the notebook; "
                "or use strategy='ddp' in a script."
            )

    def _start(self, work: Work) -> None:
        context: Any = get_context(self.start_method)
        self._ranks = []
        for local_rank in range(self.layout.num_devices):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=run_rank, args=(theirs, local_rank, os.getpid(), work))
            self._start_process(process)
            theirs.close()
            self._ranks.append(_Rank(local_rank, process, ours))

    def _start_process(self, process: Any) -> None:
        try:
            process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise MisconfigurationException(
                f"strategy='ddp_{self.start_method}' sends the Trainer, the model and the loaders to other processes, "
                f"and something in them cannot be sent: {error}. Define classes and functions at the top of a module; "
                "or use strategy='ddp' in a script, or 'ddp_fork', which sends nothing."
            ) from error

    # ------------------------------------------------------------------------------------------------- waiting

    def _wait(self) -> bytes:
        """What rank 0 ships, once all have ended well."""
        received: set[int] = set()
        previous = _handle_sigterm(received)
        try:
            self._until(lambda: bool(received) or self._has_failed() or all(r.has_answered for r in self._ranks))
        except KeyboardInterrupt:
            self._let_leave(signal.SIGINT)
            raise
        finally:
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)
        if received and not self._has_failed():
            self._let_leave(signal.SIGTERM)
            raise SIGTERMException
        if self._has_failed():
            until = time.monotonic() + _MOMENT_S
            self._until(lambda: time.monotonic() > until or all(r.has_answered for r in self._ranks))
            raise self._first_error()
        answer = self._ranks[0].answer
        assert isinstance(answer, bytes)
        return answer

    def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            waiting = {rank.pipe: rank for rank in self._ranks if not rank.has_answered}
            for pipe in connection.wait(list(waiting), timeout=0.2):
                waiting[pipe].receive()

    def _has_failed(self) -> bool:
        return any(isinstance(rank.answer, RankFailure) for rank in self._ranks)

    def _let_leave(self, signum: int) -> None:
        """Pass a signal on, once, and let the ranks leave at their next step."""
        self.kill(signum)
        until = time.monotonic() + _STOP_S
        for rank in self._ranks:
            rank.process.join(max(0.0, until - time.monotonic()))

    def _first_error(self) -> BaseException:
        failed = {rank.local_rank: rank.answer for rank in self._ranks if isinstance(rank.answer, RankFailure)}
        local_rank = min(failed, key=lambda rank: failed[rank].at)
        failure = failed[local_rank]
        if failure.error is None:
            code = self._ranks[local_rank].process.exitcode
            return RankFailedError(f"Local rank {local_rank} failed first: {failure.text}", local_rank, code)
        error: BaseException = pickle.loads(failure.error)
        error.__cause__ = RankFailedError(f"Local rank {local_rank} failed first:\n{failure.text}", local_rank)
        return error

    def _end(self) -> None:
        """See to it that all of them are gone."""
        for rank in self._ranks:
            if not (rank.has_answered and isinstance(rank.answer, bytes)):
                rank.send(signal.SIGTERM)
        until = time.monotonic() + (_TERMINATE_S if self._has_failed() else _STOP_S)
        for rank in self._ranks:
            rank.process.join(max(0.0, until - time.monotonic()))
            rank.send(signal.SIGKILL)
            rank.process.join()
            rank.pipe.close()
        self._ranks = []


class _Rank:
    """One process, and what it has answered."""

    def __init__(self, local_rank: int, process: Any, pipe: Any) -> None:
        self.local_rank, self.process, self.pipe = local_rank, process, pipe
        self.answer: bytes | RankFailure | None = None

    @property
    def has_answered(self) -> bool:
        return self.answer is not None

    def receive(self) -> None:
        try:
            self.answer = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.answer = describe_end(self.process, "it {}.")

    def send(self, signum: int) -> None:
        if self.process.exitcode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.process.pid, signum)
            if signum == signal.SIGKILL:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, signum)


def _handle_sigterm(received: set[int]) -> Any:
    """Note SIGTERM, where this is the main thread and nobody else handles it. Returns the handler of before."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return None
    return signal.signal(signal.SIGTERM, lambda signum, frame: received.add(signum))
