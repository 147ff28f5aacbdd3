"""Objects from configuration: a class named by its path, with its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fulgur.checkpoint.made_by_cli import CLASS_PATH, INSTANTIATOR, INSTANTIATOR_NAME, make_object
from fulgur.errors import MissingExtraError


def require_jsonargparse(feature: str) -> None:
    """See to it that jsonargparse is installed, with the package it reads docstrings with.

    Raises:
        MissingExtraError: It is not; the message says how to install it.
    """
    try:
        import jsonargparse  # noqa: F401

        found = find_spec("docstring_parser") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise MissingExtraError(feature, "jsonargparse[signatures]", "cli") from None


def instantiate_class(args: Any | tuple[Any, ...], init: Mapping[str, Any]) -> Any:
    """Make an object of what a configuration says.

    Args:
        args: The leading argument, or a tuple of several.
        init: ``{"class_path": "package.module.Class", "init_args": {...}}``; without ``init_args`` there are none.

    Raises:
        ValueError: ``class_path`` is missing, or names nothing.

    Example:
        >>> instantiate_class(model.parameters(), {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}})
    """
    if not isinstance(args, tuple):
        args = (args,)
    return find_class(init.get("class_path"))(*args, **dict(init.get("init_args") or {}))


def find_class(path: Any) -> Any:
    """What a path such as ``torch.optim.SGD`` names.

    Raises:
        ValueError: It names nothing.
    """
    module, _, name = str(path).rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"class_path={path!r} names no class. Write package.module.Class.") from error


def instantiate_module(cls: type, config: Mapping[str, Any]) -> Any:
    """Make an object of `cls` from arguments in the form in which `LightningCLI` keeps them.

    Arguments that are objects stand there as ``{"class_path": ..., "init_args": ...}``, and are made first.

    Args:
        cls: A `LightningModule` or `LightningDataModule`. If `config` has ``_class_path``, that class is made.
        config: Arguments by name.
    """
    require_jsonargparse("instantiate_module")
    values = {name: value for name, value in config.items() if name not in (INSTANTIATOR, CLASS_PATH)}
    chosen = find_class(config[CLASS_PATH]) if config.get(CLASS_PATH) else cls
    marks = {INSTANTIATOR: INSTANTIATOR_NAME, **({CLASS_PATH: config[CLASS_PATH]} if CLASS_PATH in config else {})}
    return make_object(chosen, values, own={}, marks=marks)


def instantiate_arguments(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for `cls` of what `LightningCLI` keeps of them: by the types in its signature.

    Args:
        cls: The class that they are for.
        values: Plain values, by name. What the signature does not name stays as it is.

    Raises:
        MissingExtraError: jsonargparse is not installed.
        ValueError: A value is not of its argument's type.
    """
    require_jsonargparse("instantiate_module")
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "module", fail_untyped=False, sub_configs=True)
    known = {action.dest.partition(".")[2] for action in parser._actions}
    typed = {name: value for name, value in values.items() if name in known}
    skipped = {name for name in known if name and name not in typed and "." not in name}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "module", fail_untyped=False, sub_configs=True, instantiate=False, skip=skipped)
    try:
        with _only_typed_objects():
            made = parser.instantiate(parser.parse_object({"module": typed}))
    except ArgumentError as error:
        raise ValueError(f"The kept arguments of {cls.__name__} do not fit its signature: {error}") from error
    return {**values, **made["module"].as_dict()} if typed else dict(values)


@contextmanager
def _only_typed_objects() -> Iterator[None]:
    """Make no object where any value would do: there a file could name any class there is."""
    # jsonargparse 4.53: no public way to say it for one parser.
    from jsonargparse._common import parsing_settings

    before = parsing_settings["instantiate_subclass_spec_in_any"]
    parsing_settings["instantiate_subclass_spec_in_any"] = False
    try:
        yield
    finally:
        parsing_settings["instantiate_subclass_spec_in_any"] = before
