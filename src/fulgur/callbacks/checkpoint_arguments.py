"""What the arguments of a `ModelCheckpoint` may be, alone and together."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fulgur.checkpoint.location import is_remote
from fulgur.errors import MisconfigurationException


def check_retention(*, save_top_k: int, monitor: str | None, mode: str) -> None:
    """Check what says which files to keep.

    Raises:
        MisconfigurationException: They contradict each other.
    """
    if save_top_k < -1:
        raise MisconfigurationException(f"save_top_k={save_top_k} is not possible. Use -1 to keep all, or 0 or more.")
    if monitor is None and save_top_k not in (-1, 0, 1):
        raise MisconfigurationException(
            f"save_top_k={save_top_k} needs something to rank by, and monitor is None. "
            "Pass monitor=<a logged metric>, or save_top_k=1 (newest), -1 (all) or 0 (none)."
        )
    if mode not in ("min", "max"):
        raise MisconfigurationException(f"mode={mode!r} is not possible. Use 'min' or 'max'.")


def check_saving(*, save_last: Any, on_save_error: str) -> None:
    """Check what says how to save.

    Raises:
        MisconfigurationException: A value that nobody knows.
    """
    if save_last not in (None, True, False, "link"):
        raise MisconfigurationException(f"save_last={save_last!r} is not possible. Use True, False or 'link'.")
    if on_save_error not in ("stop", "continue"):
        raise MisconfigurationException(f"on_save_error={on_save_error!r} is not possible. Use 'stop' or 'continue'.")


def check_triggers(*, every_n_train_steps: int, every_n_epochs: int, train_time_interval: timedelta | None) -> None:
    """Check what says when to save; at most one of them is on.

    Raises:
        MisconfigurationException: More than one is on, or one is negative.
    """
    for name, value in (("every_n_train_steps", every_n_train_steps), ("every_n_epochs", every_n_epochs)):
        if value < 0:
            raise MisconfigurationException(f"{name}={value} is negative. Use 0 to turn it off.")
    if (every_n_train_steps >= 1) + (every_n_epochs >= 1) + (train_time_interval is not None) > 1:
        raise MisconfigurationException(
            f"every_n_train_steps={every_n_train_steps}, every_n_epochs={every_n_epochs} and "
            f"train_time_interval={train_time_interval} exclude each other. Keep one, and add a second ModelCheckpoint "
            "for another."
        )


def check_link(save_last: Any, dirpath: str | None) -> None:
    """Check that there can be links where files go.

    Raises:
        ValueError: `save_last` is ``"link"``, and `dirpath` is on a store.
    """
    if save_last == "link" and dirpath is not None and is_remote(dirpath):
        raise ValueError(f"save_last='link' needs a local directory, not {dirpath!r}. Use save_last=True.")
