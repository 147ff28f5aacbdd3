"""What a rank that was started as a function does. Runs in the new process."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fulgur.launch.failing import describe_error
from fulgur.launch.family import VARIABLE, Layout
from fulgur.launch.launcher import count_threads
from fulgur.launch.shipping import ship


@dataclass(frozen=True)
class Work:
    """What the ranks do.

    Attributes:
        function, args, kwargs: The call.
        trainer: The Trainer that runs; among the arguments, too.
        layout: Of the world.
        variables: Of the environment, for all ranks.
        is_forked: Whether the process is a copy of the starter.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    trainer: Any
    layout: Layout
    variables: dict[str, str]
    is_forked: bool

    def __getstate__(self) -> bytes:
        """A copy of everything: multiprocessing would have tensors share their memory, and ranks train them at once."""
        return pickle.dumps(self.__dict__, protocol=pickle.HIGHEST_PROTOCOL)

    def __setstate__(self, state: bytes) -> None:
        self.__dict__.update(pickle.loads(state))


def run_rank(pipe: Any, local_rank: int, starter: int, work: Work) -> None:
    """Do the work, and send what came of it."""
    _belong_to(starter)
    _enter(local_rank, work)
    try:
        result = work.function(*work.args, **work.kwargs)
        shipped = ship(work.trainer, result)  # all ranks must reach this
        answer = shipped if local_rank == 0 else b""
    except (KeyboardInterrupt, SystemExit) as left:
        raise SystemExit(130 if isinstance(left, KeyboardInterrupt) else left.code) from None
    except BaseException as error:
        pipe.send(describe_error(error))
        sys.stderr.flush()
        os._exit(1)
    pipe.send(answer)
    _leave()


def _belong_to(starter: int) -> None:
    """End with the starter, and take signals from it alone: a terminal would send them a second time."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    threading.Thread(target=_watch_starter, args=(starter,), name="starter watch", daemon=True).start()


def _watch_starter(starter: int) -> None:
    """Where the system does not tell (and where a server stands between): see whether it is still there."""
    while True:
        try:
            os.kill(starter, 0)
        except OSError:
            os._exit(1)
        time.sleep(1.0)


def _enter(local_rank: int, work: Work) -> None:
    import torch

    os.environ.update(work.variables, LOCAL_RANK=str(local_rank))
    os.environ[VARIABLE] = work.layout.marker(os.getpid())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "OMP_NUM_THREADS" not in os.environ:
        # a forked OpenMP runtime hangs with more than the calling thread, if it has had several before
        torch.set_num_threads(1 if work.is_forked else count_threads(work.layout.num_devices))


def _leave() -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()  # all ranks must reach this: who leaves early takes its connections along
        torch.distributed.destroy_process_group()
