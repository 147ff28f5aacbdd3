"""What `self.log` keeps: values on their device, sums with their weights, and one copy to the host per flush.

Reading order: `MetricLog.log` (called in every step) -> `flush_step` (every `log_every_n_steps`) -> `reduce_epoch`
(once an epoch). A `Scope` is one hook of one loader; the loops say which is running by assigning `MetricLog.scope`.
Nothing here waits for the device but `to_host`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulgur.data.transfer import find_batch_size
from fulgur.errors import MisconfigurationException, nearest_name
from fulgur.logged import (
    DEFAULTS,
    SUFFIX,
    Entry,
    Key,
    LogOptions,
    Scope,
    as_tensor,
    build_entry,
    differences,
    not_a_scalar,
    squeezed,
)

if TYPE_CHECKING:
    from fulgur.sums import SharedSums


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
        sums: Makes an epoch's totals those of all ranks. None on one process.
        share_step: Reduces the values of one step over all ranks. None on one process.
        ask_to_share: Called when a value of steps is first logged with ``sync_dist=True``; None on one process.
        shares_steps: All ranks have agreed to share what of their steps has ``sync_dist=True``.
        callback_metrics, logged_metrics, progress_bar_metrics: As of the last flush; `refresh` brings them up to date.
    """

    def __init__(self) -> None:
        self.scope: Scope | None = None
        self.batch: Any = None
        self.batch_size: int | None = None
        self.has_eval_steps = False
        self.is_enabled = True
        self.sums: SharedSums | None = None
        self.share_step: Callable[[list[Entry], list[float]], list[float]] | None = None
        self.ask_to_share: Callable[[], None] | None = None
        self.shares_steps = False
        self.module: Any = None
        self.callback_metrics: dict[str, Any] = LoggedValues()
        self.logged_metrics: dict[str, Any] = LoggedValues()
        self.progress_bar_metrics: dict[str, float] = {}
        self._scopes: dict[tuple[str, str], Scope] = {}
        self._by_stage: dict[str, list[Entry]] = {}

    def reset(self, module: Any, *, is_enabled: bool = True) -> None:
        """Forget everything, at the start of a run of `module`."""
        self.__init__()  # type: ignore[misc]
        self.module, self.is_enabled = module, is_enabled

    def scope_of(self, hook: str, suffix: str = "") -> Scope:
        """The scope of `hook` for one loader, the same object until `reset`."""
        found = self._scopes.get((hook, suffix))
        if found is None:
            stage = "validate" if "validation" in hook else "test" if "test" in hook else "train"
            found = self._scopes[hook, suffix] = Scope(hook, stage, *DEFAULTS[hook], suffix)
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
        weight: Any = 1
        if entry.on_epoch and entry.reduce == "mean" and entry.metric is None:
            weight = self.batch_size if batch_size is None else batch_size
            if weight is None:
                weight = self.batch_size = find_batch_size(self.batch)  # once a batch
                if weight is None:
                    weight = self._weight_without_size(name, value)
        if isinstance(value, Tensor):
            if value.ndim:
                value = squeezed(name, value)
            if entry.on_step and entry.keeps_graph:
                entry.step = value.clone()
            if value.requires_grad:
                value = value.data  # without its graph, at two thirds of the price of detach()
            if entry.on_step and not entry.keeps_graph:
                step = entry.step
                if entry.is_free and step.dtype is value.dtype and step.device == value.device:
                    step.copy_(value)
                else:
                    entry.step = value.clone()  # the user may go on in place
                    entry.is_free = type(value) is Tensor and not value.is_inference()
            if entry.on_epoch:
                total = entry.total
                if total is not None and entry.reduce == "mean":
                    total.add_(value, alpha=weight)
                    entry.weight += weight
                else:
                    entry.add_tensor(value, weight)
        elif isinstance(value, (int, float)):
            entry.step, entry.is_free = value, False
            if entry.on_epoch:
                entry.add_number(value, weight)
        elif isinstance(value, Real):  # of numpy
            self.log(name, float(value), options, batch_size)
        elif entry.metric is None:
            raise ValueError(not_a_scalar(name, value))

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
                f"{differences(LogOptions(*known.options), given)}. Use the same arguments, or another name."
            )
        self._check_suffix(name, given, scope)
        entry = build_entry(name, given, scope)
        entry.metric = self._metric_object(name, value, given)
        self._add(scope, entry)
        self.has_eval_steps |= entry.on_step and scope.stage != "train"
        if given.sync_dist and entry.on_step and self.ask_to_share is not None:
            self.ask_to_share()
        return entry

    def _add(self, scope: Scope, entry: Entry) -> None:
        scope.entries[entry.name] = entry
        self._by_stage.setdefault(scope.stage, []).append(entry)

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

    def state_dict(self, *, with_sums: bool, before: Mapping[int, dict[str, Any]] | None = None) -> dict[str, Any]:
        """What a checkpoint keeps: latest values and, within an epoch, the sums of its training values.

        Args:
            with_sums: Whether to keep the sums.
            before: Values of the entries at an earlier moment, by ``id``, to keep in the place of those of now.
        """
        self.refresh()
        state: dict[str, Any] = {
            "callback": dict(self.callback_metrics),
            "logged": dict(self.logged_metrics),
            "progress_bar": dict(self.progress_bar_metrics),
        }
        if with_sums:
            paths = {id(part): path for path, part in self.module.named_modules()}
            for entry in self.entries("train"):
                entry.is_free = False
            state["entries"] = [
                {"hook": scope.hook, "suffix": scope.suffix, "metric": paths.get(id(entry.metric))}
                | {name: getattr(entry, name) for name in _SAVED}
                | (before or {}).get(id(entry), {})
                for scope in self._scopes.values()
                if scope.stage == "train"
                for entry in scope.entries.values()
                if entry.is_live and (before is None or id(entry) in before)
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
            self._add(self.scope_of(saved["hook"], saved["suffix"]), entry)

    # -------------------------------------------------------------------------------------------------- reading

    def entries(self, stage: str) -> list[Entry]:
        """Entries of one stage, in the order of their first call."""
        return self._by_stage.get(stage, [])

    def flush_step(self) -> dict[str, float]:
        """What the loggers get after a training step, in one copy with the values of the progress bar."""
        wanted = [e for e in self.entries("train") if e.is_fresh and e.on_step and (e.logger or e.prog_bar)]
        pairs = [(e, v) for e in wanted if (v := e.step_value()) is not None]
        numbers = to_host([v for _, v in pairs])
        if self.shares_steps:
            pairs, numbers = self._share_steps(pairs, numbers)
        logged: dict[str, float] = {}
        for (entry, value), number in zip(pairs, numbers, strict=True):
            entry.is_fresh = False
            if entry.logger:
                logged[entry.step_key] = number
                self.logged_metrics[entry.step_key] = as_tensor(value)
            if entry.prog_bar:
                self.progress_bar_metrics[entry.step_key] = number
        return logged

    def _share_steps(
        self, pairs: list[tuple[Entry, Any]], numbers: list[float]
    ) -> tuple[list[tuple[Entry, Any]], list[float]]:
        """The same, with what was logged with ``sync_dist=True`` reduced over all ranks."""
        assert self.share_step is not None
        chosen = [i for i, (entry, _) in enumerate(pairs) if LogOptions(*entry.options).sync_dist]
        shared = self.share_step([pairs[i][0] for i in chosen], [numbers[i] for i in chosen])
        for i, number in zip(chosen, shared, strict=True):
            numbers[i], pairs[i] = number, (pairs[i][0], number)
        return pairs, numbers

    def keyed_entries(self, stage: str) -> list[tuple[Key, Entry]]:
        """Entries of one stage, each with what other ranks must know to have the same."""
        paths = {id(part): path for path, part in self.module.named_modules()} if self.module is not None else {}
        return [
            (
                Key(
                    hook=scope.hook,
                    suffix=scope.suffix,
                    name=entry.name,
                    reduce=entry.reduce,
                    options=entry.options,
                    metric=paths.get(id(entry.metric)),
                    dtype=entry.dtype if entry.total is not None else None,
                    lists=_list_states(entry.metric) if entry.metric is not None else (),
                ),
                entry,
            )
            for scope in self._scopes.values()
            if scope.stage == stage
            for entry in scope.entries.values()
        ]

    def adopt(self, key: Key) -> Entry:
        """An entry for what only other ranks have logged."""
        scope = self.scope_of(key.hook, key.suffix)
        entry = scope.entries.get(key.name)
        if entry is None:
            entry = build_entry(key.name, LogOptions(*key.options), scope)
            entry.metric = self.module.get_submodule(key.metric) if key.metric is not None else None
            self._add(scope, entry)
        if key.dtype is not None:
            entry.dtype, entry.total = key.dtype, torch.zeros((), dtype=torch.float64)
        entry.is_live = True
        return entry

    def take_eval_step(self, stage: str) -> dict[str, Any]:
        """Per-batch values of an evaluation, still on their device."""
        taken = {}
        for entry in self.entries(stage):
            is_wanted = entry.is_fresh and entry.on_step and entry.logger
            if is_wanted and (value := entry.step_value()) is not None:
                taken[entry.step_key] = value
                self.logged_metrics[entry.step_key] = as_tensor(value)
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
        if self.sums is not None:
            ready = self.sums.share(stage, ready)  # all ranks must reach this
        for entry in ready:
            entry.is_reduced, entry.final = True, entry.epoch_value()
            value = as_tensor(entry.final)
            self.callback_metrics[entry.key] = value
            if entry.on_step:
                self.callback_metrics[entry.epoch_key] = value
        return ready

    def flush_epoch(self, stage: str) -> list[tuple[Entry, float]]:
        """Final values of `stage` that were not given yet, in one copy to the host, for loggers, bar and results."""
        final = [e for e in self.entries(stage) if e.is_reduced and not e.is_flushed]
        shown = self._shown_steps(stage)
        values = [e.final for e in final]
        numbers = to_host(values + [value for _, value in shown])
        for entry, value, number in zip(final, values, numbers, strict=False):
            entry.is_flushed = True
            if entry.logger:
                self.logged_metrics[entry.epoch_key] = as_tensor(value)
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
                self.callback_metrics[entry.key] = self.callback_metrics[entry.step_key] = as_tensor(value)

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
        if len(indices) == 1:
            result[indices[0]] = float(values[indices[0]].reshape(()).tolist())  # waits for the device
            continue
        tensors = [values[i].detach() for i in indices]
        if any(tensor.ndim or tensor.dtype is not tensors[0].dtype for tensor in tensors):
            wide = torch.float32 if device.type == "mps" else torch.float64
            tensors = [tensor.reshape(()).to(wide) for tensor in tensors]
        for index, number in zip(indices, torch.stack(tensors).tolist(), strict=True):  # waits for the device
            result[index] = float(number)
    return result


def _list_states(metric: Any) -> tuple[tuple[str, Any], ...]:
    """States of a torchmetrics metric that are lists: name, and what their items are like; None where there is none."""
    found = []
    for name, default in metric._defaults.items():
        items = getattr(metric, name)
        if isinstance(default, list) and isinstance(items, list):
            first = next((item for item in items if isinstance(item, Tensor)), None)
            found.append((name, (tuple(first.shape[1:]), first.dtype) if first is not None and first.ndim else None))
    return tuple(found)


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
