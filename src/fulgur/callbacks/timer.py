"""Measure how long each stage takes, and end a fit when its time is over."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

from fulgur.errors import MisconfigurationException, UnknownArgumentError, nearest_name
from fulgur.hooks import Callback, ignores_outputs
from fulgur.rank import rank_zero_info

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer

_STAGES = ("train", "validate", "test", "predict")
_DURATION_UNITS = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")
_DURATION_FORM = re.compile(r"(\d+):(\d\d):(\d\d):(\d\d)")


class Interval(str, Enum):
    """How often a `Timer` looks at the clock."""

    step = "step"
    epoch = "epoch"


class Timer(Callback):
    """Measure wall-clock time, and ask for the end of a fit once `duration` is over.

    The clock of a fit runs from the start of training, validation included, and goes on from where it stood when
    the fit is resumed from a checkpoint. The fit ends at the next check, and not before ``min_epochs`` and
    ``min_steps``. On several ranks every check is a collective, so that all ranks stop together.

    Args:
        duration: Time a fit may take: ``"DD:HH:MM:SS"``, a timedelta, or a dict of its arguments such as
            ``{"hours": 2}``. ``None`` only measures.
        interval: ``"step"`` checks after every batch, ``"epoch"`` after every epoch.
        verbose: Log a line when the time is over.

    Raises:
        MisconfigurationException: `duration` or `interval` cannot be read.

    Example:
        >>> Timer("00:12:00:00").time_remaining()
        43200.0
    """

    def __init__(
        self,
        duration: str | timedelta | Mapping[str, float] | None = None,
        interval: str = "step",
        verbose: bool = True,
    ) -> None:
        limit = parse_duration(duration)
        self._duration_s = math.inf if limit is None else limit.total_seconds()
        self._every_step = _resolve_interval(interval) is Interval.step
        self._verbose = verbose
        self._start: dict[str, float] = {}
        self._end: dict[str, float] = {}
        self._offset_s = 0.0
        self._deadline = math.inf

    def start_time(self, stage: str = "train") -> float | None:
        """When `stage` last started, in seconds of `time.monotonic`; ``None`` if it never did."""
        return self._start.get(_checked(stage))

    def end_time(self, stage: str = "train") -> float | None:
        """When `stage` last ended, in seconds of `time.monotonic`; ``None`` if it has not."""
        return self._end.get(_checked(stage))

    def time_elapsed(self, stage: str = "train") -> float:
        """Seconds spent in the last run of `stage`; for ``"train"`` with those before the resume."""
        stage = _checked(stage)
        offset = self._offset_s if stage == "train" else 0.0
        if stage not in self._start:
            return offset
        return self._end.get(stage, time.monotonic()) - self._start[stage] + offset

    def time_remaining(self, stage: str = "train") -> float | None:
        """Seconds until `duration` is over, negative afterwards; ``None`` without a duration."""
        return None if math.isinf(self._duration_s) else self._duration_s - self.time_elapsed(stage)

    def state_dict(self) -> dict[str, Any]:
        return {"time_elapsed": {stage: self.time_elapsed(stage) for stage in _STAGES}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._forget("train")
        self._offset_s = state_dict.get("time_elapsed", {}).get("train", 0.0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "train" in self._start:
            # Left by an earlier fit; nothing was restored since, so this one starts at zero.
            self._forget("train")
            self._offset_s = 0.0
        self._deadline = time.monotonic() + self._duration_s - self._offset_s
        self._stop_when_over(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("train")
        self._deadline = self._start["train"] + self._duration_s - self._offset_s

    @ignores_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._every_step and time.monotonic() >= self._deadline:
            self._stop_when_over(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._every_step:
            self._stop_when_over(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end["train"] = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._begin("validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._end["validate"] = time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end["test"] = time.monotonic()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("predict")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end["predict"] = time.monotonic()

    def _begin(self, stage: str) -> None:
        self._end.pop(stage, None)
        self._start[stage] = time.monotonic()

    def _forget(self, stage: str) -> None:
        self._start.pop(stage, None)
        self._end.pop(stage, None)

    def _stop_when_over(self, trainer: Trainer) -> None:
        if time.monotonic() >= self._deadline and not trainer.should_stop:  # on any rank, for all of them
            trainer.should_stop = True
            if self._verbose:
                rank_zero_info(f"Time limit of {timedelta(seconds=self._duration_s)} reached. Stopping.")


def parse_duration(value: object, name: str = "duration") -> timedelta | None:
    """Read a duration in any of the forms that arguments accept.

    Args:
        value: ``"DD:HH:MM:SS"``, a timedelta, a mapping of the arguments of one, or ``None``.
        name: Name of the argument, for errors.

    Raises:
        MisconfigurationException: A string has another form, or a mapping has an unknown unit.
        TypeError: `value` is of another type.

    Example:
        >>> parse_duration("01:00:30:00")
        datetime.timedelta(days=1, seconds=1800)
    """
    if value is None or isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        return _parse_text(value, name)
    if isinstance(value, Mapping):
        for unit in value:
            if unit not in _DURATION_UNITS:
                hint = nearest_name(str(unit), _DURATION_UNITS)
                raise UnknownArgumentError(
                    f"{name}={dict(value)!r} has the unit {unit!r}.{hint} Units are {', '.join(_DURATION_UNITS)}."
                )
        return timedelta(**value)
    raise TypeError(
        f"{name}={value!r} is of type {type(value).__name__}. Use 'DD:HH:MM:SS', a timedelta, or a dict such as "
        "{'hours': 2}."
    )


def _parse_text(text: str, name: str) -> timedelta:
    match = _DURATION_FORM.fullmatch(text.strip())
    if match is None:
        raise MisconfigurationException(
            f"{name}={text!r} is not of the form 'DD:HH:MM:SS' (days:hours:minutes:seconds), for example '00:12:00:00'."
        )
    days, hours, minutes, seconds = map(int, match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _resolve_interval(interval: str) -> Interval:
    try:
        return Interval(interval)
    except ValueError:
        raise MisconfigurationException(f"Timer(interval={interval!r}): use 'step' or 'epoch'.") from None


def _checked(stage: str) -> str:
    if stage not in _STAGES:
        raise ValueError(f"stage={stage!r} is not one of {', '.join(map(repr, _STAGES))}.")
    # A stage may come as a string enum; its value is the key.
    return str(getattr(stage, "value", stage))
