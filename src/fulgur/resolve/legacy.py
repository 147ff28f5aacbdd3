"""Arguments of the 1.x Trainer: one rule for each, which says it in today's arguments.

What has no argument today is kept in `LegacySettings`, for the Trainer to act on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fulgur.errors import MisconfigurationException, UnknownArgumentError
from fulgur.resolve.arguments import ARGUMENT_NAMES

if TYPE_CHECKING:
    import os

    from fulgur.hooks import Callback


@dataclass(slots=True)
class LegacySettings:
    """What 1.x arguments ask for beyond today's arguments.

    Attributes:
        callbacks: Callbacks that arguments stand for; they come after the user's own.
        resume_from_checkpoint: What `fit` resumes from if its call names no checkpoint.
        auto_lr_find: What `trainer.tune` looks for: False, True, or the name of the attribute.
        auto_scale_batch_size: How `trainer.tune` looks for a batch size, or False.
        terminate_on_nan: Whether a loss or parameter that is not finite is a ValueError.
        track_grad_norm: Order of the norm of each gradient to log. None logs none.
        prepare_data_per_node: Overrides the attribute of module and datamodule. None leaves it.
        automatic_optimization: Overrides the attribute of the module. None leaves it.
        multiple_trainloader_mode: How several training loaders are combined.
        weights_save_path: Where checkpoints go that name no directory.
        progress_bar_refresh_rate: Batches between two refreshes. Any but 0 has no effect on a bar refreshed by time.
        flush_logs_every_n_steps: Rows that a `CSVLogger` made by default keeps before it writes them.
    """

    callbacks: list[Callback] = field(default_factory=list)
    resume_from_checkpoint: str | os.PathLike[str] | None = None
    auto_lr_find: bool | str = False
    auto_scale_batch_size: Literal[False, "power", "binsearch"] = False
    terminate_on_nan: bool = False
    track_grad_norm: float | None = None
    prepare_data_per_node: bool | None = None
    automatic_optimization: bool | None = None
    multiple_trainloader_mode: str = "max_size_cycle"
    weights_save_path: str | os.PathLike[str] | None = None
    progress_bar_refresh_rate: int | None = None
    flush_logs_every_n_steps: int | None = None


@dataclass(slots=True)
class _Call:
    """One call of the Trainer while it is being translated.

    Attributes:
        given: Everything the user gave, unchanged.
        today: Today's arguments, as far as they are known.
        settings: The rest.
    """

    given: Mapping[str, Any]
    today: dict[str, Any]
    settings: LegacySettings

    def set(self, name: str, value: Any, because: str) -> None:
        """Set today's argument `name`, unless the user gave it another value."""
        if name in self.today and self.today[name] not in (None, "auto") and self.today[name] != value:
            raise MisconfigurationException(
                f"{because}={self.given[because]!r} means {name}={value!r}, but {name}={self.today[name]!r} is given "
                f"too. Leave out {because}."
            )
        self.today[name] = value


Rule = Callable[[str, Any, _Call], None]
"""Takes an argument's name, its value and the call; changes the call."""


def translate_legacy(given: Mapping[str, Any]) -> tuple[dict[str, Any], LegacySettings]:
    """Say a call of the 1.x Trainer in today's arguments. Leaves unknown arguments as they are.

    Args:
        given: Arguments of either form.

    Returns:
        Arguments by today's names, and what they cannot express.

    Raises:
        MisconfigurationException: A value can no longer be served, or contradicts another argument.
        UnknownArgumentError: An argument is older than 1.0; the error names today's.
    """
    _refuse_retired(given)
    old = [name for name in given if name in _RULES]
    today = {name: value for name, value in given.items() if name not in _RULES}
    if old:
        # In a call of 1.x form, None is how the default of these was written.
        today = {name: value for name, value in today.items() if value is not None or name not in _NONE_IS_DEFAULT}
    call = _Call(given, today, LegacySettings())
    for name, rule in _VALUES.items():
        if name in call.today:
            rule(name, call.today[name], call)
    for name, rule in _RULES.items():
        if name in given:
            rule(name, given[name], call)
    return call.today, call.settings


