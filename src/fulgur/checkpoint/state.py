"""What is in a checkpoint, and how a run takes it back.

Reading order: `Contents` (what a checkpoint is made of) -> `build_checkpoint` -> `restore_model` -> `restore_training`.
The layout is the one that the API's users know; what only fulgur needs stands under the key ``"fulgur"``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fulgur.checkpoint.earlier import call_on_load, call_on_save
from fulgur.checkpoint.plain import from_plain, opens_plainly, to_plain
from fulgur.errors import CheckpointError, MisconfigurationException, PossibleUserWarning
from fulgur.hooks import Callback
from fulgur.progress import Progress
from fulgur.rank import rank_zero_warn
from fulgur.rng import capture_rng
from fulgur.strategies.single_device import SingleDeviceStrategy
from fulgur.strategies.strategy import Strategy

FORMAT_VERSION = 1
_EARLIER_SETTING = re.compile(r", 'save_on_train_epoch_end': \w+")
# By key at the top, where it stood before version 0.10 had a place for callbacks: the callback's class, and its key.
EARLY_STATES = {
    "checkpoint_callback_best_model_score": ("ModelCheckpoint", "best_model_score"),
    "checkpoint_callback_best_model_path": ("ModelCheckpoint", "best_model_path"),
    "early_stop_callback_wait": ("EarlyStopping", "wait_count"),
    "early_stop_callback_patience": ("EarlyStopping", "patience"),
}
# The version whose layout this is; a reader of that layout demands the key.
LAYOUT_VERSION = "2.6.0"
VERSION_KEY = "pytorch-lightning_version"


@dataclass(slots=True)
class Contents:
    """What checkpoints are made of and restored into.

    Attributes:
        trainer: Handed to the callbacks' hooks, never looked into.
        seen: Batches evaluated in fit, by loader: the axis of values logged per evaluation batch.
        capture_epoch: Gives the state of the running epoch; None where there has been none.
        rng: States of the generators that belong to it; None for those of now.
        is_automatic: Whether the loop runs the optimizers.
        strategy: Gives the states of module and optimizers, and takes them back.
    """

    module: Any
    trainer: Any
    datamodule: Any = None
    callbacks: Sequence[Callback] = ()
    optimizers: Sequence[Any] = ()
    schedulers: Sequence[Any] = ()
    precision: Any = None
    progress: Progress = field(default_factory=Progress)
    seen: list[int] = field(default_factory=list)
    capture_epoch: Callable[[], dict[str, Any]] | None = None
    rng: dict[str, Any] | None = None
    n_batches: float = 0
    is_automatic: bool = True
    strategy: Strategy = field(default_factory=SingleDeviceStrategy)


def build_checkpoint(contents: Contents, *, weights_only: bool = False) -> dict[str, Any]:
    """The content of a checkpoint file, as plain data and tensors.

    Tensors are the live ones: write them, or copy them, before the next step.

    Args:
        contents: What to save.
        weights_only: Leave out everything that only training needs.

    Raises:
        CheckpointError: The state of a callback or of the datamodule has no plain form.
    """
    module, progress = contents.module, contents.progress
    checkpoint: dict[str, Any] = {
        "epoch": progress.epoch,
        "global_step": progress.global_step,
        VERSION_KEY: LAYOUT_VERSION,
        "state_dict": contents.strategy.model_state(module),  # all ranks must reach this
        "loops": build_loops(contents),
    }
    if not weights_only:
        checkpoint["callbacks"] = _callback_states(contents.callbacks)
        checkpoint["optimizer_states"] = [contents.strategy.optimizer_state(o) for o in contents.optimizers]
        checkpoint["lr_schedulers"] = [config.scheduler.state_dict() for config in contents.schedulers]
        precision_state = contents.precision.state_dict() if contents.precision is not None else {}
        if precision_state:
            checkpoint[type(contents.precision).__qualname__] = precision_state
    checkpoint["fulgur"] = {"format": FORMAT_VERSION, "progress": progress.state_dict(), "seen": list(contents.seen)}
    if not weights_only:
        checkpoint["fulgur"]["rng"] = capture_rng() if contents.rng is None else contents.rng  # waits for the device
        if contents.capture_epoch is not None:
            checkpoint["fulgur"]["running"] = running = contents.capture_epoch()
            _add_loader_states(checkpoint, running)
    for owner in (module, contents.datamodule):
        if owner is not None:
            _add_hparams(checkpoint, owner)
    if contents.datamodule is not None and (state := contents.datamodule.state_dict()):
        key = type(contents.datamodule).__qualname__
        checkpoint[key] = to_plain(state, where=f"state_dict() of {key}")
    ours = {key: id(value) for key, value in checkpoint.items()}
    if weights_only:
        for callback in contents.callbacks:
            if hasattr(callback, "weights_to_deploy"):  # what `on_save_checkpoint` does to a whole checkpoint's
                checkpoint["state_dict"] = callback.weights_to_deploy(checkpoint["state_dict"])
        ours["state_dict"] = id(checkpoint["state_dict"])
    else:
        for callback in contents.callbacks:
            state = call_on_save(callback, contents.trainer, module, checkpoint)
            if isinstance(state, dict) and state:
                key = callback.state_key
                checkpoint["callbacks"].setdefault(key, to_plain(state, where=f"on_save_checkpoint() of {key}"))
    module.on_save_checkpoint(checkpoint)
    _make_additions_plain(checkpoint, ours)
    return checkpoint


def _add_loader_states(checkpoint: dict[str, Any], running: Mapping[str, Any]) -> None:
    """Loaders that keep their own position have it where other readers of the layout look for it."""
    states = [loader["loader"] for loader in running["loaders"] if "loader" in loader]
    if states:
        checkpoint["loops"]["fit_loop"]["state_dict"] = {"combined_loader": states}


def _make_additions_plain(checkpoint: dict[str, Any], ours: dict[str, int]) -> None:
    """Store what hooks have added so that the file opens as plain data; name what has no plain form."""
    encoded = []
    for key in [key for key, value in checkpoint.items() if ours.get(key) != id(value)]:
        if opens_plainly(checkpoint[key]):
            continue
        try:
            checkpoint[key] = to_plain(checkpoint[key], where=f"checkpoint[{key!r}]")
        except CheckpointError as error:
            rank_zero_warn(
                f"on_save_checkpoint added {key!r} to the checkpoint, and the file will not open without "
                f"weights_only=False: {str(error).split(', so ')[0]}. Add plain data and tensors instead.",
                PossibleUserWarning,
            )
        else:
            encoded.append(key)
    if encoded and isinstance(checkpoint.get("fulgur"), dict):
        checkpoint["fulgur"]["encoded"] = encoded


def decode_additions(checkpoint: dict[str, Any]) -> None:
    """Give what hooks have added the form that it had when they added it, before hooks see it again."""
    own = checkpoint.get("fulgur")
    for key in own.get("encoded", ()) if isinstance(own, dict) else ():
        if key in checkpoint:
            checkpoint[key] = from_plain(checkpoint[key])


def _callback_states(callbacks: Sequence[Callback]) -> dict[str, Any]:
    states = {}
    for callback in callbacks:
        state = callback.state_dict()
        if state:
            states[callback.state_key] = to_plain(state, where=f"state_dict() of {type(callback).__name__}")
    return states


def _add_hparams(checkpoint: dict[str, Any], owner: Any) -> None:
    hparams = owner.hparams
    if not hparams:
        return
    checkpoint[owner.CHECKPOINT_HYPER_PARAMS_NAME] = getattr(owner, "_hparams_name", None)
    checkpoint[owner.CHECKPOINT_HYPER_PARAMS_KEY] = storable_hparams(owner)[0]


def storable_hparams(owner: Any) -> tuple[dict[str, Any], list[str]]:
    """Hyperparameters of a module or datamodule in plain form, and the names of those that cannot be stored.

    In a program of Lightning those that have no plain form are stored as they are, if they can be pickled.
    """
    stored: dict[str, Any] = {}
    refused: list[str] = []
    for name, value in dict(owner.hparams).items():
        try:
            stored[name] = to_plain(value, where=f"hyperparameter {name!r}")
        except CheckpointError:
            if _is_kept(value):
                stored[name] = value
            else:
                refused.append(name)
    return stored, refused


def _is_kept(value: Any) -> bool:
    from fulgur.checkpoint import objects

    return objects.are_kept() and objects.can_be_kept(value)


def warn_of_refused_hparams(owner: Any) -> None:
    """Say, before the run, which hyperparameters no checkpoint will hold."""
    refused = storable_hparams(owner)[1] if owner is not None and owner.hparams else []
    if refused:
        rank_zero_warn(
            f"Hyperparameters of {type(owner).__name__} that are no plain data are not stored in checkpoints: "
            f"{refused}. load_from_checkpoint will need them as arguments. Say so with "
            f"save_hyperparameters(ignore={refused}).",
            PossibleUserWarning,
        )


# ------------------------------------------------------------------------------------------------------- restoring


def restore_model(checkpoint: dict[str, Any], contents: Contents, *, source: object, strict: bool) -> None:
    """Give back weights, and the states of datamodule and callbacks, calling their hooks in the order users know.

    Raises:
        WeightsMismatchError: The weights of the file `source` are those of another network.
    """
    from fulgur.checkpoint.weights import load_weights

    module, trainer = contents.module, contents.trainer
    decode_additions(checkpoint)
    module.on_load_checkpoint(checkpoint)
    load_weights(module, checkpoint, source, strict=strict, load=contents.strategy.load_model_state)
    if contents.datamodule is not None:
        state = checkpoint.get(type(contents.datamodule).__qualname__)
        if state:
            contents.datamodule.load_state_dict(from_plain(copy.deepcopy(state)))
    states = checkpoint.get("callbacks") or early_callback_states(checkpoint)
    for callback in contents.callbacks:
        found = from_plain(copy.deepcopy(_state_of(callback, states)))
        call_on_load(callback, trainer, module, checkpoint, found)
    for callback in contents.callbacks:
        found = _state_of(callback, states)
        if found:
            callback.load_state_dict(from_plain(copy.deepcopy(found)))


def early_callback_states(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """States of callbacks that a file of before 0.10 has at its top, by class name; part of what they hold today."""
    states: dict[str, dict[str, Any]] = {}
    for key, (callback, name) in EARLY_STATES.items():
        if key in checkpoint:
            states.setdefault(callback, {})[name] = checkpoint[key]
    return states


def _state_of(callback: Callback, states: Mapping[Any, Any]) -> Any:
    """A callback's state; files of before 1.5 have the class as key, those of before 1.9 one setting more in it."""
    key, cls = callback.state_key, type(callback)
    found = states.get(key)
    if found is None:
        found = next((state for old, state in states.items() if _EARLIER_SETTING.sub("", str(old)) == key), None)
    if found is None:
        found = states.get(cls)
    if found is None:
        names = ((getattr(old, "names_callback", old), state) for old, state in states.items())
        found = next((state for name, state in names if name == cls.__name__), None)
    return found


