"""How the tools print: tables for people, JSON for programs."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterable
from typing import IO, Any

import torch

from fulgur.checkpoint.plain import from_plain
from fulgur.checkpoint.tools.command import Table

# Where the output is no terminal, nothing is gained by cutting cells to fit one.
_WIDTH_OF_FILES = 240


def print_shown(shown: Iterable[Table | str]) -> None:
    """Print tables and lines to standard output."""
    if sys.stdout.isatty():
        return _render(shown, sys.stdout, width=None)
    text = io.StringIO()
    _render(shown, text, width=_WIDTH_OF_FILES)
    sys.stdout.writelines(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def _render(shown: Iterable[Table | str], file: IO[str], *, width: int | None) -> None:
    from rich.console import Console
    from rich.text import Text

    # Names in checkpoints may look like markup.
    console = Console(file=file, width=width, markup=False, highlight=False, emoji=False)
    for part in shown:
        if isinstance(part, str):
            console.print(Text(part), soft_wrap=True)
            continue
        if part.title:
            console.print(Text(part.title, style="bold"), soft_wrap=True)
        console.print(_build_table(part))


def _build_table(table: Table) -> Any:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    built = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        built.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in table.rows:
        built.add_row(*(Text(cell) for cell in row))
    return built


def print_json(data: dict[str, Any]) -> None:
    """Print `data` as one JSON document to standard output."""
    sys.stdout.write(json.dumps(_finite(data), indent=2, ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    """JSON has no words for infinities and NaN: they become texts."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def readable(value: Any) -> Any:
    """What a checkpoint holds as JSON has it: tensors of one element as numbers, others by dtype and shape."""
    if isinstance(value, torch.Tensor):
        is_number = value.numel() == 1 and not value.is_meta and not value.is_quantized
        return value.item() if is_number and not value.is_complex() else describe_tensor(value)
    original = from_plain(value)
    if isinstance(original, dict):
        return {str(key): readable(item) for key, item in original.items()}
    if isinstance(original, (list, tuple)):
        return [readable(item) for item in original]
    if isinstance(original, (set, frozenset)):
        return sorted((readable(item) for item in original), key=repr)
    return original if original is None or isinstance(original, (bool, int, float, str)) else str(original)


def key_name(key: Any) -> str:
    """A key of a dict as text; keys of callbacks' states are classes in the earliest files."""
    return key.__qualname__ if isinstance(key, type) else str(key)


def describe_tensor(tensor: torch.Tensor) -> str:
    """Dtype and shape on one line.

    Example:
        >>> describe_tensor(torch.zeros(2, 3))
        'float32[2, 3]'
    """
    return f"{dtype_name(tensor.dtype)}{list(tensor.shape)}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shorten(value: Any, *, width: int = 50) -> str:
    """`value` on one line of at most `width` characters, cut in the middle: paths differ at their ends.

    Example:
        >>> shorten("/home/me/runs/version_3/epoch=1.ckpt", width=23)
        '/home/me/r...och=1.ckpt'
    """
    text = value if isinstance(value, str) else json.dumps(_finite(value), ensure_ascii=False, default=str)
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    n_kept = width - 3
    return f"{text[: n_kept // 2]}...{text[len(text) - (n_kept - n_kept // 2) :]}"


def format_size(size_bytes: int) -> str:
    """A size in the unit that fits.

    Example:
        >>> format_size(512), format_size(1_234_567), format_size(25_000_000_000)
        ('512 B', '1.2 MB', '25.0 GB')
    """
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.95:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
