"""Memory: nothing of a step is left when the next one has passed, and nothing grows with steps."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from fulgur import Callback, LightningModule, Trainer
from fulgur.loggers import CSVLogger

OPTIONS: list[dict[str, Any]] = [
    {},
    {"on_epoch": True},
    {"prog_bar": True},
    {"on_step": False, "on_epoch": True, "reduce_fx": "max"},
    {"on_epoch": True, "reduce_fx": "min"},
]


class Fresh:
    """A loader of `n_batches` new batches; `reached` is called with the number of those drawn."""

    def __init__(self, n_batches: int, reached: Callable[[int], None] = lambda n_drawn: None) -> None:
        self.n_batches, self.reached = n_batches, reached

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.n_batches):
            self.reached(index)
            yield torch.randn(4, 3), torch.randn(4, 1)


class Watched(LightningModule):
    """Counts, at the beginning of each step, the tensors of earlier steps that still live."""

    def __init__(self, logs: list[dict[str, Any]] = OPTIONS) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.logs = logs
        self.made: list[weakref.ref[Tensor]] = []
        self.n_alive: list[int] = []

    def watch(self, *tensors: Tensor) -> None:
        self.made += [weakref.ref(tensor) for tensor in tensors]

    def count_alive(self) -> None:
        self.made = [made for made in self.made if made() is not None]
        self.n_alive.append(len(self.made))

    def compute(self, batch: Any) -> Tensor:
        self.count_alive()
        x, y = batch
        hidden = self.net[1](self.net[0](x))
        loss = mse_loss(self.net[2](hidden), y)
        self.watch(x, y, hidden, loss)
        for index, options in enumerate(self.logs):
            self.log(f"value_{index}", loss, **options)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.compute(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class InDict(Watched):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.compute(batch)
        extra = loss * 2
        self.watch(extra)
        return {"loss": loss, "extra": extra}


class Predicting(Watched):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.compute(batch)


class Manual(Watched):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, optimizer = self.compute(batch), self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class SteppingByHand(Watched):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


class ReadsOutputs(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert outputs["loss"].grad_fn is None


def run(module: LightningModule, loader: Any, **arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    trainer = Trainer(**{"accelerator": "cpu", "enable_checkpointing": False, **quiet, **arguments})
    trainer.fit(module, loader)
    return trainer


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (Watched, {}),
        (Watched, {"callbacks": [ReadsOutputs()]}),
        (Watched, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5}),
        (InDict, {}),
        (InDict, {"callbacks": [ReadsOutputs()]}),
        (Manual, {}),
        (SteppingByHand, {}),
    ],
    ids=["plain", "outputs", "accumulation", "dict", "dict-outputs", "manual", "optimizer_step"],
)
def test_no_tensor_of_an_earlier_step_lives_when_the_next_one_begins(build: Any, arguments: dict[str, Any]) -> None:
    gc.collect()
    gc.disable()  # what only the cycle collector frees would stay for long
    try:
        module = build()
        run(module, Fresh(8), **arguments)
    finally:
        gc.enable()

    assert module.n_alive == [0] * 8


def test_validation_keeps_no_batch() -> None:
    class Validating(Watched):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return self.compute(batch)

    module = Validating([{"on_epoch": True, "on_step": True}])
    gc.collect()
    gc.disable()
    try:
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
        trainer.validate(module, Fresh(8), verbose=False)
    finally:
        gc.enable()

    assert module.n_alive == [0] * 8


def test_prediction_keeps_no_batch_where_predictions_are_not_wanted() -> None:
    module = Predicting([])
    gc.collect()
    gc.disable()
    try:
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
        trainer.predict(module, Fresh(8), return_predictions=False)
    finally:
        gc.enable()

    assert module.n_alive == [0] * 8


def test_outputs_kept_for_training_epoch_end_hold_no_graph() -> None:
    class Keeping(Watched):
        def training_epoch_end(self, outputs: Any) -> None:
            self.kept = outputs

    module = Keeping()
    run(module, Fresh(8))

    assert all(output["loss"].grad_fn is None for output in module.kept)
    assert max(module.n_alive) == 0


@pytest.mark.parametrize("arguments", [{}, {"accumulate_grad_batches": 2}], ids=["plain", "accumulation"])
def test_gradients_are_cleared_before_the_forward_pass_where_nobody_listens(arguments: dict[str, Any]) -> None:
    class Looking(Watched):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx % self.trainer.accumulate_grad_batches == 0:
                assert all(parameter.grad is None for parameter in self.parameters())
            else:
                assert all(parameter.grad is not None for parameter in self.parameters())
            return self.compute(batch)

    run(Looking(), Fresh(6), **arguments)


def test_gradients_are_there_in_the_forward_pass_where_someone_listens() -> None:
    class Listening(Watched):
        def on_before_zero_grad(self, optimizer: Any) -> None:
            self.heard = [*getattr(self, "heard", []), self.net[0].weight.grad is not None]

    module = Listening()
    run(module, Fresh(4))

    assert module.heard == [False, True, True, True]


# ------------------------------------------------------------------------------------------------------------ growth


class Snapshots:
    """Counts objects, and bytes that Python has allocated, after some numbers of batches."""

    def __init__(self, *at: int) -> None:
        self.at = at
        self.n_objects: list[int] = []
        self.n_bytes: list[int] = []

    def __call__(self, n_drawn: int) -> None:
        if n_drawn in self.at:
            gc.collect()
            self.n_objects.append(len(gc.get_objects()))
            self.n_bytes.append(tracemalloc.get_traced_memory()[0])

    def check(self) -> None:
        """Python's free lists take up to 16 KiB, at any time; a number kept for each of 900 batches is over this."""
        (first, last), n_batches = self.n_bytes, self.at[1] - self.at[0]
        assert self.n_objects[1] - self.n_objects[0] <= n_batches / 10
        assert last - first <= 16 * 1024 + 12 * n_batches


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (Watched, {}),
        (Watched, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5, "callbacks": [ReadsOutputs()]}),
        (Watched, {"logger": "csv", "log_every_n_steps": 1}),
        (Manual, {}),
        (SteppingByHand, {}),
    ],
    ids=["plain", "accumulation", "csv", "manual", "optimizer_step"],
)
def test_nothing_grows_with_steps(build: Any, arguments: dict[str, Any], tmp_path: Any) -> None:
    snapshots, module = Snapshots(100, 1000), build()
    module.watch = lambda *tensors: None
    module.count_alive = lambda: None
    if arguments.get("logger") == "csv":
        arguments = arguments | {"logger": CSVLogger(tmp_path)}
    tracemalloc.start()
    try:
        run(module, Fresh(1001, snapshots), **arguments)
    finally:
        tracemalloc.stop()

    snapshots.check()


def test_nothing_grows_with_epochs() -> None:
    class Validating(Watched):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return self.compute(batch)

        def val_dataloader(self) -> Any:
            return Fresh(1)

    epochs, snapshots, module = count(), Snapshots(50, 350), Validating()
    module.watch = lambda *tensors: None  # type: ignore[method-assign]
    module.count_alive = lambda: None  # type: ignore[method-assign]
    tracemalloc.start()
    try:
        run(module, Fresh(1, lambda n_drawn: snapshots(next(epochs))), max_epochs=351)
    finally:
        tracemalloc.stop()

    snapshots.check()
