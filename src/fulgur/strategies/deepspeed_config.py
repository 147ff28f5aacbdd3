"""What DeepSpeed's engine is configured with: the user's file or dict, or what the strategy's arguments say."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fulgur.errors import MisconfigurationException

CONFIG_VARIABLE = "PL_DEEPSPEED_CONFIG_PATH"
STAGES = (1, 2, 3)
_FORMATS = {"32-true": None, "bf16-mixed": "bf16", "bf16-true": "bf16", "16-mixed": "fp16", "16-true": "fp16"}
_OFFLOAD_DEVICES = ("cpu", "nvme")


def read_config(given: Mapping[str, Any] | str | os.PathLike[str] | None) -> dict[str, Any] | None:
    """The user's own configuration; None where there is none.

    Args:
        given: A dict, or the path of a JSON file. None looks for a path in the environment: PL_DEEPSPEED_CONFIG_PATH.

    Raises:
        MisconfigurationException: There is no such file, it is no JSON, or holds no object.
    """
    if isinstance(given, Mapping):
        return copy.deepcopy(dict(given))
    path = os.environ.get(CONFIG_VARIABLE) if given is None else os.fspath(given)
    if not path:
        return None
    where = f"config={path!r}" if given is not None else f"{CONFIG_VARIABLE}={path!r}"
    if not os.path.isfile(path):
        raise MisconfigurationException(f"{where}: there is no such file. Name a JSON file of DeepSpeed's settings.")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise MisconfigurationException(f"{where} is no JSON: {error}. Name a JSON file.") from error
    if not isinstance(found, dict):
        raise MisconfigurationException(f"{where} holds a {type(found).__name__}. DeepSpeed's settings are an object.")
    return found


def build_zero(
    stage: int,
    *,
    offload_optimizer: bool,
    offload_optimizer_device: str,
    offload_parameters: bool,
    offload_params_device: str,
    nvme_path: str,
    optimizer_buffer_count: int,
    params_buffer_count: int,
    params_buffer_size: int,
    max_in_cpu: int,
    pin_memory: bool,
    sub_group_size: int,
    **settings: Any,
) -> dict[str, Any]:
    """The section ``zero_optimization`` for a stage.

    Raises:
        MisconfigurationException: Something is offloaded that the stage keeps whole, or to an unknown device.
    """
    for name, device in (
        ("offload_optimizer_device", offload_optimizer_device),
        ("offload_params_device", offload_params_device),
    ):
        if device not in _OFFLOAD_DEVICES:
            raise MisconfigurationException(f"{name}={device!r} is unknown. Use 'cpu' or 'nvme'.")
    if offload_parameters and stage != 3:
        raise MisconfigurationException(
            f"offload_parameters=True with stage={stage}, which keeps all parameters on the device. Use stage=3."
        )
    if offload_optimizer and offload_optimizer_device == "nvme" and stage != 3:
        raise MisconfigurationException(
            f"offload_optimizer_device='nvme' with stage={stage}: only stage 3 takes optimizer states off the host. "
            "Use stage=3, or offload_optimizer_device='cpu'."
        )
    zero: dict[str, Any] = {"stage": stage, **settings}
    if offload_optimizer:
        zero["offload_optimizer"] = {
            "device": offload_optimizer_device,
            "nvme_path": nvme_path,
            "buffer_count": optimizer_buffer_count,
            "pin_memory": pin_memory,
        }
    if offload_parameters:
        zero["offload_param"] = {
            "device": offload_params_device,
            "nvme_path": nvme_path,
            "buffer_count": params_buffer_count,
            "buffer_size": params_buffer_size,
            "max_in_cpu": max_in_cpu,
            "pin_memory": pin_memory,
        }
    if stage == 3:
        zero["sub_group_size"] = sub_group_size
    return zero


def stage_of(config: Mapping[str, Any]) -> int:
    """The stage that a configuration asks for.

    Raises:
        MisconfigurationException: None that shares anything.
    """
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, Mapping) else int(bool(zero))
    if stage not in STAGES:
        raise MisconfigurationException(
            f"ZeRO stage {stage} shares nothing between the processes: that is data parallelism. Use stage=1, 2 or 3, "
            "or strategy='ddp'."
        )
    return int(stage)


def require(config: dict[str, Any], key: str, value: Any, *, argument: str) -> None:
    """Put a value of the Trainer's into `config`.

    Raises:
        MisconfigurationException: The user's configuration says something else.
    """
    said = config.get(key, "auto")
    if said not in ("auto", value):
        raise MisconfigurationException(
            f"DeepSpeed's configuration has {key}={said!r}, and the Trainer {argument}. Leave it out of the "
            "configuration: the Trainer's counts."
        )
    config[key] = value


def add_precision(config: dict[str, Any], name: str, *, scaling: Mapping[str, Any]) -> None:
    """Put the section for the Trainer's `precision` into `config`, unless it has one.

    Raises:
        MisconfigurationException: DeepSpeed has nothing for this precision, or the configuration says another.
    """
    if name not in _FORMATS:
        raise MisconfigurationException(
            f"precision={name!r} does not go with DeepSpeed. Use one of {', '.join(map(repr, _FORMATS))}."
        )
    if name.endswith("-mixed") and config.get("torch_autocast", {}).get("enabled"):
        return  # weights of 32 bits, as without DeepSpeed
    wanted = _FORMATS[name]
    for section in ("bf16", "fp16"):
        is_on = config.get(section, {}).get("enabled", section == wanted)
        if is_on not in ("auto", section == wanted):
            raise MisconfigurationException(
                f"DeepSpeed's configuration has {section}.enabled={is_on!r}, and the Trainer precision={name!r}. "
                "Leave it out of the configuration: the Trainer's counts."
            )
    if wanted is not None:
        own = config.get(wanted, {})
        defaults = dict(scaling) if wanted == "fp16" else {}
        config[wanted] = {**defaults, **own, "enabled": True}
