"""Every form that `configure_optimizers` may return, brought into one.

The forms: an optimizer; a list or tuple of them; ``([optimizers], [schedulers])``; a dict with ``"optimizer"``,
``"lr_scheduler"``, ``"monitor"`` and ``"frequency"``; a list or tuple of such dicts; None. Where a scheduler stands, a
dict that configures one may stand too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from fulgur.errors import MisconfigurationException, PossibleUserWarning, nearest_name
from fulgur.rank import rank_zero_warn

_OPTIMIZER_METHODS = ("param_groups", "state", "step", "state_dict", "load_state_dict")
_OPTIMIZER_KEYS = ("optimizer", "lr_scheduler", "monitor", "frequency")
_SCHEDULER_KEYS = (
    "scheduler",
    "interval",
    "frequency",
    "monitor",
    "strict",
    "name",
    "reduce_on_plateau",
    "opt_idx",
)
_FORMS = (
    "Return an optimizer, a list of optimizers, a list of optimizers and a list of schedulers, "
    "a dict with 'optimizer' and 'lr_scheduler', or a list of such dicts."
)


@dataclass(slots=True)
class LRSchedulerConfig:
    """A learning-rate scheduler and when it steps.

    Attributes:
        scheduler: The scheduler.
        name: What `LearningRateMonitor` calls it. None takes the optimizer's class name.
        interval: Whether `frequency` counts ``"epoch"`` or ``"step"``.
        frequency: It steps once every this many intervals. >= 1.
        reduce_on_plateau: Whether its `step` takes the value of `monitor`.
        monitor: Key of the logged metric that it watches.
        strict: Whether it is an error that `monitor` was not logged, or only a skipped step.
        opt_idx: Index of its optimizer in the list of optimizers.
    """

    scheduler: Any
    name: str | None = None
    interval: Literal["epoch", "step"] = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True
    opt_idx: int = 0


@dataclass(slots=True)
class OptimizerSetup:
    """Optimizers and schedulers of a module, in the order returned.

    Attributes:
        optimizers: The optimizers. Empty if `configure_optimizers` returned None.
        schedulers: The schedulers, each with the index of its optimizer.
        frequencies: For how many batches in a row each optimizer is the one that steps, in automatic optimization.
            Empty means that all of them step on every batch.
    """

    optimizers: list[Any] = field(default_factory=list)
    schedulers: list[LRSchedulerConfig] = field(default_factory=list)
    frequencies: list[int] = field(default_factory=list)


def build_optimizers(returned: Any, *, automatic: bool, has_scheduler_step_override: bool) -> OptimizerSetup:
    """Bring what `configure_optimizers` returned into one form, and check it.

    Args:
        returned: The value, in any of the forms named at the top of this file.
        automatic: Whether the loop runs the optimizers and schedulers; False under manual optimization, where the
            settings that only the loop reads are not checked.
        has_scheduler_step_override: Whether the module has its own `lr_scheduler_step`, which may then be handed
            schedulers of any class.

    Raises:
        MisconfigurationException: `returned` has another form, or a scheduler's settings cannot work.
        TypeError: A scheduler has no state that could be saved.
    """
    optimizers, schedulers, frequencies = _split(returned)
    setup = OptimizerSetup(optimizers, [], frequencies)
    for entry in schedulers:
        config = _config(entry)
        config.opt_idx = _optimizer_index(config, optimizers)
        _check_interface(config)
        if automatic:
            _check_stepping(config, has_scheduler_step_override)
        setup.schedulers.append(config)
    return setup


def _split(returned: Any) -> tuple[list[Any], list[Any], list[int]]:
    """Optimizers, schedulers as they were given, and frequencies."""
    if returned is None:
        return [], [], []
    if _is_optimizer(returned):
        return [returned], [], []
    if isinstance(returned, Mapping):
        return _split_dicts([returned])
    if not isinstance(returned, (list, tuple)):
        raise MisconfigurationException(
            f"configure_optimizers returned {_described(returned)}.{_hint(returned)} {_FORMS}"
        )
    if len(returned) == 2 and isinstance(returned[0], list):
        return _optimizers_only(returned[0]), _schedulers_only(returned[1]), []
    if returned and all(isinstance(item, Mapping) for item in returned):
        return _split_dicts(returned)
    return _optimizers_only(returned), [], []


def _split_dicts(entries: Iterable[Mapping[str, Any]]) -> tuple[list[Any], list[Any], list[int]]:
    optimizers: list[Any] = []
    schedulers: list[Any] = []
    frequencies: list[Any] = []
    for entry in entries:
        _warn_of_unknown_keys(entry, _OPTIMIZER_KEYS, "configure_optimizers returned a dict")
        if "optimizer" not in entry:
            raise MisconfigurationException(
                f"configure_optimizers returned a dict with the keys {list(entry)} and no 'optimizer'. "
                "Put the optimizer under 'optimizer'."
            )
        optimizers += _optimizers_only([entry["optimizer"]])
        schedulers += [
            _with_defaults(item, entry.get("monitor"), len(optimizers) - 1)
            for item in _schedulers_only(entry.get("lr_scheduler"))
        ]
        frequencies.append(entry.get("frequency"))
    return optimizers, schedulers, _checked_frequencies(frequencies)


def _with_defaults(scheduler: Any, monitor: str | None, opt_idx: int) -> dict[str, Any]:
    given = dict(scheduler) if isinstance(scheduler, Mapping) else {"scheduler": scheduler}
    return {"monitor": monitor, "opt_idx": opt_idx, **given}


def _checked_frequencies(frequencies: list[Any]) -> list[int]:
    given = [frequency for frequency in frequencies if frequency is not None]
    if not given:
        return []
    if len(given) < len(frequencies):
        raise MisconfigurationException(
            f"Some optimizers have a 'frequency' and some have none: {frequencies}. "
            "Give one to each of them, or to none."
        )
    for frequency in given:
        _require_count(frequency, "an optimizer")
    return given if len(given) > 1 else []


def _optimizers_only(items: Iterable[Any]) -> list[Any]:
    optimizers = list(items)
    for optimizer in optimizers:
        if not _is_optimizer(optimizer):
            raise MisconfigurationException(
                f"configure_optimizers returned {_described(optimizer)} where an optimizer belongs.{_hint(optimizer)} "
                f"{_FORMS}"
            )
    return optimizers


def _schedulers_only(schedulers: Any) -> list[Any]:
    if schedulers is None:
        return []
    return list(schedulers) if isinstance(schedulers, (list, tuple)) else [schedulers]


def _is_optimizer(value: Any) -> bool:
    return not isinstance(value, type) and all(hasattr(value, name) for name in _OPTIMIZER_METHODS)


def _config(entry: Any) -> LRSchedulerConfig:
    """A scheduler, or a dict that configures one, as a config with nothing checked but its own values."""
    if isinstance(entry, LRSchedulerConfig):
        return entry
    given = dict(entry) if isinstance(entry, Mapping) else {"scheduler": entry}
    _warn_of_unknown_keys(given, _SCHEDULER_KEYS, "An lr_scheduler dict")
    scheduler = given.get("scheduler")
    if scheduler is None:
        keys = [key for key, value in given.items() if value is not None and key != "opt_idx"]
        raise MisconfigurationException(
            f"An lr_scheduler dict has the keys {keys} and no 'scheduler'. Put the scheduler under 'scheduler'."
        )
    config = LRSchedulerConfig(scheduler, reduce_on_plateau=isinstance(scheduler, ReduceLROnPlateau))
    for key in _SCHEDULER_KEYS:
        if given.get(key) is not None:
            setattr(config, key, given[key])
    if config.interval not in ("epoch", "step"):
        raise MisconfigurationException(
            f"interval={config.interval!r} of {_name(scheduler)} is unknown. Use 'epoch' or 'step'."
        )
    _require_count(config.frequency, _name(scheduler))
    _warn_of_one_cycle_by_epoch(config, "interval" in given)
    return config


def _optimizer_index(config: LRSchedulerConfig, optimizers: list[Any]) -> int:
    own = getattr(config.scheduler, "optimizer", None)
    if own is None:
        return config.opt_idx
    for index, optimizer in enumerate(optimizers):
        if optimizer is own:
            return index
    raise MisconfigurationException(
        f"{_name(config.scheduler)} belongs to an optimizer ({_name(own)}) that configure_optimizers did not return. "
        "Return that optimizer too, or build the scheduler with one that is returned."
    )


def _check_interface(config: LRSchedulerConfig) -> None:
    missing = [name for name in ("state_dict", "load_state_dict") if not hasattr(config.scheduler, name)]
    if missing:
        raise TypeError(
            f"{_described(config.scheduler)} is no learning-rate scheduler: it has no {' and no '.join(missing)}. "
            "Return one of torch.optim.lr_scheduler, or give yours these methods."
        )


def _check_stepping(config: LRSchedulerConfig, has_scheduler_step_override: bool) -> None:
    if config.reduce_on_plateau and config.monitor is None:
        raise MisconfigurationException(
            f"{_name(config.scheduler)} steps on a metric, and no 'monitor' says on which. Return "
            "{'optimizer': optimizer, 'lr_scheduler': {'scheduler': scheduler, 'monitor': 'val_loss'}} with the key of "
            "a metric that you log."
        )
    if not has_scheduler_step_override and not isinstance(config.scheduler, (LRScheduler, ReduceLROnPlateau)):
        raise MisconfigurationException(
            f"{_name(config.scheduler)} is not a scheduler of torch, so the loop cannot know how to step it. "
            "Override lr_scheduler_step(self, scheduler, metric) to say how."
        )


def _require_count(frequency: Any, owner: str) -> None:
    if isinstance(frequency, bool) or not isinstance(frequency, int) or frequency < 1:
        raise MisconfigurationException(f"frequency={frequency!r} of {owner} is not a whole number of at least 1.")


def _warn_of_unknown_keys(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            rank_zero_warn(
                f"{where} with the key {key!r}, which has no effect.{nearest_name(str(key), known)} "
                f"Known keys: {', '.join(known)}.",
                PossibleUserWarning,
            )


def _warn_of_one_cycle_by_epoch(config: LRSchedulerConfig, chosen: bool) -> None:
    """OneCycleLR usually counts steps; someone who wrote the interval down meant it."""
    if isinstance(config.scheduler, OneCycleLR) and config.interval == "epoch" and not chosen:
        rank_zero_warn(
            "OneCycleLR is stepped once an epoch, which is rarely meant. Return it as "
            "{'scheduler': scheduler, 'interval': 'step'}, or with 'interval': 'epoch' if this is right.",
            PossibleUserWarning,
        )


def _hint(value: Any) -> str:
    if isinstance(value, (LRScheduler, ReduceLROnPlateau)):
        return " With schedulers, return two lists: [optimizer], [scheduler]."
    return " Did you forget to call it?" if isinstance(value, type) else ""


def _name(value: Any) -> str:
    return type(value).__name__


def _described(value: Any) -> str:
    if isinstance(value, (str, int, float, type)):
        return repr(value)
    return f"a {_name(value)}"
