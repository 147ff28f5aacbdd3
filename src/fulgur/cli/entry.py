"""``fulgur fit train.py:Model --data train.py:Data``: runs a module of a file, without a program around it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fulgur.errors import FulgurError, nearest_name

SUBCOMMANDS = {
    "fit": "train a module of a file: fulgur fit train.py:Model --data train.py:Data",
    "validate": "evaluate it on the validation set",
    "test": "evaluate it on the test set",
    "predict": "predict with it",
}


class TargetError(FulgurError):
    """What is to be run cannot be found."""


def main(arguments: Sequence[str], *, prog: str) -> int:
    """Run one subcommand.

    Args:
        arguments: Words after it: the module, and options.
        prog: How the program is called up to here; its last word is the subcommand.

    Returns:
        Exit code: 2 where the command line is wrong.
    """
    from fulgur.cli.instantiate import require_jsonargparse

    subcommand = prog.split()[-1]
    try:
        require_jsonargparse(prog)
        model, data, words = _split(list(arguments), prog)
    except (TargetError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and not isinstance(error, FulgurError):
            raise
        print(f"{prog}: error: {error}", file=sys.stderr)  # noqa: T201 - what a command says
        return 2
    if model is None:
        print(_usage(prog))  # noqa: T201
        return 0
    _run(subcommand, model, data, words, prog=prog)
    return 0


def _usage(prog: str) -> str:
    return (
        f"usage: {prog} FILE.py:Class [--data FILE.py:Class] [options]\n\n"
        f"  FILE.py:Class          a LightningModule; or package.module:Class, or FILE.py where it holds only one\n"
        f"  --data FILE.py:Class   a LightningDataModule, where the module has no loaders of its own\n\n"
        f"`{prog} FILE.py:Class --help` lists the options: the arguments of module, data and Trainer."
    )


def _split(words: list[str], prog: str) -> tuple[Any, Any, list[str]]:
    """Module and data that the words name, and the rest."""
    if words and words[0] in ("-h", "--help"):
        return None, None, []
    if not words or words[0].startswith("-"):
        raise TargetError(f"Say what to run: {prog} train.py:Model. `{prog} --help` tells more.")
    from fulgur.datamodule import LightningDataModule
    from fulgur.module import LightningModule

    named, rest = _take_data(words[1:])
    model = find_target(words[0], LightningModule)
    return model, None if named is None else find_target(named, LightningDataModule), rest


def _take_data(words: list[str]) -> tuple[str | None, list[str]]:
    for index, word in enumerate(words):
        if word.startswith("--data="):
            return word.partition("=")[2], [*words[:index], *words[index + 1 :]]
        if word == "--data":
            if index + 1 == len(words):
                raise TargetError("--data needs a value: --data train.py:Data.")
            return words[index + 1], [*words[:index], *words[index + 2 :]]
    return None, words


def find_target(target: str, base: type) -> Any:
    """The class that ``train.py:Model`` or ``package.module:Model`` names.

    Without a class, the only subclass of `base` that the file defines itself.

    Args:
        target: What to find.
        base: What it must be a subclass of.

    Raises:
        TargetError: There is no such file, module or class, or it is another kind of class.
    """
    place, _, name = target.partition(":")
    module = _import(place)
    if not name:
        return _only_class(module, place, base)
    found = getattr(module, name, None)
    if found is None:
        raise TargetError(f"{place} has no {name!r}.{nearest_name(name, _classes(module, base))}")
    if not isinstance(found, type) or not issubclass(found, base):
        raise TargetError(
            f"{target} is no {base.__name__} of fulgur.{_hint(found)} There is: "
            f"{', '.join(_classes(module, base)) or 'none'}."
        )
    return found


def _hint(found: Any) -> str:
    bases = {cls.__module__.partition(".")[0] for cls in getattr(found, "__mro__", ())}
    if bases & {"lightning", "pytorch_lightning"}:
        return " It is one of another package; set FULGUR_COMPAT=2.6 to have its imports mean fulgur."
    return ""


def _only_class(module: Any, place: str, base: type) -> Any:
    own = [name for name in _classes(module, base) if getattr(module, name).__module__ == module.__name__]
    if len(own) != 1:
        listed = f"{len(own)}: {', '.join(own)}" if own else "none"
        raise TargetError(
            f"{place} should hold one {base.__name__} where none is named, and holds {listed}. Say {place}:Class."
        )
    return getattr(module, own[0])


def _classes(module: Any, base: type) -> list[str]:
    return [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, base) and v is not base]


def _import(place: str) -> Any:
    if place.endswith(".py"):
        return _import_file(Path(place))
    _add_to_path(os.getcwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise TargetError(
                f"There is no module {place!r} to import. Name a file, train.py:Model, or a module that can be "
                "imported from here, package.module:Model."
            ) from error
        raise


def _import_file(path: Path) -> Any:
    """Import a file under its own name, as workers and ranks will."""
    if not path.is_file():
        beside = [other.name for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise TargetError(f"There is no file {path}.{nearest_name(path.name, beside)}")
    _add_to_path(str(path.resolve().parent))
    module = importlib.import_module(path.stem)
    if Path(str(module.__file__)).resolve() != path.resolve():
        raise TargetError(
            f"{path} cannot be imported: {path.stem!r} is the name of another module, {module.__file__}. "
            "Rename the file."
        )
    return module


def _add_to_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _run(subcommand: str, model: Any, data: Any, words: list[str], *, prog: str) -> None:
    from fulgur.cli.lightning_cli import LightningCLI
    from fulgur.cli.parser import LightningArgumentParser
    from fulgur.cli.save_config import SaveConfigCallback

    called = f"{prog} {_target_word(model)}"

    class Named(LightningCLI):
        """With the one subcommand that was asked for, and the arguments of module and data before the Trainer's."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {subcommand: LightningCLI.subcommands()[subcommand]}

        def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(model, "model")
            if data is not None:
                parser.add_lightning_class_args(data, "data")
            self.add_trainer_arguments_to_parser(parser)

        def _prepare_subcommand_parser(self, klass: Any, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
            purpose = (model.__doc__ or "").strip().partition("\n")[0]
            told = {"usage": f"{called} [options]", "description": f"{kwargs['description']} {purpose}"}
            return super()._prepare_subcommand_parser(klass, subcommand, **{**kwargs, **told})

        def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
            super()._add_subcommands(parser, **kwargs)
            parser.prog = self._subcommand_parsers[subcommand].prog = called

        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            if words[-1:] == ["--completion-words"]:  # of the script for shells, `completion.py`
                names = self._subcommand_parsers[subcommand]._option_string_actions
                print(" ".join(name for name in names if name.startswith("--")))  # noqa: T201
                raise SystemExit(0)
            self.config = parser.parse_args(args)  # the words of the process are these, and two more

    Named(
        model,
        data,
        save_config_callback=SaveConfigCallback if subcommand == "fit" else None,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": prog.removesuffix(f" {subcommand}")},
        args=[subcommand, *words],
    )


def _target_word(model: type) -> str:
    file = getattr(sys.modules[model.__module__], "__file__", None)
    is_file = file is not None and "." not in model.__module__
    return f"{os.path.relpath(str(file)) if is_file else model.__module__}:{model.__qualname__}"
