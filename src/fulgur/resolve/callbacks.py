"""Which callbacks a run has, and in which order they are called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback, overrides

if TYPE_CHECKING:
    from fulgur.resolve.arguments import Settings
    from fulgur.resolve.legacy import LegacySettings

_ENTRY_POINTS = ("lightning.pytorch.callbacks_factory", "fulgur.callbacks_factory")


def resolve_callbacks(settings: Settings, legacy: LegacySettings) -> list[Callback]:
    """The user's callbacks, those that arguments stand for, and the defaults; ordered by `order_callbacks`.

    The defaults are a `Timer` if `max_time` is set, a progress bar, a model summary and a `ModelCheckpoint`, each
    unless it is switched off or the user brings one of the kind. Installed packages may add more through the entry
    points ``fulgur.callbacks_factory`` and ``lightning.pytorch.callbacks_factory``.

    Raises:
        RuntimeError: Two callbacks that keep state have the same `state_key`.
    """
    callbacks = [*settings.callbacks, *legacy.callbacks]
    _add_checks(callbacks, legacy)
    _add_timer(callbacks, settings)
    _add_progress_bar(callbacks, settings)
    _add_model_summary(callbacks, settings)
    callbacks += _external_callbacks()
    _add_checkpoint(callbacks, settings, legacy)
    check_state_keys(callbacks)
    return order_callbacks(callbacks)


def order_callbacks(callbacks: Iterable[Callback]) -> list[Callback]:
    """Callbacks that tune first, those that save checkpoints last, and the rest between them as they come.

    A callback tunes if its class says ``is_tuner = True``.
    """
    from fulgur.callbacks.checkpoint import Checkpoint

    def place(callback: Callback) -> int:
        if isinstance(callback, Checkpoint):
            return 2
        return 0 if getattr(callback, "is_tuner", False) else 1

    return sorted(callbacks, key=place)


def merge_module_callbacks(
    trainer_callbacks: Sequence[Callback], module_callbacks: Callback | Iterable[Callback] | None
) -> list[Callback]:
    """Add what a module's `configure_callbacks` returned.

    A module's callback takes the place of all the Trainer's callbacks of its class, and of those whose class it is
    derived from. Merging the result again changes nothing but the objects.

    Args:
        trainer_callbacks: Callbacks that the Trainer has; left as they are.
        module_callbacks: One callback, several, or None.

    Raises:
        MisconfigurationException: Something returned is not a Callback.
        RuntimeError: Two callbacks that keep state have the same `state_key`.
    """
    added = _as_list(module_callbacks)
    replaced = {type(own) for own in trainer_callbacks if any(isinstance(new, type(own)) for new in added)}
    merged = [own for own in trainer_callbacks if type(own) not in replaced] + added
    check_state_keys(merged)
    return order_callbacks(merged)


def check_state_keys(callbacks: Iterable[Callback]) -> None:
    """Check that callbacks which keep state can be told apart in a checkpoint.

    Raises:
        RuntimeError: Two of them have the same `state_key`.
    """
    seen: dict[str, Callback] = {}
    for callback in callbacks:
        if not overrides(callback, "state_dict", Callback):
            continue
        key = callback.state_key
        if key in seen and seen[key] is not callback:
            raise RuntimeError(
                f"Two callbacks of class {type(callback).__name__} have the state_key {key!r}, so a checkpoint cannot "
                "tell them apart. Override state_key to return different texts, or keep one."
            )
        seen[key] = callback


def _add_checks(callbacks: list[Callback], legacy: LegacySettings) -> None:
    if legacy.terminate_on_nan:
        from fulgur.callbacks.finite_check import FiniteCheck

        callbacks.append(FiniteCheck())
    if legacy.track_grad_norm is not None:
        from fulgur.callbacks.grad_norm import GradNormLogger

        callbacks.append(GradNormLogger(legacy.track_grad_norm))


def _add_timer(callbacks: list[Callback], settings: Settings) -> None:
    if settings.max_time is None:
        return
    from fulgur.callbacks.timer import Timer

    if not _has(callbacks, Timer):
        callbacks.append(Timer(duration=settings.max_time, interval="step"))


def _add_progress_bar(callbacks: list[Callback], settings: Settings) -> None:
    if not settings.enable_progress_bar:
        return
    from fulgur.callbacks.progress import ProgressBar, RichProgressBar

    if not _has(callbacks, ProgressBar):
        callbacks.append(RichProgressBar())


def _add_model_summary(callbacks: list[Callback], settings: Settings) -> None:
    if not settings.enable_model_summary:
        return
    from fulgur.callbacks.model_summary import ModelSummary

    if not _has(callbacks, ModelSummary):
        callbacks.append(ModelSummary())


def _add_checkpoint(callbacks: list[Callback], settings: Settings, legacy: LegacySettings) -> None:
    if not settings.enable_checkpointing:
        return
    from fulgur.callbacks.checkpoint import Checkpoint
    from fulgur.callbacks.model_checkpoint import ModelCheckpoint

    if not _has(callbacks, Checkpoint):
        callbacks.append(ModelCheckpoint())
    if legacy.weights_save_path is None:
        return
    from fulgur.checkpoint.location import canonical

    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = canonical(legacy.weights_save_path)


def _external_callbacks() -> list[Callback]:
    """What the factories of installed packages return."""
    from importlib.metadata import entry_points

    found: list[Callback] = []
    for group in _ENTRY_POINTS:
        for entry_point in entry_points(group=group):
            found += _as_list(entry_point.load()())
    return found


def _as_list(callbacks: Any) -> list[Callback]:
    items = [] if callbacks is None else [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
    for item in items:
        if not isinstance(item, Callback):
            raise MisconfigurationException(
                f"A list of callbacks holds {item!r}, which is not a Callback. Return Callback objects."
            )
    return items


def _has(callbacks: Iterable[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
