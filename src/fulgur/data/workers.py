"""Loader workers: their seeds, and that a signal to the whole run does not end them before the run does.

A scheduler, and Ctrl-C in a terminal, signal the workers together with the process that they load for. That one goes on
to the end of its step and saves; without workers it would not get there. So a worker leaves signals alone, unless its
own process has told it to end. An orphan ends by itself: torch's loop looks for its parent.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from fulgur.data.combine import CombinedLoader
from fulgur.rng import seed_worker, should_seed_workers

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, "pthread_sigmask")
)
_leaving: tuple[int, Any] | None = None


@dataclass(frozen=True, slots=True)
class WorkerSeeder:
    """A ``worker_init_fn`` that seeds every generator of a loader worker, and can be pickled.

    Attributes:
        global_rank: Rank of the process whose workers are seeded.
    """

    global_rank: int = 0

    def __call__(self, worker_id: int) -> None:
        """Seed the generators of this worker process."""
        seed_worker(worker_id, self.global_rank)


class EnduringWorker:
    """A ``worker_init_fn`` that lets a worker outlive signals, and can be pickled.

    Args:
        then: The ``worker_init_fn`` proper.
        leaving: Set when the process that the worker belongs to ends. A worker that was forked finds it by itself.
    """

    def __init__(self, then: Callable[[int], Any] | None = None, leaving: Any = None) -> None:
        self.then, self._leaving = then, leaving

    def __call__(self, worker_id: int) -> None:
        """Make this worker process endure, then do what else is to be done at its start."""
        leaving = self._leaving if self._leaving is not None else _leaving and _leaving[1]
        told = _find_done_event()
        if leaving is not None and told is not None:
            _endure(lambda: bool(leaving.value) or told.is_set())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # `begin_pass` has held them until now
        if self.then is not None:
            self.then(worker_id)

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.context import get_spawning_popen

        is_on_its_way = get_spawning_popen() is not None and _leaving is not None
        return EnduringWorker, (self.then, _leaving[1] if is_on_its_way and _leaving is not None else None)


def seed_workers(loader: Any, *, global_rank: int = 0) -> None:
    """Give `loader` what its workers start with.

    That is a `WorkerSeeder`, if ``seed_everything(workers=True)`` was called and it has no ``worker_init_fn`` of its
    own; and, if it has workers, an `EnduringWorker` around that.

    Args:
        loader: A DataLoader or CombinedLoader; anything else is left alone.
        global_rank: Rank of this process.
    """
    if isinstance(loader, CombinedLoader):
        for inner in loader.flattened:
            seed_workers(inner, global_rank=global_rank)
    elif isinstance(loader, DataLoader):
        init = loader.worker_init_fn
        own = init.then if isinstance(init, EnduringWorker) else init
        if own is None and should_seed_workers():
            own = WorkerSeeder(global_rank)
        if loader.num_workers > 0 and _SIGNALS:
            _prepare_leaving()
            own = EnduringWorker(own)
        loader.worker_init_fn = own


def begin_pass(loader: Iterable[Any]) -> Iterator[Any]:
    """``iter(loader)``, with signals held back until the workers that it starts can endure them."""
    if not isinstance(getattr(loader, "worker_init_fn", None), EnduringWorker) or _is_served(loader):
        return iter(loader)
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _is_served(loader: Any) -> bool:
    """Whether workers come from a server, which would hold signals back for good if it were started by this pass."""
    from torch import multiprocessing

    context = loader.multiprocessing_context or multiprocessing.get_context()
    return bool(context.get_start_method() == "forkserver")


def _prepare_leaving() -> None:
    """Have the workers of this process told when it ends: then they are terminated, and must not endure it."""
    global _leaving
    if _leaving is not None and _leaving[0] == os.getpid():
        return
    import multiprocessing
    from multiprocessing.util import Finalize

    flag = multiprocessing.RawValue("b", 0)
    _leaving = (os.getpid(), flag)
    # order matters: finalizers run before the children that are left are terminated and waited for
    Finalize(None, setattr, (flag, "value", 1), exitpriority=1000)


def _find_done_event() -> Any:
    """What torch sets when it tells this worker to end; a local variable of the loop that called us."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_worker_loop":
            return frame.f_locals.get("done_event")
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _endure(is_told: Callable[[], bool]) -> None:
    """Leave signals alone; SIGTERM only as long as not `is_told`."""
    import threading

    for signum in _SIGNALS:
        if signum in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(signum) is signal.SIG_DFL:
            signal.signal(signum, _pass_over)  # not SIG_IGN, which programs that the worker starts would inherit
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    # Not in the handler: a worker that hangs in foreign code would never come to it.
    def watch() -> None:
        while received := os.read(reading, 1):
            if received[0] == signal.SIGTERM and is_told():
                os._exit(0)

    threading.Thread(target=watch, name="fulgur-signals", daemon=True).start()


def _pass_over(signum: int, frame: Any) -> None:
    pass
