"""Wall-clock time of each action."""

from __future__ import annotations

import os
import re
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
        names = _short_names([name for name, _ in by_total])
        rows = [header] + [_row(name, durations, elapsed) for name, (_, durations) in zip(names, by_total, strict=True)]
        return f"{title}\n{_table([row if self.extended else [row[0], row[1], row[3]] for row in rows])}"


def _row(name: str, durations: list[float], elapsed: float) -> list[str]:
    total = sum(durations)
    share = 100 * total / elapsed if elapsed else 0.0
    return [name, f"{total / len(durations):.5g}", str(len(durations)), f"{total:.5g}", f"{share:.5g}"]


def _short_names(names: list[str]) -> list[str]:
    """Names without the arguments that keys of callbacks have, where they tell the actions apart without."""
    short = [re.sub(r"\{[^}]*\}", "", name) for name in names]
    return [s if short.count(s) == 1 else name for s, name in zip(short, names, strict=True)]


def _line(row: list[str], widths: list[int]) -> str:
    name, *numbers = row
    return "  ".join([name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))])


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    rule = "-" * len(lines[0])
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])
