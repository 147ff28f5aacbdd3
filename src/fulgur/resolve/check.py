"""The rules for the Trainer's arguments: one table of what each may be, then what they do to each other."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback
from fulgur.resolve.arguments import Arguments, Settings

if TYPE_CHECKING:
    from typing import Literal

Rule = Callable[[str, Any], Any]
"""Takes an argument's name and value; returns the value to use, or raises an error that tells the way out."""


def check_arguments(arguments: Arguments) -> Settings:
    """Check every argument, then all of them together, and fill in the defaults.

    Raises:
        MisconfigurationException: A value is out of range, or contradicts another.
        ValueError: `num_nodes` is out of range, or `barebones` meets an argument that it switches off.
        TypeError: `gradient_clip_val` is not a number.
    """
    _check_barebones(arguments)
    _check_validation_interval(arguments)
    values = {field.name: getattr(arguments, field.name) for field in fields(Arguments)}
    for name, rule in _RULES.items():
        values[name] = rule(name, values[name])
    settings = Settings(**values)
    _check_callbacks(settings)
    if settings.min_steps and arguments.min_epochs is None:
        settings.min_epochs = 1
    if settings.barebones:
        _apply_barebones(settings)
    if settings.overfit_batches:
        settings.limit_train_batches = settings.limit_val_batches = settings.overfit_batches
    if settings.fast_dev_run:
        _apply_fast_dev_run(settings)
    return settings


def _whole(minimum: int, default: int | None = None, error: type[Exception] = MisconfigurationException) -> Rule:
    """A whole number of at least `minimum`; None, where allowed by a default, stands for the default."""

    def rule(name: str, value: Any) -> Any:
        if value is None and default is not None:
            return default
        if not _is_whole(value) or value < minimum:
            raise error(f"{name}={value!r} is not a whole number of at least {minimum}.{_UNLIMITED.get(name, '')}")
        return value

    return rule


def _optional(rule: Rule) -> Rule:
    """None, or what `rule` allows."""
    return lambda name, value: None if value is None else rule(name, value)


def _flag(default: bool | None) -> Rule:
    """A bool; None stands for the default."""

    def rule(name: str, value: Any) -> Any:
        if value is None:
            return default
        if not isinstance(value, bool) and value not in (0, 1):
            raise MisconfigurationException(f"{name}={value!r} is neither True nor False. Use one of them.")
        return bool(value)

    return rule


def _batches(default: int | float) -> Rule:
    """A count of batches as an int, or a fraction of them as a float from 0 to 1."""

    def rule(name: str, value: Any) -> Any:
        if value is None:
            return default
        return _count_or_fraction(name, value)

    return rule


def _count_or_fraction(name: str, value: Any) -> int | float:
    advice = "Use an int of at least 0 for a number of batches, or a float from 0.0 to 1.0 for a fraction."
    if not isinstance(value, (int, float)):
        raise MisconfigurationException(f"{name}={value!r} is not a number. {advice}")
    if not math.isfinite(value):
        raise MisconfigurationException(f"{name}={value!r} is not finite. {advice}")
    if value < 0 or (isinstance(value, float) and value > 1 and not value.is_integer()):
        raise MisconfigurationException(f"{name}={value!r} is out of range. {advice}")
    return int(value) if isinstance(value, int) or value > 1 else value


def _val_check_interval(name: str, value: Any) -> int | float | timedelta:
    if value is None:
        return 1.0
    if isinstance(value, (str, timedelta, Mapping)):
        return _duration(name, value)
    if isinstance(value, (int, float)) and value == 0:
        raise MisconfigurationException(f"{name}={value!r} is no interval. Use limit_val_batches=0 to skip validation.")
    return _count_or_fraction(name, value)


def _duration(name: str, value: Any) -> timedelta:
    from fulgur.callbacks.timer import parse_duration

    duration = parse_duration(value, name)
    assert duration is not None
    return duration


