"""What subclasses of progress bars use."""

from __future__ import annotations

import math
from typing import Any


def convert_inf(x: int | float | None) -> int | float | None:
    """None for a length that is unknown, which is how tqdm wants it."""
    return None if x is None or math.isinf(x) or math.isnan(x) else x


def get_standard_metrics(trainer: Any) -> dict[str, int | str]:
    """What a bar shows in every run: the logger's version."""
    versions = [logger.version for logger in trainer.loggers if logger.version not in (None, "")]
    shown = [version[-4:] if isinstance(version, str) else version for version in versions]
    if not shown:
        return {}
    return {"v_num": shown[0] if len(shown) == 1 else "_".join(map(str, shown))}
