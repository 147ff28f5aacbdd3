"""Attributes by name, arguments of constructors, words that mean yes or no."""

from __future__ import annotations

import inspect
import pickle
from argparse import Namespace
from types import FrameType
from typing import Any


def str_to_bool_or_str(val: str) -> str | bool:
    """True or False for a word that means it, else the word."""
    word = val.strip().lower()
    if word in ("y", "yes", "t", "true", "on", "1"):
        return True
    return False if word in ("n", "no", "f", "false", "off", "0") else val


def str_to_bool(val: str) -> bool:
    """What a word for yes or no means.

    Raises:
        ValueError: It is neither.
    """
    meant = str_to_bool_or_str(val)
    if isinstance(meant, bool):
        return meant
    raise ValueError(f"{val!r} means neither yes nor no. Use 'true' or 'false'.")


def str_to_bool_or_int(val: str) -> bool | int | str:
    """True or False for a word that means it, a number for one, else the word."""
    meant = str_to_bool_or_str(val)
    if isinstance(meant, bool):
        return meant
    return int(meant) if meant.lstrip("-").isdecimal() else meant


def is_picklable(obj: object) -> bool:
    """Whether `obj` can be pickled."""
    try:
        pickle.dumps(obj)
    except Exception:
        return False
    return True


def clean_namespace(hparams: dict[str, Any] | Namespace) -> None:
    """Drop what cannot be pickled, in place."""
    values = vars(hparams) if isinstance(hparams, Namespace) else hparams
    for name in [name for name, value in values.items() if not is_picklable(value)]:
        del values[name]


def parse_class_init_keys(cls: type) -> tuple[str, str | None, str | None]:
    """Names of ``self``, ``*args`` and ``**kwargs`` in ``__init__``; None where it has none."""
    first, *others = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    by_kind = {parameter.kind: parameter.name for parameter in others}
    return first.name, by_kind.get(first.VAR_POSITIONAL), by_kind.get(first.VAR_KEYWORD)


def get_init_args(frame: FrameType) -> dict[str, Any]:
    """Arguments of the ``__init__`` that runs in `frame`; {} where none does."""
    names, _, keywords, values = inspect.getargvalues(frame)
    if "__class__" not in values and frame.f_code.co_name != "__init__":
        return {}
    arguments = {name: values[name] for name in names[1:]}
    return arguments | (values.get(keywords, {}) if keywords else {})


def collect_init_args(
    frame: FrameType, path_args: list[dict[str, Any]], inside: bool = False, classes: tuple[type, ...] = ()
) -> list[dict[str, Any]]:
    """Arguments of every ``__init__`` from `frame` outwards, innermost first, added to `path_args`."""
    here: FrameType | None = frame
    while here is not None and here.f_code.co_name == "__init__":
        owner = here.f_locals.get(here.f_code.co_varnames[0]) if here.f_code.co_argcount else None
        if not classes or isinstance(owner, classes):
            path_args = [*path_args, get_init_args(here)]
        here = here.f_back
    return path_args


def save_hyperparameters(
    obj: Any, *args: Any, ignore: Any = None, frame: FrameType | None = None, given_hparams: Any = None
) -> None:
    """``obj.save_hyperparameters``, as a function.

    Args:
        obj: A module or datamodule.
        *args: As for the method.
        ignore: As for the method.
        frame: The frame of ``__init__``. None: the caller's.
        given_hparams: Saved instead of the arguments.
    """
    if frame is None:
        current = inspect.currentframe()
        frame = current.f_back if current is not None else None
    obj.save_hyperparameters(*(args if given_hparams is None else (given_hparams,)), ignore=ignore, frame=frame)


def _holders(model: Any, attribute: str) -> list[Any]:
    """What has `attribute`: the module, its hyperparameters, the datamodule and its hyperparameters."""
    trainer = getattr(model, "_trainer", None)
    found: list[Any] = []
    for owner in (model, getattr(trainer, "datamodule", None)):
        if owner is None:
            continue
        if hasattr(owner, attribute):
            found.append(owner)
        hparams = getattr(owner, "hparams", None)
        if hparams is not None and attribute in hparams:
            found.append(hparams)
    return found


def lightning_hasattr(model: Any, attribute: str) -> bool:
    """Whether the module, its hyperparameters or the datamodule have `attribute`."""
    return bool(_holders(model, attribute))


def lightning_getattr(model: Any, attribute: str) -> Any:
    """The value of `attribute`, where `lightning_hasattr` finds it last.

    Raises:
        AttributeError: Nobody has it.
    """
    holder = _require(model, attribute)[-1]
    return holder[attribute] if isinstance(holder, dict) else getattr(holder, attribute)


def lightning_setattr(model: Any, attribute: str, value: Any) -> None:
    """Set `attribute` wherever `lightning_hasattr` finds it.

    Raises:
        AttributeError: Nobody has it.
    """
    for holder in _require(model, attribute):
        if isinstance(holder, dict):
            holder[attribute] = value
        else:
            setattr(holder, attribute, value)


def _require(model: Any, attribute: str) -> list[Any]:
    found = _holders(model, attribute)
    if not found:
        raise AttributeError(
            f"Neither {type(model).__name__}, its hparams nor the datamodule have {attribute!r}.", name=attribute
        )
    return found
