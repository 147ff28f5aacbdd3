"""Comparing programs on a machine that is not quiet: everything in turn, and ratios to a neighbour in time."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Program:
    """Something to measure.

    Attributes:
        name: What the table calls it.
        measure: Runs it once and returns what it cost.
        limit: Largest ratio, or difference, that the project allows itself. None for the others.
    """

    name: str
    measure: Callable[[], float]
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Medians over all rounds, with quartiles.

    Attributes:
        name: The program.
        cost: Median cost, in the unit of `Program.measure`.
        ratio: Median of cost over the baseline's.
        ratio_low: First quartile of the ratio.
        ratio_high: Third quartile of the ratio.
        difference: Median of cost minus the baseline's.
        limit: As in `Program`.
    """

    name: str
    cost: float
    ratio: float
    ratio_low: float
    ratio_high: float
    difference: float
    limit: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(baseline: Program, programs: Sequence[Program], *, n_rounds: int) -> list[Comparison]:
    """Measure `programs` in turn, the baseline before and after each, for `n_rounds` rounds after one to warm up.

    A ratio is taken to the mean of the two neighbouring baselines, so that a machine that slows down slows both.
    """
    costs: dict[str, list[float]] = {program.name: [] for program in (baseline, *programs)}
    neighbours: dict[str, list[float]] = {program.name: [] for program in programs}
    for i_round in range(n_rounds + 1):
        before = _measure(baseline)
        for program in programs:
            cost, after = _measure(program), _measure(baseline)
            if i_round:
                costs[baseline.name].append(after)
                costs[program.name].append(cost)
                neighbours[program.name].append((before + after) / 2)
            before = after
    base = statistics.median(costs[baseline.name])
    first = Comparison(baseline.name, base, 1.0, 1.0, 1.0, 0.0, None)
    return [first, *(_summary(program, costs[program.name], neighbours[program.name]) for program in programs)]


def _measure(program: Program) -> float:
    gc.collect()
    return program.measure()


def _summary(program: Program, costs: list[float], neighbours: list[float]) -> Comparison:
    ratios = [cost / near for cost, near in zip(costs, neighbours, strict=True)]
    differences = [cost - near for cost, near in zip(costs, neighbours, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Comparison(
        name=program.name,
        cost=statistics.median(costs),
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
        difference=statistics.median(differences),
        limit=program.limit,
    )


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *(line(row) for row in rows)])
