"""The table of layers in colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulgur.callbacks.model_summary import ModelSummary
from fulgur.callbacks.summary import Summary

if TYPE_CHECKING:
    from rich.table import Table


class RichModelSummary(ModelSummary):
    """`ModelSummary` drawn by rich.

    Args:
        max_depth: Levels of submodules to list: 1 lists the direct children, -1 everything, 0 turns the table off.
        header_style: Style of the header, in rich's notation.

    Raises:
        ValueError: `max_depth` is below -1.

    Example:
        >>> trainer = Trainer(callbacks=[RichModelSummary(max_depth=2, header_style="bold blue")])
    """

    def __init__(self, max_depth: int = 1, header_style: str = "bold magenta") -> None:
        super().__init__(max_depth)
        self._header_style = header_style

    def show(self, summary: Summary) -> None:
        from rich.console import Console

        console = Console()
        console.print(self._layers(summary))
        console.print(_totals(summary))

    def _layers(self, summary: Summary) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(header_style=self._header_style)
        table.add_column("", style="dim")
        for title, _ in summary.columns():
            table.add_column(title, justify="left" if title in ("Name", "Type") else "right", overflow="fold")
        for index, row in enumerate(zip(*(cells for _, cells in summary.columns()), strict=True)):
            # Text, because sizes such as [2, 3] would be taken for markup.
            table.add_row(str(index), *(Text(cell) for cell in row))
        return table


def _totals(summary: Summary) -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for value, label in summary.totals():
        grid.add_row(f"[bold]{value}[/]", label)
    return grid
