"""The old packages as `importlib.metadata` sees them, for programs that ask which version is installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

_NAMES = ("lightning", "pytorch-lightning", "lightning-fabric")


class _Pretended(Distribution):
    """Metadata of a package that fulgur stands in for."""

    def __init__(self, name: str, version: str) -> None:
        self._own = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: fulgur under this name.\n"

    def read_text(self, filename: str) -> str | None:
        return self._own if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return Path(__file__).parent / path


def distributions(version: str, wanted: str | None) -> Iterator[Distribution]:
    """The packages named `wanted`, in any spelling; all of them for None."""
    spelled = None if wanted is None else wanted.lower().replace("_", "-").replace(".", "-")
    return (_Pretended(name, version) for name in _NAMES if spelled in (None, name))
