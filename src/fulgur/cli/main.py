"""The command ``fulgur``: hands over to the program that the first word names."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module

import fulgur
from fulgur.cli.entry import SUBCOMMANDS

# Where the ``main(arguments, prog=...)`` of each program is; imported when it is asked for.
_PROGRAMS = {
    **{name: ("fulgur.cli.entry", purpose) for name, purpose in SUBCOMMANDS.items()},
    "checkpoint": ("fulgur.checkpoint.tools.commands", "look into, verify, compare, convert, average, prune"),
    "fabric": ("fulgur.cli.fabric", "run a program that was written for Fabric, on several processes"),
    "run": ("fulgur.compat.program", "run a program that was written for Lightning"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command ``fulgur``.

    Args:
        arguments: Words after the command's name. ``None``: the process's own.

    Returns:
        Exit code of the process: 2 for wrong usage, otherwise the program's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in _PROGRAMS:
        program = import_module(_PROGRAMS[words[0]][0])
        return int(program.main(words[1:], prog=f"fulgur {words[0]}"))
    parser = _build_parser()
    given = parser.parse_args(words)
    if given.completion is not None:
        from fulgur.cli.completion import completion_script

        print(completion_script(given.completion, _PROGRAMS, SUBCOMMANDS), end="")  # noqa: T201 - what was asked for
        return 0
    parser.print_help(sys.stderr)
    return 2


def _build_parser() -> ArgumentParser:
    listed = "\n".join(f"  {name:12}{purpose}" for name, (_, purpose) in _PROGRAMS.items())
    parser = ArgumentParser(
        prog="fulgur",
        description=f"programs:\n{listed}",
        epilog="`fulgur PROGRAM --help` tells more.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fulgur {fulgur.__version__}")
    parser.add_argument("--completion", choices=["bash", "zsh"], help="print what the shell reads to complete words")
    parser.add_argument("program", choices=list(_PROGRAMS), nargs="?", metavar="PROGRAM", help="what to run")
    return parser
