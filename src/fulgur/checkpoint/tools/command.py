"""What a command is made of, and what it gives back."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Table:
    """Rows to be shown. Cells are text; sizes and numbers stand at the right.

    Attributes:
        title: Above the table. Empty for none.
        columns: Names of the columns; one that begins with ``>`` is aligned to the right.
        rows: As many cells each.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command has found or done.

    Attributes:
        data: All of it, for ``--json``.
        shown: Tables and lines, for people.
        exit_code: Of the process: 0 is yes, 1 is no.
    """

    data: dict[str, Any]
    shown: Iterable[Table | str] = field(default=())
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Command:
    """One command of the program.

    Attributes:
        name: The word that calls it.
        purpose: One line.
        add_arguments: Declares its arguments.
        run: Does it.
    """

    name: str
    purpose: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], Outcome]