def restore_training(checkpoint: Mapping[str, Any], contents: Contents) -> None:
    """Give back precision, counters, optimizers and schedulers.

    Raises:
        KeyError: The file was saved with weights only.
        MisconfigurationException: It holds another number of optimizers or schedulers.
    """
    if "optimizer_states" not in checkpoint or "lr_schedulers" not in checkpoint:
        raise KeyError(
            "The checkpoint has no optimizer states: it was saved with save_weights_only=True. Training cannot resume "
            "from it; load its weights with load_from_checkpoint, or use a full checkpoint."
        )
    if contents.precision is not None:
        state = checkpoint.get(type(contents.precision).__qualname__) or checkpoint.get("native_amp_scaling_state")
        if state:
            contents.precision.load_state_dict(state)
    restore_progress(checkpoint, contents)
    load = contents.strategy.load_optimizer_state
    _restore_each("optimizers", contents.optimizers, checkpoint["optimizer_states"], load=load)
    _restore_each("lr_schedulers", [c.scheduler for c in contents.schedulers], checkpoint["lr_schedulers"])


def _restore_each(
    what: str, parts: Sequence[Any], states: Sequence[Any], *, load: Callable[[Any, Any], None] | None = None
) -> None:
    if len(parts) != len(states):
        raise MisconfigurationException(
            f"The checkpoint holds {len(states)} {what} and configure_optimizers returned {len(parts)}. "
            "Resume with the same ones, or load only the weights with load_from_checkpoint."
        )
    for part, state in zip(parts, states, strict=True):
        try:
            if load is None:
                part.load_state_dict(state)
            else:
                load(part, state)
        except (KeyError, ValueError) as error:
            raise MisconfigurationException(_other_kind(what, part, str(error))) from error
        # torch takes the groups as they come; what another class has not saved would be missing in the first step.
        groups, needed = getattr(part, "param_groups", ()), set(getattr(part, "defaults", ()))
        missing = sorted(set().union(*(needed - set(group) for group in groups)))
        if missing:
            raise MisconfigurationException(_other_kind(what, part, f"it has no {missing}"))


