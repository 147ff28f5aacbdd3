"""What a profiler is, and the one that measures nothing."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


class Profiler(ABC):
    """Measures named actions and reports on them when a stage ends. Subclass it to measure in your own way.

    Args:
        dirpath: Directory of the report. None takes the Trainer's `log_dir`.
        filename: Middle part of the report's file name, ``<stage>-<filename>.txt``. None sends the report to the log.

    Example:
        >>> class Names(Profiler):
        ...     def start(self, action_name):
        ...         print(action_name)
        ...     def stop(self, action_name):
        ...         pass
        >>> with Names().profile("load"):
        ...     pass
        load
    """

    def __init__(self, dirpath: str | os.PathLike[str] | None = None, filename: str | None = None) -> None:
        self.dirpath = dirpath
        self.filename = filename
        self._stage = ""
        self._local_rank: int | None = None
        self._log_dir: str | None = None

    @abstractmethod
    def start(self, action_name: str) -> None:
        """When an action begins."""

    @abstractmethod
    def stop(self, action_name: str) -> None:
        """When an action ends."""

    def summary(self) -> str:
        """The report as text. An empty one is not shown."""
        return ""

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """When an entry point begins.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
            local_rank: Rank of this process on its node.
            log_dir: The Trainer's `log_dir`.
        """
        self._stage = stage
        self._local_rank = local_rank
        self._log_dir = log_dir

    def prepare(self, module: nn.Module, num_steps: float) -> None:
        """Before the first batch of an entry point's own stage.

        Args:
            module: What is run.
            num_steps: Number of batches the stage will have at most, infinite if that is not known.
        """

    def teardown(self, stage: str | None = None) -> None:
        """When an entry point ends, after the report; after an exception without one."""

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        """Measure what runs inside as `action_name`."""
        self.start(action_name)
        try:
            yield action_name
        finally:
            self.stop(action_name)

    def describe(self) -> None:
        """Write the report: to a file if there is a `filename`, else to the log on rank 0."""
        report = self.summary()
        if not report:
            return
        if self.filename is None:
            from fulgur.rank import rank_zero_info

            rank_zero_info("%s", report)
        else:
            with open(self._path("txt"), "a", encoding="utf-8") as file:
                file.write(report + "\n")

    def _path(self, extension: str) -> str:
        """File of the report, in a directory that exists afterwards."""
        folder = os.fspath(self.dirpath or self._log_dir or os.getcwd())
        os.makedirs(folder, exist_ok=True)
        parts = [self._stage, self.filename or "", str(self._local_rank) if self._local_rank else ""]
        name = re.sub(r"[^\w.+-]", "_", "-".join(part for part in parts if part))
        return os.path.join(folder, f"{name}.{extension}")


class PassThroughProfiler(Profiler):
    """Measures nothing."""

    def start(self, action_name: str) -> None:
        """Do nothing."""

    def stop(self, action_name: str) -> None:
        """Do nothing."""


def measured(profiler: Profiler, call: Callable[..., Any], action_name: str | None = None) -> Callable[..., Any]:
    """`call`, measured by `profiler`; `call` itself where nothing is measured, so that such a run pays nothing.

    Args:
        profiler: What measures.
        call: A function, or a hook of the user's.
        action_name: Name in the report. None makes it of a hook's owner and its name.
    """
    if isinstance(profiler, PassThroughProfiler):
        return call
    from fulgur.profilers.wrap import name_of_hook, timed

    return timed(profiler, action_name or name_of_hook(call), call)


class ActionError(ValueError):
    """An action was started twice, or stopped without having been started."""

    def __init__(self, action_name: str, *, is_running: bool) -> None:
        state, advice = ("running already", "Stop it first") if is_running else ("not running", "Start it first")
        super().__init__(f"action_name={action_name!r} is {state}. {advice}, or use `with profiler.profile(name):`.")
