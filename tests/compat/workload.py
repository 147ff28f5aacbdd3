"""The training that Lightning and fulgur go on with from each other's files. Runs under either: `pl` is the package."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

MAX_EPOCHS = 3
N_BATCHES = 4

# What differs between the runs.
RUNS: dict[str, dict[str, Any]] = {
    "automatic": {},
    "validating": {"val_check_interval": 2},
    "accumulating": {"accumulate_grad_batches": 2},
    "manual": {},
}
OF_TODAY = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
OF_BEFORE_1_5 = {"progress_bar_refresh_rate": 0, "weights_summary": None}
# Name of a file: the run it is of, the hook it is saved in, the epoch, and the batches of that epoch behind it.
FILES: dict[str, tuple[str, str, int, int]] = {
    "epoch_end": ("automatic", "on_train_epoch_end", 1, 4),
    "mid_epoch": ("automatic", "on_train_batch_end", 1, 3),
    "last_batch": ("automatic", "on_train_batch_end", 1, 4),
    "validation_end": ("automatic", "on_validation_end", 1, 4),
    "mid_validation": ("validating", "on_validation_end", 1, 2),
    "accumulating": ("accumulating", "on_train_batch_end", 1, 2),
    "manual_mid_epoch": ("manual", "on_train_batch_end", 1, 3),
    "manual_epoch_end": ("manual", "on_train_epoch_end", 1, 4),
}


def build_module(pl: Any, run: str) -> Any:
    """The module of `run`, with the weights that every run begins with."""

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self, width: int = 3, lr: float = 0.05, betas: tuple[float, float] = (0.9, 0.99)) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self._loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self._loss(batch))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr, betas=tuple(self.hparams.betas))
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)]

        def _loss(self, batch: Any) -> Tensor:
            inputs, targets = batch
            return ((self.layer(inputs) - targets) ** 2).mean()

    class Manual(Module):
        def __init__(self, width: int = 3, lr: float = 0.05, betas: tuple[float, float] = (0.9, 0.99)) -> None:
            super().__init__(width, lr, betas)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            optimizer, loss = self.optimizers(), self._loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return loss.detach()

    torch.manual_seed(1)
    return (Manual if run == "manual" else Module)(width=4)


def loaders() -> list[Any]:
    """Training and validation loader: no shuffling, so that both frameworks see the same batches."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 2, generator=generator)
    targets = inputs.sin().sum(1, keepdim=True)
    n_train = 4 * N_BATCHES
    return [
        DataLoader(TensorDataset(inputs[part], targets[part]), batch_size=4)
        for part in (slice(n_train), slice(n_train, None))
    ]


def is_before_1_5(pl: Any) -> bool:
    """Whether it is a Lightning whose Trainer has other arguments than today's."""
    return pl.__name__ != "fulgur" and pl.__version__.startswith(("1.0.", "1.1.", "1.2.", "1.3.", "1.4."))


def build_trainer(pl: Any, run: str, directory: Any, extra: Iterable[Any] = (), **resumed: Any) -> Any:
    """A Trainer with EarlyStopping and ModelCheckpoint; `extra` callbacks come after them."""
    callbacks = pl.callbacks
    return pl.Trainer(
        max_epochs=MAX_EPOCHS,
        logger=False,
        num_sanity_val_steps=0,
        default_root_dir=str(directory),
        callbacks=[
            callbacks.EarlyStopping(monitor="val_loss", patience=5, strict=False),
            callbacks.ModelCheckpoint(dirpath=str(directory), monitor="val_loss", save_top_k=2),
            *extra,
        ],
        **(OF_BEFORE_1_5 if is_before_1_5(pl) else OF_TODAY),
        **{**RUNS[run], **resumed},
    )


