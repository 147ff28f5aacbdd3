"""The layout of a sharded checkpoint: a directory in which each rank has written its own part of every tensor.

    run.ckpt/
      meta.pt            everything that is no shard, sealed like any checkpoint, with a checksum for each other file
      .metadata          where each part of each tensor lies: the index of torch.distributed.checkpoint
      __0_0.distcp ...   the tensors, one file a rank

In `meta.pt` stands, where a file would have the tensor, the key that the tensor has in the index.
`sharded_write.py` makes such a directory, `sharded_read.py` opens one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

INDEX_FILE = ".metadata"
SHARDS_KEY = "fulgur_shards"
"""In `meta.pt`: what only sharded checkpoints have."""

SHARDED_PARTS = ("state_dict", "optimizer_states")
"""Parts of a Trainer's checkpoint that may hold distributed tensors. Another one names its own beside its files."""
_STANDS_FOR = "fulgur.shard"


def take_shards(
    checkpoint: Mapping[str, Any], parts: Iterable[str] = SHARDED_PARTS
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Part a checkpoint in two: what goes into `meta.pt`, and the distributed tensors by their keys in the index."""
    from torch.distributed.tensor import DTensor

    shards: dict[str, Tensor] = {}

    def take(value: Any, key: str) -> Any:
        if not isinstance(value, DTensor):
            return value
        shards[key] = value.detach()
        return {_STANDS_FOR: key}

    plain = dict(checkpoint)
    for part in parts:
        if part in plain:
            plain[part] = replace_leaves(plain[part], take, part)
    return plain, shards


def put_shards(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The checkpoint of which `take_shards` has made `plain` and the keys of `tensors`."""

    def put(value: Any, key: str) -> Any:
        return tensors[value[_STANDS_FOR]] if _stands_for(value) else value

    checkpoint = {key: value for key, value in plain.items() if key != SHARDS_KEY}
    for part in _parts_of(plain):
        if part in checkpoint:
            checkpoint[part] = replace_leaves(checkpoint[part], put, part)
    return checkpoint


def keys_of(plain: Mapping[str, Any]) -> list[str]:
    """The keys of the tensors that `plain` stands for, in its order."""
    found: list[str] = []

    def note(value: Any, key: str) -> Any:
        if _stands_for(value):
            found.append(value[_STANDS_FOR])
        return value

    for part in _parts_of(plain):
        if part in plain:
            replace_leaves(plain[part], note, part)
    return found


def replace_leaves(value: Any, replace: Callable[[Any, str], Any], name: str) -> Any:
    """`value` in new containers of the same kinds, with ``replace(leaf, dotted name)`` for each leaf."""
    if isinstance(value, dict) and not _stands_for(value):
        copied = copy.copy(value)  # with its attributes, such as `_metadata` of a state_dict
        for key, item in value.items():
            copied[key] = replace_leaves(item, replace, f"{name}.{key}")
        return copied
    if type(value) in (list, tuple):
        return type(value)(replace_leaves(item, replace, f"{name}.{index}") for index, item in enumerate(value))
    return replace(value, name)


def _parts_of(plain: Mapping[str, Any]) -> Iterable[str]:
    parts: Iterable[str] = plain.get(SHARDS_KEY, {}).get("parts", SHARDED_PARTS)
    return parts


def _stands_for(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get(_STANDS_FOR), str)