def _other_kind(what: str, part: Any, why: str) -> str:
    return (
        f"The state of {what} in the checkpoint does not fit {type(part).__name__}: {why}. Resume with what it was "
        "saved with, or load only the weights with load_from_checkpoint."
    )


def restore_progress(checkpoint: Mapping[str, Any], contents: Contents) -> None:
    """Give back the counters, from fulgur's own key or from the layout that others write."""
    progress, own = contents.progress, checkpoint.get("fulgur")
    if own is not None:
        progress.load_state_dict(own["progress"])
        contents.seen[:] = own["seen"]
    else:
        progress.load_state_dict(_progress_of_loops(checkpoint))
    if progress.phase == "ended":  # every hook of the epoch's end has run
        progress.epoch, progress.batch, progress.phase = progress.epoch + 1, 0, "start"
    elif progress.phase == "cut":
        progress.phase = "settled"
    elif progress.phase == "start" and progress.cut_at:
        progress.epoch, progress.batch, progress.phase = progress.epoch - 1, progress.cut_at, "settled"
    progress.cut_at = 0


# --------------------------------------------------------------------------------------------- the layout of `loops`


def build_loops(contents: Contents) -> dict[str, Any]:
    """The counters in the layout that other readers know."""
    progress = contents.progress
    is_open = progress.phase != "start"
    begun = progress.epoch + is_open
    processed = progress.epoch + (progress.phase == "ended")
    n_open = int(progress.phase == "batch")  # in the hooks of a batch's end it is processed and not yet completed
    batch = dict.fromkeys(("ready", "started", "processed"), progress.batch)
    batch["completed"] = progress.batch - n_open
    batches_total = dict.fromkeys(("ready", "started", "processed"), progress.batches_total)
    batches_total["completed"] = progress.batches_total - n_open
    epoch = {"ready": begun, "completed": progress.epoch, "started": begun, "processed": processed}
    steps = {"ready": progress.global_step, "completed": progress.global_step}
    zero_grad = steps | {"started": progress.global_step}
    none, nothing = (
        dict.fromkeys(("ready", "completed"), 0),
        dict.fromkeys(("ready", "completed", "started", "processed"), 0),
    )
    automatic, manual = (steps, none) if contents.is_automatic else (none, steps)
    fit = {
        "state_dict": {},
        "epoch_loop.state_dict": {"_batches_that_stepped": progress.global_step},
        "epoch_loop.batch_progress": {
            "total": batches_total,
            "current": batch,
            "is_last_batch": is_open and progress.batch >= contents.n_batches,
        },
        "epoch_loop.scheduler_progress": {"total": dict(none), "current": dict(none)},
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {
                "step": {"total": dict(automatic), "current": dict(automatic)},
                "zero_grad": {"total": dict(zero_grad), "current": dict(zero_grad)},
            }
        },
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": {"total": dict(manual), "current": dict(manual)},
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": {
            "total": dict(nothing),
            "current": dict(nothing),
            "is_last_batch": False,
        },
        "epoch_progress": {"total": dict(epoch), "current": dict(epoch)},
    }
    evaluation = {
        "state_dict": {},
        "batch_progress": {"total": dict(nothing), "current": dict(nothing), "is_last_batch": False},
    }
    predict = {"state_dict": {}, "batch_progress": {"total": dict(nothing), "current": dict(nothing)}}
    return {
        "fit_loop": fit,
        "validate_loop": evaluation,
        "test_loop": copy.deepcopy(evaluation),
        "predict_loop": predict,
    }


