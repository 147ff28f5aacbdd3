"""Which optional packages are here."""

from __future__ import annotations

from importlib.util import find_spec

_RICH_AVAILABLE = find_spec("rich") is not None
_OMEGACONF_AVAILABLE = find_spec("omegaconf") is not None
_TORCHMETRICS_GREATER_EQUAL_1_0_0 = find_spec("torchmetrics") is not None
