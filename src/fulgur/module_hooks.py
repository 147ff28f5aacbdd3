"""The hooks of a `LightningModule` that do nothing unless they are overridden: then, and only then, they are called."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class ModuleHooks:
    """Listener for the events of a run, in the module itself. The callbacks' hooks of the same name run before."""

    def prepare_data(self) -> None:
        """Download or preprocess, in one process of each node. Do not set attributes here."""

    def setup(self, stage: str) -> None:
        """First hook on every process, with `stage` "fit", "validate", "test" or "predict"."""

    def teardown(self, stage: str) -> None:
        """Last hook on every process; also after an exception."""

    def train_dataloader(self) -> Any:
        """Loader, or list or dict of loaders, to train on."""

    def val_dataloader(self) -> Any:
        """Loader, or list or dict of loaders, to validate on."""

    def test_dataloader(self) -> Any:
        """Loader, or list or dict of loaders, to test on."""

    def predict_dataloader(self) -> Any:
        """Loader, or list or dict of loaders, to predict for."""

    def configure_model(self) -> None:
        """Create layers late: after `setup`, before weights are loaded. May be called more than once."""

    def on_fit_start(self) -> None:
        """When fit begins, with the model on its device and optimizers built."""

    def on_fit_end(self) -> None:
        """When fit ends, after the model has left the device."""

    def on_train_start(self) -> None:
        """Once, before the first epoch."""

    def on_train_end(self) -> None:
        """Once, after the last epoch."""

    def on_train_epoch_start(self) -> None:
        """Before the first batch of an epoch; not repeated when an epoch is resumed midway."""

    def on_train_epoch_end(self) -> None:
        """After the last batch and the validation of an epoch. The last place to log the epoch's values."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Before `training_step`. Return -1 to end the epoch here."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After the optimizer step, if this batch had one. `outputs` is what `training_step` returned, detached."""

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Before gradients are cleared, on the first batch of an accumulation window."""

    def on_before_backward(self, loss: Tensor) -> None:
        """Before backward."""

    def on_after_backward(self) -> None:
        """After backward, before gradients are unscaled."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """With final, unscaled, unclipped gradients."""

    def on_validation_start(self) -> None:
        """Before a validation run, in fit too."""

    def on_validation_end(self) -> None:
        """After a validation run."""

    def on_validation_epoch_start(self) -> None:
        """Before the first validation batch."""

    def on_validation_epoch_end(self) -> None:
        """After the last validation batch; may still log."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before `validation_step`."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """After `validation_step`."""

    def on_test_start(self) -> None:
        """Before a test run."""

    def on_test_end(self) -> None:
        """After a test run."""

    def on_test_epoch_start(self) -> None:
        """Before the first test batch."""

    def on_test_epoch_end(self) -> None:
        """After the last test batch; may still log."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before `test_step`."""

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """After `test_step`."""

    def on_predict_start(self) -> None:
        """Before a predict run."""

    def on_predict_end(self) -> None:
        """After a predict run."""

    def on_predict_epoch_start(self) -> None:
        """Before the first predict batch."""

    def on_predict_epoch_end(self) -> None:
        """After the last predict batch."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before `predict_step`."""

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """After `predict_step`."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Last change to a checkpoint, in place, before it is written."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """First look at a checkpoint, before the weights in it are loaded."""
