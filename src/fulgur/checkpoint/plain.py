"""Hyperparameters as plain data, and back.

What cannot stand in a checkpoint as it is (a `Path`, an `Enum`, a dataclass, ...) is stored as a dict with the key
``__fulgur__``, which names its kind. Nothing is imported when it comes back: enums, dataclasses and named tuples return
as themselves only if the program has imported their class by then, and as their plain content otherwise.

A file may name any class of these kinds that is imported, with any values, so no code of the class may run:

* a dataclass is made without ``__init__`` and ``__post_init__``, and its fields are set without ``__setattr__``;
* a class with ``__del__``, or with a property or another descriptor of its own in the place of a field, is left plain;
* an enum member is looked up by name or value; ``_missing_`` is not asked;
* what a class does to be hashed runs where it is in a set or the key of a dict, as it does in every dict.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import enum
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

from fulgur.errors import CheckpointError

TAG = "__fulgur__"

_PLAIN_KEYS = (str, int, float, bool, type(None))


def to_plain(value: Any, *, where: str) -> Any:
    """`value` made of None, bool, int, float, str, bytes, tensors, lists, tuples and dicts only.

    Args:
        value: What to store, of any depth.
        where: How to name `value` in an error, for example ``"hyper_parameters"``.

    Raises:
        CheckpointError: A part of `value` has no plain form, or contains itself.

    Example:
        >>> to_plain({"root": pathlib.PurePosixPath("/data")}, where="hyper_parameters")
        {'root': {'__fulgur__': 'PurePosixPath', 'value': '/data'}}
    """
    return _encode(value, where, ())


def from_plain(value: Any) -> Any:
    """What `to_plain` was given; see the module's text for what needs its class to be imported.

    Content that no version of `to_plain` wrote is returned as it is.
    """
    if type(value) in (list, tuple):
        return type(value)(from_plain(item) for item in value)
    if not isinstance(value, dict):
        return value
    decode = _DECODERS.get(value[TAG]) if isinstance(value.get(TAG), str) else None
    if decode is None:
        return {key: from_plain(item) for key, item in value.items()}
    try:
        return decode(value)
    except Exception:  # each kind of content that does not fit fails in its own way
        return value


def opens_plainly(value: Any) -> bool:
    """Whether `torch.load` opens `value` with ``weights_only=True`` as it is, without `to_plain`."""
    try:
        return _opens(value)
    except RecursionError:
        return False


def _opens(value: Any) -> bool:
    kind = type(value)
    if kind is bytes:
        return bool(value)
    if kind in (dict, collections.OrderedDict, collections.Counter):
        return all(map(_opens, value)) and all(map(_opens, value.values()))
    if kind in (list, tuple, set):
        return all(map(_opens, value))
    return value is None or kind in _OPENED or isinstance(value, torch.Tensor)


_OPENED = (bool, int, float, str, complex, bytearray, torch.dtype, torch.device, torch.Size)


def _encode(value: Any, where: str, parents: tuple[int, ...]) -> Any:
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor):
        return value
    if type(value) is bytes:
        # Pickled as a call of `bytes`, which a safe reader refuses, where there is nothing in it.
        return value or {TAG: "bytes", "value": []}
    if id(value) in parents:
        raise CheckpointError(f"{where} contains itself, so it cannot be stored. Leave it out of the hyperparameters.")
    parents = (*parents, id(value))

    def inner(item: Any, suffix: str) -> Any:
        return _encode(item, where + suffix, parents)

    for kind, encode in _ENCODERS:
        if isinstance(value, kind):
            return encode(value, inner)
    if _is_numpy(value):
        return _encode_numpy(value, inner, where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        content = {f.name: inner(getattr(value, f.name), f".{f.name}") for f in dataclasses.fields(value)}
        return {TAG: "dataclass", **_class_name(value), "value": content}
    for base, encode in _CONTAINERS:
        if isinstance(value, base):
            return encode(value, inner)
    raise CheckpointError(_no_plain_form(value, where))


Inner = Callable[[Any, str], Any]


def _encode_dict(value: dict[Any, Any], inner: Inner) -> dict[Any, Any]:
    if TAG not in value and all(isinstance(key, _PLAIN_KEYS) and not _is_odd(key) for key in value):
        return {key: inner(item, f"[{key!r}]") for key, item in value.items()}
    items = [[inner(key, f" key {key!r}"), inner(item, f"[{key!r}]")] for key, item in value.items()]
    return {TAG: "dict", "value": items}


def _is_odd(key: Any) -> bool:
    return isinstance(key, enum.Enum) or _is_numpy(key)


def _encode_tuple(value: tuple[Any, ...], inner: Inner) -> Any:
    items = tuple(inner(item, f"[{i}]") for i, item in enumerate(value))
    if isinstance(value, torch.Size):
        return {TAG: "torch.Size", "value": list(items)}
    names = getattr(value, "_fields", None)
    if names is not None:
        return {TAG: "namedtuple", **_class_name(value), "value": dict(zip(names, items, strict=True))}
    return items


def _encode_set(value: set[Any] | frozenset[Any], inner: Inner) -> dict[str, Any]:
    # Sorted, so that equal sets make equal files.
    items = sorted((inner(item, f"{{{item!r}}}") for item in value), key=repr)
    return {TAG: "frozenset" if isinstance(value, frozenset) else "set", "value": items}


def _encode_enum(value: enum.Enum, inner: Inner) -> dict[str, Any]:
    return {TAG: "Enum", **_class_name(value), "name": value._name_, "value": inner(value._value_, ".value")}


def _encode_path(value: pathlib.PurePath, _: Inner) -> dict[str, Any]:
    return {TAG: "Path" if isinstance(value, pathlib.Path) else type(value).__name__, "value": str(value)}


def _encode_timedelta(value: datetime.timedelta, _: Inner) -> dict[str, Any]:
    return {TAG: "timedelta", "value": [value.days, value.seconds, value.microseconds]}


def _tagged(tag: str, content: Callable[[Any], Any]) -> Callable[[Any, Inner], Any]:
    return lambda value, inner: {TAG: tag, "value": inner(content(value), "")}


# order matters: a class before its base classes, and all of these before the builtin containers
_ENCODERS: tuple[tuple[Any, Callable[[Any, Inner], Any]], ...] = (
    (enum.Enum, _encode_enum),
    (pathlib.PurePath, _encode_path),
    (argparse.Namespace, _tagged("Namespace", vars)),
    (types.SimpleNamespace, _tagged("SimpleNamespace", vars)),
    (torch.dtype, _tagged("torch.dtype", lambda value: str(value).removeprefix("torch."))),
    (torch.device, _tagged("torch.device", str)),
    (datetime.timedelta, _encode_timedelta),
    (datetime.datetime, _tagged("datetime", datetime.datetime.isoformat)),
    (datetime.date, _tagged("date", datetime.date.isoformat)),
    (datetime.time, _tagged("time", datetime.time.isoformat)),
    (range, _tagged("range", lambda value: [value.start, value.stop, value.step])),
    (slice, _tagged("slice", lambda value: [value.start, value.stop, value.step])),
    (complex, _tagged("complex", lambda value: [value.real, value.imag])),
)

# Subclasses of builtin types that nothing above knows are stored as the builtin.
_CONTAINERS: tuple[tuple[Any, Callable[[Any, Inner], Any]], ...] = (
    (dict, _encode_dict),
    (list, lambda value, inner: [inner(item, f"[{i}]") for i, item in enumerate(value)]),
    (tuple, _encode_tuple),
    ((set, frozenset), _encode_set),
    (str, lambda value, _: str.__str__(value)),
    (int, lambda value, _: int(value)),
    (float, lambda value, _: float(value)),
    ((bytes, bytearray), lambda value, inner: inner(bytes(value), "")),
)


def _is_numpy(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def _encode_numpy(value: Any, inner: Inner, where: str) -> dict[str, Any]:
    if value.dtype.kind in "OV":
        raise CheckpointError(_no_plain_form(value, where))
    is_scalar = not isinstance(value, sys.modules["numpy"].ndarray)
    if is_scalar and value.dtype.kind in "biufcUS" and value.dtype.char not in "gG":  # g, G: long doubles
        return {TAG: "numpy.scalar", "dtype": value.dtype.str, "value": inner(value.item(), "")}
    tag = "numpy.scalar" if is_scalar else "numpy.ndarray"
    return {TAG: tag, "dtype": value.dtype.str, "shape": list(value.shape), "value": inner(value.tobytes(), "")}


def _decode_numpy(value: dict[str, Any]) -> Any:
    try:
        import numpy
    except ModuleNotFoundError:
        return value
    content, dtype = value["value"], numpy.dtype(value["dtype"])
    if dtype.kind in "OV":
        return value
    if "shape" not in value:
        return dtype.type(from_plain(content))
    content = from_plain(content)
    flat = numpy.frombuffer(content, dtype=dtype) if content else numpy.empty(0, dtype)
    array = flat.reshape(value["shape"]).copy()
    return array[()] if value[TAG] == "numpy.scalar" else array


def _no_plain_form(value: Any, where: str) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    kind = type(value)
    return (
        f"{where} is {shown} of type {kind.__module__}.{kind.__qualname__}, which has no plain form, so a checkpoint "
        "cannot hold it. Pass a name or a number instead, or leave it out: self.save_hyperparameters(ignore=[...])."
    )


def _class_name(value: Any) -> dict[str, str]:
    return {"module": type(value).__module__, "class": type(value).__qualname__}


def _find_class(value: dict[str, Any]) -> type | None:
    """The class a tagged value names, if the program has imported it. Looks names up without running anything."""
    found: Any = sys.modules.get(value["module"])
    for name in value["class"].split("."):
        found = vars(found).get(name) if isinstance(found, (types.ModuleType, type)) else None
    # An alias would let a file choose among more classes than those that were stored.
    if isinstance(found, type) and _names_itself(found, value):
        return found
    return None


def _names_itself(cls: type, value: dict[str, Any]) -> bool:
    return (cls.__module__, cls.__qualname__) == (value["module"], value["class"])


def _decode_enum(value: dict[str, Any]) -> Any:
    content, cls = from_plain(value["value"]), _find_class(value)
    if cls is None or not issubclass(cls, enum.Enum):
        return content
    member = cls.__members__.get(value["name"])
    if member is not None:
        return member
    if issubclass(cls, enum.Flag) and type(content) is int and cls._missing_.__func__ is _FLAG_MISSING:  # type: ignore[attr-defined]
        return cls(content)
    return next((m for m in cls.__members__.values() if m._value_ == content), content)


# What combines flags; a class may have its own.
_FLAG_MISSING = enum.Flag._missing_.__func__  # type: ignore[attr-defined]


def _decode_dataclass(value: dict[str, Any]) -> Any:
    content = {name: from_plain(item) for name, item in value["value"].items()}
    cls = _find_class(value)
    if cls is None or not dataclasses.is_dataclass(cls) or hasattr(cls, "__del__"):
        return content
    if content.keys() != {field.name for field in dataclasses.fields(cls)}:
        return content
    if not all(_is_plain_field(cls, name) for name in content):
        return content
    try:
        # Neither __init__ nor __post_init__ runs: a file must not choose the arguments of code.
        instance = object.__new__(cls)
        for name, item in content.items():
            object.__setattr__(instance, name, item)
    except (TypeError, AttributeError):
        return content
    return instance


def _is_plain_field(cls: type, name: str) -> bool:
    """Whether setting the field runs nothing: there is no descriptor in its place but that of a slot."""
    found = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
    return isinstance(found, types.MemberDescriptorType) or not hasattr(type(found), "__set__")


def _decode_namedtuple(value: dict[str, Any]) -> Any:
    content = {name: from_plain(item) for name, item in value["value"].items()}
    cls = _find_class(value)
    is_known = cls is not None and issubclass(cls, tuple) and not hasattr(cls, "__del__")
    if cls is None or not is_known or getattr(cls, "_fields", None) != tuple(content):
        return tuple(content.values())
    return tuple.__new__(cls, content.values())


def _decode_dtype(value: dict[str, Any]) -> Any:
    found = vars(torch).get(value["value"])
    return found if isinstance(found, torch.dtype) else value


def _restoring(build: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda value: build(from_plain(value["value"]))


_DECODERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bytes": lambda value: b"",
    "dict": lambda value: {from_plain(key): from_plain(item) for key, item in value["value"]},
    "set": _restoring(set),
    "frozenset": _restoring(frozenset),
    "Enum": _decode_enum,
    "dataclass": _decode_dataclass,
    "namedtuple": _decode_namedtuple,
    "Path": _restoring(pathlib.Path),
    "PurePosixPath": _restoring(pathlib.PurePosixPath),
    "PureWindowsPath": _restoring(pathlib.PureWindowsPath),
    "Namespace": _restoring(lambda content: argparse.Namespace(**content)),
    "SimpleNamespace": _restoring(lambda content: types.SimpleNamespace(**content)),
    "torch.dtype": _decode_dtype,
    "torch.device": _restoring(torch.device),
    "torch.Size": _restoring(torch.Size),
    "timedelta": _restoring(lambda content: datetime.timedelta(*content)),
    "datetime": _restoring(datetime.datetime.fromisoformat),
    "date": _restoring(datetime.date.fromisoformat),
    "time": _restoring(datetime.time.fromisoformat),
    "range": _restoring(lambda content: range(*content)),
    "slice": _restoring(lambda content: slice(*content)),
    "complex": _restoring(lambda content: complex(*content)),
    "numpy.scalar": _decode_numpy,
    "numpy.ndarray": _decode_numpy,
}
