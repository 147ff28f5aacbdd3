"""Options of a command for the arguments of a class: what programs of 1.x call on Trainer and datamodules."""

from __future__ import annotations

import argparse
import ast
import inspect
from argparse import ArgumentParser, Namespace
from typing import Any, TypeVar

T = TypeVar("T")


def add_arguments(
    cls: type, parent_parser: ArgumentParser, *, use_argument_group: bool = True, **defaults: Any
) -> ArgumentParser:
    """Add an option for each argument of ``__init__``.

    A value is read as a Python literal where it is one, and as text otherwise; a bare option means True.

    Args:
        cls: Whose arguments.
        parent_parser: Where to; it is changed, and returned.
        use_argument_group: Whether ``--help`` shows them under the name of the class.
        **defaults: Values that options have instead of the argument's own.
    """
    group: Any = parent_parser.add_argument_group(cls.__name__) if use_argument_group else parent_parser
    taken = set(parent_parser._option_string_actions)
    for name, parameter in _parameters(cls, with_older=True).items():
        default = defaults.get(name, None if parameter.default is parameter.empty else parameter.default)
        if f"--{name}" not in taken:
            group.add_argument(f"--{name}", default=default, type=_read, nargs="?", const=True, help=argparse.SUPPRESS)
    return parent_parser


def from_arguments(cls: type[T], args: Namespace | ArgumentParser, **kwargs: Any) -> T:
    """Make an object of the options that `add_arguments` added; others are left out.

    Args:
        cls: What to make.
        args: Parsed options, or a parser, which then reads the process's own.
        **kwargs: Arguments that win over options.
    """
    given = vars(parse_arguments(cls, args))
    known = _parameters(cls, with_older=True)
    chosen = {name: value for name, value in given.items() if name in known and value != known[name].default}
    return cls(**{**chosen, **kwargs})


def parse_arguments(cls: type, arg_parser: ArgumentParser | Namespace) -> Namespace:
    """The options as values: of the process's own command line where a parser is given."""
    given = arg_parser.parse_args() if isinstance(arg_parser, ArgumentParser) else arg_parser
    return Namespace(**vars(given))


def arguments_and_types(cls: type) -> list[tuple[str, tuple[Any, ...], Any]]:
    """Name, types and default of each argument of ``__init__``; types are as they are written."""
    return [
        (name, (parameter.annotation,), None if parameter.default is parameter.empty else parameter.default)
        for name, parameter in _parameters(cls).items()
    ]


def _parameters(cls: type, *, with_older: bool = False) -> dict[str, inspect.Parameter]:
    """Arguments of ``__init__`` that have a name; of the Trainer those of 1.x too, where asked for."""
    found = dict(inspect.signature(cls).parameters)
    named = {n: p for n, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if with_older:
        for name in getattr(cls, "OLDER_ARGUMENTS", ()):
            named.setdefault(name, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None))
    return named


def _read(text: str) -> Any:
    """The literal that `text` is, else the text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)
    return text if isinstance(value, tuple) else value  # "0,1" names devices
