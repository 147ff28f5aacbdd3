"""How fast a loop of one's own goes: batches, samples, items and floating-point operations a second."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch

from fulgur.callbacks.throughput_monitor import find_peak_flops
from fulgur.fabric.fabric import Fabric


class _Totals(NamedTuple):
    """What the loop has done so far."""

    time: float
    batches: int
    samples: int
    lengths: int
    flops: float


class Throughput:
    """Rates over the last updates, from totals that the loop brings.

    Args:
        available_flops: Most floating-point operations that the device can do in a second. None: unknown, without
            ``device/mfu``.
        world_size: Processes. With several, rates of all are there beside those of one device.
        window_size: Updates over which rates are taken. >= 2.
        separator: Between the parts of a key.

    Raises:
        ValueError: `available_flops` or `world_size` is not positive, or `window_size` is below 2.

    Example:
        >>> throughput = Throughput(window_size=2)
        >>> for step in range(3):
        ...     throughput.update(time=0.5 * step, batches=step, samples=8 * step)
        >>> throughput.compute()["device/samples_per_sec"]
        16.0
    """

    def __init__(
        self,
        available_flops: float | None = None,
        world_size: int = 1,
        window_size: int = 100,
        separator: str = "/",
    ) -> None:
        if available_flops is not None and available_flops <= 0:
            raise ValueError(f"available_flops={available_flops} is no rate. Use a positive number, or None.")
        if world_size < 1:
            raise ValueError(f"world_size={world_size} is no number of processes. Use 1 or more.")
        if window_size < 2:
            raise ValueError(f"window_size={window_size}: a rate needs 2 updates or more.")
        self.available_flops, self.world_size, self.separator = available_flops, world_size, separator
        self._window: deque[_Totals] = deque(maxlen=window_size)
        self._has_flops = self._has_lengths = False

    def update(
        self, *, time: float, batches: int, samples: int, lengths: int | None = None, flops: int | None = None
    ) -> None:
        """Tell what this process has done so far.

        Args:
            time: Seconds since the loop began. More than in the update before.
            batches: Batches since then.
            samples: Samples since then. At least as many as batches.
            lengths: Items since then, such as tokens. At least as many as samples.
            flops: Floating-point operations of the last batch.

        Raises:
            ValueError: A number is less than it can be.
        """
        before = self._window[-1] if self._window else _Totals(-1.0, -1, -1, -1, 0.0)
        if time <= before.time:
            raise ValueError(f"time={time} is not later than {before.time}, of the update before.")
        if batches < before.batches:
            raise ValueError(f"batches={batches} is less than {before.batches}, of the update before. Give totals.")
        if samples < max(before.samples, batches):
            raise ValueError(f"samples={samples} is less than {max(before.samples, batches)}. Give totals.")
        if lengths is not None and lengths < max(before.lengths, samples):
            raise ValueError(f"lengths={lengths} is less than {max(before.lengths, samples)}. Give totals.")
        self._has_lengths, self._has_flops = lengths is not None, flops is not None
        self._window.append(_Totals(time, batches, samples, lengths or 0, before.flops + (flops or 0)))

    def compute(self) -> dict[str, float]:
        """The last totals and, once the window is full, the rates over it."""
        if not self._window:
            return {}
        first, last = self._window[0], self._window[-1]
        values: dict[str, float] = {"time": last.time, "batches": last.batches, "samples": last.samples}
        if self._has_lengths:
            values["lengths"] = last.lengths
        if len(self._window) < (self._window.maxlen or 0):
            return values
        elapsed = last.time - first.time
        rates = {
            "batches_per_sec": (last.batches - first.batches) / elapsed,
            "samples_per_sec": (last.samples - first.samples) / elapsed,
        }
        if self._has_lengths:
            rates["items_per_sec"] = (last.lengths - first.lengths) / elapsed
        if self._has_flops:
            rates["flops_per_sec"] = (last.flops - first.flops) / elapsed
        if self.world_size > 1:
            values |= {name: rate * self.world_size for name, rate in rates.items()}
        values |= {f"device{self.separator}{name}": rate for name, rate in rates.items()}
        if self._has_flops and self.available_flops:
            values[f"device{self.separator}mfu"] = rates["flops_per_sec"] / self.available_flops
        return values

    def reset(self) -> None:
        """Forget all updates."""
        self._window.clear()


class ThroughputMonitor(Throughput):
    """`Throughput` of a `Fabric`'s loop, sent to its loggers.

    Args:
        fabric: Knows devices, processes and loggers.
        **kwargs: For `Throughput`.
    """

    def __init__(self, fabric: Fabric, **kwargs: Any) -> None:
        kwargs.setdefault("available_flops", get_available_flops(fabric.device))
        kwargs.setdefault("world_size", fabric.world_size)
        super().__init__(**kwargs)
        self._fabric, self._step = fabric, -1

    def compute_and_log(self, step: int | None = None, **kwargs: Any) -> dict[str, float]:
        """Send what `compute` gives to the loggers, and return it.

        Args:
            step: The loggers' axis; None is one more than the step before.
            **kwargs: Accepted for compatibility.
        """
        self._step = self._step + 1 if step is None else step
        values = self.compute()
        self._fabric.log_dict(values, step=self._step)
        return values


def get_available_flops(device: torch.device, dtype: torch.dtype | str = torch.bfloat16) -> int | None:
    """Most operations that `device` can do in a second, dense, in 16 bits; None where that is not known.

    Args:
        device: A CUDA device; of others nothing is known.
        dtype: None is returned for those of more than 16 bits.
    """
    found = find_peak_flops(device)
    is_short = str(dtype).removeprefix("torch.") in ("bfloat16", "float16")
    return int(found) if found is not None and is_short else None
