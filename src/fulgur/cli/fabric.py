"""``fulgur fabric run``: run a program with `Fabric` on devices and processes that the command line says."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from fulgur.compat.program import run
from fulgur.fabric.arguments import command_variables

_PLACES = {"node_rank": "NODE_RANK", "main_address": "MASTER_ADDR", "main_port": "MASTER_PORT"}


def main(arguments: Sequence[str] | None = None, *, prog: str = "fulgur fabric") -> int:
    """Run a program.

    Args:
        arguments: Words after the command's name. None: the process's own.
        prog: Name of the command in messages.

    Returns:
        Exit code. What the program itself leaves with, through SystemExit or an exception, is not caught.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = vars(_build_parser(prog).parse_args(words))
    words = [given.pop("script"), *given.pop("script_args")]
    given.pop("action")
    places = {variable: given.pop(name) for name, variable in _PLACES.items()}
    os.environ.update({name: str(value) for name, value in places.items() if value is not None})
    os.environ.update(command_variables(given))
    run(words)
    return 0


def _build_parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(prog=prog, description="Run a program that was written for Fabric.", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True, metavar="run")
    command = actions.add_parser("run", help="run a script", allow_abbrev=False)
    command.add_argument("--accelerator", help="auto, cpu, cuda, gpu or mps")
    command.add_argument("--strategy", help="ddp, fsdp, …")
    command.add_argument("--devices", help="how many on each machine, or which")
    command.add_argument("--num-nodes", "--num_nodes", type=int, help="machines")
    command.add_argument("--node-rank", "--node_rank", type=int, help="index of this machine")
    command.add_argument("--main-address", "--main_address", help="where machine 0 is")
    command.add_argument("--main-port", "--main_port", type=int, help="a free port there")
    command.add_argument("--precision", help="32-true, bf16-mixed, …")
    command.add_argument("script", help="a program that makes a Fabric; its launch() may be left out")
    command.add_argument("script_args", nargs="...", metavar="…", help="arguments of the program")
    return parser
