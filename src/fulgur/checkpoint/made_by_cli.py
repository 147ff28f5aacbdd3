"""Hyperparameters that `LightningCLI` has kept: in the form of a configuration, with marks that say so."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar

from fulgur.errors import CheckpointRefusedError
from fulgur.hparams import ParsedArguments, parsed_arguments

T = TypeVar("T")

INSTANTIATOR = "_instantiator"
CLASS_PATH = "_class_path"
# The name that files have always had; what it stands for is fixed here.
INSTANTIATOR_NAME = "lightning.pytorch.cli.instantiate_module"
_ALLOWED = (INSTANTIATOR_NAME, "pytorch_lightning.cli.instantiate_module", "fulgur.cli.instantiate_module")


def read_marks(cls: type, hparams: Mapping[str, Any]) -> tuple[type, dict[str, Any], dict[str, str]]:
    """The class to make, its hyperparameters without marks, and the marks; without any they are ordinary values.

    Args:
        cls: The class that was asked for.
        hparams: From a checkpoint.

    Raises:
        ValueError: The file wants to be opened by something that is not known here.
        CheckpointRefusedError: It names a class that the program has not imported.
    """
    plain = dict(hparams)
    instantiator, path = plain.pop(INSTANTIATOR, None), plain.pop(CLASS_PATH, None)
    if instantiator is None:
        return cls, dict(hparams), {}
    if instantiator not in _ALLOWED:
        raise ValueError(
            f"The hyperparameters of the checkpoint ask for {instantiator!r} to make the object, which is not one of "
            f"{', '.join(_ALLOWED)}, and is not called. Make the object yourself, and load the weights from the "
            "checkpoint's 'state_dict'."
        )
    for named in class_paths(plain):
        require_imported(named)
    if path is None:
        return cls, plain, {INSTANTIATOR: instantiator}
    require_imported(path)
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules[module], name, None)
    cls = found if isinstance(found, type) and issubclass(found, cls) else cls
    return cls, plain, {INSTANTIATOR: instantiator, CLASS_PATH: path}


def make_object(cls: type[T], arguments: Mapping[str, Any], *, own: Mapping[str, Any], marks: Mapping[str, str]) -> T:
    """Make an object of `cls`; with marks, what the signature asks for is made of the file's arguments first.

    It then keeps the arguments of the file as its hyperparameters, as the object did that the file is of.

    Args:
        cls: Class of the object.
        arguments: All of its arguments.
        own: Those that the program gave itself, which stay as they are.
        marks: Of `read_marks`.

    Raises:
        MissingExtraError: There are objects to be made, and jsonargparse is not installed.
    """
    if not marks:
        return cls(**arguments)
    kept = {name: value for name, value in arguments.items() if name not in own}
    made = _make_arguments(cls, kept)
    token = parsed_arguments.set(ParsedArguments(cls, kept, marks))
    try:
        return cls(**{**made, **{name: arguments[name] for name in own if name in arguments}})
    finally:
        parsed_arguments.reset(token)


def _make_arguments(cls: type, kept: dict[str, Any]) -> dict[str, Any]:
    module = import_module("fulgur.cli.instantiate")
    try:
        return dict(module.instantiate_arguments(cls, kept))
    except ModuleNotFoundError:
        if any(True for _ in class_paths(kept)):
            raise
        return kept


def class_paths(value: Any) -> Iterator[str]:
    """Every class that a configuration names, however deep."""
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str):
            yield value["class_path"]
        for inner in value.values():
            yield from class_paths(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from class_paths(inner)


def require_imported(path: str) -> None:
    """A file may name a class, and may not have a module imported, which would run it.

    Raises:
        CheckpointRefusedError: The module has not been imported.
    """
    module = path.rpartition(".")[0]
    if module not in sys.modules:
        raise CheckpointRefusedError(
            f"The hyperparameters of the checkpoint name {path}, and the program has not imported {module or path}. "
            "If you trust the file, import it before the checkpoint is loaded."
        )
