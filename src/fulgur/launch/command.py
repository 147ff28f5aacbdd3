"""The command that started this program, so that it can be run again."""

from __future__ import annotations

import os
import sys
from itertools import pairwise

from fulgur.errors import MisconfigurationException

_WRAPPER = """
import os, sys
starter, layout, ends_with_thread, command = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "1", sys.argv[4:]
os.setpgid(0, 0)
if sys.platform == "linux" and ends_with_thread:
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != starter:
    sys.exit(1)
os.environ["FULGUR_FAMILY"] = f"{layout} {os.getpid()}"
os.execvp(command[0], command)
"""
"""Runs in the new process before the command: a process group of its own, SIGKILL as soon as the starter is gone."""


def wrap_command(command: list[str], layout: str, *, ends_with_thread: bool) -> list[str]:
    """`command` as a process that does not outlive this one.

    Args:
        command: What to run.
        layout: The first two parts of the mark of a family.
        ends_with_thread: Whether the calling thread lives as long as the program: Linux ends the process with it.
    """
    flag = "1" if ends_with_thread else "0"
    return [sys.executable, "-I", "-S", "-c", _WRAPPER, str(os.getpid()), layout, flag, *command]


def find_command(local_rank: int) -> list[str]:
    """The command line of this program, with the interpreter's options: a script, ``python -m``, or an entry point.

    Args:
        local_rank: Of the process to be. Hydra gives each a name.

    Raises:
        MisconfigurationException: There is no command that could be run again.
    """
    _require_program()
    command = [sys.executable, *_options_and_program(), *sys.argv[1:]]
    return [*command, *_hydra_overrides(local_rank)]


def _require_program() -> None:
    program = sys.argv[0] if sys.argv else ""
    if hasattr(sys, "ps1") or program == "" or "ipykernel" in sys.modules:
        raise MisconfigurationException(
            "strategy='ddp' starts further processes by running the program again, and a notebook or a prompt has no "
            "program. Use strategy='ddp_notebook', or put the code into a script."
        )
    if program in ("-c", "-"):
        how = "python -c" if program == "-c" else "standard input"
        raise MisconfigurationException(
            f"strategy='ddp' starts further processes by running the program again, and this one came from {how}. Put "
            "it into a file and run that; or use strategy='ddp_fork', or torchrun."
        )


def _options_and_program() -> list[str]:
    """From the original command what stands before the program's own arguments."""
    original = sys.orig_argv[1:]
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and "-m" in original:
        names = (spec.name, spec.name.removesuffix(".__main__"))
        # The right one of several: ``python -m fulgur.compat -m package``.
        ends = [i + 2 for i, pair in enumerate(pairwise(original)) if pair[0] == "-m" and pair[1] in names]
        return original[: ends[0] if ends else original.index("-m") + 2]
    file = os.path.abspath(str(getattr(main, "__file__", sys.argv[0])))
    for index, part in enumerate(original):
        if os.path.basename(part.rstrip(os.sep)) in (os.path.basename(file), os.path.basename(os.path.dirname(file))):
            is_folder = os.path.basename(part.rstrip(os.sep)) != os.path.basename(file)
            return [*original[:index], os.path.dirname(file) if is_folder else file]
    return [file]


def find_folder() -> str:
    """Where the program was started, which may have gone elsewhere since: it will go there again."""
    from multiprocessing import process

    original: str | None = getattr(process, "ORIGINAL_DIR", None)  # what spawn uses for the same purpose
    return _hydra_folder() or original or os.getcwd()


def _hydra_overrides(local_rank: int) -> list[str]:
    """Hydra must not make a second folder for what is the same run."""
    if _hydra_folder() is None:
        return []
    return [
        f'hydra.run.dir="{os.getcwd()}"',
        f"hydra.job.name=train_ddp_process_{local_rank}",
        "hydra.output_subdir=null",
    ]


def _hydra_folder() -> str | None:
    """The folder that a program of Hydra was started in; None for every other program."""
    config = sys.modules.get("hydra.core.hydra_config")
    if config is None or not config.HydraConfig.initialized():
        return None
    from importlib import import_module

    return str(import_module("hydra.utils").get_original_cwd())
