"""Out of memory: recognising it, and making room."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor

from fulgur.compat.standins.tensors import apply_to_collection


def recursive_detach(in_dict: Any, to_cpu: bool = False) -> Any:
    """Nested values with every tensor detached.

    Args:
        in_dict: The values.
        to_cpu: Also bring them to the host, which waits for the device.
    """
    return apply_to_collection(in_dict, Tensor, lambda t: t.detach().cpu() if to_cpu else t.detach())


def is_oom_error(exception: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the host."""
    return is_cuda_out_of_memory(exception) or is_cudnn_snafu(exception) or is_out_of_cpu_memory(exception)


def is_cuda_out_of_memory(exception: BaseException) -> bool:
    """Whether a GPU's memory ran out."""
    return isinstance(exception, RuntimeError) and "out of memory" in str(exception) and "CUDA" in str(exception)


def is_cudnn_snafu(exception: BaseException) -> bool:
    """Whether cuDNN refused, as it does where it gets too little memory."""
    return isinstance(exception, RuntimeError) and "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED" in str(exception)


def is_out_of_cpu_memory(exception: BaseException) -> bool:
    """Whether the host's memory ran out."""
    return isinstance(exception, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(exception)


def garbage_collection_cuda() -> None:
    """Collect garbage, and give unused memory of the GPU back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
