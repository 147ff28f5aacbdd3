"""When learning-rate schedulers step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fulgur.errors import MisconfigurationException, PossibleUserWarning, nearest_name
from fulgur.metrics import MetricLog
from fulgur.optim.configure import LRSchedulerConfig
from fulgur.rank import rank_zero_warn

Configs = tuple[LRSchedulerConfig, ...]


class Schedulers:
    """Learning-rate schedulers of automatic optimization, sorted by when they step.

    Args:
        configs: All of them.
        step: The module's ``lr_scheduler_step`` where it is overridden, else None.
        metrics: Where plateau schedulers find what they monitor.

    Attributes:
        share: Gives all ranks the value of rank 0, so that their rates stay the same; None on one process.
    """

    def __init__(
        self, configs: Iterable[LRSchedulerConfig], *, step: Callable[[Any, Any], None] | None, metrics: MetricLog
    ) -> None:
        configs = tuple(configs)
        self._override, self._metrics = step, metrics
        self.share: Callable[[Any], Any] | None = None
        self.by_step: Configs = tuple(c for c in configs if c.interval == "step" and not c.reduce_on_plateau)
        self.by_epoch: Configs = tuple(c for c in configs if c.interval == "epoch" and not c.reduce_on_plateau)
        self.plateau_by_step: Configs = tuple(c for c in configs if c.interval == "step" and c.reduce_on_plateau)
        self.plateau_by_epoch: Configs = tuple(c for c in configs if c.interval == "epoch" and c.reduce_on_plateau)

    def step(self, configs: Configs, count: int) -> None:
        """Step those of `configs` that are due after `count` intervals.

        A plateau scheduler compares its metric on the host: it waits for the device.
        """
        for config in configs:
            if count % config.frequency == 0:
                self._step_one(config)

    def _step_one(self, config: LRSchedulerConfig) -> None:
        metric = None
        if config.reduce_on_plateau:
            metric = self._monitored(config)
            if metric is None:
                return
        try:
            if self._override is not None:
                self._metrics.scope = None
                self._override(config.scheduler, metric)
            elif metric is None:
                config.scheduler.step()
            else:
                config.scheduler.step(metric)
        except ValueError as error:
            if not hasattr(config.scheduler, "total_steps") or "Tried to step" not in str(error):
                raise
            raise MisconfigurationException(past_its_end(config.scheduler)) from error

    def _monitored(self, config: LRSchedulerConfig) -> Any:
        self._metrics.refresh()
        found = self._metrics.callback_metrics.get(str(config.monitor))
        if found is None:
            kind = type(config.scheduler).__name__
            message = (
                f"The scheduler {kind} monitors {config.monitor!r}, which was not logged. "
                f"Logged so far: {sorted(self._metrics.callback_metrics) or 'nothing'}."
                f"{nearest_name(str(config.monitor), self._metrics.callback_metrics)} Log it with "
                f"self.log({config.monitor!r}, value), or change 'monitor' in configure_optimizers."
            )
            if config.strict:
                raise MisconfigurationException(message)
            rank_zero_warn(message + " Its step is skipped.", PossibleUserWarning)
        return found if self.share is None else self.share(found)  # all ranks must reach this


def past_its_end(scheduler: Any) -> str:
    """For a run that is longer than the number of steps that a scheduler, as OneCycleLR, was made for."""
    kind = type(scheduler).__name__
    return (
        f"{kind} was made for total_steps={scheduler.total_steps}, and training goes on beyond them. A resumed run "
        "takes the number from its checkpoint, so a higher max_epochs or max_steps comes too late for it. End the run "
        f"there, or load the weights only, with load_from_checkpoint, and train them with a new {kind}. In a run that "
        'is not resumed, total_steps=self.trainer.estimated_stepping_batches fits, with "interval": "step".'
    )
