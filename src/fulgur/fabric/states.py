"""A dict of objects to a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulgur.checkpoint.location import is_sharded
from fulgur.errors import CheckpointError
from fulgur.fabric.wrappers import unwrap
from fulgur.strategies.strategy import Strategy

Filter = Mapping[str, Callable[[str, Any], bool]]


def save(strategy: Strategy, path: Any, state: Mapping[str, Any], filter: Filter | None = None) -> None:
    """Write the states of the objects in `state`. All ranks must reach this.

    Raises:
        TypeError: `filter` is no dict of functions.
        ValueError: `filter` has a key that `state` has not.
        CheckpointError: It could not be written.
    """
    chosen = _checked_filter(filter, state)
    saved = {name: _state_of(strategy, unwrap(value)) for name, value in state.items()}
    for name, keep in chosen.items():
        if isinstance(saved[name], dict):  # empty on ranks whose state counts for nothing
            saved[name] = {key: value for key, value in saved[name].items() if keep(key, value)}
    strategy.save_checkpoint(saved, path)


def _checked_filter(filter: Any, state: Mapping[str, Any]) -> Filter:
    if filter is None:
        return {}
    if not isinstance(filter, Mapping) or not all(map(callable, filter.values())):
        raise TypeError(
            f"filter={filter!r:.80} is no dict of functions. Give for each key of the state to be filtered a function "
            "of a name and a value that says whether it is saved."
        )
    unknown = [name for name in filter if name not in state]
    if unknown:
        raise ValueError(f"filter has {unknown[0]!r}, which is no key of the state: {', '.join(map(repr, state))}.")
    return filter


def _state_of(strategy: Strategy, value: Any) -> Any:
    if isinstance(value, nn.Module):
        return strategy.model_state(value)
    if isinstance(value, Optimizer):
        return strategy.optimizer_state(value)
    return value.state_dict() if _is_stateful(value) else value


def _is_stateful(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def load(
    strategy: Strategy, path: Any, state: dict[str, Any], *, strict: bool, weights_only: bool | None
) -> dict[str, Any]:
    """Give the objects in `state` what the checkpoint at `path` has for them; what is no object is replaced.

    Returns:
        What is left of the checkpoint.

    Raises:
        KeyError: `strict`, and the checkpoint lacks a key of `state`. Nothing has been loaded.
    """
    objects = {name: unwrap(value) for name, value in state.items()}
    checkpoint = read(strategy, path, objects, weights_only=weights_only)
    missing = [name for name in state if name not in checkpoint]
    if missing and strict:
        raise KeyError(
            f"{str(path)!r} has no {missing[0]!r}; its keys are {', '.join(map(repr, checkpoint))}. Leave it out of "
            "the state, or pass strict=False."
        )
    for name, value in objects.items():
        if name in checkpoint:
            found = checkpoint.pop(name)
            if not load_into(strategy, value, found, strict=strict):
                state[name] = found
    return checkpoint


def read(strategy: Strategy, path: Any, objects: Mapping[str, Any], *, weights_only: bool | None) -> dict[str, Any]:
    """The checkpoint at `path`, of which this rank reads only its parts of the `objects`. All ranks must reach this."""
    from fulgur.strategies.sharded_files import ShardedFiles

    if isinstance(strategy, ShardedFiles) and is_sharded(path):
        return strategy.load_checkpoint(path, weights_only, layout=_Layout(objects))
    return strategy.load_checkpoint(path, weights_only)


def load_raw(strategy: Strategy, path: Any, obj: Any, *, strict: bool, weights_only: bool | None) -> None:
    """Load a file that is the state of one object.

    Raises:
        TypeError: `obj` cannot load a state.
    """
    if not load_into(strategy, unwrap(obj), strategy.load_checkpoint(path, weights_only), strict=strict):
        raise TypeError(f"load_raw got a {type(obj).__name__}, which has no load_state_dict. Use fabric.load(path).")


def load_into(strategy: Strategy, value: Any, found: Any, *, strict: bool) -> bool:
    """Give `value` the state `found`; False where it takes none."""
    if isinstance(value, nn.Module):
        try:
            strategy.load_model_state(value, found, strict=strict)
        except (AttributeError, TypeError) as error:
            raise CheckpointError(f"What was saved is no state of a {type(value).__name__}: {error}.") from error
    elif isinstance(value, Optimizer):
        strategy.load_optimizer_state(value, found)
    elif _is_stateful(value):
        value.load_state_dict(found)
    else:
        return False
    return True


class _Layout:
    """Says of a tensor in a sharded checkpoint which part this rank wants: as the object lies that it belongs to."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._exact: dict[str, Any] = {}
        self._by_parameter: dict[str, Any] = {}
        for name, value in objects.items():
            if isinstance(value, nn.Module):
                self._exact |= {f"{name}.{key}": tensor for key, tensor in value.state_dict().items()}
            elif isinstance(value, Optimizer):
                parameters = (p for group in value.param_groups for p in group["params"])
                self._by_parameter |= {f"{name}.state.{index}": p for index, p in enumerate(parameters)}

    def __call__(self, key: str, shape: torch.Size, shards: Mapping[str, Any]) -> Tensor | None:
        from torch.distributed.tensor import DTensor

        like = self._exact.get(key, self._by_parameter.get(key.rpartition(".")[0]))
        return like if isinstance(like, DTensor) and like.shape == shape else None
