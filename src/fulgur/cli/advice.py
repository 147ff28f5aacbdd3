"""What is wrong with an option, in words that tell what to write instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from fulgur.errors import nearest_name

_UNKNOWN = re.compile(r"unrecognized arguments: (?P<words>.*)", re.DOTALL)
_OUTSIDE = re.compile(r"(?:Group|Subcommand) '(?P<group>[^']+)' does not accept option '(?P<name>[^']+)'")
_NOT_ACCEPTED = re.compile(r"Option '(?P<name>[^']+)' is not accepted")
_VALUE = re.compile(r"Parser key \"(?P<key>[^\"]+)\":(?P<why>.*)", re.DOTALL)
_CLASS_HAS_NOT = re.compile(
    r"Problem with given class_path '(?P<path>[^']+)':\s+"
    r"There is no (?P<name>\S+), which the configuration sets\.(?P<near> Did you mean [^?]*\?)?"
)
_NO_SUBCOMMAND = re.compile(r'expected "subcommand" to be one of')
_WRONG_SUBCOMMAND = re.compile(r"argument subcommand: invalid choice: '(?P<name>[^']*)'")
_REQUIRED = re.compile(r"the following arguments are required: (?P<names>.*)")


def advise(parser: Any, message: str) -> str:
    """The message of jsonargparse `message`, told by the option, its value, and the way out."""
    for pattern, tell in (
        (_UNKNOWN, _tell_unknown),
        (_OUTSIDE, _tell_outside),
        (_NOT_ACCEPTED, _tell_not_accepted),
        (_VALUE, _tell_value),
        (_REQUIRED, _tell_required),
        (_NO_SUBCOMMAND, _tell_no_subcommand),
        (_WRONG_SUBCOMMAND, _tell_wrong_subcommand),
    ):
        match = pattern.search(message)
        if match is not None:
            return tell(parser, match, message)
    return message


def nearest_options(name: str, known: Iterable[str]) -> str:
    """A clause that names the closest options, by all of the name and by its last part; empty where none is close."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.75)
    last = name.rpartition(".")[2].lstrip("-")
    by_last = {option.rpartition(".")[2].lstrip("-"): option for option in reversed(names)}
    for part in difflib.get_close_matches(last, by_last, n=3, cutoff=0.75):
        if by_last[part] not in close and len(close) < 3:
            close.append(by_last[part])
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _tell_unknown(parser: Any, match: re.Match[str], _: str) -> str:
    words = match["words"].split(" ")
    options = [word for word in words if word.startswith("-")]
    if not options:
        return f"{' '.join(words)!r} is no option. Options begin with --; `{command_of(parser)} --help` lists them."
    told = [
        f"There is no option {option.partition('=')[0]}.{nearest_options(option.partition('=')[0], _options(parser))}"
        for option in options
    ]
    return f"{' '.join(told)} `{command_of(parser)} --help` lists all of them."


def _tell_outside(parser: Any, match: re.Match[str], _: str) -> str:
    group, name = match["group"], match["name"]
    owner = _subparsers(parser).get(group)
    if owner is None:
        owner, name = parser, f"{group}.{name}"
    return _no_key(owner, name)


def _tell_not_accepted(parser: Any, match: re.Match[str], _: str) -> str:
    return _no_key(parser, match["name"])


def _no_key(parser: Any, key: str) -> str:
    near = nearest_options(f"--{key}", _options(parser)).replace("--", "")
    return f"There is no {key}, which the configuration sets.{near} `{command_of(parser)} --help` lists all options."


def _tell_required(parser: Any, match: re.Match[str], message: str) -> str:
    names = match["names"].split(", ")
    subcommands = _subparsers(parser)
    owners = {name.partition(".")[0] for name in names}
    command = command_of(parser)
    if subcommands and len(owners) == 1 and owners <= set(subcommands):
        command = command_of(subcommands[owners.pop()])
        names = [name.partition(".")[2] for name in names]
    options = [f"--{name}" for name in names]
    verb = "needs a value" if len(options) == 1 else "need values"
    return (
        f"{' and '.join(options)} {verb}: on the command line, or in a file given with --config. `{command} --help` "
        "describes each option."
    )


