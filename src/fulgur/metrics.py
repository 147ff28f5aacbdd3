"""What `self.log` keeps: values on their device, sums with their weights, and one copy to the host per flush.

Reading order: `MetricLog.log` (called in every step) -> `flush_step` (every `log_every_n_steps`) -> `reduce_epoch`
(once an epoch). A `Scope` is one hook of one loader; the loops say which is running by assigning `MetricLog.scope`.
Nothing here waits for the device but `_to_host`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fulgur.data.transfer import find_batch_size
from fulgur.errors import MisconfigurationException, nearest_name

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
        is_fresh: `step` was logged since the last flush.
        is_live: Something was logged since the epoch began.
        is_reduced: The epoch's value is final; further calls belong to the next one.
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
    is_fresh: bool = False
    is_live: bool = False
    is_reduced: bool = False
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
        """Accumulate a detached tensor of shape ()."""
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

    def epoch_value(self) -> Any:
        """Value over all that was logged: a tensor of shape () on its device, or a number."""
        if self.metric is not None:
            return _computed(self)
        total: Any = self.total
        if total is None:
            total = self.host_total
        elif self.host_total is not None:
            of_host = torch.tensor(self.host_total, dtype=total.dtype, device=total.device)
            total = _COMBINE[self.reduce](total, of_host)
        if self.reduce == "mean":
            total = total / self.weight
        return total.to(self.dtype) if isinstance(total, Tensor) else total

    def step_value(self) -> Any:
        """Last value for loggers and bar; a metric's comes from its own last `forward`, None if only updated."""
        if self.metric is None:
            return self.step
        cached = getattr(self.metric, "_forward_cache", None)
        return cached.detach() if isinstance(cached, Tensor) else cached

    def clear(self) -> None:
        """Start the next epoch: forget everything accumulated, keep the last step value."""
        self.total, self.host_total, self.weight = None, None, 0.0
        if self.metric is not None and self.is_live:
            self.metric.reset()
        self.is_live = self.is_reduced = self.is_flushed = False


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


