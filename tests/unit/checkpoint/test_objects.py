"""Objects among the hyperparameters of a file: kept in programs of Lightning, never made by who resumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fulgur.compat
from fulgur.checkpoint.io import TorchCheckpointIO
from fulgur.checkpoint.load import load_checkpoint
from fulgur.errors import CheckpointRefusedError
from fulgur.module import LightningModule
from fulgur.testing import BoringModel

made: list[object] = []


class Loss:
    """An object that would be noticed if a file made it."""

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def __setstate__(self, state: dict[str, Any]) -> None:
        made.append(state)
        self.__dict__.update(state)


class Model(BoringModel):
    def __init__(self, width: int, loss: Any) -> None:
        super().__init__()
        self.save_hyperparameters()


@pytest.fixture
def _installed() -> Iterator[None]:
    fulgur.compat.install()
    yield
    fulgur.compat.uninstall()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with an object among its hyperparameters."""
    content = {"state_dict": {}, "hyper_parameters": {"width": 3, "loss": Loss(0.5), "losses": [Loss, len]}}
    torch.save(content, tmp_path / "a.ckpt")
    made.clear()
    return tmp_path / "a.ckpt"


def test_who_resumes_gets_the_rest_and_no_object_is_made(file: Path) -> None:
    assert TorchCheckpointIO().load_checkpoint(file) == {"state_dict": {}, "hyper_parameters": {"width": 3}}
    assert made == []


@pytest.mark.parametrize("arguments", [{}, {"weights_only": True}])
def test_who_needs_hyperparameters_is_refused(file: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(CheckpointRefusedError, match=r"Loss.*weights_only=False"):
        load_checkpoint(file, **arguments)


def test_weights_only_true_is_strict(file: Path) -> None:
    with pytest.raises(CheckpointRefusedError, match="Loss"):
        TorchCheckpointIO().load_checkpoint(file, weights_only=True)


def test_a_trusted_file_gives_the_object(file: Path) -> None:
    found = TorchCheckpointIO().load_checkpoint(file, weights_only=False)["hyper_parameters"]["loss"]
    assert found.margin == 0.5


@pytest.mark.parametrize("key", ["callbacks", "state_dict"])
def test_an_object_anywhere_else_is_refused(tmp_path: Path, key: str) -> None:
    torch.save({"state_dict": {}, key: {"a": [Loss(0.5)]}}, tmp_path / "a.ckpt")
    made.clear()
    with pytest.raises(CheckpointRefusedError, match="Loss"):
        TorchCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert made == []


class Call:
    def __reduce__(self) -> Any:
        return exec, ("import fulgur.checkpoint.objects; fulgur.checkpoint.objects.was_run = True",)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": {"a": Call(), "b": 1}}, tmp_path / "a.ckpt")
    assert TorchCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"] == {"b": 1}
    import fulgur.checkpoint.objects

    assert not hasattr(fulgur.checkpoint.objects, "was_run")


@pytest.mark.usefixtures("_installed")
def test_a_program_of_lightning_finds_its_objects_in_the_file_and_resumes_from_it(tmp_path: Path) -> None:
    path = fit(Model(3, Loss(0.5)), tmp_path / "a.ckpt")
    stored = torch.load(path, weights_only=False)["hyper_parameters"]
    assert (stored["width"], stored["loss"].margin) == (3, 0.5)
    assert Model.load_from_checkpoint(path, weights_only=False).hparams["loss"].margin == 0.5
    fit(Model(3, Loss(0.5)), tmp_path / "b.ckpt", max_steps=2, ckpt_path=path)
    assert load_checkpoint(tmp_path / "b.ckpt", weights_only=False)["global_step"] == 2


@pytest.mark.usefixtures("_installed")
def test_what_cannot_be_pickled_is_left_out_by_name(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"\['loss'\]"):
        path = fit(Model(3, lambda: None), tmp_path / "a.ckpt")
    assert load_checkpoint(path)["hyper_parameters"] == {"width": 3}


def test_without_compat_objects_are_left_out(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"\['loss'\]"):
        path = fit(Model(3, Loss(0.5)), tmp_path / "a.ckpt")
    assert load_checkpoint(path)["hyper_parameters"] == {"width": 3}


def fit(model: LightningModule, path: Path, *, max_steps: int = 1, ckpt_path: Path | None = None) -> Path:
    off = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = fulgur.Trainer(accelerator="cpu", max_steps=max_steps, limit_val_batches=0, **off)  # type: ignore[arg-type]
    trainer.fit(model, ckpt_path=ckpt_path)
    trainer.save_checkpoint(path)
    return path