def _num_sanity_val_steps(name: str, value: Any) -> int | float:
    if value is None:
        return 2
    if value in (-1, math.inf):
        return math.inf
    if not _is_whole(value) or value < 0:
        raise MisconfigurationException(
            f"{name}={value!r} is no number of batches. Use 0 for none, -1 for all, or a whole number."
        )
    return int(value)


def _fast_dev_run(name: str, value: Any) -> int | bool:
    if not isinstance(value, int) or value < 0:
        raise MisconfigurationException(f"{name}={value!r} is no number of batches. Use True for 1, or a whole number.")
    return int(value) if value > 1 else bool(value)


def _gradient_clip_val(name: str, value: Any) -> int | float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is not a number. Use an int or a float, or None not to clip.")
    if math.isnan(value):
        raise MisconfigurationException(f"{name}={value!r} is not a number. Use a positive one, or None not to clip.")
    return value


def _gradient_clip_algorithm(name: str, value: Any) -> Literal["norm", "value"] | None:
    if value is None:
        return None
    text = str(getattr(value, "value", value)).lower()
    if text == "norm" or text == "value":
        return "norm" if text == "norm" else "value"
    raise MisconfigurationException(f"{name}={value!r} is unknown. Use 'norm' or 'value'.")


def _deterministic(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool) or value == "warn":
        return value
    raise MisconfigurationException(f"{name}={value!r} is unknown. Use True, False or 'warn'.")


def _callbacks(name: str, value: Any) -> list[Callback]:
    given = [] if value is None else [value] if isinstance(value, Callback) else value
    if not isinstance(given, (list, tuple)):
        hint = " Did you forget to call it?" if isinstance(value, type) else ""
        raise MisconfigurationException(
            f"{name}={value!r} is neither a Callback nor a list of them.{hint} Use a list of Callback objects."
        )
    for callback in given:
        if not isinstance(callback, Callback):
            hint = " Did you forget to call it?" if isinstance(callback, type) else ""
            raise MisconfigurationException(f"{name} holds {callback!r}, which is not a Callback.{hint}")
    return list(given)


def _default_root_dir(name: str, value: Any) -> str:
    if value is None:
        return os.getcwd()
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}={value!r} is no path. Use a str or a Path, or None for the working directory.")
    path: str = os.fspath(value)
    return path if "://" in path else os.path.normpath(os.path.expanduser(path))


def _model_registry(name: str, value: Any) -> str | None:
    return None if value is None else str(value).partition(":")[0]


