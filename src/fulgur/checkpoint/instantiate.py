"""A module from a checkpoint: `LightningModule.load_from_checkpoint`."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from fulgur.checkpoint.load import load_checkpoint, require_weights
from fulgur.checkpoint.made_by_cli import make_object, read_marks
from fulgur.checkpoint.plain import from_plain
from fulgur.checkpoint.state import decode_additions, devices_present
from fulgur.checkpoint.weights import load_weights
from fulgur.errors import PossibleUserWarning
from fulgur.hparams import build_init_kwargs, read_hparams_file
from fulgur.rank import rank_zero_warn

# The names of the key in files of the first years.
_OLDER_KEYS = ("hparams", "module_arguments")


def load_module(
    cls: Any,
    source: Any,
    *,
    map_location: Any,
    hparams_file: Any,
    strict: bool | None,
    weights_only: bool | None,
    overrides: dict[str, Any],
) -> Any:
    """Construct `cls` with saved hyperparameters and load its weights; see `LightningModule.load_from_checkpoint`."""
    location = devices_present(map_location)
    checkpoint = load_checkpoint(source, map_location=location, weights_only=weights_only)
    require_weights(checkpoint, getattr(source, "name", source))
    hparams = read_hparams_file(hparams_file) if hparams_file is not None else _saved_hparams(cls, checkpoint)
    name = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_NAME)
    cls, hparams, marks = read_marks(cls, hparams)
    arguments = build_init_kwargs(cls, hparams, hparams_name=name, overrides=overrides)
    _check_arguments(cls, arguments)
    module = make_object(cls, arguments, own=overrides, marks=marks)
    module.configure_model()
    decode_additions(checkpoint)
    module.on_load_checkpoint(checkpoint)
    strict = _agreed_strictness(module, strict)
    keys = load_weights(module, checkpoint, source, strict=strict)
    if not strict and (keys.missing_keys or keys.unexpected_keys):
        rank_zero_warn(
            f"Weights were loaded with strict=False. Missing in the file: {keys.missing_keys}. Not in the module: "
            f"{keys.unexpected_keys}.",
            PossibleUserWarning,
        )
    first = next((value for value in checkpoint["state_dict"].values() if isinstance(value, Tensor)), None)
    return module if first is None else module.to(first.device)


def _check_arguments(cls: Any, arguments: dict[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in named if p.default is p.empty and p.name not in arguments]
    if missing:
        given = ", ".join(f"{name}=..." for name in missing)
        raise TypeError(
            f"{cls.__name__}.__init__ needs {missing}, which the checkpoint does not hold. Pass them: "
            f"{cls.__name__}.load_from_checkpoint(path, {given}); call self.save_hyperparameters() in __init__ to have "
            "them in the next one."
        )


def _saved_hparams(cls: Any, checkpoint: dict[str, Any]) -> dict[str, Any]:
    for key in (cls.CHECKPOINT_HYPER_PARAMS_KEY, *_OLDER_KEYS):
        if key in checkpoint:
            return dict(from_plain(checkpoint[key]))
    return {}


def _agreed_strictness(module: Any, strict: bool | None) -> bool:
    if strict is not None and module.strict_loading is not True and strict != module.strict_loading:
        raise ValueError(
            f"strict={strict} contradicts strict_loading={module.strict_loading} of {type(module).__name__}. "
            "Leave out one of them."
        )
    return bool(module.strict_loading if strict is None else strict)
