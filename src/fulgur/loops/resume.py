"""What of a running epoch goes into a checkpoint, so that a resumed run has the same bits.

Besides weights, optimizers and counters (`checkpoint/state.py`) these are: where each loader stands, the batch that was
read ahead, gradients of an open accumulation window, and what has been logged.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fulgur.checkpoint.plain import from_plain, to_plain
from fulgur.data.combine import CombinedLoader
from fulgur.data.loaders import sized_length
from fulgur.errors import CheckpointError
from fulgur.loops.outputs import capture_outputs, resume_outputs
from fulgur.rank import rank_zero_info
from fulgur.rng import restore_rng

if TYPE_CHECKING:
    from fulgur.loops.feed import Feed
    from fulgur.loops.fit import FitLoop


def capture_epoch(loop: FitLoop, feed: Feed, module: torch.nn.Module) -> dict[str, Any]:
    """State of the running epoch as plain data and tensors; the tensors are the live ones."""
    if loop.kept_epoch is not None:
        return dict(loop.kept_epoch)
    in_pass = loop.progress.cut_at > 0 or loop.progress.phase in ("batch", "validated", "settled", "cut")
    state: dict[str, Any] = {"in_pass": in_pass, "loaders": [loader.state_dict() for loader in feed.placed]}
    state["should_stop"] = loop.should_stop
    state["since_validation_s"] = time.monotonic() - loop.last_validation
    state["metrics"] = loop.metrics.state_dict(with_sums=False)
    if not in_pass:
        return state
    state["fetch"] = _fetch_state(loop, state["loaders"])
    for joined in feed.joined:
        state["following"] = joined.following
        _make_following_plain(state, state["loaders"])
    sums = loop.kept_sums or capture_sums(loop)
    if loop.sums_before is not None and loop.sums_before.is_within_batch and loop.kept_sums is None:
        sums |= loop.sums_before.sums()
    state["metrics"]["entries"], state["metric_objects"] = sums["entries"], sums["metric_objects"]
    state |= capture_outputs(sums["outputs"])
    state["accumulate"] = loop.accumulate
    if not loop.is_automatic or any(update.n_backward for update in loop.plan.updates):
        state["windows"] = [(u.n_backward, u.divisor, u.n_batches, u.missing) for u in loop.plan.updates]
        state["gradients"] = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return state


def capture_sums(loop: FitLoop) -> dict[str, Any]:
    """What the running epoch has logged so far, in sums and in metric objects, and the outputs that are kept."""
    metrics, outputs = loop.metrics, loop.plan.epoch_outputs
    objects = find_metric_objects(metrics.module)
    return {
        "outputs": list(outputs) if outputs is not None else None,
        "entries": metrics.state_dict(with_sums=True)["entries"],
        "metric_objects": {name: _metric_state(metric) for name, metric in objects.items()},
    }


def _fetch_state(loop: FitLoop, loaders: list[dict[str, Any]]) -> dict[str, Any]:
    state, n_undone = loop.fetch.state_dict(), loop.fetch.n_undone
    for loader in loaders:
        loader["n_drawn"] -= n_undone
    _make_following_plain(state, loaders)
    return state


def _make_following_plain(state: dict[str, Any], loaders: list[dict[str, Any]]) -> None:
    """The batch that was read ahead in plain form; where it has none, it is drawn again on resume."""
    if state.get("following") is None:
        state.pop("following", None)
        return
    try:
        state["following"] = to_plain(state["following"], where="the batch that was read ahead")
    except CheckpointError:
        del state["following"]
        for loader in loaders:
            loader["n_drawn"] -= 1


def resume_epoch(
    loop: FitLoop, feed: Feed, module: torch.nn.Module, state: Mapping[str, Any], rng: Mapping[str, Any] | None
) -> None:
    """Take back what `capture_epoch` gave; generators follow once the loaders have begun.

    Args:
        loop, feed, module: Of the resumed run, connected.
        state: From `capture_epoch`.
        rng: States of the process's generators, as of the save.
    """
    restore = partial(restore_rng, dict(rng)) if rng is not None else None
    drawn = state["in_pass"] and len(feed.placed) == 1 and loop.fetch.was_drawn(state["fetch"])
    for loader, saved in zip(feed.placed, state["loaders"], strict=True):
        loader.resume(saved, in_pass=state["in_pass"], is_drawn=drawn)
    loop.last_validation = time.monotonic() - state["since_validation_s"]
    loop.metrics.load_state_dict(state["metrics"])
    loop.before_epochs = restore  # order matters: the loaders' passes have begun by now, and drawn what they draw
    if not state["in_pass"]:
        return
    fetch = dict(state["fetch"])
    if "following" in fetch:
        fetch["following"] = from_plain(fetch["following"])
    loop.fetch.resume(fetch)
    for joined in feed.joined:
        joined.n_begun, joined.following = fetch["count"], from_plain(state.get("following"))
    _resume_window(loop, module, state)
    resume_outputs(loop.plan, state, loop.metrics.module.device, loop.progress.batch)
    objects = find_metric_objects(module)
    for name, saved in state["metric_objects"].items():
        if name in objects:
            _load_metric_state(objects[name], saved)


def keep_epoch(loop: FitLoop, state: Mapping[str, Any], rng: Mapping[str, Any] | None) -> None:
    """Where a resumed run has nothing left to do: show what was logged, and save the epoch as it was."""
    loop.metrics.load_state_dict({**state["metrics"], "entries": ()})
    loop.kept_epoch = state
    progress = loop.progress
    if progress.phase == "settled":  # a limit cut the epoch short: it counts, as at the end of the run that was saved
        progress.epoch, progress.batch, progress.phase, progress.cut_at = progress.epoch + 1, 0, "start", progress.batch
    if rng is not None:
        restore_rng(dict(rng))


def begin_epoch_at(loop: FitLoop, feed: Feed, *, is_last: bool, states: Sequence[Any] = ()) -> None:
    """Go on within an epoch of whose data the file tells only how many batches were trained on.

    The loaders begin the epoch anew, in whatever order they draw now, and leave so many batches out.

    Args:
        loop, feed: Of the resumed run, connected, with the counters restored.
        is_last: Whether the file says that the epoch has no more batches.
        states: What the file holds of the loaders that keep their own position, one after the other.
    """
    n_batches = loop.progress.batch
    if loop.progress.phase == "start" or n_batches == 0:
        return
    is_cycled = isinstance(feed.loaders[0], CombinedLoader) and feed.loaders[0].mode == "max_size_cycle"
    unused = iter(states)
    has_position = True
    for loader in feed.placed:
        loader.set_epoch(loop.progress.epoch)
        state = next(unused, None) if loader.is_stateful else None
        if state is not None:
            place = {"epoch": loop.progress.epoch, "n_drawn": n_batches, "n_passes": 1, "start": {}, "loader": state}
            loader.resume(place, in_pass=True)
            continue
        has_position = False
        length = sized_length(loader)
        n_passes = (n_batches - 1) // int(length) if is_cycled and 0 < length < n_batches else 0
        loader.begin_at(n_batches - n_passes * int(length) if n_passes else n_batches, n_passes=n_passes)
    loop.fetch.resume({"count": n_batches, "is_last": is_last})
    if not is_last and not has_position:
        rank_zero_info(
            f"Resuming within epoch {loop.progress.epoch} from a checkpoint without a position in the data: the first "
            f"{n_batches} batches of the epoch, in the order in which the loader draws them now, are left out. With "
            "shuffling these are others than those trained on before."
        )


def _resume_window(loop: FitLoop, module: torch.nn.Module, state: Mapping[str, Any]) -> None:
    for update, (n_backward, divisor, *counted) in zip(loop.plan.updates, state.get("windows", ()), strict=False):
        update.n_backward, update.divisor = n_backward, divisor
        update.n_batches, update.missing = counted or (n_backward, 0.0)
    loop.resumed_accumulate = state.get("accumulate")
    parameters = dict(module.named_parameters())
    for name, gradient in state.get("gradients", {}).items():
        parameter = parameters[name]
        parameter.grad = gradient.to(device=parameter.device, dtype=parameter.dtype)


def find_metric_objects(module: torch.nn.Module) -> dict[str, Any]:
    """torchmetrics metrics of the module, by path."""
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is None:
        return {}
    return {name: m for name, m in module.named_modules() if isinstance(m, torchmetrics.Metric)}


def _metric_state(metric: Any) -> dict[str, Any]:
    states = {name: getattr(metric, name) for name in metric._defaults}
    kept = {name: list(value) if isinstance(value, list) else value for name, value in states.items()}
    return {"count": metric._update_count, "states": kept}


def _load_metric_state(metric: Any, saved: Mapping[str, Any]) -> None:
    metric._update_count, metric._computed = saved["count"], None
    for name, value in saved["states"].items():
        is_list = isinstance(value, list)
        setattr(metric, name, [v.to(metric.device) for v in value] if is_list else value.to(metric.device))
