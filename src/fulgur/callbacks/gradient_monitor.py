"""Look at gradients: norms by layer and in all, histograms, and the names of those that are not finite."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback, ignores_outputs
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer

_N_BINS = 64


class GradientMonitor(Callback):
    """Log the norms of gradients at the steps for which loggers get values, and name those that are not finite.

    Keys are ``grad_norm/<layer>`` for each module that has parameters of its own, and ``grad_norm/total``; with
    several optimizers ``grad_norm-<index>/…``. Gradients are those of the step: unscaled, averaged over window and
    ranks, not yet clipped. Norms are computed on the device and come over with the other values of the step, in the
    one copy of the flush. Only if the total is not finite are the single parameters looked at, after the step. Between
    the steps that are logged it costs a call each. Under 16-mixed, where the scaler skips such steps, norms that are
    not finite are only logged.

    Args:
        norm_type: Order of the norm. > 0; ``inf`` takes the largest element.
        per_layer: Log the norm of each layer, besides the total.
        histograms: Give loggers that have histograms (TensorBoard, W&B) one of each layer's gradients, under
            ``grad/<layer>``; this is one more copy.
        on_non_finite: "raise" an error, "warn", or "ignore".

    Raises:
        ValueError: `norm_type` is not positive, or `on_non_finite` is unknown.
        FloatingPointError: Gradients are not finite; the message names the parameters.
        MisconfigurationException: When a fit begins: `histograms` of gradients that are split over ranks.

    Example:
        >>> trainer = Trainer(callbacks=[GradientMonitor(histograms=True)])
    """

    is_monitor = True  # the end of a batch is looked at after the flush

    def __init__(
        self,
        norm_type: float = 2.0,
        *,
        per_layer: bool = True,
        histograms: bool = False,
        on_non_finite: Literal["raise", "warn", "ignore"] = "raise",
    ) -> None:
        if not float(norm_type) > 0:
            raise ValueError(f"norm_type={norm_type!r} is no order of a norm. Use a positive number or math.inf.")
        if on_non_finite not in ("raise", "warn", "ignore"):
            raise ValueError(f"on_non_finite={on_non_finite!r} is unknown. Use 'raise', 'warn' or 'ignore'.")
        self.norm_type, self.per_layer, self.histograms = float(norm_type), per_layer, histograms
        self.on_non_finite = on_non_finite
        self._names: dict[int, str] = {}
        self._pending: list[tuple[str, list[str], Tensor]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.histograms and trainer.strategy.restores_after_setup:
            raise MisconfigurationException(
                f"GradientMonitor(histograms=True): under {type(trainer.strategy).__name__} no rank has whole "
                "gradients. Leave histograms out."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        self._pending = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not trainer.is_logging_step:
            return
        grads = self._gradients(optimizer)
        if not grads:
            return
        single = _norms(list(grads.values()), self.norm_type)
        optimizers = trainer.optimizers
        index = next((i for i, o in enumerate(optimizers) if o is optimizer), 0)
        prefix = f"grad_norm-{index}" if len(optimizers) > 1 else "grad_norm"
        if self.per_layer:
            rows: dict[str, list[int]] = {}
            for row, name in enumerate(grads):
                rows.setdefault(_layer(name), []).append(row)
            for layer, members in rows.items():
                norm = torch.linalg.vector_norm(single[members[0] : members[-1] + 1], self.norm_type)
                pl_module.log(f"{prefix}/{layer}", norm)
        pl_module.log(f"{prefix}/total", torch.linalg.vector_norm(single, self.norm_type))
        self._pending.append((f"{prefix}/total", list(grads), single))
        if self.histograms and trainer.loggers:
            self._write_histograms(grads, trainer, "grad" if len(optimizers) == 1 else f"grad-{index}")

    @ignores_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        if self.on_non_finite == "ignore" or trainer.scaler is not None:
            return
        for key, names, single in pending:
            total = trainer.logged_metrics.get(key)
            if total is None or math.isfinite(total):
                continue
            values = single.tolist()  # waits for the device, for the run is in trouble
            self._tell([name for name, value in zip(names, values, strict=True) if not math.isfinite(value)], trainer)

    def _gradients(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """By name of the parameter, those of a layer side by side."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        named = {self._names.get(id(p), "unnamed"): p.grad.detach() for p in parameters}
        places: dict[str, int] = {}
        for name in named:
            places.setdefault(_layer(name), len(places))
        return dict(sorted(named.items(), key=lambda item: places[_layer(item[0])]))

    def _tell(self, names: list[str], trainer: Trainer) -> None:
        what = f"the gradients of {len(names)} parameters" if names else "the norm of all gradients together"
        shown = f": {', '.join(names[:10])}{', …' if len(names) > 10 else ''}" if names else ""
        message = (
            f"At global step {trainer.log_step} {what} were NaN or infinite{shown}. Look for a division by zero, the "
            "logarithm of zero or a learning rate that is too high; Trainer(detect_anomaly=True) finds the operation."
        )
        if self.on_non_finite == "raise":
            raise FloatingPointError(message)
        rank_zero_warn(message)

    def _write_histograms(self, grads: dict[str, Tensor], trainer: Trainer, prefix: str) -> None:
        layers: dict[str, list[Tensor]] = {}
        for name, grad in grads.items():
            layers.setdefault(_layer(name), []).append(grad.flatten().double())
        device = next(iter(grads.values())).device
        summaries = torch.stack([_histogram(torch.cat(parts)).to(device) for parts in layers.values()])
        rows = summaries.tolist()  # waits for the device
        for logger in trainer.loggers:
            for layer, row in zip(layers, rows, strict=True):
                _add_histogram(logger.experiment, f"{prefix}/{layer}", row, trainer.log_step)


