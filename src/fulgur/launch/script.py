"""Starts the other ranks of this machine by running the program's command again.

Rank 0 is the program itself. At its first `Trainer.fit` (or validate, test, predict) the others are started; they run
the program up to that call, and join. They stay until the program ends: a second call finds them there.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from fulgur.errors import LayoutError
from fulgur.launch import family as membership
from fulgur.launch.command import find_command, find_folder, wrap_command
from fulgur.launch.environments.environment import ClusterEnvironment
from fulgur.launch.failing import ask, have_all_failed
from fulgur.launch.family import VARIABLE, Layout
from fulgur.launch.launcher import Launcher, count_threads
from fulgur.launch.meeting import open_store, rank_variables, variables_set
from fulgur.launch.supervision import Child, Family

_family: Family | None = None
_variables: dict[str, str] = {}


class ScriptLauncher(Launcher):
    """Runs the command of this program again for each further device.

    Args:
        environment: Says on which machine this is.
        layout: How many processes there are to be.
    """

    def __init__(self, environment: ClusterEnvironment, layout: Layout) -> None:
        self.environment, self.layout = environment, layout

    @property
    def is_interactive_compatible(self) -> bool:
        """False: it needs a command."""
        return False

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        family = self._find_or_start()
        with variables_set(_variables):
            return family.watch(partial(function, *args, **kwargs), partial(_has_failed_everywhere, trainer))

    def kill(self, signum: int) -> None:
        if _family is not None:
            _family.send(signum)

    def _find_or_start(self) -> Family:
        global _family
        if _family is None:
            _family = self._start()
            atexit.register(_family.end_of_program)
        check_layout(_family.layout, self.layout)
        return _family

    def _start(self) -> Family:
        commands = {rank: find_command(rank) for rank in range(1, self.layout.num_devices)}
        store = open_store(self.environment, self.layout.num_nodes)
        shared = rank_variables(self.environment, store, self.layout.num_devices, self.layout.num_nodes)
        _limit_threads(self.layout.num_devices)
        _variables.update(shared, LOCAL_RANK="0", **{VARIABLE: self.layout.marker(os.getpid())})
        family = Family(self.layout, store)
        for rank, command in commands.items():
            family.add(Child(rank, self._start_rank(command, {**shared, "LOCAL_RANK": str(rank)})))
        membership.started = self.layout
        return family

    def _start_rank(self, command: list[str], variables: dict[str, str]) -> subprocess.Popen[bytes]:
        threads = {"OMP_NUM_THREADS": str(count_threads(self.layout.num_devices))}
        is_main = threading.current_thread() is threading.main_thread()
        layout = f"{self.layout.num_devices} {self.layout.num_nodes}"
        return subprocess.Popen(
            wrap_command(command, layout, ends_with_thread=is_main),
            env={**threads, **os.environ, **variables},
            cwd=find_folder(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )


def _has_failed_everywhere(trainer: Any, error: BaseException) -> bool:
    strategy = getattr(trainer, "strategy", None)
    return strategy is not None and ask(lambda: have_all_failed(error, strategy.store, strategy.world_size), False)


def check_layout(started: Layout, asked: Layout) -> None:
    """Compare the layout of a Trainer with that of the processes that fulgur has started.

    Raises:
        LayoutError: They differ.
    """
    if started == asked:
        return
    if membership.find_joined_layout() is None:
        raise LayoutError(
            f"This process is local rank {os.environ.get('LOCAL_RANK')} of {started.size} ({started}), started to join "
            f"rank 0 in a later call of the program; on the way there it came to a Trainer with {asked}. Give all "
            f"Trainers of a program {started}, or start it with torchrun."
        )
    raise LayoutError(
        f"This program already runs as {started.size} processes ({started}), which an earlier Trainer has started, and "
        f"this one has {asked}. Use {started} here, too: results are the same for any number of processes. For one "
        "process alone, say strategy='single_device' in code that only one rank runs."
    )


def _limit_threads(n_processes: int) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        sys.modules["torch"].set_num_threads(count_threads(n_processes))
