"""Hyperparameters of a checkpoint, put between the configuration files and the options of a command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fulgur.errors import CheckpointError

_FOUND_LATER = ("best", "last", "hpc", "auto")
_CONFIG_OPTIONS = ("--config", "-c")


def read_hparams(ckpt_path: Any) -> dict[str, Any]:
    """Hyperparameters that the file at `ckpt_path` holds; none where it is no file, such as "best".

    Raises:
        CheckpointError: The file cannot be read.
    """
    if not isinstance(ckpt_path, (str, os.PathLike)) or not os.path.exists(ckpt_path):
        return {}
    from fulgur.checkpoint.load import load_checkpoint
    from fulgur.checkpoint.plain import from_plain

    checkpoint = load_checkpoint(ckpt_path, map_location="cpu", mmap=True)
    return dict(from_plain(checkpoint.get("hyper_parameters", {})))


def require_file(ckpt_path: Any) -> None:
    """Check that there is a file at `ckpt_path` before anything is made; words such as "best" and addresses pass.

    Raises:
        CheckpointError: There is none.
    """
    if not isinstance(ckpt_path, (str, os.PathLike)) or ckpt_path in _FOUND_LATER or os.path.exists(ckpt_path):
        return
    from fulgur.checkpoint.load import describe_missing
    from fulgur.checkpoint.location import is_remote

    if not is_remote(location := os.fspath(ckpt_path)):
        raise CheckpointError(f"--ckpt_path: {describe_missing(location)}")


def find_path(args: Any) -> str | None:
    """The checkpoint that options name themselves, before they are parsed: it may hold what would be missing.

    Args:
        args: Words, a dict or Namespace, or None for the process's own words.
    """
    if isinstance(args, Mapping) or hasattr(args, "as_dict"):
        content = args if isinstance(args, Mapping) else args.as_dict()
        sections = [section for section in content.values() if isinstance(section, Mapping)]
        return next((s["ckpt_path"] for s in sections if isinstance(s.get("ckpt_path"), str)), None)
    words = sys.argv[1:] if args is None else list(args)
    found = None
    for word, following in zip(words, [*words[1:], None], strict=False):
        if word.startswith("--ckpt_path="):
            found = word.partition("=")[2]
        elif word == "--ckpt_path":
            found = following
    return found


def find_subcommand(args: Any, subcommands: Iterable[str]) -> str | None:
    """Which of the subcommands `args` name: words, or a dict."""
    if isinstance(args, Mapping):
        named = args.get("subcommand")
        return named if isinstance(named, str) else next((name for name in subcommands if name in args), None)
    return next((word for word in args if word in subcommands), None)


def as_configuration(parser: Any, hparams: Mapping[str, Any], *, subclass_mode: bool) -> dict[str, Any]:
    """The ``model`` part of a configuration that `hparams` are; what `parser` does not know of it is left out.

    Raises:
        CheckpointRefusedError: They name a class of a module that the program has not imported.
    """
    from fulgur.checkpoint.made_by_cli import CLASS_PATH, INSTANTIATOR, class_paths, require_imported

    values = {name: value for name, value in hparams.items() if name not in (CLASS_PATH, INSTANTIATOR)}
    for path in class_paths(values):
        require_imported(path)
    if subclass_mode:
        if CLASS_PATH not in hparams:
            return {}
        require_imported(hparams[CLASS_PATH])
        return {"model": {"class_path": hparams[CLASS_PATH], "init_args": values}}
    linked = {getattr(action, "target", [None])[0] for action in getattr(_links(parser), "_group_actions", ())}
    known = {action.dest for action in parser._actions} - linked
    kept = {name: value for name, value in values.items() if f"model.{name}" in known and _is_json(value)}
    return {"model": kept} if kept else {}


def insert(words: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Options with `config` among them: after the last file, and before every option of the model.

    Args:
        words: Options of a subcommand.
        config: What goes in.
    """
    units = _units(words)
    last = max((i for i, unit in enumerate(units) if unit[0].partition("=")[0] in _CONFIG_OPTIONS), default=-1)
    front, rest = units[: last + 1], units[last + 1 :]
    explicit = [unit for unit in front if unit[0].startswith("--model")]
    others = [unit for unit in front if not unit[0].startswith("--model")]
    inserted = [[f"--config={json.dumps(config)}"]]
    return [word for unit in [*others, *inserted, *explicit, *rest] for word in unit]


def merge(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with `given` on top."""
    merged = dict(config)
    for name, value in given.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge(value, merged[name]) if both else value
    return merged


def _units(words: Sequence[str]) -> list[list[str]]:
    """Each option with the words that are its values."""
    units: list[list[str]] = []
    for word in words:
        if not units or word.startswith("--") or (word.startswith("-") and not word[1:2].isdigit()):
            units.append([word])
        else:
            units[-1].append(word)
    return units


def _links(parser: Any) -> Any:
    return getattr(parser, "_links_group", None)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
