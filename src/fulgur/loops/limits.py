"""When a run stops, validates and logs. Batches, unless a name says otherwise; ``inf`` means never."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta


@dataclass(slots=True)
class Limits:
    """What the Trainer's arguments say about length and intervals; the loops read it, users may change it in a run.

    Attributes:
        max_epochs: None leaves it to the run: 1000 epochs, or no limit where steps or time are limited.
        min_epochs, min_steps: Before these, `should_stop` has no effect.
        max_steps: In units of `global_step`.
        accumulate: Batches to an optimizer step.
        log_every_n_steps: 0 never sends step values to loggers.
        val_check_interval: Fraction of the epoch as a float, batches as an int, or a time.
        check_val_every_n_epoch: None counts batches across epochs.
        n_sanity_batches: Validation batches before training; ``inf`` for all of them.
        reload_every_n_epochs: 0 loads each loader once.
    """

    max_epochs: int | None = None
    min_epochs: int = 0
    max_steps: float = math.inf
    min_steps: int = 0
    accumulate: int = 1
    log_every_n_steps: int = 50
    val_check_interval: int | float | timedelta = 1.0
    check_val_every_n_epoch: int | None = 1
    n_sanity_batches: float = 2
    reload_every_n_epochs: int = 0


def window_length(batch_idx: int, accumulate: int, n_batches: float) -> int:
    """Batches in the accumulation window that `batch_idx` belongs to; shorter at the end of a known length.

    Example:
        >>> [window_length(i, 4, 6) for i in range(6)]
        [4, 4, 4, 4, 2, 2]
    """
    start = batch_idx - batch_idx % accumulate
    return accumulate if math.isinf(n_batches) else int(min(accumulate, n_batches - start))
