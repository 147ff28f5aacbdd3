"""Log what the device does: memory of a GPU, load of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulgur.accelerators import CPUAccelerator, cpu_stats
from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback, ignores_outputs

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer


class DeviceStatsMonitor(Callback):
    """Send statistics of the device to the loggers, at the beginning and the end of batches.

    In training at the steps for which loggers get values, in validation and test every `log_every_n_steps` batches.
    Keys are ``DeviceStatsMonitor.<hook>/<statistic>``. On GPUs these are those of `torch.cuda.memory_stats`, which does
    not wait for the device; on the CPU ``cpu_percent``, ``cpu_vm_percent`` and ``cpu_swap_percent``, which need psutil.

    Args:
        cpu_stats: Whether to log those of the CPU. None logs them where the CPU is the device.

    Raises:
        MisconfigurationException: When a fit begins: there is no logger.
        MissingExtraError: Statistics of the CPU are asked for, and psutil is not installed.

    Example:
        >>> trainer = Trainer(callbacks=[DeviceStatsMonitor(cpu_stats=True)])
    """

    def __init__(self, cpu_stats: bool | None = None) -> None:
        self._cpu_stats = cpu_stats
        self._logs_cpu = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not trainer.loggers and not trainer.fast_dev_run:
            raise MisconfigurationException(
                "DeviceStatsMonitor has no logger to write to. Give Trainer(logger=...), or remove the callback."
            )
        is_cpu = isinstance(trainer.accelerator, CPUAccelerator)
        self._logs_cpu = (is_cpu and self._cpu_stats is not False) or bool(self._cpu_stats)
        if self._logs_cpu:
            cpu_stats()  # a missing package shows now; and the load is measured from here on

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.is_logging_step:
            self._log("on_train_batch_start", trainer)

    @ignores_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_logging_step:
            self._log("on_train_batch_end", trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._log_every("on_validation_batch_start", trainer, batch_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._log_every("on_validation_batch_end", trainer, batch_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._log_every("on_test_batch_start", trainer, batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._log_every("on_test_batch_end", trainer, batch_idx)

    def _log_every(self, hook: str, trainer: Trainer, batch_idx: int) -> None:
        every = trainer.log_every_n_steps
        if every and (batch_idx + 1) % every == 0 and not trainer.sanity_checking:
            self._log(hook, trainer)

    def _log(self, hook: str, trainer: Trainer) -> None:
        stats: dict[str, Any] = {}
        if not isinstance(trainer.accelerator, CPUAccelerator):
            stats |= trainer.accelerator.get_device_stats(trainer.strategy.root_device)
        if self._logs_cpu:
            stats |= cpu_stats()
        for logger in trainer.loggers:
            prefix = f"{type(self).__qualname__}.{hook}{logger.group_separator}"
            logger.log_metrics({prefix + name: value for name, value in stats.items()}, step=trainer.log_step)
