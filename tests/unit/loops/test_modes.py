"""Eval mode for an evaluation: whatever way is taken to it, it is what `eval()` of the model does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fulgur
from fulgur.testing import BoringModel


class Frozen(nn.BatchNorm1d):
    """Stays in eval mode, as people freeze batch norms."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)


class SeesModes(BoringModel):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(inner, nn.Dropout())
        self.seen: list[list[bool]] = []

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append([module.training for module in self.modules()])
        return super().validation_step(batch, batch_idx)


def validate(module: SeesModes, tmp_path: Any) -> None:
    trainer = fulgur.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, limit_val_batches=1, logger=False, enable_progress_bar=False
    )
    trainer.validate(module, verbose=False)


@pytest.mark.parametrize("inner", [nn.Linear(1, 1), Frozen(1), torch.jit.script(nn.Linear(1, 1))])
def test_every_submodule_is_evaluated_in_eval_mode_and_gets_its_own_back(inner: nn.Module, tmp_path: Any) -> None:
    module = SeesModes(inner)
    module.inner[1].eval()
    before = [part.training for part in module.modules()]

    validate(module, tmp_path)

    assert set(module.seen[0]) == {False}
    assert [part.training for part in module.modules()] == before


def test_a_submodule_with_its_own_train_hears_of_the_mode(tmp_path: Any) -> None:
    modes: list[bool] = []

    class Hears(nn.Linear):
        def train(self, mode: bool = True) -> Any:
            modes.append(mode)
            return super().train(mode)

    validate(SeesModes(Hears(1, 1)), tmp_path)

    assert modes == [False]


def test_a_train_that_was_set_on_a_module_is_called(tmp_path: Any) -> None:
    module = SeesModes(nn.Linear(1, 1))
    modes: list[bool] = []
    module.layer.train = lambda mode=True: modes.append(mode)  # type: ignore[assignment, method-assign]

    validate(module, tmp_path)

    assert modes == [False]


def test_an_eval_of_the_module_itself_is_called(tmp_path: Any) -> None:
    class CountsEvals(SeesModes):
        n_evals = 0

        def eval(self) -> Any:
            self.n_evals += 1
            return super().eval()

    module = CountsEvals(nn.Linear(1, 1))

    validate(module, tmp_path)

    assert module.n_evals == 1
    assert set(module.seen[0]) == {False}
