"""The interface of a logger, and the one that throws everything away."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fulgur.rank import rank_zero_only

if TYPE_CHECKING:
    from argparse import Namespace

    from torch import Tensor, nn

    from fulgur.hooks import Callback

L = TypeVar("L")
T = TypeVar("T")


class Logger(ABC):
    """Where metrics and hyperparameters go. Subclass it to send them somewhere else.

    The Trainer calls `log_metrics` with plain numbers, `save` after each of these calls, and `finalize` at the end of
    every run. A logger may be used again after `finalize`: ``trainer.test()`` after ``trainer.fit()`` goes on with it.

    Every rank has the logger. Decorate what must happen once with `rank_zero_only`, and `experiment` with
    `rank_zero_experiment`.

    Example:
        >>> class Printer(Logger):
        ...     name, version = "printer", 0
        ...     def log_hyperparams(self, params):
        ...         print(params)
        ...     def log_metrics(self, metrics, step=None):
        ...         print(step, metrics)
        >>> Printer().log_metrics({"loss": 0.5}, step=3)
        3 {'loss': 0.5}
    """

    @property
    @abstractmethod
    def name(self) -> str | None:
        """Name of the experiment; part of the path of checkpoints."""

    @property
    @abstractmethod
    def version(self) -> int | str | None:
        """Version of the experiment; part of the path of checkpoints. An int N stands for ``version_N``."""

    @property
    def save_dir(self) -> str | None:
        """Directory in which all experiments lie. None for a logger that writes no files."""
        return None

    @property
    def root_dir(self) -> str | None:
        """Directory in which all versions of this experiment lie. None for a logger that has none."""
        return None

    @property
    def log_dir(self) -> str | None:
        """Directory of this version. None for a logger that has none."""
        return None

    @property
    def group_separator(self) -> str:
        """What stands between the parts of a metric's name."""
        return "/"

    @property
    def experiment(self) -> Any:
        """The object behind this logger, for what only it can do. Its first use may create files."""
        return None

    @abstractmethod
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record one set of values.

        Args:
            metrics: Values by name.
            step: Place on the logger axis (`Trainer.log_step`). None lets the logger count.
        """

    @abstractmethod
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record hyperparameters; nested containers are allowed. Called once for each run."""

    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Record the graph of `model`, traced with `input_array` or the model's ``example_input_array``."""

    def save(self) -> None:
        """Write what is pending, so that it survives the death of the process."""

    def finalize(self, status: str) -> None:
        """End of a run: write what is pending and free what is held.

        Args:
            status: ``"success"``, ``"failed"`` after an exception, ``"finished"`` before a requeue.
        """
        self.save()

    def find_versions(self) -> list[int | str]:
        """Versions that a run may go on with, newest first; only this one where it was chosen already."""
        return []

    def position(self) -> dict[str, Any]:
        """Where the record stands, as plain data: what a checkpoint keeps for `resume_at`. Empty for nothing to keep.

        What was recorded so far must survive the death of the process.
        """
        return {}

    def resume_at(self, position: dict[str, Any], step: int) -> None:
        """Go on with the version that `position` names, as it stood then: what was recorded later is dropped.

        Called before the first use of `experiment`, or between two runs.

        Args:
            position: From `position`; at least ``{"version": ...}``.
            step: Last place on the logger axis that is kept.
        """

    def after_save_checkpoint(self, checkpoint_callback: Callback) -> None:
        """After a checkpoint callback has saved; a logger may upload the file."""


class DummyExperiment:
    """Stands for an experiment where there is none: every attribute is a function that does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        # Copying and pickling look for special methods and must not find any.
        if name.startswith("__"):
            raise AttributeError(name)
        return _do_nothing

    def __getitem__(self, index: object) -> DummyExperiment:
        return self

    def __setitem__(self, index: object, value: object) -> None:
        pass


class DummyLogger(Logger):
    """Takes everything and keeps nothing. Stands for the user's loggers in quick trial runs."""

    def __init__(self) -> None:
        self._experiment = DummyExperiment()

    @property
    def name(self) -> str:
        """An empty string."""
        return ""

    @property
    def version(self) -> str:
        """An empty string."""
        return ""

    @property
    def experiment(self) -> DummyExperiment:
        """An object whose every attribute is a function that does nothing."""
        return self._experiment

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def __getitem__(self, index: int) -> DummyLogger:
        return self

    def __getattr__(self, name: str) -> Callable[..., None]:
        # A user's code may call what only the logger that this one stands for has, such as `watch`.
        if name.startswith("_"):
            raise AttributeError(name)
        return _do_nothing


def rank_zero_experiment(experiment: Callable[[L], T]) -> Callable[[L], T]:
    """Decorator for `Logger.experiment`: on every rank but 0, a `DummyExperiment` stands for the real one.

    Example:
        >>> class MyLogger(Logger):
        ...     @property
        ...     @rank_zero_experiment
        ...     def experiment(self):
        ...         return open_connection()
    """

    @functools.wraps(experiment)
    def on_rank_zero(logger: L) -> T:
        return experiment(logger) if rank_zero_only.rank == 0 else cast(T, DummyExperiment())

    return on_rank_zero


def with_prefix(metrics: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """`metrics` with ``prefix-`` before each name; as they are if the prefix is empty."""
    return {f"{prefix}-{name}": value for name, value in metrics.items()} if prefix else metrics


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    pass
