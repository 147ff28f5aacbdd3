"""How a `ModelCheckpoint` ranks its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fulgur.errors import nearest_name


def rankable(value: Any, mode: str) -> Tensor:
    """A copy on the CPU, with the worst of scores in the place of NaN."""
    score = torch.as_tensor(value).detach().cpu().clone()  # waits for the device
    return torch.full_like(score, float("inf" if mode == "min" else "-inf")) if score.isnan() else score


def find_best_and_worst(scores: Mapping[str, Tensor], mode: str) -> tuple[str, str]:
    """Paths of the best and of the worst of the scores, the first of equal ones."""
    best, worst = (min, max) if mode == "min" else (max, min)
    numbers = {path: score.item() for path, score in scores.items()}
    return best(numbers, key=numbers.__getitem__), worst(numbers, key=numbers.__getitem__)


def is_better(score: Tensor, than: Tensor, mode: str) -> bool:
    """Whether `score` is strictly better."""
    return bool(score < than if mode == "min" else score > than)


def missing_metric(monitor: str, metrics: Mapping[str, Any]) -> str:
    """A message for a metric to rank by that nobody has logged."""
    known = ", ".join(repr(name) for name in sorted(metrics)) or "none"
    return (
        f"ModelCheckpoint(monitor={monitor!r}) found no metric of this name. Logged so far: {known}."
        f"{nearest_name(monitor, metrics)} Log it with self.log({monitor!r}, ...), or monitor one of those."
    )
