"""Progress bars: what is shown and when it is redrawn. How it is drawn is in `displays.py`."""

from __future__ import annotations

import builtins
import math
import sys
from abc import abstractmethod
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from fulgur.callbacks.displays import REDRAW_S, Display, PlainDisplay, RichDisplay, RichProgressBarTheme, Task
from fulgur.errors import PossibleUserWarning
from fulgur.hooks import Callback, ignores_outputs
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer

__all__ = ["PlainProgressBar", "ProgressBar", "RichProgressBar", "RichProgressBarTheme", "TimedProgressBar"]

# Drawing takes at most this share of the time, however slow the terminal is.
_DRAWING_SHARE = 0.01


class ProgressBar(Callback):
    """Base of the progress bars; shows nothing by itself.

    Subclass it for a bar of your own. It is disabled on all ranks but the first. `get_metrics` decides what is shown
    and may be overridden in the bars that come with fulgur, too.

    Example:
        >>> class Dots(ProgressBar):
        ...     def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        ...         if self.is_enabled:
        ...             print(".", end="")
    """

    # After the module's own on_train_epoch_end, so that what it logs there is shown.
    is_monitor = True

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._is_enabled = True
        self._current_eval_dataloader_idx: int | None = None
        self._reads_last_flush = False

    @property
    def trainer(self) -> Trainer:
        """The Trainer of the run.

        Raises:
            TypeError: No run has begun.
        """
        if self._trainer is None:
            raise TypeError(f"{type(self).__name__} has no trainer before a run begins. Pass it to Trainer(callbacks).")
        return self._trainer

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown."""
        return self._is_enabled

    @property
    def is_disabled(self) -> bool:
        """The opposite of `is_enabled`."""
        return not self._is_enabled

    def disable(self) -> None:
        """Show nothing from now on."""
        self._is_enabled = False

    def enable(self) -> None:
        """Show something again."""
        self._is_enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without getting in the way of the bar. `trainer.print` ends here."""
        builtins.print(*args, **kwargs)  # noqa: T201

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer
        if not trainer.is_global_zero:
            self.disable()

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What is shown beside the bar: ``v_num``, the loggers' version, and all that was logged with ``prog_bar``.

        While a bar is redrawn these are the values of the last flush, which cost no wait for the device.
        """
        logged = trainer.flushed_progress_bar_metrics if self._reads_last_flush else trainer.progress_bar_metrics
        shown: dict[str, int | str | float | dict[str, float]] = {}
        of_module = getattr(pl_module, "get_progress_bar_dict", None)  # 1.x; there may be no module yet
        shown.update(standard_metrics(trainer) if of_module is None else of_module())
        if "v_num" in shown and "v_num" in logged:
            rank_zero_warn(
                "The metric 'v_num' hides the logger's version in the progress bar. Log it under another name, or "
                "override ProgressBar.get_metrics.",
                PossibleUserWarning,
            )
        shown.update(logged)
        return shown

    @property
    def train_description(self) -> str:
        return "Training"

    @property
    def sanity_check_description(self) -> str:
        return "Sanity Checking"

    @property
    def validation_description(self) -> str:
        return "Validation"

    @property
    def test_description(self) -> str:
        return "Testing"

    @property
    def predict_description(self) -> str:
        return "Predicting"

    @property
    def total_train_batches(self) -> float:
        """Batches of a training epoch; ``inf`` if the loader has no length."""
        total: float = self.trainer.num_training_batches
        return total

    @property
    def total_val_batches(self) -> float:
        """Validation batches of the running epoch, over all loaders; 0 in an epoch without validation."""
        every = self.trainer.check_val_every_n_epoch
        if every is not None and (self.trainer.current_epoch + 1) % every:
            return 0
        return sum(self.trainer.num_val_batches) if self.trainer.enable_validation else 0

    @property
    def total_val_batches_current_dataloader(self) -> float:
        """Batches of the validation loader that runs."""
        trainer = self.trainer
        return self._of_current(trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)

    @property
    def total_test_batches_current_dataloader(self) -> float:
        """Batches of the test loader that runs."""
        return self._of_current(self.trainer.num_test_batches)

    @property
    def total_predict_batches_current_dataloader(self) -> float:
        """Batches of the predict loader that runs."""
        return self._of_current(self.trainer.num_predict_batches)

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        """Whether the last call was about another loader."""
        has_changed = dataloader_idx != self._current_eval_dataloader_idx
        self._current_eval_dataloader_idx = dataloader_idx
        return has_changed

    def _of_current(self, totals: Sequence[float]) -> float:
        return totals[self._current_eval_dataloader_idx or 0]


class TimedProgressBar(ProgressBar):
    """Base of the bars that are redrawn by time: a batch costs one look at the clock.

    Subclasses say what to draw on.
    """

    def __init__(self) -> None:
        super().__init__()
        self._display: Display | None = None
        self._tasks: list[Task] = []
        self._train_task: Task | None = None
        self._next_draw = 0.0
        # Batches done, however seldom they are drawn; -1 before the first.
        self._n_trained = self._n_evaluated = -1

    @abstractmethod
    def _build_display(self) -> Display: ...

    def open_display(self) -> Display | None:
        """A display for something else than a run's batches; None while these are shown, or nothing is to be."""
        return self._build_display() if self.is_enabled and self._display is None else None

    def disable(self) -> None:
        super().disable()
        self._close()
        self._next_draw = math.inf

    def enable(self) -> None:
        super().enable()
        self._next_draw = 0.0

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._display is None or kwargs.get("file") not in (None, sys.stdout) or kwargs.get("end", "\n") != "\n":
            builtins.print(*args, **kwargs)  # noqa: T201
        else:
            self._display.print((kwargs.get("sep") or " ").join(str(arg) for arg in args))

    # ---- training -------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # An epoch that is resumed midway has no on_train_epoch_start.
        self._begin_epoch(trainer, counted_from=-1)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_epoch(trainer, counted_from=0)

    @ignores_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._n_trained = batch_idx + 1
        if monotonic() < self._next_draw:
            return
        self._advance(batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task = self._train_task
        if task is None or self._display is None:
            return
        if self._display.keeps_epochs:
            self._leave(task)
        elif monotonic() >= self._next_draw:
            self._finish(task)
            self._draw()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._train_task is not None and self._display is not None and not self._display.keeps_epochs:
            self._finish(self._train_task)
            self._draw()
        self._close()

    def _begin_epoch(self, trainer: Trainer, counted_from: int) -> None:
        if not self._is_enabled:
            return
        if self._train_task is not None:
            self._tasks.remove(self._train_task)
        self._n_trained = -1
        task = self._train_task = Task(self._epoch_label(trainer), self.total_train_batches, counted_from=counted_from)
        self._begin(task)

    def _epoch_label(self, trainer: Trainer) -> str:
        last = trainer.max_epochs
        return f"Epoch {trainer.current_epoch}" + (f"/{last - 1}" if last is not None and last > 0 else "")

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            self._begin_evaluation(self.sanity_check_description, trainer.num_sanity_val_batches)
        else:
            self._begin_evaluation(self.validation_description, trainer.num_val_batches)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._n_evaluated = batch_idx + 1
        if monotonic() < self._next_draw:
            return
        totals = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._advance_evaluation(totals, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A validation at the end of an epoch is told by the epoch's own line.
        is_told = trainer.sanity_checking or (trainer.state.fn == "fit" and trainer.is_last_batch)
        self._end_evaluation(trainer, is_told)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(self.test_description, trainer.num_test_batches)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._n_evaluated = batch_idx + 1
        if monotonic() < self._next_draw:
            return
        self._advance_evaluation(trainer.num_test_batches, batch_idx, dataloader_idx)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation(trainer, is_told=False)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(self.predict_description, trainer.num_predict_batches)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._n_evaluated = batch_idx + 1
        if monotonic() < self._next_draw:
            return
        self._advance_evaluation(trainer.num_predict_batches, batch_idx, dataloader_idx)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation(trainer, is_told=False)

    def _begin_evaluation(self, description: str, totals: Sequence[float]) -> None:
        self._n_evaluated = -1
        if self._is_enabled:
            self._begin(Task(description, sum(totals)))

    def _advance_evaluation(self, totals: Sequence[float], batch_idx: int, dataloader_idx: int) -> None:
        if len(totals) > 1 and self._tasks and self.has_dataloader_changed(dataloader_idx):
            self._tasks[-1].label = f"{self._tasks[-1].label.partition(' DataLoader')[0]} DataLoader {dataloader_idx}"
        before = sum(totals[:dataloader_idx])
        self._advance((int(before) if math.isfinite(before) else 0) + batch_idx + 1)

    def _end_evaluation(self, trainer: Trainer, is_told: bool) -> None:
        if self._display is None or not self._tasks or self._tasks[-1] is self._train_task:
            return
        task = self._tasks.pop()
        self._current_eval_dataloader_idx = None
        is_alone = trainer.state.fn != "fit"
        if is_alone or not (is_told or self._display.is_live):
            self._leave(task)
        if self._train_task is not None:
            self._train_task.started_at += task.elapsed_s
        if is_alone:
            self._close()

    # ---- drawing --------------------------------------------------------------------------------------------------

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _begin(self, task: Task) -> None:
        if self._display is None:
            self._display = self._build_display()
            self._next_draw = 0.0 if self._display.is_live else monotonic() + self._display.interval_s
        self._tasks.append(task)
        if self._display.is_live and monotonic() >= self._next_draw:
            self._draw()

    def _advance(self, done: int) -> None:
        if self._display is None or not self._tasks:
            self._next_draw = math.inf
            return
        task = self._tasks[-1]
        if task.counted_from < 0:
            task.counted_from, task.started_at = done, monotonic()
        task.done = done
        task.metrics = self._read_metrics(from_last_flush=True)
        self._draw()

    def _finish(self, task: Task) -> None:
        task.metrics = self._read_metrics(from_last_flush=False)
        n_done = self._n_trained if task is self._train_task else self._n_evaluated
        if n_done >= 0 and (task is self._train_task or math.isinf(task.total)):
            task.done = n_done  # a limit may have cut it short
        elif math.isfinite(task.total) and not self.trainer.should_stop:
            task.done = int(task.total)

    def _leave(self, task: Task) -> None:
        assert self._display is not None
        self._finish(task)
        self._display.leave(task)
        self._next_draw = monotonic() + self._display.interval_s

    def _draw(self) -> None:
        assert self._display is not None
        began = monotonic()
        self._display.draw(self._tasks)
        ended = monotonic()
        self._next_draw = ended + max(self._display.interval_s, (ended - began) / _DRAWING_SHARE)

    def _close(self) -> None:
        if self._display is not None:
            self._display.close()
        self._display = self._train_task = None
        self._tasks = []

    def _read_metrics(self, from_last_flush: bool) -> dict[str, Any]:
        self._reads_last_flush = from_last_flush
        try:
            return dict(self.get_metrics(self.trainer, self.trainer.lightning_module))
        finally:
            self._reads_last_flush = False


class RichProgressBar(TimedProgressBar):
    """A bar drawn with rich on a terminal; plain lines where the output is a file or a pipe.

    Args:
        refresh_rate: Redraws a second, at most; more than 8 are as 8, and drawing never takes more than 1 % of the
            time. 0 shows nothing.
        leave: Leave the bar of each epoch on the screen.
        theme: Styles and the form of metrics.
        console_kwargs: Arguments of `rich.console.Console`.
    """

    def __init__(
        self,
        refresh_rate: float = 8,
        leave: bool = False,
        theme: RichProgressBarTheme | None = None,
        console_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.refresh_rate = refresh_rate
        self.leave = leave
        self.theme = RichProgressBarTheme() if theme is None else theme
        self.console_kwargs = console_kwargs
        if refresh_rate <= 0:
            self.disable()

    def _build_display(self) -> Display:
        # rich is not even imported for a run without a terminal.
        if self.console_kwargs is None and not sys.stdout.isatty():
            return PlainDisplay()
        from rich.console import Console

        console = Console(**(self.console_kwargs or {}))
        if not console.is_terminal or console.is_dumb_terminal:
            return PlainDisplay()
        return RichDisplay(console, self.theme, max(1 / self.refresh_rate, REDRAW_S), self.leave)


class PlainProgressBar(TimedProgressBar):
    """One line for each epoch and each evaluation, and one now and then in between.

    Args:
        interval_s: Seconds between two lines within an epoch.
    """

    def __init__(self, interval_s: float = 10.0) -> None:
        super().__init__()
        self.interval_s = interval_s

    def _build_display(self) -> Display:
        return PlainDisplay(self.interval_s)


def standard_metrics(trainer: Trainer) -> dict[str, int | str]:
    """What bars show of the run itself: ``v_num``, the versions of the loggers."""
    versions = [_short_version(logger.version) for logger in trainer.loggers if logger.version not in (None, "")]
    if not versions:
        return {}
    return {"v_num": versions[0] if len(versions) == 1 else "_".join(str(version) for version in versions)}


def _short_version(version: int | str) -> int | str:
    return version[-4:] if isinstance(version, str) else version
