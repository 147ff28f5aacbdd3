"""TQDMProgressBar, for those who like tqdm's bars better."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from fulgur.callbacks.displays import REDRAW_S, Display, Task, TQDMDisplay
from fulgur.callbacks.progress import TimedProgressBar
from fulgur.errors import MissingExtraError

if TYPE_CHECKING:
    from fulgur.callbacks.tqdm_bar import Tqdm


class TQDMProgressBar(TimedProgressBar):
    """A bar drawn with tqdm on stderr.

    Args:
        refresh_rate: 0 shows nothing. Any other number is accepted for scripts that have it: bars are redrawn by
            time, never by batch.
        process_position: Row of the first bar, for several processes on one terminal.
        leave: Leave the bar of each epoch on the screen.

    Raises:
        MissingExtraError: tqdm is not installed.
    """

    def __init__(self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False) -> None:
        super().__init__()
        if importlib.util.find_spec("tqdm") is None:
            raise MissingExtraError("TQDMProgressBar", "tqdm", "tqdm")
        self.refresh_rate = refresh_rate
        self.process_position = process_position
        self.leave = leave
        if refresh_rate == 0:
            self.disable()

    def init_train_tqdm(self) -> Tqdm:
        """Make the bar of a training epoch. Override it, or one of the following, for another look or none."""
        return self._build_bar(self.train_description)

    def init_validation_tqdm(self) -> Tqdm:
        """Make the bar of a validation."""
        return self._build_bar(self.validation_description)

    def init_sanity_tqdm(self) -> Tqdm:
        """Make the bar of the validation before training."""
        return self._build_bar(self.sanity_check_description)

    def init_test_tqdm(self) -> Tqdm:
        """Make the bar of a test."""
        return self._build_bar(self.test_description)

    def init_predict_tqdm(self) -> Tqdm:
        """Make the bar of a prediction."""
        return self._build_bar(self.predict_description)

    def _build_bar(self, description: str) -> Tqdm:
        from fulgur.callbacks.tqdm_bar import Tqdm

        bar = Tqdm(desc=description, dynamic_ncols=True, delay=REDRAW_S)  # not shown before its length is known
        bar.delay = 0
        return bar

    def _build_bar_of(self, task: Task) -> Tqdm:
        if task is self._train_task:
            return self.init_train_tqdm()
        others = {
            self.sanity_check_description: self.init_sanity_tqdm,
            self.validation_description: self.init_validation_tqdm,
            self.test_description: self.init_test_tqdm,
            self.predict_description: self.init_predict_tqdm,
        }
        build = others.get(task.label.partition(" DataLoader")[0])
        return self._build_bar(task.label) if build is None else build()  # a search of the tuner is no run

    def _build_display(self) -> Display:
        return TQDMDisplay(
            self._build_bar_of, position=self.process_position, interval_s=REDRAW_S, keeps_epochs=self.leave
        )
