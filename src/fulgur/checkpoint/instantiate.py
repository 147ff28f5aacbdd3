"""A module from a checkpoint: `LightningModule.load_from_checkpoint`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.plain import from_plain
from fulgur.checkpoint.state import devices_present
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
    if hasattr(source, "read"):
        checkpoint: dict[str, Any] = torch.load(source, map_location=location, weights_only=weights_only is not False)
    else:
        checkpoint = load_checkpoint(source, map_location=location, weights_only=weights_only)
    hparams = read_hparams_file(hparams_file) if hparams_file is not None else _saved_hparams(cls, checkpoint)
    name = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_NAME)
    module = cls(**build_init_kwargs(cls, hparams, hparams_name=name, overrides=overrides))
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    strict = _agreed_strictness(module, strict)
    keys = module.load_state_dict(checkpoint["state_dict"], strict=strict)
    if not strict and (keys.missing_keys or keys.unexpected_keys):
        rank_zero_warn(
            f"Weights were loaded with strict=False. Missing in the file: {keys.missing_keys}. Not in the module: "
            f"{keys.unexpected_keys}.",
            PossibleUserWarning,
        )
    first = next((value for value in checkpoint["state_dict"].values() if isinstance(value, Tensor)), None)
    return module if first is None else module.to(first.device)


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