def _tell_no_subcommand(parser: Any, match: re.Match[str], _: str) -> str:
    return f"Say what to do: one of {', '.join(_subparsers(parser))}. `{command_of(parser)} --help` tells more."


def _tell_wrong_subcommand(parser: Any, match: re.Match[str], _: str) -> str:
    names = _subparsers(parser)
    return f"There is no {match['name']!r}.{nearest_name(match['name'], names)} It is one of {', '.join(names)}."


def _tell_value(parser: Any, match: re.Match[str], message: str) -> str:
    key, why = match["key"], match["why"]
    if "not exist" in why or "not readable" in why or "Problems parsing" in why:
        return f"--{key}:{why}"
    action = _find_action(parser, key)
    typehint = getattr(action, "_typehint", None)
    if typehint is None:
        return message
    value = _given(why)
    said = f"--{key}={value}" if value is not None else f"--{key}"
    nested = re.search(r"NestedArg\(key='(?P<key>[^']*)', val=(?P<val>.*)\)", why)
    if nested is not None:
        return _tell_argument(parser, key, nested["key"].removeprefix("init_args."), why)
    unknown = _CLASS_HAS_NOT.search(why)
    if unknown is not None:
        return _tell_argument(parser, key, unknown["name"], why)
    classes = list(_known_classes(typehint))
    text = f"{said} is not {_described(typehint)}."
    if classes and value is not None:
        text += _nearest_class(value, classes)
    return f"{text}{_detail(why)}"


def _tell_argument(parser: Any, key: str, name: str, why: str) -> str:
    """An argument that the class given at `key` does not have."""
    tried = [match for match in _CLASS_HAS_NOT.finditer(why) if match["name"] == name]
    near = tried[0]["near"] or "" if tried else ""
    cls = tried[0]["path"].rpartition(".")[2] if tried else "CLASS"
    known = f"what {cls} takes" if tried else "what a class takes"
    return f"--{key} takes no {name!r} here.{near} `{command_of(parser)} --{key}.help {cls}` lists {known}."


def _given(why: str) -> str | None:
    found = re.findall(r"(?:Given value|value)s?: (.*)", why)
    if found:
        return str(found[-1]).strip()
    got = re.search(r"Got value: (.*)", why)
    return got[1].strip() if got else None


def _detail(why: str) -> str:
    """What a class path or a nested option failed with, where that says more than the type."""
    lines = [line.strip(" -") for line in why.splitlines()]
    telling = [line for line in lines if re.search(r"[Nn]o module|does not accept|required|Problem with", line)]
    return f" {telling[0]}" if telling else ""


def _described(typehint: Any) -> str:
    from jsonargparse._typehints import type_to_str

    text = str(type_to_str(typehint))
    inner = re.fullmatch(r"(?:Union|Optional)\[(.*)\]", text)
    words = inner[1].replace(", ", " or ") if inner and "[" not in inner[1] else text.replace(" | ", " or ")
    return f"of the expected type {words}"


def _known_classes(typehint: Any) -> Iterator[str]:
    from jsonargparse._typehints import get_all_subclass_paths

    try:
        yield from get_all_subclass_paths(typehint)
    except Exception:  # only to say more; the type is told anyway
        return


def _nearest_class(value: str, classes: list[str]) -> str:
    names = {path.rpartition(".")[2]: path for path in classes}
    close = difflib.get_close_matches(value.rpartition(".")[2], names, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _find_action(parser: Any, key: str) -> Any:
    for action in parser._actions:
        if action.dest == key and hasattr(action, "_typehint"):
            return action
    name, _, rest = key.partition(".")
    inner = _subparsers(parser).get(name)
    return _find_action(inner, rest) if inner is not None else None


def _options(parser: Any) -> list[str]:
    own = [name for name in parser._option_string_actions if not name.endswith("+")]
    return own + [name for inner in _subparsers(parser).values() for name in _options(inner)]


def _subparsers(parser: Any) -> dict[str, Any]:
    action = getattr(parser, "_subcommands_action", None)
    return dict(action._name_parser_map) if action is not None else {}


def command_of(parser: Any) -> str:
    """How the program is called, up to the parser's subcommand."""
    return str(parser.prog).replace(" [options]", "")
