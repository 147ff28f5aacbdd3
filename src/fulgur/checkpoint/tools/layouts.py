"""Checkpoints of other programs, and of earlier versions of their layout, in the layout of today."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from fulgur.checkpoint.plain import TAG, from_plain, to_plain
from fulgur.checkpoint.state import (
    EARLY_STATES,
    FORMAT_VERSION,
    LAYOUT_VERSION,
    VERSION_KEY,
    Contents,
    build_loops,
    early_callback_states,
    ends_epoch,
    restore_progress,
)
from fulgur.checkpoint.tools.show import key_name
from fulgur.errors import CheckpointError
from fulgur.progress import Progress

# Keys of the first years, and what they are called today.
_RENAMED = {
    "hparams": "hyper_parameters",
    "module_arguments": "hyper_parameters",
    "hparams_type": "hparams_type",
    "native_amp_scaling_state": "MixedPrecision",
}
# Made of tensors and numbers only, in every version.
TENSORS = ("state_dict", "optimizer_states", "lr_schedulers", "loops")
# Of a library that has ended; its state says nothing to anything else.
_DROPPED = ("amp_scaling_state",)
# These tagged values have types that every reader of plain checkpoints knows.
_KNOWN_TO_ALL = ("dict", "set", "torch.dtype", "torch.device", "torch.Size")


def version_of(content: Mapping[str, Any]) -> tuple[int, int]:
    """Major and minor version of the layout; (0, 0) where the file does not say."""
    found = re.match(r"(\d+)\.(\d+)", str(content.get(VERSION_KEY, "")))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def to_current(content: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of any version of the layout, in today's and in plain form. Tensors are the same ones.

    Raises:
        CheckpointError: A part of it has no plain form; only a file that was trusted holds such parts.
    """
    version = version_of(content)
    current = {_RENAMED.get(key, key): value for key, value in content.items() if key not in _DROPPED}
    current["callbacks"] = {key_name(key): state for key, state in dict(content.get("callbacks") or {}).items()}
    if isinstance(current.get("hyper_parameters"), Namespace):
        current["hyper_parameters"] = vars(current["hyper_parameters"])
    for name, state in early_callback_states(content).items():
        current["callbacks"].setdefault(name, {}).update(state)
    current = {key: value for key, value in current.items() if key not in EARLY_STATES}
    if "optimizer_states" not in content and not current["callbacks"]:
        del current["callbacks"]
    if version < (2, 0):
        progress = progress_of(content)
        n_batches = progress.batch if ends_epoch(content) else float("inf")
        current["loops"] = build_loops(Contents(None, None, progress=progress, n_batches=n_batches))
        current |= {"epoch": int(content.get("epoch", 0)), "global_step": progress.global_step}
        if VERSION_KEY in content:
            current["legacy_" + VERSION_KEY] = content[VERSION_KEY]
        current[VERSION_KEY] = LAYOUT_VERSION
    return {key: value if key in TENSORS else to_plain(value, where=key) for key, value in current.items()}


def progress_of(content: Mapping[str, Any]) -> Progress:
    """The counters of a checkpoint of any version.

    Raises:
        CheckpointError: They are in no layout that is known.
    """
    contents = Contents(None, None)
    try:
        restore_progress(content, contents)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"Its counters have an unknown layout ({type(error).__name__}: {error}).") from error
    return contents.progress


def own_part(content: Mapping[str, Any]) -> dict[str, Any]:
    """What fulgur keeps under its own key, as far as another program's checkpoint tells it."""
    progress = progress_of(content)
    return {"format": FORMAT_VERSION, "progress": progress.state_dict(), "seen": []}


def to_common(value: Any) -> Any:
    """Plain content without what only fulgur reads: a path becomes its text, a dataclass a dict, an enum its value."""
    if isinstance(value, dict):
        tag = value.get(TAG)
        if not isinstance(tag, str):
            return {key: to_common(item) for key, item in value.items()}
        if tag in _KNOWN_TO_ALL:
            return from_plain(value)
        original = from_plain(value)
        return original.tolist() if tag.startswith("numpy.") else to_common(value.get("value"))
    if type(value) in (list, tuple):
        return type(value)(to_common(item) for item in value)
    return value