def _progress_of_loops(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Counters of a file that fulgur did not write.

    Files of before 1.6 hold two numbers: the epoch to go on with, and the steps.
    """
    fit = (checkpoint.get("loops") or {}).get("fit_loop")
    global_step = int(checkpoint.get("global_step", 0))
    if not fit or "epoch_progress" not in fit:
        return {"epoch": int(checkpoint.get("epoch", 0)), "global_step": global_step, "log_step": global_step}
    epoch = fit["epoch_progress"]["current"]
    batches = fit["epoch_loop.batch_progress"]
    batch, total = batches["current"], batches["total"]["ready"]
    counters = {"global_step": global_step, "log_step": max(global_step - 1, 0), "batches_total": total}
    if epoch["processed"] > epoch["completed"]:  # saved in the hooks of the epoch's end
        return counters | {"epoch": epoch["completed"], "batch": batch["ready"], "phase": "ended"}
    if epoch["started"] > epoch["processed"]:  # saved within an epoch
        # A validation after the last batch is run again: the file does not hold what it has logged, which the hooks
        # of the epoch's end may want.
        is_validated = batch["completed"] == batch["ready"] and not batches.get("is_last_batch")
        phase = "validated" if is_validated else "batch"
        return counters | {"epoch": epoch["completed"], "batch": batch["processed"], "phase": phase}
    return counters | {"epoch": epoch["completed"]}


def ends_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a file says of the batch it was saved after that it was the last one of its epoch."""
    return bool(_fit_loop(checkpoint).get("epoch_loop.batch_progress", {}).get("is_last_batch"))


def loader_states(checkpoint: Mapping[str, Any]) -> list[Any]:
    """What a file that fulgur did not write holds of the loaders that keep their own position."""
    return list(_fit_loop(checkpoint).get("state_dict", {}).get("combined_loader", ()))


def _fit_loop(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    return (checkpoint.get("loops") or {}).get("fit_loop") or {}


def devices_present(location: Any) -> Any:
    """For `torch.load`: tensors go where they were, or to the CPU where that device is not here."""
    if location is not None:
        return location

    def place(storage: Any, saved: str) -> Any:
        kind = saved.partition(":")[0]
        missing = (kind == "cuda" and not torch.cuda.is_available()) or (
            kind == "mps" and not torch.backends.mps.is_available()
        )
        return storage if missing or kind == "cpu" else torch.serialization.default_restore_location(storage, saved)

    return place
