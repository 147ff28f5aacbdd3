"""What ``on_save_checkpoint`` adds to a file comes back as it was, from a file that opens as plain data."""

from __future__ import annotations

import argparse
import collections
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fulgur
from fulgur.errors import CheckpointRefusedError, PossibleUserWarning

ADDED: dict[str, Any] = {}


class Net(fulgur.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.found: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0]).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(ADDED)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.found = checkpoint.get("mine")


def build_trainer(max_epochs: int = 1) -> fulgur.Trainer:
    return fulgur.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def save(value: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(ADDED, "mine", value)
    trainer = build_trainer()
    trainer.fit(Net(), loader())
    trainer.save_checkpoint("saved.ckpt")
    return "saved.ckpt"


def loader() -> Any:
    return DataLoader(TensorDataset(torch.ones(2, 1)))


VALUES = [
    Path("a/b"),
    {"args": argparse.Namespace(lr=1), "empty": b"", "range": range(3)},
    frozenset({1, 2}),
    collections.OrderedDict(a=1),
    {1, 2},
    [torch.Size([1]), torch.float16, b"x", 1j],
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_value_comes_back_in_fit_and_in_load_from_checkpoint(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(value, monkeypatch)
    module = Net()
    build_trainer(max_epochs=2).fit(module, loader(), ckpt_path=path)
    again = Net.load_from_checkpoint(path)
    for found in (module.found, again.found):
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("value", VALUES[3:], ids=repr)
def test_value_that_torch_opens_is_stored_as_it_is(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.load(save(value, monkeypatch), weights_only=True)["mine"] == value


def test_value_without_a_plain_form_is_named_when_it_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own:
        def __reduce__(self) -> Any:
            return threading.Event, ()

    with pytest.warns(PossibleUserWarning, match=r"added 'mine'.*weights_only=False.*Own"):
        path = save([Own()], monkeypatch)
    with pytest.raises(CheckpointRefusedError, match=r"threading\.Event"):
        Net.load_from_checkpoint(path)
    assert isinstance(Net.load_from_checkpoint(path, weights_only=False).found[0], threading.Event)
