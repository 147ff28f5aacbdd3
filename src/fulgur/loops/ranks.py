"""What of a running epoch differs between ranks: saved for each, and given to as many as there are on resume.

A run that goes on with as many ranks has the bits of the undisturbed one. With another number the first rank takes the
sums of all, gradients of an open window become their mean, and ranks without generators of their own get those of
rank 0, folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulgur.data.transfer import move_to_device
from fulgur.errors import CheckpointError
from fulgur.loops.resume import find_metric_objects
from fulgur.rank import rank_zero_info
from fulgur.rng import fold_rng, isolate_rng, restore_rng, snapshot_rng

if TYPE_CHECKING:
    from fulgur.loops.feed import Feed
    from fulgur.loops.fit import FitLoop
    from fulgur.strategies.strategy import Strategy

_OF_RANK = ("fetch", "metric_objects", "windows", "gradients", "loaders", "following", "outputs", "val_generators")

Running = Mapping[str, Any]


def gather_ranks(own: Running, strategy: Strategy) -> list[dict[str, Any]]:
    """The states of all ranks, on rank 0; empty on the others. All ranks must reach this.

    Args:
        own: What a checkpoint of this rank holds under "fulgur".
        strategy: Brings them together.
    """
    running = own.get("running", {})
    state: dict[str, Any] = {"data_rank": strategy.data_rank, "rng": own.get("rng")}
    state["running"] = {name: running[name] for name in _OF_RANK if name in running}
    if "entries" in running.get("metrics", {}):
        state["running"]["entries"] = running["metrics"]["entries"]
    if strategy.forward_is_collective:  # its gradients are parts of something larger, which the strategy saves
        state["running"].pop("gradients", None)
    gathered = strategy.gather_object(move_to_device(state, "cpu"))  # all ranks must reach this; waits for the device
    return gathered or []


def state_of_rank(own: Running, strategy: Strategy, module: torch.nn.Module) -> tuple[Running | None, Running | None]:
    """Of what a checkpoint holds under "fulgur": the running epoch and the generators of this rank, or None."""
    running, rng, saved = own.get("running"), own.get("rng"), own.get("ranks") or []
    rank, data_rank = strategy.global_rank, strategy.data_rank
    if not saved and not strategy.is_distributed:
        return running, rng
    if len(saved) == strategy.world_size and saved[rank]["data_rank"] == data_rank:
        mine = saved[rank]
        return _with_own(running, mine["running"]), mine["rng"]
    by_data_rank = {state["data_rank"]: state for state in reversed(saved)}
    mine = by_data_rank.get(data_rank)
    own_rng = mine["rng"] if mine is not None else rng if data_rank == 0 or rng is None else _folded(rng, data_rank)
    if running is None:
        return None, own_rng
    states = [by_data_rank[r]["running"] for r in sorted(by_data_rank)] or [_parts(running)]
    return _divided(running, states, module, is_first=data_rank == 0), own_rng


def _folded(rng: Running, data_rank: int) -> dict[str, Any]:
    with isolate_rng():
        restore_rng(dict(rng))
        fold_rng(data_rank)
        return snapshot_rng()


def _parts(running: Running) -> dict[str, Any]:
    parts = {name: running[name] for name in _OF_RANK if name in running}
    return parts | ({"entries": running["metrics"]["entries"]} if "entries" in running["metrics"] else {})


def _with_own(running: Running | None, own: Running) -> Running | None:
    """`running` of rank 0, with what is this rank's own."""
    if running is None:
        return None
    merged = dict(running) | {name: value for name, value in own.items() if name != "entries"}
    if "entries" in own:
        merged["metrics"] = dict(running["metrics"]) | {"entries": own["entries"]}
    return merged


def _divided(running: Running, states: list[Running], module: torch.nn.Module, *, is_first: bool) -> Running:
    """The state of a rank where there were others before: the first gets the sums of all."""
    merged = dict(running)
    if not running["in_pass"]:
        return merged
    _without_following(merged)
    entries = _merged_entries([state.get("entries", ()) for state in states]) if is_first else []
    merged["metrics"] = dict(running["metrics"]) | {"entries": entries}
    if "outputs" in running:
        merged["outputs"] = _joined_outputs(states if is_first else [])
    objects = find_metric_objects(module)
    merged["metric_objects"] = {
        name: _merged_metric(objects[name], [s["metric_objects"][name] for s in states], is_first=is_first)
        for name in running["metric_objects"]
        if name in objects
    }
    if len(states) > 1 and "gradients" in running and "gradients" in states[0]:
        merged["gradients"] = _mean_gradients([state["gradients"] for state in states])
    return merged


def _joined_outputs(states: list[Running]) -> dict[str, Any]:
    own = [state["outputs"] for state in states if "outputs" in state]
    return {name: [item for outputs in own for item in outputs[name]] for name in ("values", "devices")}


