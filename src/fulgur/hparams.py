"""Hyperparameters: what a module or datamodule was made with, kept so that a checkpoint can make it again."""

from __future__ import annotations

import copy
import inspect
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch import nn

from fulgur.errors import PossibleUserWarning, nearest_name
from fulgur.rank import rank_zero_warn


class AttributeDict(dict[str, Any]):
    """A dict whose items are attributes too.

    Example:
        >>> hparams = AttributeDict(lr=0.1)
        >>> hparams.batch_size = 32
        >>> hparams["batch_size"], hparams.lr
        (32, 0.1)
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            # Dunder lookups come from copy, pickle and the like; they need no advice.
            hint = "" if name.startswith("__") else f"{nearest_name(name, self)} It has: {_listed(self)}."
            raise AttributeError(f"No hyperparameter {name!r}.{hint}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"No hyperparameter {name!r}. It has: {_listed(self)}.") from None

    def __repr__(self) -> str:
        width = max((len(str(key)) for key in self), default=0) + 3
        lines = (f'"{key}":'.ljust(width) + f" {self[key]}" for key in sorted(self, key=str))
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ParsedArguments:
    """What a command line makes an object of: kept instead of the objects that ``__init__`` gets.

    Attributes:
        owner: Class of the object.
        values: Arguments of ``__init__`` in plain form.
        marks: How to make the object again: kept as hyperparameters too.
    """

    owner: type
    values: Mapping[str, Any]
    marks: Mapping[str, str]


parsed_arguments: ContextVar[ParsedArguments | None] = ContextVar("parsed_arguments", default=None)
"""Set while `LightningCLI` makes a module or datamodule."""


class HyperparametersMixin:
    """Gives a class `save_hyperparameters` and `hparams`. Works before ``super().__init__()`` too."""

    # Class attributes, so that no constructor has to run first.
    _hparams: Any = None
    _hparams_initial: Any = None
    _hparams_name: str | None = None
    _log_hyperparams: bool = False

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep the arguments of ``__init__`` in `hparams`; they go into checkpoints and to loggers.

        Call it in ``__init__``. Values are those the variables have at the moment of the call. Called in a base class,
        it also keeps the arguments of the subclasses' ``__init__``. Several calls add to each other.

        Args:
            *args: Nothing, for all arguments (``**kwargs`` one by one, ``*args`` left out); names of some of them;
                or one dict, Namespace or dataclass object whose content is kept instead.
            ignore: Names to leave out, also if a base class has kept them.
            frame: The frame of ``__init__``. None: the caller's.
            logger: Send them to the loggers when a run starts.

        Raises:
            ValueError: An argument is neither the name of an argument of ``__init__`` nor a mapping of values.

        Example:
            >>> class Net(LightningModule):
            ...     def __init__(self, width: int = 64, lr: float = 1e-3, backbone: nn.Module | None = None):
            ...         super().__init__()
            ...         self.save_hyperparameters(ignore="backbone")
            >>> Net(width=8).hparams
            "lr":    0.001
            "width": 8
        """
        if frame is None:
            frame = sys._getframe(1)
        self._log_hyperparams = logger
        if len(args) == 1 and _is_empty(args[0]):
            return
        found_init, init_args = _collect_init_args(self, frame)
        parsed = parsed_arguments.get()
        if parsed is not None and parsed.owner is type(self):
            init_args.update(parsed.values)
        saved = self._select(args, init_args)
        if parsed is not None and parsed.owner is type(self) and self._hparams_name == "kwargs":
            saved = {**saved, **parsed.marks}
        if not args and not found_init:
            rank_zero_warn(
                f"{type(self).__name__}.save_hyperparameters() was called outside of __init__, where there is nothing "
                "to save. Call it in __init__, or give it a dict.",
                PossibleUserWarning,
            )
        ignored = _names(ignore)
        self._merge_hyperparameters(saved, ignored)
        self.remove_ignored_hparams(ignored)

    @property
    def hparams(self) -> Any:
        """Hyperparameters, as an `AttributeDict`. Changes to it are saved in checkpoints."""
        if self._hparams is None:
            self._hparams = AttributeDict()
        return self._hparams

    @hparams.setter
    def hparams(self, hparams: Any) -> None:
        """Save `hparams`: the form ``self.hparams = hparams`` of early 1.x code."""
        self._hparams = self._hparams_initial = None
        self.save_hyperparameters(hparams, frame=sys._getframe(1))

    @property
    def hparams_initial(self) -> Any:
        """Hyperparameters as they were when saved, in a copy of their own. Loggers get these."""
        return AttributeDict() if self._hparams_initial is None else _snapshot(self._hparams_initial)

    def remove_ignored_hparams(self, ignore_list: Iterable[str]) -> None:
        """Drop the hyperparameters named in `ignore_list`; names that are not there are fine."""
        for name in ignore_list:
            for saved in (self._hparams, self._hparams_initial):
                if saved is not None and name in saved:
                    del saved[name]

    def _select(self, args: tuple[Any, ...], init_args: dict[str, Any]) -> Any:
        """What `args` of `save_hyperparameters` ask to be kept. Records the name it goes under."""
        if len(args) == 1 and not isinstance(args[0], str):
            content = _content(args[0])
            self._hparams_name = _find_name(args[0], init_args)
            return content
        for arg in args:
            if not isinstance(arg, str):
                raise ValueError(f"save_hyperparameters() got {arg!r} among several arguments. {_ACCEPTED}")
            if arg not in init_args:
                raise ValueError(
                    f"save_hyperparameters({arg!r}): __init__ of {type(self).__name__} has no argument of that name."
                    f"{nearest_name(arg, init_args)} It has: {_listed(init_args)}."
                )
        self._hparams_name = "kwargs"
        return {arg: init_args[arg] for arg in args} if args else init_args

    def _merge_hyperparameters(self, saved: Any, ignored: tuple[str, ...]) -> None:
        if not isinstance(saved, dict):
            # An OmegaConf container: its class is part of what the user wants back.
            self._hparams, self._hparams_initial = saved, _snapshot(saved)
            return
        kept = {name: value for name, value in saved.items() if name not in ignored}
        _warn_of_modules(kept)
        self.hparams.update(kept)
        initial = self._hparams_initial
        if initial is None:
            initial = self._hparams_initial = AttributeDict()
        initial.update(_snapshot(AttributeDict(kept)))


