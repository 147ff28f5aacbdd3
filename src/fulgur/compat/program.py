"""Run a program under `install`: ``python -m fulgur.compat script.py …``, ``-m package …`` and ``fulgur run …``."""

from __future__ import annotations

import os
import runpy
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

import fulgur.compat
from fulgur.compat import children


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m fulgur.compat") -> int:
    """Run or check a program.

    Args:
        arguments: Words after the command's name. None: the process's own.
        prog: Name of the command in messages.

    Returns:
        Exit code. What the program itself leaves with, through SystemExit or an exception, is not caught.
    """
    own, words = _split(sys.argv[1:] if arguments is None else arguments)
    parser = _build_parser(prog)
    given = parser.parse_args(own)
    if given.check:
        from fulgur.compat.check import report

        return report(given.check)
    if given.module is None and not words:
        parser.print_usage(sys.stderr)
        return 2
    run(words, module=given.module, version=given.version)
    return 0


def run(words: Sequence[str], *, module: str | None = None, version: str | None = None) -> None:
    """Run a program as ``__main__``, with its own ``sys.argv``.

    Args:
        words: The script and its arguments; the arguments alone where `module` is given.
        module: Module or package to run instead of a script, as ``python -m`` does.
        version: What ``lightning.__version__`` says to the program.
    """
    version = version or os.environ.get(fulgur.compat.VARIABLE) or fulgur.compat.DEFAULT_VERSION
    os.environ[fulgur.compat.VARIABLE] = version
    fulgur.compat.install(version)
    children.follow(now=True)
    if module is not None:
        _set_first_path(os.getcwd())
        sys.argv = [module, *words]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        _set_first_path(os.path.dirname(os.path.abspath(words[0])))
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


def _set_first_path(folder: str) -> None:
    """What Python itself would have put first on the path."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own options, and the program's words, which may look like options too."""
    rest, own = list(words), []
    while rest and rest[0].startswith("-"):
        own.append(rest.pop(0))
        if own[-1] == "--check":
            return [*own, *rest], []
        if own[-1] in ("-m", "--version") and rest:
            own.append(rest.pop(0))
        if "-m" in own:
            break
    return own, rest


def _build_parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} [--version 2.6.0] (script.py | -m package) …\n       {prog} --check PATH …",
        description="Run a program that was written for Lightning.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", metavar="2.6.0", help="what lightning.__version__ says to the program")
    parser.add_argument(
        "--check",
        nargs="+",
        metavar="PATH",
        help="run nothing: list what these scripts or folders use that is missing or differs",
    )
    parser.add_argument("-m", dest="module", metavar="package", help="run a module or package, as python -m does")
    return parser
