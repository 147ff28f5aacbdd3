"""Every exception and warning fulgur raises by itself, as one tree.

    Exception
    ├── FulgurError
    │   ├── MisconfigurationException      arguments, code or settings that cannot work together
    │   │   ├── UnknownArgumentError       an argument nobody knows (also a TypeError)
    │   │   └── LayoutError                processes that contradict those that were started (also a ValueError)
    │   ├── RankFailedError                another process of the run failed first (also a RuntimeError)
    │   ├── MissingExtraError              an optional package is needed (also a ModuleNotFoundError)
    │   └── CheckpointError                a checkpoint that cannot be written, read or trusted
    │       ├── CheckpointRefusedError     a file that wants more than plain data
    │       └── WeightsMismatchError       weights of another network (also a RuntimeError)
    └── StopRun                            private: ends a run early, cleanly (see `run.py`)
    SystemExit
    └── SIGTERMException                   the process was asked to end
        └── RequeueException               and its job has been queued again
    UserWarning
    └── PossibleUserWarning                a program that may be wrong; silence it with POSSIBLE_USER_WARNINGS=0
    DeprecationWarning
    └── FulgurDeprecationWarning           something of fulgur that will go

Bad values are a plain `ValueError` or `TypeError` wherever that says it all.
"""

from __future__ import annotations

from collections.abc import Iterable


class FulgurError(Exception):
    """Root of the exceptions that are fulgur's own."""


class MisconfigurationException(FulgurError):
    """Arguments, user code or settings contradict each other, or lack something that is needed."""


class UnknownArgumentError(MisconfigurationException, TypeError):
    """An argument has a name that nobody knows."""


class LayoutError(MisconfigurationException, ValueError):
    """The number of processes, devices or machines contradicts what the launcher has started."""


class RankFailedError(FulgurError, RuntimeError):
    """Another process of the run failed first; the message ends with what it had to say.

    Attributes:
        rank: Local rank of that process.
        exitcode: With what it ended; negative for the signal that ended it.
    """

    def __init__(self, message: str, rank: int = -1, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.rank, self.exitcode = rank, exitcode


class MissingExtraError(FulgurError, ModuleNotFoundError):
    """A feature needs an optional package that is not installed.

    Args:
        feature: What was asked for, for example ``"TensorBoardLogger"``.
        package: The package to install.
        extra: The extra of fulgur that brings it.
    """

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package {package!r}, which is not installed. "
            f"Install it with `pip install {package}` or `pip install 'fulgur[{extra}]'`.",
            name=package,
        )


class CheckpointError(FulgurError):
    """A checkpoint cannot be written, read or trusted."""


class CheckpointRefusedError(CheckpointError):
    """A file holds more than plain data; opening it could run code."""


class WeightsMismatchError(CheckpointError, RuntimeError):
    """The weights of a file are those of another network than the one they are loaded into."""


class SIGTERMException(SystemExit):
    """The process got SIGTERM and left at a step boundary.

    Args:
        code: Exit code of the process, 143 as of one that SIGTERM has ended.
    """

    def __init__(self, code: int = 143) -> None:
        super().__init__(code)


class RequeueException(SIGTERMException):
    """The job has been queued again, and goes on from a checkpoint when its turn comes."""

    def __init__(self) -> None:
        super().__init__(0)


class PossibleUserWarning(UserWarning):
    """The program may be wrong, or slower than it need be; fulgur cannot be sure."""


class FulgurDeprecationWarning(DeprecationWarning):
    """Something of fulgur's will go; the text names what to use instead."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A clause that names the closest known name, or an empty string when none is close.

    Example:
        >>> nearest_name("max_epoch", ["max_epochs", "max_steps"])
        " Did you mean 'max_epochs'?"
    """
    import difflib  # takes longer than this whole module

    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