_ACCEPTED = "It takes names of arguments of __init__, or one dict, Namespace or dataclass object."


def _collect_init_args(obj: object, frame: FrameType | None) -> tuple[bool, dict[str, Any]]:
    """Arguments of every ``__init__`` of `obj` that is running, subclasses' values winning; and whether one is."""
    collected: dict[str, Any] = {}
    is_found = False
    for init_frame in _init_frames(obj, frame):
        is_found = True
        collected.update(_arguments(init_frame))
    if is_dataclass(obj):
        # While the generated __init__ runs, its variables may hold placeholders for default factories.
        own = {f.name: getattr(obj, f.name) for f in fields(obj) if f.init and hasattr(obj, f.name)}
        return True, {**collected, **own}
    return is_found, collected


def _init_frames(obj: object, frame: FrameType | None) -> Iterator[FrameType]:
    """Frames of ``__init__`` with `obj` as self, from the innermost out. Wrappers may lie in between."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__init__" and code.co_argcount and frame.f_locals.get(code.co_varnames[0]) is obj:
            yield frame
        frame = frame.f_back


def _arguments(frame: FrameType) -> dict[str, Any]:
    names, _, keywords, values = inspect.getargvalues(frame)
    arguments = {name: values[name] for name in names[1:] if name in values}
    if keywords is not None:
        arguments.update(values.get(keywords, {}))
    return arguments


def _content(value: Any) -> Any:
    if isinstance(value, Namespace):
        return dict(vars(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if type(value).__module__.startswith("omegaconf."):
        return value
    if isinstance(value, Mapping):
        return dict(value)
    raise ValueError(f"save_hyperparameters({value!r}) got a {type(value).__name__}. {_ACCEPTED}")


def _find_name(value: Any, init_args: dict[str, Any]) -> str | None:
    """Name of the argument of ``__init__`` that `value` is, or else is equal to."""
    for name, candidate in init_args.items():
        if candidate is value:
            return name
    for name, candidate in init_args.items():
        if type(candidate) is type(value) and _is_equal(candidate, value):
            return name
    return None


def _is_equal(a: Any, b: Any) -> bool:
    # Values may be arrays or tensors, whose equality has no single truth.
    try:
        return bool(a == b)
    except Exception:
        return False


def _snapshot(hparams: Any) -> Any:
    """A copy that later changes do not reach. Modules, and what refuses to be copied, stay as they are."""
    if not isinstance(hparams, dict):
        return copy.deepcopy(hparams)
    return AttributeDict({name: _copied(value) for name, value in hparams.items()})


def _copied(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def _warn_of_modules(hparams: dict[str, Any]) -> None:
    for name, value in hparams.items():
        if isinstance(value, nn.Module):
            rank_zero_warn(
                f"The hyperparameter {name!r} is a {type(value).__name__}, an nn.Module whose weights are in the "
                f"checkpoint already. Leave it out: self.save_hyperparameters(ignore=[{name!r}]).",
                PossibleUserWarning,
            )


def _is_empty(value: Any) -> bool:
    return value is None or (hasattr(value, "__len__") and not isinstance(value, str) and len(value) == 0)


def _names(ignore: Sequence[str] | str | None) -> tuple[str, ...]:
    if ignore is None:
        return ()
    return (ignore,) if isinstance(ignore, str) else tuple(ignore)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(str, names)) or "none"


def build_init_kwargs(
    cls: type, hparams: Mapping[str, Any], *, hparams_name: str | None, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments that make an object of `cls` again from saved hyperparameters.

    Args:
        cls: The class to be constructed.
        hparams: The saved hyperparameters.
        hparams_name: The argument they were given as. If ``__init__`` has an argument of that name, they are passed
            as that one; otherwise one by one.
        overrides: Values that win over saved ones.

    Returns:
        Keyword arguments; names that ``__init__`` does not take are left out, unless it takes ``**kwargs``.
    """
    parameters = inspect.signature(cls).parameters
    merged = AttributeDict({**hparams, **overrides})
    if hparams_name is not None and hparams_name != "kwargs" and hparams_name in parameters:
        arguments: dict[str, Any] = {hparams_name: merged, **overrides}
    else:
        arguments = dict(merged)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def read_hparams_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Hyperparameters from a ``.yaml`` or ``.yml`` file, or a ``.csv`` file with the columns key and value.

    Raises:
        ValueError: The file has another extension, or holds more than plain values.
    """
    extension = os.path.splitext(path)[1]
    if extension in (".yaml", ".yml"):
        import yaml

        with open(path, encoding="utf-8") as file:
            try:
                return dict(yaml.safe_load(file) or {})
            except yaml.YAMLError as error:
                wanted = str(getattr(error, "problem", None) or error)
                raise ValueError(
                    f"hparams_file={os.fspath(path)!r} is not read: {wanted}. It may hold plain values only: tags as "
                    "!!python/object are not followed, because they run code. Write the value itself."
                ) from error
    if extension == ".csv":
        import csv

        with open(path, encoding="utf-8", newline="") as file:
            return {row["key"]: _parsed(row["value"]) for row in csv.DictReader(file)}
    raise ValueError(f"hparams_file={os.fspath(path)!r} ends in {extension!r}. Use a .yaml, .yml or .csv file.")


def _parsed(text: str) -> Any:
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if TYPE_CHECKING:
    class_only = classmethod
else:

    class class_only(classmethod):  # noqa: N801 - used as a decorator, like classmethod
        """A classmethod that refuses to be called on an instance, whose state it would silently ignore."""

        def __get__(self, instance: object, owner: type | None = None) -> Callable[..., Any]:
            """Bind to the class. Refusal waits for the call: inspection (torch.jit) may look at every attribute."""
            if instance is None:
                return super().__get__(instance, owner)
            name = self.__func__.__name__

            def refuse(*args: Any, **kwargs: Any) -> Any:
                raise TypeError(
                    f"{name} makes a new object and leaves this one as it is. Call it on the class: "
                    f"`{type(instance).__name__}.{name}(...)`, and use what it returns."
                )

            return refuse