class LoggedValues(dict[str, Any]):
    """Values by name; asking for one that is not there tells which there are."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(
            f"{name!r} was not logged. Logged so far: {', '.join(map(repr, sorted(self))) or 'nothing'}."
            f"{nearest_name(str(name), self)}"
        )


class MetricLog:
    """Everything a run has logged.

    Attributes:
        scope: The hook that runs now; None where logging is not allowed.
        batch: The batch that runs now, to infer its size from; None outside of batches.
        batch_size: Size of `batch`, once someone asked.
        has_eval_steps: Whether an evaluation logs values per batch.
        is_enabled: False under ``Trainer(barebones=True)``: logging does nothing.
        sync: Replaces totals and weights by those of all ranks, in one collective. None on one process.
        callback_metrics, logged_metrics, progress_bar_metrics: As of the last flush; `refresh` brings them up to date.
    """

    def __init__(self) -> None:
        self.scope: Scope | None = None
        self.batch: Any = None
        self.batch_size: int | None = None
        self.has_eval_steps = False
        self.is_enabled = True
        self.sync: Callable[[list[Entry]], None] | None = None
        self.module: Any = None
        self.callback_metrics: dict[str, Any] = LoggedValues()
        self.logged_metrics: dict[str, Any] = LoggedValues()
        self.progress_bar_metrics: dict[str, float] = {}
        self._scopes: dict[tuple[str, str], Scope] = {}

    def reset(self, module: Any, *, is_enabled: bool = True) -> None:
        """Forget everything, at the start of a run of `module`."""
        sync = self.sync
        self.__init__()  # type: ignore[misc]
        self.module, self.is_enabled, self.sync = module, is_enabled, sync

    def scope_of(self, hook: str, suffix: str = "") -> Scope:
        """The scope of `hook` for one loader, the same object until `reset`."""
        found = self._scopes.get((hook, suffix))
        if found is None:
            stage = "validate" if "validation" in hook else "test" if "test" in hook else "train"
            found = self._scopes[hook, suffix] = Scope(hook, stage, *_DEFAULTS[hook], suffix)
        return found

    # ------------------------------------------------------------------------------------------- called in a step

    def log(self, name: str, value: Any, options: tuple[Any, ...], batch_size: int | None = None) -> None:
        """Keep `value` under `name`. Never waits for the device.

        Args:
            name: Key, without suffixes.
            value: Tensor with one element, number, or torchmetrics metric.
            options: The fields of `LogOptions`, in their order.
            batch_size: Weight of the value in the epoch's mean; None infers it from the batch.

        Raises:
            MisconfigurationException: Not allowed here, or not with these options, or no batch size can be found.
            ValueError: `value` is none of the three.
        """
        scope = self.scope
        entry = scope.entries.get(name) if scope is not None else None
        if entry is None or entry.options != options:
            entry = self._entry(name, value, options)
            if entry is None:
                return
        entry.is_fresh = entry.is_live = True
        weight: Any = batch_size or self.batch_size
        if weight is None and entry.on_epoch:
            if entry.reduce != "mean" or entry.metric is not None:
                weight = 1
            else:
                weight = self.batch_size = find_batch_size(self.batch)  # once a batch
                if weight is None:
                    weight = self._weight_without_size(name, value)
        if isinstance(value, Tensor):
            if value.ndim:
                value = _squeezed(name, value)
            plain = value.detach()
            if entry.on_step:
                entry.step = value.clone() if entry.keeps_graph else plain.clone()  # the user may go on in place
            if entry.on_epoch:
                total = entry.total
                if total is not None and entry.reduce == "mean":
                    total.add_(plain, alpha=weight)
                    entry.weight += weight
                else:
                    entry.add_tensor(plain, weight)
        elif isinstance(value, (int, float)):
            entry.step = value
            if entry.on_epoch:
                entry.add_number(value, weight)
        elif isinstance(value, Real):  # of numpy
            self.log(name, float(value), options, batch_size)
        elif entry.metric is None:
            raise ValueError(_not_a_scalar(name, value))

    def _weight_without_size(self, name: str, value: Any) -> int:
        """1 for numbers and where there is no batch; an error where a mean of tensors would be wrong."""
        if self.batch is None or not isinstance(value, Tensor):
            return 1
        raise MisconfigurationException(
            f"self.log({name!r}, ...) averages over the epoch, weighted by batch size, and the batch (a "
            f"{type(self.batch).__name__}) holds no tensor to read the size from. "
            f"Pass it: self.log({name!r}, value, batch_size=n)."
        )

    # ------------------------------------------------------------------------------------------ first call of a name

    def _entry(self, name: str, value: Any, options: tuple[Any, ...]) -> Entry | None:
        """Check a first call and make its entry; None where logging is switched off."""
        if not self.is_enabled:
            return None
        scope, given = self.scope, LogOptions(*options)
        if scope is None:
            raise MisconfigurationException(_not_allowed(name))
        known = scope.entries.get(name)
        if known is not None and known.options is _RESTORED:
            known.options, known.metric = options, self._metric_object(name, value, given)
            return known
        if known is not None:
            raise MisconfigurationException(
                f"self.log({name!r}, ...) was called twice in {scope.hook} with different arguments: "
                f"{_differences(LogOptions(*known.options), given)}. Use the same arguments, or another name."
            )
        self._check_suffix(name, given, scope)
        entry = _build_entry(name, given, scope)
        entry.metric = self._metric_object(name, value, given)
        scope.entries[name] = entry
        self.has_eval_steps |= entry.on_step and scope.stage != "train"
        return entry

    def _check_suffix(self, name: str, given: LogOptions, scope: Scope) -> None:
        if not isinstance(name, str):
            raise TypeError(f"self.log({name!r:.80}, ...): the name comes first and is a str: self.log('loss', value).")
        if given.add_dataloader_idx:
            if SUFFIX in name:
                raise MisconfigurationException(
                    f"self.log({name!r}, ...): the part {SUFFIX!r} is added for you when there are several loaders. "
                    "Leave it out, or pass add_dataloader_idx=False."
                )
            return
        for (hook, suffix), other in self._scopes.items():
            if hook == scope.hook and suffix != scope.suffix and name in other.entries:
                raise MisconfigurationException(
                    f"self.log({name!r}, ..., add_dataloader_idx=False) was called for two loaders in {hook}: their "
                    "values would be mixed. Leave add_dataloader_idx=True, or put the loader's index into the name."
                )

    def _metric_object(self, name: str, value: Any, given: LogOptions) -> Any:
        """`value` if it is a torchmetrics metric, which the module must own so that its state follows the module."""
        torchmetrics = sys.modules.get("torchmetrics")
        if torchmetrics is None or not isinstance(value, torchmetrics.Metric):
            return None
        if given.metric_attribute is not None or self.module is None:
            return value
        if not any(value is child for child in self.module.modules()):
            kind = type(value).__name__
            raise MisconfigurationException(
                f"self.log({name!r}, metric) got a {kind} that is no submodule of the LightningModule: it would "
                f"neither move to the device nor be saved. Assign it in __init__: "
                f"self.metric = {kind}(...)."
            )
        return value

    # ----------------------------------------------------------------------------------------------------- state

    def state_dict(self, *, with_sums: bool) -> dict[str, Any]:
        """What a checkpoint keeps: latest values and, within an epoch, the sums of its training values."""
        self.refresh()
        state: dict[str, Any] = {
            "callback": dict(self.callback_metrics),
            "logged": dict(self.logged_metrics),
            "progress_bar": dict(self.progress_bar_metrics),
        }
        if with_sums:
            paths = {id(part): path for path, part in self.module.named_modules()}
            state["entries"] = [
                {"hook": scope.hook, "suffix": scope.suffix, "metric": paths.get(id(entry.metric))}
                | {name: getattr(entry, name) for name in _SAVED}
                for scope in self._scopes.values()
                if scope.stage == "train"
                for entry in scope.entries.values()
                if entry.is_live
            ]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Metric objects keep their own state."""
        self.callback_metrics.update(state["callback"])
        self.logged_metrics.update(state["logged"])
        self.progress_bar_metrics.update(state["progress_bar"])
        for saved in state.get("entries", ()):
            values = {name: saved[name] for name in _SAVED}
            metric = self.module.get_submodule(saved["metric"]) if saved["metric"] is not None else None
            entry = Entry(options=_RESTORED, suffix=saved["suffix"], metric=metric, **values)
            self.scope_of(saved["hook"], saved["suffix"]).entries[entry.name] = entry

    # -------------------------------------------------------------------------------------------------- reading

    def entries(self, stage: str) -> list[Entry]:
        """Entries of one stage, in the order of their first call."""
        return [e for scope in self._scopes.values() if scope.stage == stage for e in scope.entries.values()]

    def flush_step(self) -> dict[str, float]:
        """What the loggers get after a training step, in one copy with the values of the progress bar."""
        wanted = [e for e in self.entries("train") if e.is_fresh and e.on_step and (e.logger or e.prog_bar)]
        pairs = [(e, v) for e in wanted if (v := e.step_value()) is not None]
        logged: dict[str, float] = {}
        for (entry, value), number in zip(pairs, to_host([v for _, v in pairs]), strict=True):
            entry.is_fresh = False
            if entry.logger:
                logged[entry.step_key] = number
                self.logged_metrics[entry.step_key] = _as_tensor(value)
            if entry.prog_bar:
                self.progress_bar_metrics[entry.step_key] = number
        return logged

    def take_eval_step(self, stage: str) -> dict[str, Any]:
        """Per-batch values of an evaluation, still on their device."""
        taken = {}
        for entry in self.entries(stage):
            is_wanted = entry.is_fresh and entry.on_step and entry.logger
            if is_wanted and (value := entry.step_value()) is not None:
                taken[entry.step_key] = value
                self.logged_metrics[entry.step_key] = _as_tensor(value)
            entry.is_fresh = False
        return taken

    def reduce_epoch(self, stage: str) -> list[Entry]:
        """Make the epoch's values of `stage` final, as far as logged, and show them to callbacks.

        With several ranks all ranks must reach this. Called before the hooks of an epoch's end, and after them for
        what they logged themselves.

        Returns:
            The entries made final by this call.
        """
        if stage == "train":
            self.refresh()
        ready = [e for e in self.entries(stage) if e.on_epoch and not e.is_reduced and e.has_epoch_value()]
        if self.sync is not None:
            self.sync(ready)  # all ranks must reach this
        for entry in ready:
            entry.is_reduced = True
            value = _as_tensor(entry.epoch_value())
            self.callback_metrics[entry.key] = value
            if entry.on_step:
                self.callback_metrics[entry.epoch_key] = value
        return ready

    def flush_epoch(self, stage: str) -> list[tuple[Entry, float]]:
        """Final values of `stage` that were not given yet, in one copy to the host, for loggers, bar and results."""
        final = [e for e in self.entries(stage) if e.is_reduced and not e.is_flushed]
        shown = self._shown_steps(stage)
        values = [e.epoch_value() for e in final]
        numbers = to_host(values + [value for _, value in shown])
        for entry, value, number in zip(final, values, numbers, strict=False):
            entry.is_flushed = True
            if entry.logger:
                self.logged_metrics[entry.epoch_key] = _as_tensor(value)
            if entry.prog_bar:
                self.progress_bar_metrics[entry.epoch_key] = number
        for (key, _), number in zip(shown, numbers[len(final) :], strict=True):
            self.progress_bar_metrics[key] = number
        return list(zip(final, numbers, strict=False))

    def clear(self, stage: str) -> None:
        """Forget what `stage` has accumulated."""
        for entry in self.entries(stage):
            entry.clear()
            entry.is_fresh &= stage == "train"  # a train value may still wait for its flush

    def refresh(self) -> None:
        """Bring `callback_metrics` up to the last training step. Does not wait for the device."""
        for entry in self.entries("train"):
            if entry.is_live and not entry.is_reduced and entry.on_step and (value := entry.step_value()) is not None:
                self.callback_metrics[entry.key] = self.callback_metrics[entry.step_key] = _as_tensor(value)

    def refresh_progress_bar(self) -> None:
        """Bring `progress_bar_metrics` up to the last step."""
        shown = [pair for stage in ("train", "validate", "test") for pair in self._shown_steps(stage)]
        for (key, _), number in zip(shown, to_host([value for _, value in shown]), strict=True):
            self.progress_bar_metrics[key] = number

    def _shown_steps(self, stage: str) -> list[tuple[str, Any]]:
        """Step values of the running epoch that the progress bar wants, by key, still on their device."""
        live = [e for e in self.entries(stage) if e.is_live and e.prog_bar and e.on_step]
        return [(e.step_key, value) for e in live if (value := e.step_value()) is not None]


