"""One logged name: what is kept of it, what its options mean, and where each hook may log."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fulgur.errors import MisconfigurationException

Reduction = Literal["mean", "sum", "min", "max"]

_REDUCTIONS: dict[Any, Reduction] = {
    "mean": "mean",
    "avg": "mean",
    torch.mean: "mean",
    "sum": "sum",
    torch.sum: "sum",
    sum: "sum",
    "min": "min",
    torch.min: "min",
    min: "min",
    "max": "max",
    torch.max: "max",
    max: "max",
}

_COMBINE: dict[str, Any] = {"mean": torch.add, "sum": torch.add, "min": torch.minimum, "max": torch.maximum}

SUFFIX = "/dataloader_idx_"

_STEP, _EPOCH_FREE, _EPOCH_ONLY = (True, False, True), (False, True, True), (False, True, False)

DEFAULTS: dict[str, tuple[bool, bool, bool]] = (
    dict.fromkeys(
        (
            "training_step",
            "on_train_batch_start",
            "on_train_batch_end",
            "on_before_backward",
            "backward",
            "on_after_backward",
            "on_before_optimizer_step",
            "optimizer_step",
            "configure_gradient_clipping",
            "on_before_zero_grad",
            "optimizer_zero_grad",
        ),
        _STEP,
    )
    | dict.fromkeys(
        (
            "validation_step",
            "test_step",
            "on_validation_batch_start",
            "on_validation_batch_end",
            "on_test_batch_start",
            "on_test_batch_end",
        ),
        _EPOCH_FREE,
    )
    | dict.fromkeys(
        (
            "on_train_start",
            "on_train_epoch_start",
            "on_train_epoch_end",
            "on_validation_start",
            "on_validation_epoch_start",
            "on_validation_epoch_end",
            "on_test_start",
            "on_test_epoch_start",
            "on_test_epoch_end",
        ),
        _EPOCH_ONLY,
    )
)


class LogOptions(NamedTuple):
    """The arguments of `self.log` that must be the same at every call for one name in one hook."""

    prog_bar: bool
    logger: bool | None
    on_step: bool | None
    on_epoch: bool | None
    reduce_fx: Any
    enable_graph: bool
    sync_dist: bool | None
    add_dataloader_idx: bool
    metric_attribute: str | None
    rank_zero_only: bool


@dataclass(slots=True)
class Entry:
    """One logged name in one scope.

    Attributes:
        step: Last value, a tensor on its device or a number; None until logged.
        is_free: `step` is a tensor that nobody else has got: the next value is copied into it, which takes half as
            long as a new copy.
        is_fresh: `step` was logged since the last flush.
        is_live: Something was logged since the epoch began.
        is_reduced: The epoch's value is final; further calls belong to the next one.
        final: The epoch's value, once it is final: a tensor of shape () on its device, or a number.
        is_flushed: The epoch's value has been given to loggers and bar.
        total: Running sum (weighted for a mean), minimum or maximum of device values; None until there is one.
        host_total: The same of values that were plain numbers.
        weight: Sum of the batch sizes behind both totals.
        loader: Suffix of the loader it was logged for, even where the keys do not show it.
    """

    name: str
    options: tuple[Any, ...]
    on_step: bool
    on_epoch: bool
    prog_bar: bool
    logger: bool
    reduce: Reduction
    is_local: bool
    keeps_graph: bool
    suffix: str
    loader: str = ""
    metric: Any = None
    step: Any = None
    is_free: bool = False
    is_fresh: bool = False
    is_live: bool = False
    is_reduced: bool = False
    final: Any = None
    is_flushed: bool = False
    dtype: torch.dtype = torch.float32
    total: Tensor | None = None
    host_total: float | None = None
    weight: float = 0.0

    @property
    def key(self) -> str:
        """Name with the loader's suffix: what callbacks monitor."""
        return self.name + self.suffix

    @property
    def step_key(self) -> str:
        return f"{self.name}_step{self.suffix}" if self.on_epoch else self.key

    @property
    def epoch_key(self) -> str:
        return f"{self.name}_epoch{self.suffix}" if self.on_step else self.key

    def add_tensor(self, value: Tensor, weight: float) -> None:
        """Accumulate a tensor of shape () that has no graph."""
        total = self.total
        if total is None:
            self.total = self._first_total(value, weight)
        elif self.reduce == "mean":
            total.add_(value, alpha=weight)
        elif self.reduce == "sum":
            total.add_(value)
        else:
            self.total = (torch.minimum if self.reduce == "min" else torch.maximum)(total, value.to(total.dtype))
        self.weight += weight

    def _first_total(self, value: Tensor, weight: float) -> Tensor:
        """Totals are float64 where the device has it: a long float32 sum would lose the exact mean."""
        if value.dtype is torch.float64 or torch.get_default_dtype() is torch.float64:
            self.dtype = torch.float64
        total = value.to(torch.float32 if value.device.type == "mps" else torch.float64, copy=True)
        return total.mul_(weight) if self.reduce == "mean" else total

    def add_number(self, value: float, weight: float) -> None:
        """Accumulate a plain number on the host."""
        old = self.host_total
        if self.reduce == "mean":
            self.host_total = (old or 0.0) + value * weight
        elif self.reduce == "sum":
            self.host_total = (old or 0.0) + value
        else:
            self.host_total = value if old is None else (min if self.reduce == "min" else max)(old, value)
        self.weight += weight

    def has_epoch_value(self) -> bool:
        if self.metric is not None:
            return self.is_live
        return self.total is not None or self.host_total is not None

    def raw_total(self) -> Any:
        """Sum, minimum or maximum of all that was logged: a tensor of shape () on its device, or a number."""
        total: Any = self.total
        if total is None:
            return 0.0 if self.host_total is None else self.host_total
        if self.host_total is not None:
            of_host = torch.tensor(self.host_total, dtype=total.dtype, device=total.device)
            total = _COMBINE[self.reduce](total, of_host)
        return total

    def epoch_value(self) -> Any:
        """Value over all that was logged: a tensor of shape () on its device, or a number."""
        if self.metric is not None:
            return _computed(self)
        total = self.raw_total()
        if self.reduce == "mean":
            total = total / self.weight if self.weight else total * math.nan  # of samples there were none
        return total.to(self.dtype) if isinstance(total, Tensor) else total

    def step_value(self) -> Any:
        """Last value for loggers and bar; a metric's comes from its own last `forward`, None if only updated."""
        if self.metric is None:
            self.is_free = False
            return self.step
        cached = getattr(self.metric, "_forward_cache", None)
        return cached.detach() if isinstance(cached, Tensor) else cached

    def clear(self) -> None:
        """Start the next epoch: forget everything accumulated, keep the last step value."""
        self.total, self.host_total, self.weight = None, None, 0.0
        if self.metric is not None and self.is_live:
            self.metric.reset()
        self.is_live = self.is_reduced = self.is_flushed = False
        self.final = None