def _layer(name: str) -> str:
    """The module that has the parameter `name` as its own."""
    return name.rpartition(".")[0] or name


def _norms(grads: list[Tensor], order: float) -> Tensor:
    """The norm of each, as one tensor. Does not wait for the device."""
    device = grads[0].device
    norms: list[Any] = [torch.linalg.vector_norm(grad, order, dtype=torch.float32) for grad in grads]
    whole = [
        norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms
    ]  # all ranks must reach this
    return torch.stack([norm.to(device) for norm in whole])


def _histogram(values: Tensor) -> Tensor:
    """Smallest, largest, number, sum, sum of squares, and the counts of equal bins between; finite values only."""
    is_finite = values.isfinite()
    low = torch.where(is_finite, values, torch.inf).min()
    high = torch.where(is_finite, values, -torch.inf).max()
    kept = torch.where(is_finite, values, 0.0)
    width = (high - low).clamp_min(torch.finfo(values.dtype).tiny)
    bins = torch.where(is_finite, ((values - low) / width * _N_BINS).floor(), 0.0).clamp(0, _N_BINS - 1).long()
    counts = torch.zeros(_N_BINS, dtype=values.dtype, device=values.device)
    counts.scatter_add_(0, bins, is_finite.to(values.dtype))
    return torch.cat([torch.stack([low, high, is_finite.sum(), kept.sum(), kept.square().sum()]), counts])


def _add_histogram(experiment: Any, tag: str, row: list[float], step: int) -> None:
    low, high, n, total, squares, *counts = row
    if n == 0:
        return
    edges = [low + (high - low) * i / _N_BINS for i in range(_N_BINS + 1)]
    module = type(experiment).__module__.partition(".")[0]
    if module == "wandb":
        import wandb

        histogram: Any = (counts, edges)
        experiment.log({tag: wandb.Histogram(np_histogram=histogram), "trainer/global_step": step})
    elif hasattr(experiment, "add_histogram_raw") and not _is_dummy(experiment):
        experiment.add_histogram_raw(tag, low, high, n, total, squares, edges[1:], counts, global_step=step)


def _is_dummy(experiment: Any) -> bool:
    from fulgur.loggers.logger import DummyExperiment

    return isinstance(experiment, DummyExperiment)
