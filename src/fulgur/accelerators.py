"""Accelerators: which devices a machine has, and how the `devices` argument names them."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from typing import Any

import torch

from fulgur.errors import MisconfigurationException, nearest_name


class Accelerator(ABC):
    """A kind of device. Subclass it, and pass an instance as `accelerator`, to train on one of your own.

    Attributes:
        name: What `accelerator` calls it; also the device type of torch for the built-in ones.
    """

    name: str = ""

    @staticmethod
    @abstractmethod
    def is_available() -> bool:
        """Whether this machine has a device of this kind."""

    @staticmethod
    @abstractmethod
    def auto_device_count() -> int:
        """How many devices ``devices="auto"`` takes."""

    @staticmethod
    @abstractmethod
    def parse_devices(devices: Any) -> Any:
        """Check the `devices` argument and bring it into the form that `get_parallel_devices` takes."""

    @staticmethod
    @abstractmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        """The devices, one for each process of this node."""

    def setup_device(self, device: torch.device) -> None:
        """Make `device` ready to be used by this process."""

    def setup(self, trainer: Any) -> None:
        """Once for each entry point, before the model is placed."""

    def teardown(self) -> None:
        """Give back what the device holds for this process."""

    def get_device_stats(self, device: torch.device) -> dict[str, Any]:
        """Figures about `device` right now."""
        return {}


class CPUAccelerator(Accelerator):
    """The CPU. `devices` is the number of processes."""

    name = "cpu"

    @staticmethod
    def is_available() -> bool:
        """Always true."""
        return True

    @staticmethod
    def auto_device_count() -> int:
        """One process."""
        return 1

    @staticmethod
    def parse_devices(devices: Any) -> int:
        """The number of processes, from a positive int or a string like ``"2"``.

        Raises:
            TypeError: Anything else: a CPU has no indices, and there is no "all".
            MisconfigurationException: Zero, or an empty list or string.
        """
        _require_some(devices)
        count = _whole(devices)
        if count is None or count < 0:
            raise TypeError(
                f"devices={devices!r} does not fit accelerator='cpu', which takes a number of processes. "
                "Use devices=1, or devices='auto'."
            )
        return count

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        """The CPU, once for each process."""
        return [torch.device("cpu")] * CPUAccelerator.parse_devices(devices)

    def get_device_stats(self, device: torch.device) -> dict[str, Any]:
        """Load of the CPU and memory in use, in percent. Needs psutil."""
        return cpu_stats()


class CUDAAccelerator(Accelerator):
    """NVIDIA and AMD GPUs. `devices` is a number of GPUs or the indices of them."""

    name = "cuda"

    @staticmethod
    def is_available() -> bool:
        """Whether torch sees at least one GPU."""
        return torch.cuda.is_available()

    @staticmethod
    def auto_device_count() -> int:
        """All GPUs; one in a notebook, which cannot start further processes by itself."""
        return 1 if _is_notebook() else torch.cuda.device_count()

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """Indices of GPUs, from ``2``, ``"2"``, ``-1`` (all), ``"0,2"`` or ``[0, 2]``.

        Raises:
            TypeError: Of another type.
            MisconfigurationException: None at all, an index twice, or a GPU that this machine does not have.
        """
        _require_some(devices)
        present = torch.cuda.device_count()
        indices = _indices(devices)
        if indices is None:
            count = _whole(devices)
            if count is None or count < -1:
                raise TypeError(
                    f"devices={devices!r} names no GPUs. Use a number of them, -1 for all, or indices like [0, 2]."
                )
            indices = list(range(present if count == -1 else count))
        _check_indices(devices, indices, present)
        return indices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        """The GPUs with these indices."""
        return [torch.device("cuda", index) for index in devices]

    def setup_device(self, device: torch.device) -> None:
        """Make `device` the current one of this process.

        Raises:
            MisconfigurationException: `device` is not a CUDA device.
        """
        if device.type != "cuda":
            raise MisconfigurationException(f"device={device} is not a CUDA device. Use one like cuda:0.")
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        torch.cuda.set_device(device)

    def teardown(self) -> None:
        """Give the memory that torch holds in reserve back to the GPU."""
        torch.cuda.empty_cache()

    def get_device_stats(self, device: torch.device) -> dict[str, Any]:
        """The counters of ``torch.cuda.memory_stats``."""
        return dict(torch.cuda.memory_stats(device))


class MPSAccelerator(Accelerator):
    """The GPU of an Apple computer. There is one."""

    name = "mps"

    @staticmethod
    def is_available() -> bool:
        """Whether this is an Apple computer with a GPU that torch can use."""
        return torch.backends.mps.is_available()

    @staticmethod
    def auto_device_count() -> int:
        """One."""
        return 1

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """``[0]``, from ``1``, ``"1"``, ``-1``, ``"0,"`` or ``[0]``.

        Raises:
            TypeError: Of another type.
            MisconfigurationException: None at all, or more than the one GPU there is.
        """
        _require_some(devices)
        indices = _indices(devices)
        if indices is None:
            count = _whole(devices)
            if count is None or count < -1:
                raise TypeError(f"devices={devices!r} does not fit accelerator='mps'. Use devices=1.")
            indices = [0] if count == -1 else list(range(count))
        _check_indices(devices, indices, 1)
        return indices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        """The one device."""
        return [torch.device("mps", index) for index in devices]

    def teardown(self) -> None:
        """Give the memory that torch holds in reserve back to the GPU."""
        torch.mps.empty_cache()

    def get_device_stats(self, device: torch.device) -> dict[str, Any]:
        """Memory in use, in bytes, and the load of the CPU that shares it. The latter needs psutil."""
        return {
            "M1_vm_percent": cpu_stats()["cpu_vm_percent"],
            "M1_percent": cpu_stats()["cpu_percent"],
            "M1_swap_percent": cpu_stats()["cpu_swap_percent"],
            "mps_allocated_bytes": torch.mps.current_allocated_memory(),
        }


ACCELERATORS: dict[str, type[Accelerator]] = {
    "mps": MPSAccelerator,
    "cuda": CUDAAccelerator,
    "cpu": CPUAccelerator,
}
"""Accelerators by the name that `accelerator` takes, in the order in which ``"auto"`` tries them."""


def build_accelerator(accelerator: str | Accelerator) -> Accelerator:
    """The accelerator that the Trainer argument asks for.

    Args:
        accelerator: ``"auto"`` (the first there is of mps, cuda, cpu), ``"gpu"`` (mps or cuda), ``"cpu"``,
            ``"cuda"``, ``"mps"``, or an instance, which is returned as it is.

    Raises:
        ValueError: The name is unknown.
        MisconfigurationException: This machine has no such device.
        ModuleNotFoundError: ``"tpu"``, which fulgur does not drive.
    """
    if isinstance(accelerator, Accelerator):
        return accelerator
    if accelerator == "auto":
        return next(kind() for kind in ACCELERATORS.values() if kind.is_available())
    if accelerator == "gpu":
        return _any_gpu()
    if accelerator == "tpu":
        raise ModuleNotFoundError("accelerator='tpu' needs torch_xla, which fulgur does not drive. Use 'cpu' or 'gpu'.")
    if not isinstance(accelerator, str) or accelerator not in ACCELERATORS:
        raise ValueError(_unknown(accelerator))
    kind = ACCELERATORS[accelerator]
    if not kind.is_available():
        raise MisconfigurationException(
            f"accelerator={accelerator!r} is not available on this machine. "
            "Use accelerator='cpu', or 'auto' for the best there is."
        )
    return kind()


def find_usable_cuda_devices(num_devices: int = -1) -> list[int]:
    """Indices of GPUs that can hold a tensor right now, in ascending order.

    A GPU in exclusive mode that another process holds is passed over.

    Args:
        num_devices: How many to find. -1 finds all.

    Raises:
        ValueError: There are fewer GPUs than `num_devices`.
        RuntimeError: There are enough, but too few are free.
    """
    if num_devices == 0:
        return []
    present = torch.cuda.device_count()
    if num_devices > present:
        raise ValueError(f"num_devices={num_devices} GPUs were asked for; this machine has {present}.")
    usable: list[int] = []
    for index in range(present):
        if len(usable) == num_devices:
            break
        if _holds_a_tensor(index):
            usable.append(index)
    if len(usable) < num_devices:
        raise RuntimeError(
            f"num_devices={num_devices} GPUs were asked for; only {usable} of {present} are free. "
            "The others are in use by other processes."
        )
    return usable


def cpu_stats() -> dict[str, float]:
    """Load of the CPU, memory and swap in use, in percent.

    Raises:
        MissingExtraError: psutil is not installed.
    """
    try:
        import psutil  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError:
        from fulgur.errors import MissingExtraError

        raise MissingExtraError("Statistics of the CPU", "psutil", "stats") from None
    return {
        "cpu_percent": psutil.cpu_percent(),
        "cpu_vm_percent": psutil.virtual_memory().percent,
        "cpu_swap_percent": psutil.swap_memory().percent,
    }


def _any_gpu() -> Accelerator:
    for kind in (MPSAccelerator, CUDAAccelerator):
        if kind.is_available():
            return kind()
    raise MisconfigurationException(
        "accelerator='gpu' needs a GPU, and torch sees none on this machine. Use accelerator='cpu', or 'auto' for "
        "the best there is."
    )


def _unknown(accelerator: object) -> str:
    names = ["auto", "gpu", *ACCELERATORS]
    hint = nearest_name(accelerator.lower(), names) if isinstance(accelerator, str) else ""
    return f"accelerator={accelerator!r} is unknown.{hint} Use one of {', '.join(map(repr, names))}, or an Accelerator."


def _require_some(devices: Any) -> None:
    if devices in (0, "0", "", [], ()) and not isinstance(devices, (bool, float)):
        raise MisconfigurationException(
            f"devices={devices!r} leaves no device to run on. Use devices=1 or more, or devices='auto'."
        )


def _whole(devices: Any) -> int | None:
    """`devices` as a count, from an int or a string that holds one; None for everything else."""
    if isinstance(devices, str):
        try:
            return int(devices)
        except ValueError:
            return None
    return devices if isinstance(devices, int) and not isinstance(devices, bool) else None


def _indices(devices: Any) -> list[int] | None:
    """`devices` as indices, from a list or a string with a comma; None where it is no list of ints."""
    if isinstance(devices, str) and "," in devices:
        devices = [part.strip() for part in devices.split(",") if part.strip()]
        return [int(part) for part in devices] if all(part.isdigit() for part in devices) else None
    if isinstance(devices, (list, tuple)) and all(type(index) is int for index in devices):
        return list(devices)
    return None


def _check_indices(devices: Any, indices: list[int], present: int) -> None:
    if len(set(indices)) != len(indices):
        raise MisconfigurationException(f"devices={devices!r} names a GPU twice. Name each once.")
    absent = sorted(set(indices) - set(range(present)))
    if absent:
        raise MisconfigurationException(
            f"devices={devices!r} asks for GPU {', '.join(map(str, absent))}; this machine has "
            f"{'none' if present == 0 else ', '.join(map(str, range(present)))}. Use devices='auto' for what there is."
        )


def _holds_a_tensor(index: int) -> bool:
    try:
        torch.zeros(1, device=torch.device("cuda", index))
    except RuntimeError:
        return False
    return True


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None