def to_host(values: list[Any]) -> list[float]:
    """Values as Python numbers; all tensors of one device in one copy."""
    result: list[float] = [0.0] * len(values)
    by_device: dict[torch.device, list[int]] = {}
    for index, value in enumerate(values):
        if isinstance(value, Tensor):
            by_device.setdefault(value.device, []).append(index)
        else:
            result[index] = float(value)
    for device, indices in by_device.items():
        wide = torch.float32 if device.type == "mps" else torch.float64
        stacked = torch.stack([values[i].detach().reshape(()).to(wide) for i in indices])
        for index, number in zip(indices, stacked.tolist(), strict=True):  # waits for the device
            result[index] = number
    return result


SUFFIX = "/dataloader_idx_"
_STEP, _EPOCH_FREE, _EPOCH_ONLY = (True, False, True), (False, True, True), (False, True, False)
_RESTORED: tuple[Any, ...] = ("restored",)
"""Stands for the options of an entry from a checkpoint, until its first call."""

_SAVED = (
    "name",
    "on_step",
    "on_epoch",
    "prog_bar",
    "logger",
    "reduce",
    "is_local",
    "keeps_graph",
    "step",
    "is_fresh",
    "is_live",
    "dtype",
    "total",
    "host_total",
    "weight",
)
_DEFAULTS: dict[str, tuple[bool, bool, bool]] = (
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


def _build_entry(name: str, given: LogOptions, scope: Scope) -> Entry:
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


def _squeezed(name: str, value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise ValueError(_not_a_scalar(name, value))
    return value.reshape(())


def _computed(entry: Entry) -> Tensor:
    value = entry.metric.compute()
    if not isinstance(value, Tensor):
        raise ValueError(
            f"self.log({entry.name!r}, {type(entry.metric).__name__}): compute() returned a {type(value).__name__}, "
            "and only a tensor with one element can be logged. Log its parts one by one."
        )
    return _squeezed(entry.name, value.detach())


def _as_tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.tensor(float(value))
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def _not_a_scalar(name: str, value: Any) -> str:
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


def _differences(known: LogOptions, given: LogOptions) -> str:
    return ", ".join(
        f"{field}={a!r} and {field}={b!r}"
        for field, a, b in zip(LogOptions._fields, known, given, strict=True)
        if a != b
    )


def _not_allowed(name: str) -> str:
    """Say where the call came from: only on the error's way are the frames worth a look."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back  # type: ignore[assignment]
    hook = None
    while frame is not None and hook is None:
        code = frame.f_code.co_name
        if code.startswith(("on_", "configure_", "setup", "teardown", "predict_", "prepare_")) or code.endswith(
            ("_dataloader", "_step", "state_dict", "_transfer", "_to_device")
        ):
            hook = code
        frame = frame.f_back  # type: ignore[assignment]
    where = f"in {hook}" if hook is not None else "outside of the steps and hooks of a run"
    return (
        f"self.log({name!r}, ...) cannot be called {where}. It works in training_step, validation_step, test_step and "
        "in the hooks around them that run while an epoch's values are collected."
    )
