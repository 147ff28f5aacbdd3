"""A value that a class refuses when it is made from options, told in one line, as a misspelt option is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from fulgur.cli.advice import command_of
from fulgur.datamodule import LightningDataModule
from fulgur.errors import FulgurError
from fulgur.module import LightningModule
from fulgur.trainer import Trainer

_KEYS = {"trainer": Trainer, "model": LightningModule, "data": LightningDataModule}


@contextmanager
def told_in_one_line(parser: Any, config: Mapping[str, Any]) -> Iterator[None]:
    """Exit with code 2 where fulgur refuses a value while objects are made; every other exception passes.

    What counts as refused: a `FulgurError`, whoever raises it, and a `ValueError` or `TypeError` that fulgur itself
    raises while it makes one of its own objects. An exception of the user's code keeps its traceback.

    Args:
        parser: Where the options are from. Without its ``exit_on_error`` the exception passes.
        config: The options as plain data, to find the one that is meant.
    """
    try:
        yield
    except Exception as error:
        cause = _first_cause(error)
        made = _made(cause.__traceback__)
        if not parser.exit_on_error or not _is_refusal(cause, made):
            raise
        parser.exit(2, f"{command_of(parser)}: error: {_told(cause, made, config)}\n")


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:  # jsonargparse raises its own from that of a class
        error = error.__cause__
    return error


def _made(traceback: TracebackType | None) -> type | None:
    """Class of the object whose constructor the exception came out of."""
    while traceback is not None:
        frame = traceback.tb_frame
        own = frame.f_locals.get("self")
        is_tool = frame.f_globals.get("__name__", "").startswith(("jsonargparse", "fulgur.cli."))
        if frame.f_code.co_name == "__init__" and own is not None and not is_tool:
            return type(own)
        traceback = traceback.tb_next
    return None


def _is_refusal(error: BaseException, made: type | None) -> bool:
    if isinstance(error, FulgurError):
        return True
    if made is None or not isinstance(error, (ValueError, TypeError)):
        return False
    is_ours = issubclass(made, Trainer) or made.__module__.startswith("fulgur.")
    return is_ours and _raised_in(error.__traceback__).startswith("fulgur.")


def _raised_in(traceback: TracebackType | None) -> str:
    name = ""
    while traceback is not None:
        name, traceback = traceback.tb_frame.f_globals.get("__name__", ""), traceback.tb_next
    return name


def _told(error: BaseException, made: type | None, config: Mapping[str, Any]) -> str:
    text = " ".join(str(error).split())
    if made is None:
        return text
    if made.__name__ not in text and not issubclass(made, Trainer):
        text = f"{made.__name__}: {text}"
    key, arguments = _find(config, made)
    if key is None:
        key = next((known for known, base in _KEYS.items() if issubclass(made, base)), None)
        arguments = config.get(key or "")
    if key is None:
        return text
    named = [word for word in re.findall(r"\b(\w+)=", text) if word in (arguments or {})]
    return f"--{key}.{named[0]}: {text}" if named else f"--{key}: {text}"


def _find(config: Mapping[str, Any], made: type) -> tuple[str | None, Any]:
    """Option that names the class `made`, and the arguments given with it."""
    for key, value in config.items():
        found = _find_in(value, key, made)
        if found[0] is not None:
            return found
    return None, None


def _find_in(value: Any, key: str, made: type) -> tuple[str | None, Any]:
    if isinstance(value, Mapping):
        if str(value.get("class_path", "")).rpartition(".")[2] == made.__name__:
            return key, value.get("init_args")
        return _find({f"{key}.{name}".replace(".init_args", ""): inner for name, inner in value.items()}, made)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((f for f in (_find_in(inner, key, made) for inner in value) if f[0] is not None), (None, None))
    return None, None
