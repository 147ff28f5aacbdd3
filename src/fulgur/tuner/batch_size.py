"""The largest batch size that fits into memory: doubled, and halved in between, until it does not.

Reading order: `find_batch_size` -> `double` or `bisect` (which size next) -> `_Fitting` (whether it fits).
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from fulgur.errors import MisconfigurationException
from fulgur.rank import rank_zero_debug

if TYPE_CHECKING:
    from fulgur.trials import Trial
    from fulgur.tuner.attributes import Attribute

Fits = Callable[[int], bool]

_OUT_OF_MEMORY = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
)
"""What torch says where memory is at its end; cuDNN and cuBLAS have words of their own for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory is at its end, on the device or on the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def double(fits: Fits, *, init_val: int, max_trials: int, limit: float) -> int:
    """Double until it does not fit.

    Args:
        fits: Tries a size.
        init_val: The first size; halved where it does not fit itself. >= 1.
        max_trials: Sizes tried at most.
        limit: Largest size that is tried.

    Returns:
        The largest size that was tried and fits.
    """
    size = int(min(init_val, limit))
    best = 0
    for _ in range(max_trials):
        if fits(size):
            best = size
            if size >= limit:
                break
            size = int(min(2 * size, limit))
        elif best:
            break
        else:
            size = max(size // 2, 1)
    return best or size


def bisect(fits: Fits, *, init_val: int, max_trials: int, limit: float, margin: float) -> int:
    """Double until it does not fit, then halve the range between; in the end leave some room.

    Args:
        fits, init_val, max_trials, limit: As for `double`.
        margin: Fraction by which the result is less than what fits. 0 to 1, without 1.
    """
    size, low, high = int(min(init_val, limit)), 0, math.inf
    for _ in range(max_trials):
        if fits(size):
            low = size
        else:
            high = size
        if low >= limit or high - low <= 1:
            break
        size = int(min(2 * low, limit)) if math.isinf(high) else max((low + int(high)) // 2, 1)
    return max(1, int((low or size) * (1 - margin)))


def find_batch_size(
    trial: Trial,
    *,
    attribute: Attribute,
    mode: str,
    steps_per_trial: int,
    init_val: int,
    max_trials: int,
    margin: float,
    max_val: int,
) -> int:
    """Find the largest batch size that fits, trying with `trial`.

    Args:
        trial: What trains or evaluates.
        attribute: Where loaders take their batch size from.
        mode: "power" or "binsearch".
        steps_per_trial: Steps, or batches of an evaluation, for each size. >= 1.
        init_val, max_trials, margin: As for `bisect`.
        max_val: Largest size that is tried.

    Raises:
        MisconfigurationException: The batch size of the loaders is not the attribute's to set.
        RuntimeError: Even one sample is too much for the memory.
    """
    check_search(mode, steps_per_trial, init_val, max_trials, margin)
    attribute.set(1)  # for a look at the loaders: none is empty with it
    check_loaders(trial)
    with trial.alone() as strategy:
        limit = min(max_val, trial.longest_dataset(strategy))
        fits = _Fitting(trial, attribute, steps_per_trial, decide=strategy.reduce_boolean_decision)
        if mode == "power":
            return double(fits, init_val=init_val, max_trials=max_trials, limit=limit)
        return bisect(fits, init_val=init_val, max_trials=max_trials, limit=limit, margin=margin)


class _Fitting:
    """Whether a batch size fits, on all ranks."""

    def __init__(self, trial: Trial, attribute: Attribute, steps: int, *, decide: Callable[[bool], bool]) -> None:
        self.trial, self.attribute, self.steps, self.decide = trial, attribute, steps, decide

    def __call__(self, size: int) -> bool:
        self.attribute.set(size)
        failure = self._run()
        free_memory()
        fits = self.decide(failure is None)  # all ranks must reach this
        if not fits and size == 1:
            raise RuntimeError(f"A batch of one sample does not fit into memory: {failure or 'on another rank'}.")
        rank_zero_debug(f"Batch size {size} {'fits' if fits else 'is too much'}.")
        return fits

    def _run(self) -> str | None:
        try:
            if self.trial.name == "train":
                self.trial.train(self.steps)
            else:
                self.trial.evaluate(self.steps)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return str(error)  # not the error itself, which holds all that its frames hold
        return None


def free_memory() -> None:
    """Give back what nobody uses: what hangs in cycles, and what the device's allocator keeps for later."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call, unused-ignore]
        torch.cuda.empty_cache()


def check_search(mode: str, steps_per_trial: int, init_val: int, max_trials: int, margin: float) -> None:
    """Refuse a search that cannot be made.

    Raises:
        ValueError: A value is out of range.
    """
    if mode not in ("power", "binsearch"):
        raise ValueError(f"mode={mode!r} is unknown. Use 'power' or 'binsearch'.")
    for name, value in {"steps_per_trial": steps_per_trial, "init_val": init_val, "max_trials": max_trials}.items():
        if value < 1:
            raise ValueError(f"{name}={value} leaves nothing to try. Use 1 or more.")
    if not 0 <= margin < 1:
        raise ValueError(f"margin={margin} is no fraction of a batch size. Use 0 <= margin < 1.")


def check_loaders(trial: Trial) -> None:
    """Refuse loaders whose batch size nobody can set, and ranks that cannot try by themselves.

    Raises:
        MisconfigurationException: It is so.
    """
    fn, name, strategy = trial.call.fn, trial.name, trial.trainer.strategy
    if trial.call.sources.get(name) is not None:
        raise MisconfigurationException(
            f"The batch size finder makes loaders anew for each size, and trainer.{fn} was passed one that is made "
            f"already. Define {'train' if name == 'train' else name}_dataloader in the module or a datamodule."
        )
    refused = why_not_alone(strategy)
    if refused:
        raise MisconfigurationException(refused)
    feed = trial.load()
    if name != "train" and len(feed.loaders) > 1:
        raise MisconfigurationException(
            f"The batch size finder sets one batch size, and there are {len(feed.loaders)} loaders to {fn} with. Set "
            "theirs by hand."
        )


def why_not_alone(strategy: object) -> str:
    """Why the ranks of `strategy` cannot try sizes each by itself; empty where they can."""
    if not getattr(strategy, "is_distributed", False):
        return ""
    if getattr(strategy, "forward_is_collective", False):
        reason = f"under {type(strategy).__name__} a rank holds a part of the model only"
    elif getattr(strategy, "sync_batchnorm", False):
        reason = "with sync_batchnorm=True a forward pass waits for the other ranks"
    else:
        return ""
    return (
        f"The batch size finder lets each rank find out by itself what fits, and {reason}, so that a rank whose memory "
        "is at its end would leave the others waiting. Set the batch size by hand."
    )
