"""A tape, and a module, a datamodule, a callback and a logger that override every hook and write each call on it.

An event is ``<who>.<hook>``, with who being M (module), D (datamodule), C (callback) or L (logger); `setup` and
`teardown` carry their stage, `log_metrics` its step and `finalize` its status: ``L.log_metrics(0)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fulgur
from fulgur.callbacks import Checkpoint
from fulgur.loggers import Logger

EVALUATION_HOOKS = [
    f"on_{stage}_{moment}"
    for stage in ("validation", "test", "predict")
    for moment in ("start", "end", "epoch_start", "epoch_end", "batch_start", "batch_end")
]
TRAINING_HOOKS = [
    "on_fit_start",
    "on_fit_end",
    "on_train_start",
    "on_train_end",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
]
DATA_HOOKS = ["prepare_data", "train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"]
TRANSFER_HOOKS = ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]
STATE_HOOKS = ["state_dict", "load_state_dict"]
CHECKPOINT_HOOKS = ["on_save_checkpoint", "on_load_checkpoint"]

MODULE_HOOKS = [
    *TRAINING_HOOKS,
    *EVALUATION_HOOKS,
    *TRANSFER_HOOKS,
    *STATE_HOOKS,
    *CHECKPOINT_HOOKS,
    "configure_callbacks",
    "configure_model",
    "configure_optimizers",
    "prepare_data",
    "setup",
    "teardown",
    "training_step",
    "validation_step",
    "test_step",
    "predict_step",
    "optimizer_step",
    "optimizer_zero_grad",
    "backward",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "on_validation_model_zero_grad",
    "on_validation_model_eval",
    "on_test_model_eval",
    "on_predict_model_eval",
]
CALLBACK_HOOKS = [
    *TRAINING_HOOKS,
    *EVALUATION_HOOKS,
    *STATE_HOOKS,
    *CHECKPOINT_HOOKS,
    "on_sanity_check_start",
    "on_sanity_check_end",
    "on_exception",
    "setup",
    "teardown",
]
DATAMODULE_HOOKS = [*DATA_HOOKS, *TRANSFER_HOOKS, *STATE_HOOKS, "setup", "teardown", "on_exception"]
LOGGER_HOOKS = ["log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint"]


class Tape:
    """What was called, in order.

    Attributes:
        calls: ``(event, args, kwargs)`` of every call.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    @property
    def events(self) -> list[str]:
        return [event for event, _, _ in self.calls]

    def add(self, event: str, *args: Any, **kwargs: Any) -> None:
        self.calls.append((event, args, kwargs))

    def clear(self) -> None:
        self.calls.clear()

    def only(self, *events: str) -> list[str]:
        """The events among those named, in order."""
        return [event for event in self.events if event in events]

    def spelled(self, letters: Mapping[str, str]) -> str:
        """The events that have a letter, as letters."""
        return " ".join(letters[event] for event in self.events if event in letters)

    def between(self, first: str, last: str) -> list[str]:
        """Events from the first `first` to the last `last`, both included."""
        events = self.events
        return events[events.index(first) : len(events) - events[::-1].index(last)]


def recording(base: type, who: str, hooks: Iterable[str]) -> type:
    """A subclass of `base` that notes each call of `hooks` on ``self.tape``, then does what `base` does."""
    made = type(f"Recording{base.__name__}", (base,), {})
    for hook in hooks:
        setattr(made, hook, _noted(made, who, hook))
    return made


def _noted(owner: type, who: str, hook: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.tape.add(_event(who, hook, args, kwargs), *args, **kwargs)
        return getattr(super(owner, self), hook)(*args, **kwargs)

    method.__name__ = hook
    return method


def _event(who: str, hook: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    if hook in ("setup", "teardown"):
        return f"{who}.{hook}({kwargs['stage']})"
    if hook == "log_metrics":
        return f"{who}.{hook}({kwargs['step']})"
    return f"{who}.{hook}({args[0]})" if hook == "finalize" else f"{who}.{hook}"


class Plain(fulgur.LightningModule):
    """What the recording module does at its hooks: one linear layer, a loss and a validation loss that are logged."""

    is_logging = True

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.layer = torch.nn.Linear(2, 1)

    def loss_of(self, batch: Any, name: str) -> torch.Tensor:
        loss = self.layer(batch[0]).square().mean()
        if self.is_logging:
            self.log(name, loss)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss_of(batch, "loss")

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss_of(batch, "val_loss")

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss_of(batch, "test_loss")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class PlainData(fulgur.LightningDataModule):
    """Loaders of so many batches of two samples."""

    def __init__(self, tape: Tape, n_train: int = 2, n_val: int = 1, n_test: int = 1) -> None:
        super().__init__()
        self.tape, self.n_train, self.n_val, self.n_test = tape, n_train, n_val, n_test

    def train_dataloader(self) -> Any:
        return loader(self.n_train)

    def val_dataloader(self) -> Any:
        return loader(self.n_val)

    def test_dataloader(self) -> Any:
        return loader(self.n_test)

    def predict_dataloader(self) -> Any:
        return loader(self.n_test)

    def state_dict(self) -> dict[str, Any]:
        return {"served": 1}


class Stateful(fulgur.Callback):
    def __init__(self, tape: Tape) -> None:
        self.tape = tape

    def state_dict(self) -> dict[str, Any]:
        return {"seen": 1}


class PlainLogger(Logger):
    name, version = "tape", 0

    def __init__(self, tape: Tape) -> None:
        self.tape = tape

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def finalize(self, status: str) -> None:
        pass


def loader(n_batches: int, size: int = 2) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(n_batches * size, 2)), batch_size=size)


