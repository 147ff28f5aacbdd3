"""The table of results that validate and test print."""

from __future__ import annotations

from fulgur.logged import SUFFIX


def print_results(results: list[dict[str, float]], header: str) -> None:
    """Print a row for each value and a column for each loader; nothing where nothing was logged.

    Args:
        results: For each loader the values, by key.
        header: Title of the first column.
    """
    if not any(results):
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(header, *(f"DataLoader {index}" for index in range(len(results))))
    columns = [{key.split(SUFFIX)[0]: value for key, value in result.items()} for result in results]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(f"{column[name]:.6g}" if name in column else "" for column in columns))
    Console().print(table)