def _without_following(running: dict[str, Any]) -> None:
    """A batch that was read ahead was one rank's: all draw it again.

    Raises:
        CheckpointError: A loader keeps its own position, which counts batches of another size.
    """
    if any("loader" in loader for loader in running["loaders"]):
        raise CheckpointError(
            "The checkpoint was saved by another number of ranks, within an epoch of a loader that keeps its own "
            "position (state_dict), which may count batches of another size. Resume with as many ranks as it was saved "
            "by, or from a checkpoint of an epoch's end."
        )
    is_ahead = "following" in running["fetch"] or running.pop("following", None) is not None
    if is_ahead:
        kept = {name: value for name, value in running["fetch"].items() if not name.startswith("following")}
        running["fetch"] = kept
        running["loaders"] = [loader | {"n_drawn": loader["n_drawn"] - 1} for loader in running["loaders"]]


def _merged_entries(by_rank: list[Iterable[Running]]) -> list[dict[str, Any]]:
    """Sums over the ranks, each name once."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in (entry for entries in by_rank for entry in entries):
        key = (entry["hook"], entry["suffix"], entry["name"])
        known = merged.get(key)
        if known is None:
            merged[key] = dict(entry)
            continue
        known["weight"] += entry["weight"]
        for field in ("total", "host_total"):
            known[field] = _combined(entry["reduce"], known[field], entry[field])
    return list(merged.values())


def _combined(reduce: str, one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    if reduce in ("mean", "sum"):
        return one + other
    return (min if reduce == "min" else max)(one, other)


def _merged_metric(metric: Any, states: Sequence[Running], *, is_first: bool) -> dict[str, Any]:
    """The state of a metric that has seen what all ranks have seen; on other ranks that of one that saw nothing."""
    count = sum(state["count"] for state in states)  # on all ranks: compute() warns of a metric without an update
    if not is_first:
        defaults = metric._defaults.items()
        return {"count": count, "states": {k: v.clone() if isinstance(v, Tensor) else list(v) for k, v in defaults}}
    merged = {}
    for name, reduction in metric._reductions.items():
        values = [state["states"][name] for state in states]
        if isinstance(values[0], list):
            merged[name] = [item for value in values for item in value]
        elif len(values) > 1 and callable(reduction):
            merged[name] = reduction(torch.stack(values))
        else:
            merged[name] = values[0]
    return {"count": count, "states": merged}


def _mean_gradients(by_rank: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    names = {name: None for gradients in by_rank for name in gradients}
    present = {name: [gradients[name] for gradients in by_rank if name in gradients] for name in names}
    return {name: torch.stack(found).sum(0) / len(by_rank) for name, found in present.items()}


# --------------------------------------------------------------------------------------------- another global batch


def rescale(running: Any, feed: Feed, loop: FitLoop) -> Any:
    """`running`, counted in steps of the batches that there are now, where these hold another number of samples.

    Raises:
        CheckpointError: The position lies within a step of now.
    """
    if not running["in_pass"]:
        return running
    factors = {_factor(saved, loader) for saved, loader in zip(running["loaders"], feed.placed, strict=True)}
    if factors == {Fraction(1)}:
        return running
    count, (factor, *others) = running["fetch"]["count"], factors
    is_open = any(n_backward for n_backward, *_ in running.get("windows", ()))
    drawn = [loader["n_drawn"] * factor for loader in running["loaders"]]
    is_exact = (
        not others and not is_open and (count * factor).denominator == 1 and all(d.denominator == 1 for d in drawn)
    )
    if running["fetch"]["is_last"]:
        loop.progress.batch = int(loop.n_batches)
        return {**running, "fetch": {**running["fetch"], "count": loop.progress.batch}}
    if not is_exact or any("loader" in loader or "following" in loader for loader in running["loaders"]):
        raise CheckpointError(_within_a_step(running, feed, count))
    loop.progress.batch = int(count * factor)
    loaders = [loader | {"n_drawn": int(n)} for loader, n in zip(running["loaders"], drawn, strict=True)]
    return {**running, "fetch": {**running["fetch"], "count": loop.progress.batch}, "loaders": loaders}


def _factor(saved: Running, loader: Any) -> Fraction:
    """Steps of now that a step of then makes."""
    then, now = saved.get("batch_size"), loader.batch_size
    return Fraction(then, now) if then and now else Fraction(1)


def _within_a_step(running: Running, feed: Feed, count: int) -> str:
    then = ", ".join(str(loader["batch_size"]) for loader in running["loaders"])
    now = ", ".join(str(loader.batch_size) for loader in feed.placed)
    return (
        f"The checkpoint was saved after {count} steps of {then} samples on all ranks together, and a step has {now} "
        "samples now, so that the epoch cannot go on at the same sample. Choose batch_size so that batch_size × ranks "
        f"is {then} again, or resume from a checkpoint of an epoch's end."
    )


def say_if_unknown(running: Running, feed: Feed, saved_ranks: int, ranks: int) -> None:
    """Where the number of ranks has changed and a loader does not tell its batch size: say what is assumed."""
    if saved_ranks == ranks or not running["in_pass"]:
        return
    for loader in feed.placed:
        if loader.batch_size is None:
            rank_zero_info(
                f"Resuming on {ranks} ranks what was saved on {saved_ranks}: {loader.described} does not tell its "
                "batch size. A step must have as many samples on all ranks together as before."
            )
