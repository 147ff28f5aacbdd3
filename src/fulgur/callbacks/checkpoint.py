"""What all callbacks that save checkpoints have in common."""

from __future__ import annotations

from fulgur.hooks import Callback, overrides


class Checkpoint(Callback):
    """Base of the callbacks that save checkpoints. The Trainer runs them after all others.

    Subclass it for a callback of your own that saves; with one in the list, the Trainer adds no `ModelCheckpoint`.
    """

    is_monitor = True

    @property
    def saves_on_exception(self) -> bool:
        """Whether it may save where an exception ends fit: then what a broken batch has logged can be left out."""
        return overrides(self, "on_exception", Callback)
