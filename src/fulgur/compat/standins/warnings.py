"""Warnings: shown once, or not at all."""

from __future__ import annotations

import warnings
from typing import Any

from fulgur.errors import PossibleUserWarning
from fulgur.rank import find_launcher_rank, rank_zero_deprecation, rank_zero_info, rank_zero_warn


class WarningCache(set[str]):
    """Texts that were shown already; each method shows a text once."""

    def warn(self, message: str, stacklevel: int = 5, **kwargs: Any) -> None:
        """`rank_zero_warn`, the first time."""
        if self._is_new(message):
            rank_zero_warn(message, stacklevel=stacklevel, **kwargs)

    def deprecation(self, message: str, stacklevel: int = 6, **kwargs: Any) -> None:
        """`rank_zero_deprecation`, the first time."""
        if self._is_new(message):
            rank_zero_deprecation(message, stacklevel=stacklevel, **kwargs)

    def info(self, message: str, **kwargs: Any) -> None:
        """`rank_zero_info`, the first time."""
        if self._is_new(message):
            rank_zero_info(message, **kwargs)

    def _is_new(self, message: str) -> bool:
        is_new = message not in self
        self.add(message)
        return is_new


def disable_possible_user_warnings(module: str = "") -> None:
    """Ignore every `PossibleUserWarning`.

    Args:
        module: Only those that come from modules that match this pattern.
    """
    warnings.filterwarnings("ignore", module=module, category=PossibleUserWarning)


def rank_prefixed_message(message: str, rank: int | None) -> str:
    """`message` with the rank before it, where there is one."""
    return message if rank is None else f"[rank: {rank}] {message}"


def _get_rank() -> int | None:
    return find_launcher_rank()
