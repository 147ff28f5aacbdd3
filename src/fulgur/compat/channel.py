"""Log lines reach who listens under the old names: levels and handlers set there count for fulgur's logger.

Python's loggers form a tree. While installed, the old loggers that programs configure are what ``fulgur`` propagates
to, one after the other up to ``lightning``.
"""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

_CHAIN = (
    "fulgur",
    "pytorch_lightning.utilities.rank_zero",
    "lightning.pytorch.utilities.rank_zero",
    "pytorch_lightning",
    "lightning.pytorch",
)
_LAST = _CHAIN[-1]
_parents: dict[str, Any] = {}


def connect() -> None:
    """Have lines of ``fulgur`` go through the old loggers, and be shown where those are set up to show them."""
    from fulgur import rank

    for name in _CHAIN:
        # One that is made later, between two that are there, would be put between them.
        parts = name.split(".")
        above = [logging.getLogger(".".join(parts[: n + 1])) for n in range(len(parts))]
        _parents[name] = above[-1].parent
    for name, next_name in pairwise(_CHAIN):
        logging.getLogger(name).parent = logging.getLogger(next_name)
    _clear_cache()
    rank.show_lines_of(logging.getLogger(_LAST))
    rank.set_up_lines()


def disconnect() -> None:
    """Put the tree back."""
    from fulgur import rank

    rank.show_lines_of(logging.getLogger("fulgur"))
    for name, parent in _parents.items():
        logging.getLogger(name).parent = parent
    _parents.clear()
    _clear_cache()


def _clear_cache() -> None:
    """Loggers remember which levels are enabled; setting a level, to the same value too, makes them forget."""
    logger = logging.getLogger(_LAST)
    logger.setLevel(logger.level)
