"""Accelerators by name, and what devices say about themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch

from fulgur.accelerators import ACCELERATORS, CUDAAccelerator, MPSAccelerator
from fulgur.errors import MisconfigurationException


class _Registry(MutableMapping[str, Any]):
    """Accelerators that ``Trainer(accelerator=name)`` knows, by name."""

    def register(
        self, name: str, accelerator: Any = None, description: str = "", override: bool = False, **init: Any
    ) -> Callable[..., Any]:
        """Make `accelerator` known as `name`; usable as a decorator.

        Raises:
            MisconfigurationException: `name` is taken, and `override` is not set.
        """
        if name in ACCELERATORS and not override:
            raise MisconfigurationException(f"{name!r} is an accelerator already. Pass override=True to replace it.")

        def add(kind: Any) -> Any:
            ACCELERATORS[name] = kind
            return kind

        return add if accelerator is None else add(accelerator)

    def get(self, name: str, default: Any = None) -> Any:
        """A new instance of the accelerator."""
        if name not in ACCELERATORS:
            if default is not None:
                return default
            raise KeyError(f"{name!r} is no accelerator. There are: {', '.join(self.available_accelerators())}.")
        return ACCELERATORS[name]()

    def remove(self, name: str) -> None:
        """Forget the accelerator."""
        del ACCELERATORS[name]

    def available_accelerators(self) -> set[str]:
        """Names that are known."""
        return set(ACCELERATORS)

    def __getitem__(self, name: str) -> Any:
        return ACCELERATORS[name]

    def __setitem__(self, name: str, accelerator: Any) -> None:
        ACCELERATORS[name] = accelerator

    def __delitem__(self, name: str) -> None:
        del ACCELERATORS[name]

    def __iter__(self) -> Iterator[str]:
        return iter(ACCELERATORS)

    def __len__(self) -> int:
        return len(ACCELERATORS)


AcceleratorRegistry = _Registry()


def call_register_accelerators(registry: Any, base_module: str) -> None:
    """Register the accelerators of a module that has any.

    Args:
        registry: Where.
        base_module: Dotted path of the module.
    """
    from importlib import import_module

    from fulgur.accelerators import Accelerator

    for value in vars(import_module(base_module)).values():
        if isinstance(value, type) and issubclass(value, Accelerator) and hasattr(value, "register_accelerators"):
            value.register_accelerators(registry)


def is_cuda_available() -> bool:
    """Whether torch sees a CUDA device."""
    return torch.cuda.is_available()


def num_cuda_devices() -> int:
    """CUDA devices that torch sees."""
    return torch.cuda.device_count()


def get_nvidia_gpu_stats(device: torch.device) -> dict[str, float]:
    """Memory and, where the driver tells, use of a GPU."""
    return CUDAAccelerator().get_device_stats(device)


def get_mps_stats() -> dict[str, float]:
    """Memory of Apple's GPU."""
    return MPSAccelerator().get_device_stats(torch.device("mps"))


def _check_data_type(device_ids: object) -> None:
    if (
        device_ids is None
        or isinstance(device_ids, (bool, float))
        or not isinstance(device_ids, (int, str, list, tuple))
    ):
        raise TypeError(f"devices={device_ids!r} is no int, str or list of ints.")
    for index in device_ids if isinstance(device_ids, (list, tuple)) else ():
        if type(index) is not int:
            raise TypeError(f"devices={device_ids!r} holds {index!r}, which is no int.")


def _check_unique(device_ids: list[int]) -> None:
    if len(device_ids) != len(set(device_ids)):
        raise MisconfigurationException(f"devices={device_ids} names a device twice.")


def _normalize_parse_gpu_string_input(s: int | str | list[int]) -> int | list[int]:
    if not isinstance(s, str):
        return s
    if s == "-1":
        return -1
    return [int(part) for part in s.split(",") if part.strip()] if "," in s else int(s.strip())