Module: Any = recording(Plain, "M", MODULE_HOOKS)
ModuleBesideData: Any = recording(Plain, "M", [h for h in MODULE_HOOKS if h not in TRANSFER_HOOKS])
Data: Any = recording(PlainData, "D", DATAMODULE_HOOKS)
Callback: Any = recording(Stateful, "C", CALLBACK_HOOKS)
RecordingLogger: Any = recording(PlainLogger, "L", LOGGER_HOOKS)
RecordingLogger.experiment = property(lambda self: self.tape.add("L.experiment"))


MACROS = {
    "TRANSFER": "{data}.on_before_batch_transfer {data}.transfer_batch_to_device {data}.on_after_batch_transfer",
    "TRAIN_STEP": """
        TRANSFER
        C.on_train_batch_start M.on_train_batch_start
        M.optimizer_step
          M.training_step
          C.on_before_zero_grad M.on_before_zero_grad M.optimizer_zero_grad
          C.on_before_backward M.on_before_backward M.backward C.on_after_backward M.on_after_backward
          C.on_before_optimizer_step M.on_before_optimizer_step M.configure_gradient_clipping
    """,
    "BATCH_END": "C.on_train_batch_end M.on_train_batch_end",
    "EPOCH_START": "C.on_train_epoch_start M.on_train_epoch_start",
    "EPOCH_END": "C.on_train_epoch_end M.on_train_epoch_end",
    "EVAL_BEGIN": """
        M.on_{stage}_model_eval
        C.on_{stage}_start M.on_{stage}_start
        C.on_{stage}_epoch_start M.on_{stage}_epoch_start
    """,
    "EVAL_BATCH": """
        TRANSFER
        C.on_{stage}_batch_start M.on_{stage}_batch_start M.{step} C.on_{stage}_batch_end M.on_{stage}_batch_end
    """,
    "EVAL_EPOCH_END": "C.on_{stage}_epoch_end M.on_{stage}_epoch_end",
    "EVAL_END": "C.on_{stage}_end M.on_{stage}_end",
}


def golden(text: str, *, data: str = "M", stage: str = "validation") -> list[str]:
    """An expected sequence: events, in which the names of `MACROS` stand for theirs.

    Args:
        text: Events and macros, separated by white space; ``#`` begins a comment.
        data: Whose transfer hooks are called: D or M.
        stage: The evaluation that ``EVAL_`` macros mean.
    """
    words = [word for line in text.splitlines() for word in line.partition("#")[0].split()]
    events: list[str] = []
    for word in words:
        if word in MACROS:
            events += golden(MACROS[word], data=data, stage=stage)
        else:
            events.append(word.format(data=data, stage=stage, step=f"{stage}_step"))
    return events


class Run:
    """A Trainer around one tape, with the recording callback and logger in it."""

    def __init__(self, folder: Any, tape: Tape, **arguments: Any) -> None:
        self.tape = tape
        callbacks = arguments.pop("callbacks", None)
        self.callbacks = [Callback(tape)] if callbacks is None else callbacks
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": RecordingLogger(tape),
            "callbacks": self.callbacks,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(c, Checkpoint) for c in self.callbacks),
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "max_epochs": 1,
            "default_root_dir": str(folder),
        }
        self.trainer = fulgur.Trainer(**(defaults | arguments))

    @property
    def events(self) -> list[str]:
        return self.tape.events

    def fit(self, module: Any, n_train: int = 2, n_val: int = 1, **arguments: Any) -> Tape:
        """Fit on loaders that are passed, so that no datamodule is on the tape."""
        loaders = {"train_dataloaders": loader(n_train), "val_dataloaders": loader(n_val) if n_val else None}
        self.trainer.fit(module, **(loaders | arguments))
        return self.tape


@pytest.fixture
def tape() -> Tape:
    return Tape()


@pytest.fixture
def build(tmp_path: Any, tape: Tape) -> Callable[..., Run]:
    """Builds a `Run` from arguments of the Trainer."""
    return lambda **arguments: Run(tmp_path, tape, **arguments)


@pytest.fixture
def kit() -> SimpleNamespace:
    """The classes of this file, for tests to build from."""
    return SimpleNamespace(
        Module=Module,
        ModuleBesideData=ModuleBesideData,
        Plain=Plain,
        Data=Data,
        Callback=Callback,
        Stateful=Stateful,
        Logger=RecordingLogger,
        recording=recording,
        loader=loader,
        MODULE_HOOKS=MODULE_HOOKS,
        CALLBACK_HOOKS=CALLBACK_HOOKS,
        TRAINING_HOOKS=TRAINING_HOOKS,
        golden=golden,
    )
