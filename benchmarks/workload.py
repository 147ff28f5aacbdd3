"""What is trained in the benchmarks: a small network, one batch, a hand-written loop, and the same for each API."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_FEATURES, N_HIDDEN, N_CLASSES, BATCH_SIZE = 32, 64, 10, 32
LEARNING_RATE = 0.01

Batch = tuple[Tensor, Tensor]
NetworkBuilder = Callable[[], nn.Module]


def build_network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(N_FEATURES, N_HIDDEN),
        nn.ReLU(),
        nn.Linear(N_HIDDEN, N_HIDDEN),
        nn.ReLU(),
        nn.Linear(N_HIDDEN, N_CLASSES),
    )


def build_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH_SIZE, N_FEATURES, generator=generator)
    return inputs, torch.randint(N_CLASSES, (BATCH_SIZE,), generator=generator)


class TimedBatches:
    """The same batch for a warm-up and `n_steps` more, reading the CPU clock before the first and after the last.

    Set-up and tear-down of a framework fall outside the two readings. One batch follows the second reading, since a
    framework that knows the length never asks for more. A framework that fetches one batch ahead reads the clock one
    step early both times, so the number of steps in between is the same.
    """

    def __init__(self, n_steps: int, *, n_warmup: int = 100) -> None:
        self.n_steps = n_steps
        self.n_warmup = n_warmup
        self.batch = build_batch()
        self.start_s = self.stop_s = 0.0

    def __len__(self) -> int:
        return self.n_warmup + self.n_steps + 1

    def __iter__(self) -> Iterator[Batch]:
        batch = self.batch
        for _ in range(self.n_warmup):
            yield batch
        self.start_s = time.process_time()
        for _ in range(self.n_steps):
            yield batch
        self.stop_s = time.process_time()
        yield batch

    @property
    def seconds_per_step(self) -> float:
        assert self.stop_s > self.start_s, "the program stopped before the last batch"
        return (self.stop_s - self.start_s) / self.n_steps


class TimedEpochs:
    """One batch an epoch, reading the CPU clock at the start of each epoch."""

    def __init__(self, n_epochs: int, *, n_warmup: int = 10) -> None:
        self.n_epochs = n_epochs + n_warmup + 1
        self.n_warmup = n_warmup
        self.batch = build_batch()
        self.starts_s: list[float] = []

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        self.starts_s.append(time.process_time())
        yield self.batch

    @property
    def seconds_per_epoch(self) -> float:
        # From the end: a framework may ask for an iterator more than once before the first epoch.
        starts_s = self.starts_s[-(self.n_epochs - self.n_warmup) :]
        return (starts_s[-1] - starts_s[0]) / (len(starts_s) - 1)


def train_by_hand(batches: Any, *, network: NetworkBuilder = build_network) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()


def train_epochs_by_hand(epochs: TimedEpochs) -> None:
    model = build_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    val_batches = OneBatch()
    for _ in range(epochs.n_epochs):
        model.train()
        for inputs, labels in epochs:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
        model.eval()
        total, n_samples = torch.zeros(()), 0
        with torch.inference_mode():
            for inputs, labels in val_batches:
                total += F.cross_entropy(model(inputs), labels) * len(labels)
                n_samples += len(labels)
        total / n_samples


def build_module(package: Any, n_logs: int, network: NetworkBuilder = build_network) -> Any:
    """The network as a LightningModule of `package` (fulgur or lightning.pytorch), logging `n_logs` values a step."""
    log_names = tuple(f"value_{i}" for i in range(n_logs))

    class Classifier(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            inputs, labels = batch
            loss = F.cross_entropy(self.network(inputs), labels)
            for name in log_names:
                self.log(name, loss, prog_bar=name == "value_0")
            return loss

        def validation_step(self, batch: Batch, batch_idx: int) -> None:
            inputs, labels = batch
            self.log("val_loss", F.cross_entropy(self.network(inputs), labels))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)

    return Classifier()


def build_trainer(package_name: str, folder: str, *, with_parts: bool = False, max_epochs: int = 1) -> Any:
    """A Trainer with nothing around it, or with a progress bar, a CSV logger and a checkpoint callback."""
    package = importlib.import_module(package_name)
    around: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    if with_parts:
        loggers = importlib.import_module(f"{package_name}.loggers")
        callbacks = importlib.import_module(f"{package_name}.callbacks")
        around = {
            "logger": loggers.CSVLogger(folder),
            "callbacks": [callbacks.ModelCheckpoint()],
            "enable_progress_bar": True,
        }
    return package.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=max_epochs,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        default_root_dir=folder,
        **around,
    )


def train_with_trainer(
    package_name: str,
    batches: Any,
    *,
    n_logs: int = 0,
    with_parts: bool = False,
    network: NetworkBuilder = build_network,
) -> None:
    with quiet(), tempfile.TemporaryDirectory() as folder:
        module = build_module(importlib.import_module(package_name), n_logs, network)
        build_trainer(package_name, folder, with_parts=with_parts).fit(module, batches)


def train_epochs_with_trainer(package_name: str, epochs: TimedEpochs) -> None:
    with quiet(), tempfile.TemporaryDirectory() as folder:
        module = build_module(importlib.import_module(package_name), n_logs=0)
        trainer = build_trainer(package_name, folder, max_epochs=epochs.n_epochs)
        trainer.fit(module, epochs, OneBatch())


class OneBatch:
    """A loader of one batch."""

    def __init__(self) -> None:
        self.batch = build_batch()

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        yield self.batch


class Screen(io.TextIOBase):
    """A terminal that nobody looks at: progress bars draw on it as they would on a real one."""

    def isatty(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        return len(text)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what frameworks print to a `Screen`, and drop their warnings and messages."""
    screen = Screen()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        warnings.simplefilter("ignore")
        yield


def use_one_thread() -> None:
    """Call before the first measurement. The environment variables reach subprocesses and late imports."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", KERAS_BACKEND="torch")
    os.environ.setdefault("TERM", "xterm-256color")
    torch.set_num_threads(1)
