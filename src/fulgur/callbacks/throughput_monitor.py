"""Log how fast a run goes: batches, samples, items and floating-point operations a second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fulgur.hooks import Callback, ignores_outputs

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer

# Dense operations a second in bfloat16 or float16, by a part of the GPU's name; from the makers' data sheets.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "V100": 125e12, "T4": 65e12}


@dataclass(slots=True)
class _Counts:
    """What a stage has done so far, and the same after each of the last batches."""

    window: deque[tuple[float, int, int, int, float]]
    time_s: float = 0.0
    batches: int = 0
    samples: int = 0
    lengths: int = 0
    flops: float = 0.0
    started: float = 0.0


class ThroughputMonitor(Callback):
    """Send throughput to the loggers: totals of the stage, and rates over the last batches once there are enough.

    Keys begin with the stage: ``train/time`` (seconds), ``train/batches``, ``train/samples``, ``train/lengths``,
    ``train/device/batches_per_sec``, ``…/samples_per_sec``, ``…/items_per_sec``; with a module attribute
    ``flops_per_batch`` also ``…/flops_per_sec`` and, on a GPU whose peak in half precision is known, ``…/mfu``, the
    fraction of it. On several ranks rank 0 counts, and ``train/global/…`` is that times their number. Validations
    within a fit do not count to the time of training. Logged at the steps for which loggers get values; in evaluations
    every `log_every_n_steps` batches.

    Args:
        batch_size_fn: Takes a batch, gives its number of samples.
        length_fn: Takes a batch, gives its number of items, such as tokens. None for none.
        window_size: Batches over which rates are taken. >= 2.
        separator: Between the parts of a key.

    Raises:
        ValueError: `window_size` is below 2; or the numbers of a batch cannot be: samples below 1, items below samples.

    Example:
        >>> trainer = Trainer(callbacks=[ThroughputMonitor(batch_size_fn=len)])
    """

    def __init__(
        self,
        batch_size_fn: Callable[[Any], int],
        length_fn: Callable[[Any], int] | None = None,
        window_size: int = 100,
        separator: str = "/",
    ) -> None:
        if window_size < 2:
            raise ValueError(f"ThroughputMonitor(window_size={window_size}): a rate needs 2 batches or more.")
        self.batch_size_fn, self.length_fn = batch_size_fn, length_fn
        self.window_size, self.separator = window_size, separator
        self._counts: dict[str, _Counts] = {}
        self._restored: dict[str, Any] = {}
        self._paused_at = 0.0

    def state_dict(self) -> dict[str, Any]:
        counts = self._counts.get("train")
        if counts is None:
            return {}
        names = ("time_s", "batches", "samples", "lengths", "flops")
        return {name: getattr(counts, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._counts, self._restored = {}, {}

    # ------------------------------------------------------------------------------------------------- the stages

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("train", trainer, **self._restored)

    @ignores_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_due = trainer.is_logging_step and trainer.global_step > trainer.log_step
        self._count("train", trainer, pl_module, batch, trainer.log_step if is_due else None)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._paused_at = time.perf_counter()
            self._begin("validate", trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._count_evaluated("validate", trainer, pl_module, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        training = self._counts.get("train")
        if training is None or trainer.sanity_checking:
            return
        pause = time.perf_counter() - self._paused_at
        training.started += pause

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("test", trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count_evaluated("test", trainer, pl_module, batch)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("predict", trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count_evaluated("predict", trainer, pl_module, batch)

    # --------------------------------------------------------------------------------------------------- counting

    def _begin(self, stage: str, trainer: Trainer, **restored: Any) -> None:
        if trainer.is_global_zero:
            counts = _Counts(deque(maxlen=self.window_size), **restored)
            counts.started = time.perf_counter() - counts.time_s
            self._counts[stage] = counts

    def _count_evaluated(self, stage: str, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        if stage in self._counts:
            n, every = self._counts[stage].batches + 1, trainer.log_every_n_steps
            self._count(stage, trainer, module, batch, n if every and n % every == 0 else None)

    def _count(self, stage: str, trainer: Trainer, module: LightningModule, batch: Any, step: int | None) -> None:
        """Count `batch`, and log as of `step`, if that is not None."""
        counts = self._counts.get(stage)
        if counts is None:
            return
        n_samples = int(self.batch_size_fn(batch))
        n_items = int(self.length_fn(batch)) if self.length_fn is not None else n_samples
        if not 1 <= n_samples <= n_items:
            raise ValueError(
                f"A batch has {n_samples} samples by batch_size_fn and {n_items} items by length_fn. There must be at "
                "least 1 sample, and at least 1 item for each."
            )
        counts.batches += 1
        counts.samples += n_samples
        counts.lengths += n_items
        counts.flops += float(getattr(module, "flops_per_batch", 0) or 0)
        counts.time_s = time.perf_counter() - counts.started
        counts.window.append((counts.time_s, counts.batches, counts.samples, counts.lengths, counts.flops))
        if step is not None and trainer.loggers:
            values = self._values(counts, trainer)
            keyed = {self.separator.join((stage, *parts)): value for parts, value in values.items()}
            for logger in trainer.loggers:
                logger.log_metrics(dict(keyed), step=step)

    def _values(self, counts: _Counts, trainer: Trainer) -> dict[tuple[str, ...], float]:
        values: dict[tuple[str, ...], float] = {
            ("time",): counts.time_s,
            ("batches",): counts.batches,
            ("samples",): counts.samples,
        }
        if self.length_fn is not None:
            values[("lengths",)] = counts.lengths
        if len(counts.window) < self.window_size:
            return values
        first, last = counts.window[0], counts.window[-1]
        elapsed = last[0] - first[0]
        names = ["batches_per_sec", "samples_per_sec"]
        rates = {name: (last[i] - first[i]) / elapsed for i, name in enumerate(names, start=1)}
        if self.length_fn is not None:
            rates["items_per_sec"] = (last[3] - first[3]) / elapsed
        if counts.flops:
            rates["flops_per_sec"] = (last[4] - first[4]) / elapsed
        for name, rate in rates.items():
            values["device", name] = rate
            if trainer.world_size > 1:
                values["global", name] = rate * trainer.world_size
        peak = find_peak_flops(trainer.strategy.root_device)
        if counts.flops and peak is not None:
            values["device", "mfu"] = rates["flops_per_sec"] / peak
        return values


def find_peak_flops(device: torch.device) -> float | None:
    """Most operations that `device` can do in a second, dense, in 16 bits; None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_FLOPS.items() if part in name), None)
