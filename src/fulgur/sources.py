"""Where the loaders of a run come from, and what brings their batches to the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from fulgur.data.fetch import build_transfer
from fulgur.data.shard import Shard
from fulgur.data.transfer import cast_floating, mover
from fulgur.datamodule import LightningDataModule
from fulgur.errors import MisconfigurationException, PossibleUserWarning
from fulgur.hooks import overrides
from fulgur.loops.feed import Feed, build_eval_feed, build_train_feed
from fulgur.module import LightningModule
from fulgur.profilers.profiler import measured
from fulgur.rank import rank_zero_warn
from fulgur.states import TrainerFn

if TYPE_CHECKING:
    import torch

    from fulgur.strategies.strategy import Strategy
    from fulgur.trainer import Trainer

_HOOKS = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader"} | {
    "predict": "predict_dataloader"
}


@dataclass(slots=True)
class Call:
    """One call of an entry point.

    Attributes:
        fn: Which.
        model: As passed, or None.
        datamodule: As passed, or None.
        ckpt_path: As passed, or None.
        weights_only: As passed: False trusts the file.
        sources: Loaders as passed, by "train", "val", "test", "predict".
        is_verbose: Whether results are printed.
    """

    fn: TrainerFn
    model: Any
    datamodule: Any
    ckpt_path: Any
    weights_only: bool | None
    sources: dict[str, Any] = field(default_factory=dict)
    is_verbose: bool = True


def find_source(trainer: Trainer, call: Call, name: str) -> tuple[str, Callable[[], Any]] | None:
    """Where loaders come from: what was passed, then datamodule, then module.

    A call that passes neither, as a bare ``trainer.test()``, may also use an earlier call's datamodule.
    """
    hook = _HOOKS[name]
    passed = call.sources.get(name)
    if passed is not None:
        argument = f"{name}_dataloaders" if call.fn is TrainerFn.FITTING else "dataloaders"
        return f"trainer.{call.fn}({argument}=...)", lambda: passed
    candidates: list[tuple[Any, type]] = [(trainer.lightning_module, LightningModule)]
    if call.datamodule is not None:
        candidates.insert(0, (call.datamodule, LightningDataModule))
    elif all(given is None for given in call.sources.values()):
        candidates.append((trainer.datamodule, LightningDataModule))
    for owner, base in candidates:
        if owner is not None and overrides(owner, hook, base):
            return f"{type(owner).__name__}.{hook}()", measured(trainer.profiler, getattr(owner, hook))
    return None


def missing_loader(trainer: Trainer, name: str) -> str:
    hook, module = _HOOKS[name], type(trainer.lightning_module).__name__
    argument = {"train": "train_dataloaders"}.get(name, "dataloaders")
    entry = {"train": "fit", "val": "validate"}.get(name, name)
    return (
        f"There is no loader to {entry} with: {hook} must be implemented by {module} or a datamodule, or a loader "
        f"passed as trainer.{entry}(model, {argument}=loader)."
    )


def transfer_of(trainer: Trainer, dataloader_idx: int) -> Callable[[Any], Any]:
    """What brings a batch to the device: the hooks of the datamodule where it has them, else of the module."""
    module, datamodule, precision = trainer.lightning_module, trainer.datamodule, trainer.precision_plugin
    strategy, device = trainer.strategy, trainer.strategy.root_device
    own_move = partial(strategy.batch_to_device, device=device, dataloader_idx=dataloader_idx)

    def find(hook: str) -> Callable[..., Any] | None:
        if datamodule is not None and overrides(datamodule, hook, LightningDataModule):
            if overrides(module, hook, LightningModule):
                rank_zero_warn(
                    f"Both {type(datamodule).__name__} and {type(module).__name__} override {hook}; the "
                    "datamodule's is used.",
                    PossibleUserWarning,
                )
            return getattr(datamodule, hook)  # type: ignore[no-any-return]
        return getattr(module, hook) if overrides(module, hook, LightningModule) else None

    return build_transfer(
        trainer.metrics,
        device=device,
        cast=precision.convert_input if precision.has_own("convert_input") else _cast_to(precision.input_dtype),
        before=find("on_before_batch_transfer"),
        move=find("transfer_batch_to_device"),
        after=find("on_after_batch_transfer"),
        default_move=own_move if strategy.has_own("batch_to_device") else mover(device),
        dataloader_idx=dataloader_idx,
    )


def _cast_to(dtype: torch.dtype | None) -> Callable[[Any], Any] | None:
    return None if dtype is None else partial(cast_floating, dtype=dtype)


def shard_of(strategy: Strategy) -> Shard:
    """The place of this process among those that see different data."""
    rank, size = strategy.data_rank, strategy.data_size
    if not strategy.is_distributed:
        return Shard()

    def gather(obj: Any) -> list[Any]:
        by_rank = dict(reversed(strategy.all_gather_object((rank, obj))))  # all ranks must reach this
        return [by_rank[data_rank] for data_rank in range(size)]

    return Shard(rank, size, share=strategy.broadcast, gather=gather, store=strategy.store)


def train_feed(trainer: Trainer, call: Call) -> Feed:
    """The training loader, asked for once unless it is to be reloaded."""
    loaded = trainer._feeds.get("train")
    if loaded is not None:
        return loaded
    source = find_source(trainer, call, "train")
    if source is None:
        raise MisconfigurationException(missing_loader(trainer, "train"))
    name, give = source
    trainer._feeds["train"] = build_train_feed(
        trainer.strategy.process_dataloader(give()),
        limit=trainer.limit_train_batches,
        overfit=trainer.overfit_batches,
        mode=trainer._legacy.multiple_trainloader_mode,
        name=name,
        shard=shard_of(trainer.strategy),
        is_split=trainer._settings.use_distributed_sampler,
        uneven=trainer._settings.uneven_loaders,
    )
    return trainer._feeds["train"]


def eval_feed(trainer: Trainer, call: Call, name: str) -> Feed:
    source = find_source(trainer, call, name)
    if source is None:
        raise MisconfigurationException(missing_loader(trainer, name))
    source_name, give = source
    feed = build_eval_feed(
        trainer.strategy.process_dataloader(give()),
        limit=getattr(trainer, f"limit_{name}_batches"),
        overfit=trainer.overfit_batches if name == "val" and call.fn is TrainerFn.FITTING else 0,
        name=source_name,
        limit_name=f"limit_{name}_batches",
        keeps_all=name == "predict",
        shard=shard_of(trainer.strategy),
        is_split=trainer._settings.use_distributed_sampler,
        is_collective=trainer.strategy.forward_is_collective,
    )
    trainer._feeds[name] = feed
    return feed


def settle_epochs(trainer: Trainer) -> None:
    """What it means that no `max_epochs` was given: 1000, or no limit where steps or time are limited."""
    from fulgur.callbacks.timer import Timer

    limits = trainer.fit_loop.limits
    if limits.max_epochs is None:
        is_limited = not math.isinf(limits.max_steps) or any(isinstance(c, Timer) for c in trainer.callbacks)
        limits.max_epochs = -1 if is_limited else 1000


def estimate_steps(trainer: Trainer) -> int | float:
    """Optimizer steps of the whole training; see `Trainer.estimated_stepping_batches`."""
    limits = trainer.fit_loop.limits
    settle_epochs(trainer)
    if limits.max_epochs == -1:
        return trainer.max_steps if not math.isinf(limits.max_steps) else math.inf
    if trainer._call is not None:
        train_feed(trainer, trainer._call)
    n_batches = trainer.num_training_batches
    if math.isinf(n_batches):
        return trainer.max_steps
    steps = math.ceil(n_batches / limits.accumulate) * max(limits.max_epochs or 0, 1)
    return min(steps, limits.max_steps)


def can_validate(trainer: Trainer, call: Call | None = None) -> bool:
    """Whether fit validates: a loader, a `validation_step`, and a limit above 0."""
    call = call or trainer._call
    if call is None or trainer._module is None or trainer.limit_val_batches == 0:
        return False
    has_step = overrides(trainer._module, "validation_step", LightningModule)
    return has_step and find_source(trainer, call, "val") is not None
