"""Weights of a file into a module, with an error that tells in what the two differ."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fulgur.checkpoint.plain import from_plain
from fulgur.errors import WeightsMismatchError

_N_NAMED = 3


def load_weights(
    module: Any,
    checkpoint: Mapping[str, Any],
    source: object,
    *,
    strict: bool,
    load: Callable[..., Any] | None = None,
) -> Any:
    """Load ``checkpoint["state_dict"]`` into `module`.

    Args:
        module: A LightningModule.
        checkpoint: What the file holds.
        source: The file, for the message.
        strict: As in ``load_state_dict``.
        load: Does it: takes the module, the weights and `strict`. ``None`` is the module's own.

    Returns:
        What ``load_state_dict`` returns: the names that one of the two lacks.

    Raises:
        WeightsMismatchError: The weights do not fit the module. Some of them may have been loaded.
    """
    try:
        if load is not None:
            return load(module, checkpoint["state_dict"], strict=strict)
        return module.load_state_dict(checkpoint["state_dict"], strict=strict)
    except RuntimeError as error:
        differences = _differences(module, checkpoint["state_dict"], strict=strict)
        if not differences:  # a module of the user's own has raised it
            raise
        raise WeightsMismatchError(
            f"The weights in {_named(source)} do not fit {type(module).__name__}: {'; '.join(differences)}. "
            f"{_way_out(module, checkpoint)}"
        ) from error


def _named(source: object) -> str:
    return repr(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else str(getattr(source, "name", source))


def _differences(module: Any, saved: Mapping[str, Any], *, strict: bool) -> list[str]:
    own = module.state_dict()
    shapes = [
        f"size mismatch for {name}: {list(saved[name].shape)} in the file and {list(value.shape)} in the module"
        for name, value in own.items()
        if isinstance(value, Tensor) and isinstance(saved.get(name), Tensor) and saved[name].shape != value.shape
    ]
    found = [", ".join(shapes[:_N_NAMED]) + _more(shapes)] if shapes else []
    if strict:
        sides = (("not in the file", own, saved), ("not in the module", saved, own))
        for where, names, others in sides:
            missing = [name for name in names if name not in others]
            found += [f"{where}: {', '.join(missing[:_N_NAMED])}{_more(missing)}"] if missing else []
    return found


def _more(names: list[str]) -> str:
    return f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""


def _way_out(module: Any, checkpoint: Mapping[str, Any]) -> str:
    """Which hyperparameters differ, if that is it; else what may be done about it."""
    stored = checkpoint.get(module.CHECKPOINT_HYPER_PARAMS_KEY)
    if not isinstance(stored, Mapping):
        stored = {}
    own = dict(module.hparams)
    saved = {name: from_plain(value) for name, value in stored.items() if name in own}
    differing = [name for name, value in saved.items() if repr(value) != repr(own[name])]
    if differing:
        theirs, ours = (", ".join(f"{name}={of[name]!r:.60}" for name in differing) for of in (saved, own))
        return f"It was saved with {theirs}, and this module has {ours}: build the module as it was saved."
    return (
        "Use the code and the arguments it was saved with. To load what fits by name, set strict_loading = False in "
        "the module; weights of another shape have to be left out of the file's state_dict in on_load_checkpoint."
    )
