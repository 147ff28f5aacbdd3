"""Comparing programs on a machine that is not quiet.

Everything is measured in turn, many times for a short while each, so that a slow minute falls on all alike. What else
runs on a machine only ever adds to a cost, so a cost is the mean of the cheapest quarter of its measurements, and a
ratio or difference is one of two such means. The cheapest one alone would repeat better and leave out what happens now
and then; a quarter of the rounds has its share of that, as long as each lasts for some of it.

How well an answer repeats is shown beside it: the rounds are dealt out to four groups like cards, each group is asked
for itself, and the range of the four answers is shown. "The same loop again", a program that is the baseline, tells
what a difference of nothing looks like: where its range is wide, nothing in the table is known any better.
"""

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


N_GROUPS = 4


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a program costs, and against the baseline.

    Attributes:
        name: The program.
        cost: Mean of the cheapest quarter of all rounds, in the unit of `Program.measure`.
        ratio: Cost over the baseline's.
        ratio_low: Smallest ratio of the four groups of rounds.
        ratio_high: Largest ratio of the four groups.
        difference: Cost minus the baseline's.
        difference_low: Smallest difference of the four groups.
        difference_high: Largest difference of the four groups.
        limit: As in `Program`.
    """

    name: str
    cost: float
    ratio: float
    ratio_low: float
    ratio_high: float
    difference: float
    difference_low: float
    difference_high: float
    limit: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(baseline: Program, programs: Sequence[Program], *, n_rounds: int) -> list[Comparison]:
    """Measure `programs` in turn, the baseline after each, for `n_rounds` rounds after one to warm up."""
    costs: dict[str, list[float]] = {program.name: [] for program in programs}
    neighbours: dict[str, list[float]] = {program.name: [] for program in programs}
    for i_round in range(n_rounds + 1):
        for program in programs:
            cost, beside = _measure(program), _measure(baseline)
            if i_round:
                costs[program.name].append(cost)
                neighbours[program.name].append(beside)
    base = cheapest_quarter([cost for beside in neighbours.values() for cost in beside])
    first = Comparison(baseline.name, base, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, None)
    return [first, *(_summary(program, costs[program.name], neighbours[program.name]) for program in programs)]


def cheapest_quarter(costs: Sequence[float]) -> float:
    """Mean of the cheapest quarter, of one at least."""
    return statistics.fmean(sorted(costs)[: max(1, len(costs) // 4)])


def _measure(program: Program) -> float:
    gc.collect()
    return program.measure()


def _summary(program: Program, costs: list[float], neighbours: list[float]) -> Comparison:
    cost, base = cheapest_quarter(costs), cheapest_quarter(neighbours)
    groups = [
        (cheapest_quarter(costs[i::N_GROUPS]), cheapest_quarter(neighbours[i::N_GROUPS]))
        for i in range(min(N_GROUPS, len(costs)))
    ]
    ratios = [of_program / of_base for of_program, of_base in groups]
    differences = [of_program - of_base for of_program, of_base in groups]
    return Comparison(
        name=program.name,
        cost=cost,
        ratio=cost / base,
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        difference=cost - base,
        difference_low=min(differences),
        difference_high=max(differences),
        limit=program.limit,
    )


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *(line(row) for row in rows)])
