"""How progress is put on the screen: redrawn bars with rich or tqdm, plain lines anywhere else.

A display draws when it is told to and never by itself: no thread, so that workers can be forked at any time.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REDRAW_S = 0.125
LINE_S = 10.0

# Columns that a row takes without metrics, about.
_ROW_WIDTH = 90


@dataclass(slots=True, eq=False)
class Task:
    """What one bar shows.

    Attributes:
        label: Text in front of the bar.
        total: Number of batches; ``inf`` if nobody knows.
        done: Batches behind us.
        metrics: What to show after the bar.
        started_at: When it began, on the monotonic clock; moved on by times that do not count.
        counted_from: Batches that were done before `started_at`. -1 takes what the first drawing finds.
    """

    label: str
    total: float
    done: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    started_at: float = field(default_factory=lambda: monotonic())
    counted_from: int = 0

    @property
    def count(self) -> str:
        return f"{self.done}/{'--' if math.isinf(self.total) else int(self.total)}"

    @property
    def elapsed_s(self) -> float:
        return max(monotonic() - self.started_at, 0.0)

    @property
    def batches_per_s(self) -> float:
        counted = self.done - max(self.counted_from, 0)
        return counted / self.elapsed_s if counted > 0 and self.elapsed_s > 0 else 0.0

    @property
    def times(self) -> str:
        speed = self.batches_per_s
        remaining = (self.total - self.done) / speed if speed > 0 else math.inf
        return f"{_clock(self.elapsed_s)} • {_clock(remaining)}"

    @property
    def speed(self) -> str:
        return f"{self.batches_per_s:.2f}it/s"


@dataclass
class RichProgressBarTheme:
    """Styles of `RichProgressBar`, in rich's words, and the form of the metrics."""

    description: str = ""
    progress_bar: str = "magenta"
    progress_bar_finished: str = "green"
    progress_bar_pulse: str = "magenta"
    batch_progress: str = ""
    time: str = "dim"
    processing_speed: str = "dim"
    metrics: str = ""
    metrics_text_delimiter: str = " "
    metrics_format: str = ".3f"


class Display(ABC):
    """Shows tasks somewhere.

    Attributes:
        interval_s: Time between two drawings, at least.
        is_live: True redraws in place; False adds to what is there.
        keeps_epochs: Whether each finished epoch stays to be seen.
    """

    interval_s: float
    is_live: bool
    keeps_epochs: bool

    @abstractmethod
    def draw(self, tasks: Sequence[Task]) -> None:
        """Show `tasks`, the running one last."""

    @abstractmethod
    def leave(self, task: Task) -> None:
        """Show the end of a task where it stays."""

    @abstractmethod
    def print(self, text: str) -> None:
        """Write a line that the bars do not run over."""

    @abstractmethod
    def close(self) -> None:
        """Stop; what was drawn last stays."""


