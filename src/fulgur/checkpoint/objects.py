"""Objects of a program among the hyperparameters in a file: kept for programs of Lightning, never made by a reader.

Plain fulgur leaves them out (docs/decisions/0007). A file that has them is resumed from all the same: nobody asks it
for hyperparameters then, and what stands for an object while the file is opened runs nothing.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

_HPARAMS = ("hyper_parameters", "datamodule_hyper_parameters", "hparams", "module_arguments")


class Unmade:
    """Stands for an object that was not made. Takes every way in which a pickle makes one, and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Unmade:
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def are_kept() -> bool:
    """Whether objects are stored as they are: in programs of Lightning, which find them in the file."""
    finder = sys.modules.get("fulgur.compat.finder")
    return finder is not None and finder.FINDER.version is not None


def can_be_kept(value: Any) -> bool:
    """Whether `value` can be pickled."""
    try:
        pickle.Pickler(io.BytesIO(), protocol=2).dump(value)
    except Exception:  # what refuses to be pickled does so in its own way
        return False
    return True


def open_without(names: Iterable[str], load: Callable[[], Any]) -> Any:
    """Call `load` with something that runs nothing for `names`, and leave hyperparameters that hold one out.

    Returns:
        The content; None if other parts of it hold one too.
    """
    stand_ins = [(type("Unmade", (Unmade,), {}), name) for name in names]
    with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type,unused-ignore]
        content = load()
    if not isinstance(content, dict):
        return None
    for key in _HPARAMS:
        if isinstance(content.get(key), dict):
            content[key] = {name: value for name, value in content[key].items() if not _has_unmade(value)}
    return None if _has_unmade(content) else content


def _has_unmade(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_unmade(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple, set)):
        return any(map(_has_unmade, value))
    return isinstance(value, Unmade) or (isinstance(value, type) and issubclass(value, Unmade))
