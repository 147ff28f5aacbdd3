"""What a file may ask for beyond tensors and builtin containers.

Each entry only holds values: making one runs no code but Python's own, and has no effect outside of it. Everything else
is refused. Lightning stores such values as they are; fulgur stores them plainly (`checkpoint/plain.py`).
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import torch

_CALLBACKS = ("pytorch_lightning.callbacks.", "lightning.pytorch.callbacks.")

_ALLOWED: list[Any] = [
    argparse.Namespace,
    datetime.timedelta,
    *((pathlib.Path, f"pathlib{part}.{name}") for part in ("", "._local") for name in ("PosixPath", "WindowsPath")),
    *((pathlib.PurePosixPath, f"pathlib{part}.PurePosixPath") for part in ("", "._local")),
    *((pathlib.PureWindowsPath, f"pathlib{part}.PureWindowsPath") for part in ("", "._local")),
    # dicts with attributes, in which versions of Lightning keep hyperparameters
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (dict, "lightning.pytorch.utilities.parsing.AttributeDict"),
    (dict, "lightning_fabric.utilities.data.AttributeDict"),
    (dict, "lightning.fabric.utilities.data.AttributeDict"),
]


class CallbackName:
    """Stands where a file of before 1.5 has the class of a callback as the key of its state. Cannot be made.

    Attributes:
        names_callback: Name of that class.
    """

    names_callback = ""

    def __new__(cls, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(f"{cls.names_callback} is only named here.")


def allow(names: Iterable[str] = ()) -> AbstractContextManager[Any]:
    """While this is open, `torch.load` with ``weights_only=True`` takes what is listed here.

    Args:
        names: Classes of callbacks, by full name, that may be keys.
    """
    stand_ins = [(_stand_in(name), name) for name in names]
    context: AbstractContextManager[Any] = torch.serialization.safe_globals([*_ALLOWED, *stand_ins])
    return context


def are_callbacks(names: list[str]) -> bool:
    """Whether a file asks for nothing but classes of Lightning's callbacks."""
    return bool(names) and all(name.startswith(_CALLBACKS) for name in names)


def _stand_in(name: str) -> type:
    short = name.rpartition(".")[2]
    return type(short, (CallbackName,), {"names_callback": short})