class PlainDisplay(Display):
    """One line now and then, for files and pipes."""

    is_live = False
    keeps_epochs = True

    def __init__(self, interval_s: float = LINE_S) -> None:
        self.interval_s = interval_s

    def draw(self, tasks: Sequence[Task]) -> None:
        self.leave(tasks[-1])

    def leave(self, task: Task) -> None:
        parts = [f"{task.label}: {task.count}", _clock(task.elapsed_s), task.speed, format_metrics(task.metrics)]
        self.print(" | ".join(part for part in parts if part))

    def print(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def close(self) -> None:
        pass


class RichDisplay(Display):
    """Bars that are redrawn in place on a terminal."""

    is_live = True

    def __init__(self, console: Console, theme: RichProgressBarTheme, interval_s: float, keeps_epochs: bool) -> None:
        from rich.live import Live

        self.interval_s = interval_s
        self.keeps_epochs = keeps_epochs
        self._theme = theme
        self._console = console
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def draw(self, tasks: Sequence[Task]) -> None:
        self._live.transient = False
        self._live.update(self._rows(tasks), refresh=True)

    def leave(self, task: Task) -> None:
        from rich.console import Group

        # The frame is emptied first: what it showed is the same task, as it was some time ago.
        self._live.update(Group(), refresh=True)
        self._live.transient = True
        self._console.print(self._rows([task]))

    def print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._live.stop()

    def _rows(self, tasks: Sequence[Task]) -> RenderableType:
        """A row for each task, and the metrics of the running one: beside them if there is room, else below."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        theme, running = self._theme, tasks[-1]
        metrics = format_metrics(running.metrics, theme.metrics_format, theme.metrics_text_delimiter)
        has_room = len(metrics) <= self._console.width - _ROW_WIDTH
        grid = Table.grid(padding=(0, 1))
        for style in (theme.description, "", theme.batch_progress, theme.time, theme.processing_speed, theme.metrics):
            grid.add_column(style=style, no_wrap=True)
        for task in tasks:
            beside = metrics if has_room and task is running else ""
            texts = [Text(text) for text in (task.label, task.count, task.times, task.speed, beside)]
            grid.add_row(texts[0], self._bar(task), *texts[1:])
        return grid if has_room or not metrics else Group(grid, Text(metrics, style=theme.metrics))

    def _bar(self, task: Task) -> RenderableType:
        from rich.progress_bar import ProgressBar

        return ProgressBar(
            total=None if math.isinf(task.total) else task.total,
            completed=task.done,
            width=30 if self._console.width >= _ROW_WIDTH else 12,
            complete_style=self._theme.progress_bar,
            finished_style=self._theme.progress_bar_finished,
            pulse_style=self._theme.progress_bar_pulse,
        )


class TQDMDisplay(Display):
    """Bars drawn by tqdm.

    Args:
        build_bar: Makes the bar of a task.
        position: Row of the first bar.
        interval_s: Time between two drawings, at least.
        keeps_epochs: Whether each finished epoch stays to be seen.
    """

    is_live = True

    def __init__(
        self, build_bar: Callable[[Task], Any], *, position: int, interval_s: float, keeps_epochs: bool
    ) -> None:
        self.interval_s = interval_s
        self.keeps_epochs = keeps_epochs
        self._build_bar = build_bar
        self._position = position
        self._bars: dict[Task, Any] = {}

    def draw(self, tasks: Sequence[Task]) -> None:
        for task in [task for task in self._bars if task not in tasks]:
            self._bars.pop(task).close()
        for row, task in enumerate(tasks):
            bar = self._bars.get(task)
            if bar is None:
                bar = self._bars[task] = self._build(task, row, leave=False)
            self._show(bar, task)

    def leave(self, task: Task) -> None:
        bar = self._bars.pop(task, None)
        if bar is None:
            bar = self._build(task, 0, leave=True)
        bar.leave = True
        self._show(bar, task)
        bar.close()

    def print(self, text: str) -> None:
        from fulgur.callbacks.tqdm_bar import Tqdm

        Tqdm.write(text, file=sys.stdout)

    def close(self) -> None:
        for bar in self._bars.values():
            bar.leave = True
            bar.close()
        self._bars.clear()

    def _build(self, task: Task, row: int, leave: bool) -> Any:
        bar = self._build_bar(task)
        bar.total = None if math.isinf(task.total) else task.total
        bar.leave = leave
        if not bar.disable:
            bar.pos = -(self._position + row)
        return bar

    def _show(self, bar: Any, task: Task) -> None:
        bar.n = task.done
        bar.set_description(task.label, refresh=False)
        bar.set_postfix({name: _format_value(value, ".3g") for name, value in task.metrics.items()}, refresh=False)
        bar.refresh()


def format_metrics(metrics: Mapping[str, Any], spec: str = ".3f", delimiter: str = " ") -> str:
    """Metrics in one line.

    Example:
        >>> format_metrics({"v_num": 0, "loss": 0.12345, "lr": 1e-5})
        'v_num: 0 loss: 0.123 lr: 1.000e-05'
    """
    return delimiter.join(f"{name}: {_format_value(value, spec)}" for name, value in metrics.items())


def _format_value(value: Any, spec: str) -> str:
    if not isinstance(value, float):
        return str(value)
    text = format(value, spec)
    # A small number is not zero.
    return f"{value:.3e}" if value != 0 and not any(digit in text for digit in "123456789ni") else text


def _clock(seconds: float) -> str:
    if math.isinf(seconds):
        return "-:--:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
