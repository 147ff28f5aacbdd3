"""From checked arguments to precision, loggers and profiler. Devices and strategy are in `processes.py`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from fulgur.checkpoint.io import CheckpointIO
from fulgur.errors import MisconfigurationException
from fulgur.launch.environments import ClusterEnvironment
from fulgur.precision import Precision, build_precision

if TYPE_CHECKING:
    from fulgur.loggers.logger import Logger
    from fulgur.profilers.profiler import Profiler
    from fulgur.strategies.layer_sync import LayerSync


def resolve_precision(
    precision: str | int | None, plugins: Any, accelerator_name: str, *, own: Precision | None = None
) -> Precision:
    """The precision, from the argument of that name or from a `Precision` among the plugins.

    Args:
        precision: The argument.
        plugins: All of them.
        accelerator_name: Type of the devices.
        own: The one that the strategy was made with.

    Raises:
        ValueError: The name is unknown, or a plugin is given too.
        MisconfigurationException: The accelerator cannot do it, or a plugin is of no known kind.
    """
    for plugin in _as_list(plugins):
        if not isinstance(plugin, (Precision, CheckpointIO, ClusterEnvironment)) and not _is_layer_sync(plugin):
            raise MisconfigurationException(
                f"plugins holds {plugin!r}, which is no plugin that fulgur knows. Use instances of Precision, "
                "CheckpointIO, ClusterEnvironment and LayerSync."
            )
    given = [plugin for plugin in _as_list(plugins) if isinstance(plugin, Precision)]
    if own is not None and own not in given:
        given.append(own)
    if len(given) > 1:
        names = ", ".join(type(plugin).__name__ for plugin in given)
        raise MisconfigurationException(f"plugins holds {len(given)} precisions: {names}. Keep one.")
    if given and precision is not None:
        raise ValueError(
            f"precision={precision!r} and the plugin {type(given[0]).__name__} both set the precision. Leave out one."
        )
    return given[0] if given else build_precision(precision, accelerator_name)


def resolve_checkpoint_io(plugins: Any) -> CheckpointIO | None:
    """The `CheckpointIO` among the plugins; None if there is none.

    Raises:
        MisconfigurationException: There are several.
    """
    given = [plugin for plugin in _as_list(plugins) if isinstance(plugin, CheckpointIO)]
    if len(given) > 1:
        names = ", ".join(type(plugin).__name__ for plugin in given)
        raise MisconfigurationException(f"plugins holds {len(given)} checkpoint IOs: {names}. Keep one.")
    return given[0] if given else None


def resolve_layer_sync(plugins: Any, *, sync_batchnorm: bool) -> LayerSync | None:
    """The `LayerSync` among the plugins; None if there is none.

    Raises:
        MisconfigurationException: There are several, or `sync_batchnorm` asks for another.
    """
    given = [plugin for plugin in _as_list(plugins) if _is_layer_sync(plugin)]
    if len(given) > 1:
        names = ", ".join(type(plugin).__name__ for plugin in given)
        raise MisconfigurationException(f"plugins holds {len(given)} layer syncs: {names}. Keep one.")
    if given and sync_batchnorm and type(given[0]).__name__ != "TorchSyncBatchNorm":
        raise MisconfigurationException(
            f"sync_batchnorm=True and the plugin {type(given[0]).__name__} both replace layers. Leave out one of them."
        )
    return given[0] if given else None


def _is_layer_sync(plugin: Any) -> bool:
    if isinstance(plugin, (Precision, CheckpointIO, ClusterEnvironment)):
        return False
    from fulgur.strategies.layer_sync import LayerSync

    return isinstance(plugin, LayerSync)


def _as_list(plugins: Any) -> list[Any]:
    if plugins is None:
        return []
    return list(plugins) if isinstance(plugins, (list, tuple)) else [plugins]


def resolve_loggers(
    logger: Logger | Iterable[Logger] | bool | None,
    default_root_dir: str,
    fast_dev_run: int | bool,
    *,
    flush_every_n_steps: int | None = None,
) -> list[Logger]:
    """The loggers, in the order given.

    Args:
        logger: A logger, several, True or None for the default (TensorBoard where it is installed, else CSV), or
            False for none.
        default_root_dir: Where the default logger puts its files.
        fast_dev_run: Unless False, one logger that keeps nothing stands for all of them.
        flush_every_n_steps: Rows that a default CSV logger keeps before it writes them. None leaves its own default.

    Raises:
        MisconfigurationException: Something among them is not a Logger.
    """
    if logger is False:
        return []
    from fulgur.loggers.logger import DummyLogger, Logger

    if logger is None or logger is True:
        return [DummyLogger()] if fast_dev_run else [_build_default_logger(default_root_dir, flush_every_n_steps)]
    if not isinstance(logger, (Logger, Iterable)) or isinstance(logger, str):
        raise MisconfigurationException(_no_logger(logger))
    loggers = [logger] if isinstance(logger, Logger) else list(logger)
    for item in loggers:
        if not isinstance(item, Logger):
            raise MisconfigurationException(_no_logger(item))
    return [DummyLogger()] if fast_dev_run and loggers else loggers


def resolve_profiler(profiler: Profiler | str | None) -> Profiler | None:
    """The profiler; None if none is asked for.

    Raises:
        MisconfigurationException: The name is unknown.
    """
    if not profiler:
        return None
    from fulgur.profilers import Profiler, build_profiler

    return profiler if isinstance(profiler, Profiler) else build_profiler(profiler)


def apply_determinism(deterministic: bool | Literal["warn"] | None, benchmark: bool | None) -> None:
    """Set torch's switches for deterministic algorithms and for cuDNN's search for the fastest ones.

    Args:
        deterministic: True refuses operations that may differ from run to run, ``"warn"`` warns of them, None leaves
            the switch alone.
        benchmark: Whether cuDNN tries its algorithms out. None leaves the switch alone, unless `deterministic` is set,
            which turns it off.
    """
    warn_only = deterministic == "warn"
    if deterministic is not None and (
        torch.are_deterministic_algorithms_enabled() != bool(deterministic)
        or torch.is_deterministic_algorithms_warn_only_enabled() != warn_only
    ):
        torch.use_deterministic_algorithms(bool(deterministic), warn_only=warn_only)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        benchmark = bool(benchmark)
    if benchmark is not None:
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def determinism(deterministic: bool | Literal["warn"] | None, benchmark: bool | None) -> Iterator[None]:
    """`apply_determinism` for the length of a ``with`` block: the switches are the whole process's."""
    if deterministic is None and benchmark is None:
        yield
        return
    is_on, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    searches = torch.backends.cudnn.benchmark
    try:
        apply_determinism(deterministic, benchmark)
        yield
    finally:
        torch.use_deterministic_algorithms(is_on, warn_only=warn_only)
        torch.backends.cudnn.benchmark = searches


def _build_default_logger(save_dir: str, flush_every_n_steps: int | None) -> Logger:
    from fulgur.loggers.tensorboard import TensorBoardLogger, is_tensorboard_available

    version = _find_slurm_job_id()
    if is_tensorboard_available():
        return TensorBoardLogger(save_dir, version=version)
    from fulgur.loggers.csv_logs import CSVLogger

    if flush_every_n_steps is None:
        return CSVLogger(save_dir, version=version)
    return CSVLogger(save_dir, version=version, flush_logs_every_n_steps=flush_every_n_steps)


def _find_slurm_job_id() -> int | None:
    """Id of the batch job this process belongs to; None outside of one, and in an interactive shell."""
    job_id = os.environ.get("SLURM_JOB_ID", "")
    is_batch = "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    return int(job_id) if is_batch and job_id.isdecimal() else None


def _no_logger(value: object) -> str:
    hint = " Did you forget to call it?" if isinstance(value, type) else ""
    return f"logger={value!r} is not a Logger.{hint} Use a Logger, a list of them, True or False."