def _refuse_retired(given: Mapping[str, Any]) -> None:
    for name in given:
        if name in _RETIRED:
            today = _TODAY.get(name) or f"{_RETIRED[name]}={given[name]!r}"
            raise UnknownArgumentError(f"Trainer has no argument {name!r}; it was renamed. Use {today}.")


# Today's arguments with values of 1.x


def _accelerator(name: str, value: Any, call: _Call) -> None:
    if isinstance(value, str) and (value.startswith(("ddp", "deepspeed")) or value in GONE_STRATEGIES):
        del call.today[name]
        _strategy_name(name, value, call)


def _max_steps(name: str, value: Any, call: _Call) -> None:
    if value is None:
        call.today[name] = -1


def _accumulate_grad_batches(name: str, value: Any, call: _Call) -> None:
    if isinstance(value, Mapping):
        from fulgur.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler

        call.today[name] = 1
        call.settings.callbacks.append(GradientAccumulationScheduler(dict(value)))


def _profiler(name: str, value: Any, call: _Call) -> None:
    if isinstance(value, bool):
        call.today[name] = "simple" if value else None


# Devices


def _gpus(name: str, value: Any, call: _Call) -> None:
    if value is None or value in (0, [], ""):
        if value is None and "devices" in call.today:
            return
        if call.today.get("accelerator", "auto") == "auto" and not call.given.get("tpu_cores"):
            call.today["accelerator"] = "cpu"
        return
    _require_cuda(name, value)
    if call.given.get("auto_select_gpus"):
        from fulgur.accelerators import find_usable_cuda_devices

        value = find_usable_cuda_devices(int(value)) if not isinstance(value, list) else value
    if call.today.get("accelerator") != "gpu":
        call.set("accelerator", "cuda", name)
    # A single "0" is GPU 0, as it was in 1.0; as a number of GPUs it would mean none.
    call.set("devices", [0] if value == "0" else value, name)


def _require_cuda(name: str, value: Any) -> None:
    import torch

    if not torch.cuda.is_available():
        raise MisconfigurationException(
            f"{name}={value!r} asks for a CUDA device, and torch sees none on this machine. "
            f"To train on the CPU use accelerator='cpu', or {name}=None."
        )


def _num_processes(name: str, value: Any, call: _Call) -> None:
    if value is None or call.given.get("gpus") or call.given.get("tpu_cores") or call.given.get("devices"):
        return
    if call.today.get("accelerator", "auto") in ("auto", "cpu"):
        call.set("accelerator", "cpu", name)
        call.set("devices", value, name)


def _distributed_backend(name: str, value: Any, call: _Call) -> None:
    if value is not None:
        _strategy_name(name, value, call)


def _strategy_name(name: str, value: Any, call: _Call) -> None:
    if value in GONE_STRATEGIES or str(value).startswith("ddp_sharded"):
        advice = GONE_STRATEGIES.get(value, "strategy='fsdp'")
        raise MisconfigurationException(f"{name}={value!r} is no longer there. Use {advice} instead.")
    if value == "ddp_cpu":
        call.set("accelerator", "cpu", name)
        value = "ddp_spawn"
    call.set("strategy", value, name)


# Callbacks and loggers


def _checkpoint_callback(name: str, value: Any, call: _Call) -> None:
    from fulgur.hooks import Callback

    if isinstance(value, Callback):
        call.settings.callbacks.append(value)
        value = True
    if value is not None:
        call.set("enable_checkpointing", bool(value), name)


def _early_stop_callback(name: str, value: Any, call: _Call) -> None:
    from fulgur.hooks import Callback

    if isinstance(value, Callback):
        call.settings.callbacks.append(value)
    elif value:
        raise MisconfigurationException(
            f"{name}={value!r} does not say what to watch. Use callbacks=[EarlyStopping(monitor='val_loss')] with the "
            "key of a metric that you log."
        )


