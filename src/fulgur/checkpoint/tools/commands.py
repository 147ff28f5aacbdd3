"""The program ``python -m fulgur.checkpoint``: its commands, and how errors leave it."""

from __future__ import annotations

import os
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Sequence

from fulgur.checkpoint.tools import averaging, comparison, consolidation, conversion, inspection, pruning, verification
from fulgur.checkpoint.tools.command import Command, Outcome
from fulgur.checkpoint.tools.show import print_json, print_shown
from fulgur.errors import FulgurError

COMMANDS: tuple[Command, ...] = (
    inspection.COMMAND,
    verification.COMMAND,
    comparison.COMMAND,
    conversion.COMMAND,
    consolidation.COMMAND,
    averaging.COMMAND,
    pruning.COMMAND,
)
_CANNOT = 2


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m fulgur.checkpoint") -> int:
    """Run one command.

    Args:
        arguments: Words after the program's name. ``None``: the process's own.
        prog: How the program was called, for its help.

    Returns:
        Exit code: 0 for yes or done, 1 for no (a damaged file, a difference), 2 if it could not be done.
    """
    parsed = _build_parser(prog).parse_args(arguments)
    try:
        outcome: Outcome = parsed.run(parsed)
        if parsed.json:
            print_json(outcome.data)
        else:
            print_shown(outcome.shown)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CANNOT
    except (FulgurError, OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"{prog} {parsed.command}: {_text_of(error)}\n")
        return _CANNOT
    except Exception:  # a mistake in here: Python's own exit code for it would mean "no"
        traceback.print_exc()
        return _CANNOT
    return outcome.exit_code


def _text_of(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text.replace("pass weights_only=False", "add --trust").replace(
        "without weights_only=False", "without --trust"
    )


def _build_parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(prog=prog, description="Look into checkpoints, compare, convert, average and prune them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.purpose, description=_sentence(command.purpose))
        command.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
        sub.add_argument(
            "--trust", action="store_true", help="open files that hold more than plain data, by running what they say"
        )
        sub.set_defaults(run=command.run)
    return parser


def _sentence(purpose: str) -> str:
    return purpose[0].upper() + purpose[1:] + "."
