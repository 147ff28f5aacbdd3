"""Wall-clock time of each action."""

from __future__ import annotations

import os
import time
from collections import defaultdict

from fulgur.profilers.profiler import ActionError, Profiler


class SimpleProfiler(Profiler):
    """Adds up the wall-clock time of each action and reports a table, longest first.

    Does not wait for the device: time that an accelerator still needs counts for the action that waits for it.

    Args:
        dirpath: As in `Profiler`.
        filename: As in `Profiler`.
        extended: Whether the table also has the number of calls, the total and the share of each action.

    Attributes:
        recorded_durations: Seconds of each call, by action.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        extended: bool = True,
    ) -> None:
        super().__init__(dirpath, filename)
        self.extended = extended
        self.recorded_durations: dict[str, list[float]] = defaultdict(list)
        self._started: dict[str, float] = {}
        self._created = time.monotonic()

    def start(self, action_name: str) -> None:
        """Note the time.

        Raises:
            ValueError: The action is running already.
        """
        if action_name in self._started:
            raise ActionError(action_name, is_running=True)
        self._started[action_name] = time.monotonic()

    def stop(self, action_name: str) -> None:
        """Add the time since `start`.

        Raises:
            ValueError: The action is not running.
        """
        end = time.monotonic()
        if action_name not in self._started:
            raise ActionError(action_name, is_running=False)
        self.recorded_durations[action_name].append(end - self._started.pop(action_name))

    def summary(self) -> str:
        """The table."""
        title = f"{self._stage.upper()} Profiler Report".strip()
        header = ["Action", "Mean duration (s)", "Num calls", "Total time (s)", "Percentage %"]
        elapsed = time.monotonic() - self._created
        by_total = sorted(self.recorded_durations.items(), key=lambda item: sum(item[1]), reverse=True)
        rows = [header] + [_row(name, durations, elapsed) for name, durations in by_total]
        return f"{title}\n{_table([row if self.extended else [row[0], row[1], row[3]] for row in rows])}"


def _row(name: str, durations: list[float], elapsed: float) -> list[str]:
    total = sum(durations)
    share = 100 * total / elapsed if elapsed else 0.0
    return [name, f"{total / len(durations):.5g}", str(len(durations)), f"{total:.5g}", f"{share:.5g}"]


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["|  " + "\t|  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    rule = "-" * max(len(line.expandtabs()) for line in lines)
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])