def _uneven_loaders(name: str, value: Any) -> Literal["join", "error"]:
    if value is None or value == "join" or value == "error":
        return value or "join"
    raise MisconfigurationException(
        f"{name}={value!r} is unknown. Use 'join': ranks whose loader has ended wait for the others; or 'error'."
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_UNLIMITED = {
    "max_epochs": " Use -1 for no limit.",
    "max_steps": " Use -1 for no limit.",
    "check_val_every_n_epoch": " Use None to count batches across epochs.",
    "log_every_n_steps": " Use 0 to log no steps.",
    "accumulate_grad_batches": " Use GradientAccumulationScheduler for one that changes with the epoch.",
}

_RULES: dict[str, Rule] = {
    "num_nodes": _whole(1, error=ValueError),
    "callbacks": _callbacks,
    "fast_dev_run": _fast_dev_run,
    "max_epochs": _optional(_whole(-1)),
    "min_epochs": _whole(0, default=0),
    "max_steps": _whole(-1, default=-1),
    "min_steps": _optional(_whole(0)),
    "max_time": _optional(_duration),
    "limit_train_batches": _batches(1.0),
    "limit_val_batches": _batches(1.0),
    "limit_test_batches": _batches(1.0),
    "limit_predict_batches": _batches(1.0),
    "overfit_batches": _batches(0.0),
    "val_check_interval": _val_check_interval,
    "check_val_every_n_epoch": _optional(_whole(1)),
    "num_sanity_val_steps": _num_sanity_val_steps,
    "log_every_n_steps": _whole(0, default=50),
    "enable_checkpointing": _flag(True),
    "enable_progress_bar": _flag(True),
    "enable_model_summary": _flag(True),
    "accumulate_grad_batches": _whole(1),
    "gradient_clip_val": _gradient_clip_val,
    "gradient_clip_algorithm": _gradient_clip_algorithm,
    "deterministic": _deterministic,
    "benchmark": _flag(None),
    "inference_mode": _flag(True),
    "use_distributed_sampler": _flag(True),
    "uneven_loaders": _uneven_loaders,
    "detect_anomaly": _flag(False),
    "barebones": _flag(False),
    "sync_batchnorm": _flag(False),
    "reload_dataloaders_every_n_epochs": _whole(0),
    "default_root_dir": _default_root_dir,
    "enable_autolog_hparams": _flag(True),
    "model_registry": _model_registry,
}

_OFF_WHEN_BAREBONES = (
    "enable_checkpointing",
    "logger",
    "enable_progress_bar",
    "enable_model_summary",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "fast_dev_run",
    "detect_anomaly",
    "profiler",
)


def _check_barebones(arguments: Arguments) -> None:
    if not arguments.barebones:
        return
    for name in _OFF_WHEN_BAREBONES:
        value = getattr(arguments, name)
        if value:
            raise ValueError(
                f"barebones=True and {name}={value!r} contradict each other: barebones=True switches {name} off. "
                "Leave out one of the two."
            )


def _check_validation_interval(arguments: Arguments) -> None:
    interval = arguments.val_check_interval
    if arguments.check_val_every_n_epoch is None and isinstance(interval, float):
        raise MisconfigurationException(
            f"val_check_interval={interval!r} is a fraction of an epoch, but check_val_every_n_epoch=None counts "
            "batches across epochs. Give val_check_interval as an int or a duration, or set check_val_every_n_epoch=1."
        )


def _check_callbacks(settings: Settings) -> None:
    if not settings.callbacks:
        return
    from fulgur.callbacks.checkpoint import Checkpoint
    from fulgur.callbacks.progress import ProgressBar

    bars = [callback for callback in settings.callbacks if isinstance(callback, ProgressBar)]
    checkpoints = [callback for callback in settings.callbacks if isinstance(callback, Checkpoint)]
    if len(bars) > 1:
        raise MisconfigurationException(f"callbacks holds {len(bars)} progress bars: {_names(bars)}. Keep one.")
    if bars and not settings.enable_progress_bar:
        raise MisconfigurationException(
            f"enable_progress_bar=False and the callback {_names(bars)} contradict each other. "
            "Leave out one of the two."
        )
    if checkpoints and not settings.enable_checkpointing:
        raise MisconfigurationException(
            f"enable_checkpointing=False and the callback {_names(checkpoints)} contradict each other. "
            "Leave out one of the two."
        )


def _names(callbacks: list[Any]) -> str:
    return ", ".join(type(callback).__name__ for callback in callbacks)


def _apply_barebones(settings: Settings) -> None:
    settings.enable_checkpointing = settings.enable_progress_bar = settings.enable_model_summary = False
    settings.logger = False
    settings.log_every_n_steps = settings.num_sanity_val_steps = 0


def _apply_fast_dev_run(settings: Settings) -> None:
    n_batches = int(settings.fast_dev_run)
    settings.limit_train_batches = settings.limit_val_batches = n_batches
    settings.limit_test_batches = settings.limit_predict_batches = n_batches
    settings.max_steps = n_batches
    settings.max_epochs = 1
    settings.num_sanity_val_steps = 0
    settings.val_check_interval = 1.0
    settings.check_val_every_n_epoch = 1
    settings.enable_checkpointing = False
    settings.log_every_n_steps = min(settings.log_every_n_steps, 1)
