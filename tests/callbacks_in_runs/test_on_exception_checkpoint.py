"""OnExceptionCheckpoint in real fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur.callbacks import OnExceptionCheckpoint


def breaking(step: int, error: BaseException) -> Any:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == step and not self.is_mended:
            raise error
        return self.layer(batch).mean()

    return training_step


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(1)])
def test_file_is_left_by_a_broken_fit(
    error: BaseException, tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path
) -> None:
    module = tiny(training_step=breaking(3, error), is_mended=False)
    trainer = make_trainer(callbacks=OnExceptionCheckpoint(tmp_path / "saved"), max_epochs=5)
    with pytest.raises(type(error)):
        trainer.fit(module, loader(2))
    assert torch.load(tmp_path / "saved" / "on_exception.ckpt", weights_only=True)["global_step"] == 3


def test_next_fit_goes_on_from_the_file_and_removes_it(
    tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path
) -> None:
    module = tiny(training_step=breaking(3, RuntimeError("broken")), is_mended=False)
    with pytest.raises(RuntimeError, match="broken"):
        make_trainer(callbacks=OnExceptionCheckpoint(tmp_path, "mine"), max_epochs=3).fit(module, loader(2))
    steps: list[int] = []
    mended = tiny(
        training_step=breaking(3, RuntimeError("broken")),
        is_mended=True,
        on_train_batch_start=lambda self, batch, batch_idx: steps.append(self.global_step),
    )
    trainer = make_trainer(callbacks=OnExceptionCheckpoint(tmp_path, "mine"), max_epochs=3)
    trainer.fit(mended, loader(2))
    assert steps == [3, 4, 5]
    assert trainer.ckpt_path == str(tmp_path / "mine.ckpt")
    assert not (tmp_path / "mine.ckpt").exists()


def test_fit_that_goes_well_leaves_nothing(tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> None:
    make_trainer(callbacks=OnExceptionCheckpoint(tmp_path / "saved")).fit(tiny(), loader(2))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_broken_test_saves_nothing(tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> None:
    def test_step(self: Any, batch: Any, batch_idx: int) -> None:
        raise RuntimeError("broken")

    trainer = make_trainer(callbacks=OnExceptionCheckpoint(tmp_path / "saved"))
    with pytest.raises(RuntimeError, match="broken"):
        trainer.test(tiny(test_step=test_step), loader(2))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_empty_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no file"):
        OnExceptionCheckpoint(tmp_path, "")