class Key(NamedTuple):
    """What other ranks must know of an entry to have one of their own.

    Attributes:
        hook, suffix: Of the scope it was logged in.
        options: Of `LogOptions`.
        metric: Path of the metric object within the module; None where it is none.
        dtype: Of the value; None where it was a plain number.
        lists: For each state of the metric object that is a list, its name with shape beyond the first dimension and
            dtype of what is in it; None where nothing is.
    """

    hook: str
    suffix: str
    name: str
    reduce: str
    options: tuple[Any, ...]
    metric: str | None
    dtype: torch.dtype | None
    lists: tuple[tuple[str, tuple[tuple[int, ...], torch.dtype] | None], ...] = ()

    @property
    def is_filled(self) -> bool:
        """Whether every list has something in it."""
        return all(content is not None for _, content in self.lists)

    @property
    def shown(self) -> str:
        """As users know it."""
        return f"{self.name}{self.suffix}"


@dataclass(slots=True)
class Scope:
    """One hook, for one loader, in which `self.log` may be called.

    Attributes:
        hook: Name of the hook.
        stage: "train", "validate" or "test": whose epoch the values belong to.
        on_step, on_epoch: Defaults of the arguments of the same names.
        is_free: Whether both arguments may be given; if not, only the defaults are right.
        suffix: Appended to every key, to tell several loaders apart.
    """

    hook: str
    stage: str
    on_step: bool
    on_epoch: bool
    is_free: bool
    suffix: str = ""
    entries: dict[str, Entry] = field(default_factory=dict)


def build_entry(name: str, given: LogOptions, scope: Scope) -> Entry:
    on_step = scope.on_step if given.on_step is None else bool(given.on_step)
    on_epoch = scope.on_epoch if given.on_epoch is None else bool(given.on_epoch)
    if not on_step and not on_epoch:
        raise MisconfigurationException(
            f"self.log({name!r}, on_step=False, on_epoch=False) would keep nothing. Set one of them to True."
        )
    if not scope.is_free and (on_step, on_epoch) != (scope.on_step, scope.on_epoch):
        raise MisconfigurationException(
            f"self.log({name!r}, on_step={on_step}, on_epoch={on_epoch}) is not possible in {scope.hook}, which runs "
            f"once an epoch: only on_step={scope.on_step}, on_epoch={scope.on_epoch}, its defaults."
        )
    return Entry(
        name=name,
        options=tuple(given),
        on_step=on_step,
        on_epoch=on_epoch,
        prog_bar=given.prog_bar,
        logger=given.logger is not False,
        reduce=_reduction(name, given.reduce_fx),
        is_local=given.sync_dist is False or given.rank_zero_only,
        keeps_graph=given.enable_graph,
        suffix=scope.suffix if given.add_dataloader_idx else "",
        loader=scope.suffix,
    )


def _reduction(name: str, given: Any) -> Reduction:
    try:
        return _REDUCTIONS[given]
    except (KeyError, TypeError):
        raise MisconfigurationException(
            f"self.log({name!r}, reduce_fx={given!r}): an epoch's value can be the 'mean', 'sum', 'min' or 'max'. "
            "For anything else log a torchmetrics metric."
        ) from None


def squeezed(name: str, value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise ValueError(not_a_scalar(name, value))
    return value.reshape(())


def _computed(entry: Entry) -> Tensor:
    value = entry.metric.compute()
    if not isinstance(value, Tensor):
        raise ValueError(
            f"self.log({entry.name!r}, {type(entry.metric).__name__}): compute() returned a {type(value).__name__}, "
            "and only a tensor with one element can be logged. Log its parts one by one."
        )
    return squeezed(entry.name, value.detach())


def as_tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.tensor(float(value))
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def not_a_scalar(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        return (
            f"self.log({name!r}, value): value has shape {tuple(value.shape)}, and only one element can be logged. "
            "Reduce it first, for example with value.mean()."
        )
    if hasattr(value, "items"):  # a MetricCollection too
        kind = type(value).__name__
        return f"self.log({name!r}, value): value is a {kind}. Log its items one by one, or use self.log_dict."
    return (
        f"self.log({name!r}, value): value is {value!r:.80} of type {type(value).__name__}; a tensor with one element, "
        "a number or a torchmetrics metric is needed."
    )


def differences(known: LogOptions, given: LogOptions) -> str:
    return ", ".join(
        f"{field}={a!r} and {field}={b!r}"
        for field, a, b in zip(LogOptions._fields, known, given, strict=True)
        if a != b
    )
