"""Parts of the old Trainer that packages look into, and methods of the bars that they override."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import fulgur
import fulgur.compat
from fulgur.testing import BoringModel

OFF = {"logger": False, "enable_model_summary": False, "enable_checkpointing": False, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    fulgur.compat.install()
    yield
    fulgur.compat.uninstall()


class Asking(BoringModel):
    """Asks, as gluonts does, whether there will be validation."""

    def configure_optimizers(self) -> Any:
        source = self.trainer.fit_loop.epoch_loop.val_loop._data_source
        self.found = source.is_defined(), source.instance
        return super().configure_optimizers()


class Bare(Asking):
    val_dataloader = None  # type: ignore[assignment]


def fit(model: Any, val_dataloaders: Any = None) -> Any:
    fulgur.Trainer(max_steps=1, enable_progress_bar=False, limit_val_batches=0, **OFF).fit(  # type: ignore[arg-type]
        model, model.train_dataloader(), val_dataloaders
    )
    return model.found


def test_the_source_of_validation_is_known_when_optimizers_are_made() -> None:
    model = Asking()
    assert fit(model) == (True, model)
    assert fit(Bare()) == (False, None)


def test_a_loader_that_was_passed_is_the_source() -> None:
    loader = BoringModel().val_dataloader()
    assert fit(Bare(), loader) == (True, loader)


@pytest.mark.parametrize(("devices", "expected"), [("auto", 1), (1, 1), (2, 2)])
def test_the_connector_tells_what_arguments_come_to(devices: Any, expected: int) -> None:
    from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

    connector = _AcceleratorConnector(accelerator="cpu", devices=devices)
    assert (connector._accelerator_flag, connector._devices_flag) == ("cpu", expected)


def test_a_package_can_keep_a_model_of_its_own_on_the_trainer() -> None:
    trainer = fulgur.Trainer(**OFF)  # type: ignore[arg-type]
    trainer._model = "theirs"
    assert trainer._model == "theirs"


def test_bars_that_a_subclass_makes_are_the_ones_that_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    from lightning.pytorch.callbacks import TQDMProgressBar
    from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

    asked: list[str] = []

    class Own(TQDMProgressBar):
        def init_train_tqdm(self) -> Any:
            asked.append("train")
            return super().init_train_tqdm()

        def init_validation_tqdm(self) -> Any:
            asked.append("validation")
            return Tqdm(desc="unseen", disable=True)

        def init_sanity_tqdm(self) -> Any:
            asked.append("sanity")
            return Tqdm(desc="unseen", disable=True)

    trainer = fulgur.Trainer(max_epochs=1, limit_train_batches=2, callbacks=[Own(leave=True)], **OFF)  # type: ignore[arg-type]
    trainer.fit(BoringModel())
    shown = capsys.readouterr().err
    assert "train" in asked
    assert "Epoch 0/0: 100%" in shown
    assert "Validation" not in shown
    assert "unseen" not in shown
    assert set(asked) <= {"train", "validation", "sanity"}