def _progress_bar_refresh_rate(name: str, value: Any, call: _Call) -> None:
    call.settings.progress_bar_refresh_rate = value
    if value == 0 and not _has_progress_bar(call.today.get("callbacks")):
        call.set("enable_progress_bar", False, name)


def _has_progress_bar(callbacks: Any) -> bool:
    if not callbacks:
        return False
    from fulgur.callbacks.progress import ProgressBar

    return any(isinstance(item, ProgressBar) for item in (callbacks if isinstance(callbacks, list) else [callbacks]))


def _weights_summary(name: str, value: Any, call: _Call) -> None:
    if value not in (None, "top", "full"):
        raise MisconfigurationException(f"{name}={value!r} is unknown. Use 'top', 'full' or None.")
    call.set("enable_model_summary", value is not None, name)
    if value == "full":
        from fulgur.callbacks.model_summary import ModelSummary

        call.settings.callbacks.append(ModelSummary(max_depth=-1))


def _log_gpu_memory(name: str, value: Any, call: _Call) -> None:
    if value:
        call.settings.callbacks.append(_later_callback("DeviceStatsMonitor", name, value)())


def _stochastic_weight_avg(name: str, value: Any, call: _Call) -> None:
    if value:
        raise MisconfigurationException(
            f"{name}={value!r} does not say with which learning rate. "
            "Use callbacks=[StochasticWeightAveraging(swa_lrs=...)]."
        )


def _later_callback(class_name: str, name: str, value: Any) -> Any:
    import fulgur.callbacks

    found = getattr(fulgur.callbacks, class_name, None)
    if found is None:
        raise MisconfigurationException(
            f"{name}={value!r} needs the callback {class_name}, which this version does not have. Leave out {name}."
        )
    return found


# The rest


def _auto_scale_batch_size(name: str, value: Any, call: _Call) -> None:
    if value not in (None, False, True, "power", "binsearch"):
        raise MisconfigurationException(f"{name}={value!r} is unknown. Use True, 'power' or 'binsearch'.")
    if value:
        call.settings.auto_scale_batch_size = "binsearch" if value == "binsearch" else "power"


def _track_grad_norm(name: str, value: Any, call: _Call) -> None:
    if value is None or value == -1:
        return
    try:
        norm_type = float(value)
    except (TypeError, ValueError):
        norm_type = math.nan
    if not norm_type > 0:
        raise MisconfigurationException(f"{name}={value!r} is no order of a norm. Use a positive number or 'inf'.")
    call.settings.track_grad_norm = norm_type


def _reload_every_epoch(name: str, value: Any, call: _Call) -> None:
    if value:
        call.set("reload_dataloaders_every_n_epochs", 1, name)


def _multiple_trainloader_mode(name: str, value: Any, call: _Call) -> None:
    modes = ("max_size_cycle", "min_size", "max_size")
    if value not in modes:
        raise MisconfigurationException(f"{name}={value!r} is unknown. Use one of {', '.join(map(repr, modes))}.")
    call.settings.multiple_trainloader_mode = value


def _renamed(today: str) -> Rule:
    """Today's argument has the same values under another name."""

    def rule(name: str, value: Any, call: _Call) -> None:
        if value is not None:
            call.set(today, value, name)

    return rule


def _kept(name: str, value: Any, call: _Call) -> None:
    """The value goes into the field of the same name in `LegacySettings`."""
    if value is not None:
        setattr(call.settings, name, value)


def _without_effect(name: str, value: Any, call: _Call) -> None:
    """What it asked for is how things are now, whatever its value."""


def _only(*allowed: Any, advice: str) -> Rule:
    """Only these values, which change nothing, can still be served."""

    def rule(name: str, value: Any, call: _Call) -> None:
        if value not in allowed:
            raise MisconfigurationException(f"{name}={value!r} is no longer there. {advice}")

    return rule