def recorder(pl: Any) -> Any:
    """A callback that notes what a resumed run begins with, and which batches it trains on."""

    class Recorder(pl.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.start: dict[str, Any] = {}
            self.batches: list[tuple[int, int]] = []
            self.steps: list[int] = []
            self.validated_at: list[int] = []

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.start = snapshot(trainer, pl_module)

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
            self.batches.append((trainer.current_epoch, batch_idx))

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.steps.append(trainer.global_step)

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.validated_at.append(trainer.global_step)

    return Recorder()


def snapshot(trainer: Any, module: Any) -> dict[str, Any]:
    """All that a resumed run must have back, in plain form."""
    stopping = next(c for c in trainer.callbacks if type(c).__name__ == "EarlyStopping")
    best = trainer.checkpoint_callback
    optimizer = trainer.optimizers[0]
    if hasattr(trainer, "lr_scheduler_configs"):
        scheduler = trainer.lr_scheduler_configs[0].scheduler
    else:  # before 1.6
        scheduler = trainer.lr_schedulers[0]["scheduler"]
    return {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "weights": _flat(module.state_dict().values()),
        "optimizer": _flat(v for state in optimizer.state_dict()["state"].values() for _, v in sorted(state.items())),
        "lr": [group["lr"] for group in optimizer.param_groups],
        "scheduler": scheduler.last_epoch,
        "hparams": {name: list(v) if isinstance(v, tuple) else v for name, v in module.hparams.items()},
        "early_stopping": [stopping.wait_count, float(stopping.best_score), stopping.patience],
        "model_checkpoint": [
            None if best.best_model_score is None else float(best.best_model_score),
            best.best_model_path,
            sorted(best.best_k_models),
        ],
    }


def _flat(values: Iterable[Any]) -> Tensor:
    """All numbers in one tensor, which makes a small file."""
    return torch.cat([torch.as_tensor(value, dtype=torch.float32).detach().flatten() for value in values])


def saver(pl: Any, run: str, directory: Any) -> Any:
    """A callback that saves the files of `run` when their moment has come. Runs after all others."""

    class Saver(getattr(pl.callbacks, "Checkpoint", pl.Callback)):  # type: ignore[misc]
        n_batches = 0

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
            self.n_batches = batch_idx

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.n_batches += 1
            self._save(trainer, "on_train_batch_end")

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self._save(trainer, "on_validation_end")

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self._save(trainer, "on_train_epoch_end")

        def _save(self, trainer: Any, hook: str) -> None:
            for name, moment in FILES.items():
                if moment == (run, hook, trainer.current_epoch, self.n_batches):
                    trainer.save_checkpoint(directory / f"{name}.ckpt")

    if is_before_1_5(pl):  # which passes the outputs of the epoch, too
        Saver.on_train_epoch_end = lambda self, trainer, *_: self._save(trainer, "on_train_epoch_end")
    return Saver()


def train_and_save(pl: Any, run: str, directory: Any) -> dict[str, Any]:
    """Train to the end, leaving the files of `run` in `directory`. Returns the state at the end."""
    module = build_module(pl, run)
    trainer = build_trainer(pl, run, directory / run, [saver(pl, run, directory)])
    trainer.fit(module, *loaders())
    if run == "automatic":
        trainer.save_checkpoint(directory / "weights.ckpt", weights_only=True)
    return snapshot(trainer, module)


def resume(pl: Any, run: str, path: Any, directory: Any) -> dict[str, Any]:
    """Train on from the file `path`. Returns what was restored, the batches trained on, and the state at the end."""
    module, recorded = build_module(pl, run), recorder(pl)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    if is_before_1_5(pl):
        trainer = build_trainer(pl, run, directory, [recorded], resume_from_checkpoint=str(path))
        trainer.fit(module, *loaders())
    else:
        trainer = build_trainer(pl, run, directory, [recorded])
        trainer.fit(module, *loaders(), ckpt_path=str(path))
    return {
        "start": recorded.start,
        "batches": [list(pair) for pair in recorded.batches],
        "steps": recorded.steps,
        "validated_at": recorded.validated_at,
        "end": snapshot(trainer, module),
    }
