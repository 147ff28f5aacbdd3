"""Checkpoints of a loop: a dict of objects, to a file and back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fulgur import Fabric
from fulgur.checkpoint.io import AsyncCheckpointIO, TorchCheckpointIO
from fulgur.errors import CheckpointError, CheckpointRefusedError


class Own:
    """What only its program knows."""


def one(**arguments: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, **arguments)


def build(fabric: Fabric, seed: int) -> dict[str, Any]:
    """A model and an optimizer that has taken a step, a scheduler and a number."""
    torch.manual_seed(seed)
    net = nn.Linear(2, 2)
    model, optimizer = fabric.setup(net, torch.optim.Adam(net.parameters(), lr=0.1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    fabric.backward(model(torch.rand(1, 2)).sum())
    optimizer.step()
    for _ in range(seed):
        scheduler.step()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "step": seed}


def test_objects_are_restored_and_numbers_replaced() -> None:
    fabric = one()
    saved, state = build(fabric, 1), build(fabric, 2)
    fabric.save("a.ckpt", saved)
    assert fabric.load("a.ckpt", state) == {}
    assert torch.equal(state["model"].weight, saved["model"].weight)
    moments = [next(iter(s["optimizer"].state.values()))["exp_avg"] for s in (state, saved)]
    assert torch.equal(*moments)
    assert state["scheduler"].last_epoch == 1
    assert state["step"] == 1


def test_the_file_is_a_plain_dict_of_states() -> None:
    fabric = one()
    state = build(fabric, 1)
    fabric.save(Path("folder/a.ckpt"), state)
    content = torch.load("folder/a.ckpt")
    assert list(content) == ["model", "optimizer", "scheduler", "step"]
    assert list(content["model"]) == ["weight", "bias"]
    assert content["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.01)


def test_what_was_not_asked_for_is_returned() -> None:
    fabric = one()
    state = build(fabric, 1)
    fabric.save("a.ckpt", state)
    left = fabric.load("a.ckpt", {"model": state["model"]})
    assert list(left) == ["optimizer", "scheduler", "step"]
    assert list(fabric.load("a.ckpt")) == ["model", "optimizer", "scheduler", "step"]


def test_a_missing_key_is_an_error_before_anything_is_loaded() -> None:
    fabric = one()
    state = build(fabric, 2)
    fabric.save("a.ckpt", {"model": build(fabric, 1)["model"]})
    before = state["model"].weight.detach().clone()
    with pytest.raises(KeyError, match="has no 'step'"):
        fabric.load("a.ckpt", {"model": state["model"], "step": 0})
    assert torch.equal(before, state["model"].weight)
    asked = {"model": state["model"], "step": 0}
    fabric.load("a.ckpt", asked, strict=False)
    assert asked["step"] == 0
    assert not torch.equal(before, state["model"].weight)


def test_a_filter_leaves_out() -> None:
    fabric = one()
    fabric.save("a.ckpt", build(fabric, 1), filter={"model": lambda name, value: name == "bias"})
    assert list(torch.load("a.ckpt")["model"]) == ["bias"]


def test_filters_that_mean_nothing_are_refused() -> None:
    fabric = one()
    with pytest.raises(TypeError, match="no dict of functions"):
        fabric.save("a.ckpt", {"a": {}}, filter={"a": 3})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="no dict of functions"):
        fabric.save("a.ckpt", {"a": {}}, filter=lambda name, value: True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="filter has 'b', which is no key of the state: 'a'"):
        fabric.save("a.ckpt", {"a": {}}, filter={"b": lambda name, value: True})
    assert not Path("a.ckpt").exists()


def test_a_raw_file_is_loaded_into_one_object() -> None:
    fabric = one()
    expected, model = nn.Linear(2, 2), fabric.setup(nn.Linear(2, 2))
    torch.save(expected.state_dict(), "raw.pt")
    fabric.load_raw("raw.pt", model)
    assert torch.equal(model.weight, expected.weight)
    other = fabric.setup(nn.Linear(2, 2))
    assert fabric.load("raw.pt", other) == {}
    assert torch.equal(other.weight, expected.weight)
    with pytest.raises(TypeError, match="got a int"):
        fabric.load_raw("raw.pt", 3)


def test_strictness_of_a_models_names() -> None:
    fabric = one()
    model = fabric.setup(nn.Linear(2, 2))
    fabric.save("a.ckpt", {"model": model}, filter={"model": lambda name, value: name == "bias"})
    with pytest.raises(RuntimeError, match="weight"):
        fabric.load("a.ckpt", {"model": model})
    fabric.load("a.ckpt", {"model": model}, strict=False)


def test_a_file_is_not_unpickled_unless_trusted() -> None:
    fabric = one()
    fabric.save("a.ckpt", {"object": Own()})
    with pytest.raises(CheckpointRefusedError, match="weights_only=False"):
        fabric.load("a.ckpt")
    assert isinstance(fabric.load("a.ckpt", weights_only=False)["object"], Own)


def test_a_damaged_file_is_refused() -> None:
    fabric = one()
    fabric.save("a.ckpt", {"weights": torch.ones(100)})
    content = bytearray(Path("a.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    Path("a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError):
        fabric.load("a.ckpt")
    with pytest.raises(FileNotFoundError):
        fabric.load("nothing.ckpt")


def test_a_checkpoint_io_of_the_plugins_writes_and_reads() -> None:
    class Noting(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            noted.append(("save", path))
            super().save_checkpoint(checkpoint, path, storage_options)

        def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> Any:
            noted.append(("load", path))
            return super().load_checkpoint(path, *args, **kwargs)

    noted: list[Any] = []
    fabric = one(plugins=[Noting()])
    fabric.save("a.ckpt", {"a": 1})
    assert fabric.load("a.ckpt") == {"a": 1}
    assert noted == [("save", "a.ckpt"), ("load", "a.ckpt")]


def test_a_save_in_the_background_holds_the_moment_of_the_save() -> None:
    fabric = one(plugins=AsyncCheckpointIO())
    state = build(fabric, 1)
    expected = state["model"].weight.detach().clone()
    fabric.save("a.ckpt", state)
    state["optimizer"].step()
    assert torch.equal(fabric.load("a.ckpt")["model"]["weight"], expected)
    assert not torch.equal(state["model"].weight, expected)
    fabric.strategy.checkpoint_io.teardown()


def test_a_save_in_the_background_that_fails_last_is_told_at_the_end_of_the_program() -> None:
    program = """
from fulgur import Fabric
from fulgur.checkpoint.io import AsyncCheckpointIO, TorchCheckpointIO
class Failing(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        raise OSError("the disk is full")
Fabric(accelerator="cpu", devices=1, plugins=AsyncCheckpointIO(Failing())).save("a.ckpt", {"a": 1})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert "OSError: the disk is full" in done.stderr


def test_weights_that_a_trainer_has_saved_are_loaded() -> None:
    from fulgur import Trainer
    from fulgur.testing import BoringModel

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **quiet)  # type: ignore[arg-type]
    trained = BoringModel()
    trainer.fit(trained)
    trainer.save_checkpoint("a.ckpt")
    fabric = one()
    model = fabric.setup(BoringModel())
    assert "optimizer_states" in fabric.load("a.ckpt", {"state_dict": model})
    assert torch.equal(model.layer.weight, trained.layer.weight)