GONE_STRATEGIES = {
    "dp": "strategy='ddp'",
    "ddp2": "strategy='ddp'",
    "horovod": "strategy='ddp'",
    "ddp_sharded": "strategy='fsdp'",
    "ddp_sharded_spawn": "strategy='fsdp'",
    "fsdp_native": "strategy='fsdp'",
    "bagua": "strategy='ddp'",
    "colossalai": "strategy='fsdp'",
}

_NONE_IS_DEFAULT = ("accelerator", "strategy", "devices", "fast_dev_run", "overfit_batches", "num_nodes")

_VALUES: dict[str, Rule] = {
    "accelerator": _accelerator,
    "max_steps": _max_steps,
    "accumulate_grad_batches": _accumulate_grad_batches,
    "profiler": _profiler,
}

_RULES: dict[str, Rule] = {
    "gpus": _gpus,
    "num_processes": _num_processes,
    "tpu_cores": _only(None, 0, advice="fulgur does not drive TPUs: use accelerator='cpu' or 'gpu'."),
    "ipus": _only(None, 0, advice="fulgur does not drive IPUs: use accelerator='cpu' or 'gpu'."),
    "auto_select_gpus": _without_effect,  # read together with gpus
    "distributed_backend": _distributed_backend,
    "amp_backend": _only(None, "native", advice="apex is not maintained: use precision='16-mixed' or 'bf16-mixed'."),
    "amp_level": _without_effect,  # apex alone read it
    "checkpoint_callback": _checkpoint_callback,
    "early_stop_callback": _early_stop_callback,
    "weights_save_path": _kept,
    "progress_bar_refresh_rate": _progress_bar_refresh_rate,
    "process_position": _without_effect,  # there is one bar
    "weights_summary": _weights_summary,
    "log_gpu_memory": _log_gpu_memory,
    "flush_logs_every_n_steps": _kept,
    "resume_from_checkpoint": _kept,
    "auto_lr_find": _kept,
    "auto_scale_batch_size": _auto_scale_batch_size,
    "truncated_bptt_steps": _only(
        None,
        0,
        advice="Cut the sequences yourself, with automatic_optimization = False in the module and one "
        "manual_backward() and optimizer step for each piece.",
    ),
    "terminate_on_nan": _kept,
    "track_grad_norm": _track_grad_norm,
    "reload_dataloaders_every_epoch": _reload_every_epoch,
    "replace_sampler_ddp": _renamed("use_distributed_sampler"),
    "prepare_data_per_node": _kept,
    "automatic_optimization": _kept,
    "multiple_trainloader_mode": _multiple_trainloader_mode,
    "move_metrics_to_cpu": _without_effect,  # a flush copies them all at once
    "stochastic_weight_avg": _stochastic_weight_avg,
    "default_save_path": _renamed("default_root_dir"),
}

_TODAY = {"use_amp": "precision='16-mixed' or 'bf16-mixed'", "print_nan_grads": "detect_anomaly=True"}
"""What stands in the place of arguments whose values mean something else today."""

_RETIRED = {
    "add_row_log_interval": "log_every_n_steps",
    "check_val_every_n_epochs": "check_val_every_n_epoch",
    "gradient_clip": "gradient_clip_val",
    "log_save_interval": "flush_logs_every_n_steps",
    "max_nb_epochs": "max_epochs",
    "min_nb_epochs": "min_epochs",
    "nb_gpu_nodes": "num_nodes",
    "nb_sanity_val_steps": "num_sanity_val_steps",
    "num_tpu_cores": "tpu_cores",
    "overfit_pct": "overfit_batches",
    "print_nan_grads": "detect_anomaly",
    "row_log_interval": "log_every_n_steps",
    "show_progress_bar": "enable_progress_bar",
    "test_percent_check": "limit_test_batches",
    "train_percent_check": "limit_train_batches",
    "use_amp": "precision",
    "val_percent_check": "limit_val_batches",
}

LEGACY_NAMES: tuple[str, ...] = tuple(_RULES)
"""Names of the arguments of 1.x that are not among today's."""

assert not set(LEGACY_NAMES) & set(ARGUMENT_NAMES)
