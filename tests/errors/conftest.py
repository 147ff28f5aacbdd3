"""Bad input with the real Trainer: what every test of an error checks besides the message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fulgur import LightningModule, Trainer

QUIET = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Bare(LightningModule):
    """A layer and a diary: training steps begun, stages set up and torn down."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.n_steps = 0
        self.stages: list[str] = []
        self.torn_down: list[str] = []

    def setup(self, stage: str) -> None:
        self.stages.append(str(stage))

    def teardown(self, stage: str) -> None:
        self.torn_down.append(str(stage))

    def loss(self, batch: Any) -> Tensor:
        return self.layer(batch[0]).square().mean()


class Net(Bare):
    """A module with everything that any entry point needs."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.n_steps += 1
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Manual(Net):
    """Optimizes by hand; `use` is what a test does with the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.n_steps += 1
        return self.use(self.loss(batch))

    def use(self, loss: Tensor) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class Stream(IterableDataset[Tensor]):
    """A dataset without a length."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Any:
        return iter(torch.ones(self.n, 3))


class Words(Dataset[str]):
    """Batches of these hold no tensor."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, idx: int) -> str:
        return "word"


def net(base: type[Net] = Net, **members: Any) -> Any:
    """A `Net` with other members."""
    return type(base.__name__, (base,), members)()


def loader(n: int = 8, batch_size: int = 2, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(n, 3)), batch_size=batch_size, **options)


def quiet(**arguments: Any) -> Trainer:
    return Trainer(**{**QUIET, **arguments})


def refused(
    trainer: Trainer,
    run: Callable[[], Any],
    error: type[BaseException],
    *words: str,
    module: Any = None,
    steps: int = 0,
    refits: bool = True,
) -> str:
    """Check that `run` is an error that says `words`, comes in time, and leaves everything usable.

    Args:
        trainer: What `run` uses.
        error: Class of the error; exactly this one.
        *words: What the message must say.
        module: Checked for its training steps, and for one teardown for each setup.
        steps: Training steps that may have begun.
        refits: Whether the Trainer can fit a right module afterwards: not if its own arguments were wrong.

    Returns:
        The message.
    """
    with pytest.raises(error) as caught:
        run()
    assert type(caught.value) is error
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    if module is not None:
        assert module.n_steps == steps
        # One teardown if anyone's setup ran, the module's or a callback's before it.
        assert module.torn_down == module.stages or (len(module.torn_down), module.stages) == (1, [])
    assert trainer.state.stage is None
    assert_usable(trainer, refits)
    return message


def assert_usable(trainer: Trainer, refits: bool = True) -> None:
    """After an error the same Trainer runs another module."""
    module = Net()
    if refits:
        trainer.fit_loop.max_epochs = trainer.current_epoch + 1
        trainer.fit(module, loader())
        assert module.n_steps == 4
        assert (module.stages, module.torn_down) == (["fit"], ["fit"])
    assert list(trainer.test(module, loader(), verbose=False)[0]) == ["test_loss"]
    assert trainer.state.finished
