"""TQDMProgressBar, for those who like tqdm's bars better."""

from __future__ import annotations

import importlib.util

from fulgur.callbacks.displays import REDRAW_S, Display, TQDMDisplay
from fulgur.callbacks.progress import TimedProgressBar
from fulgur.errors import MissingExtraError


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

    def _build_display(self) -> Display:
        return TQDMDisplay(self.process_position, REDRAW_S, self.leave)
