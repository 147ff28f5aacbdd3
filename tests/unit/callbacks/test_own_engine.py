"""Callbacks that DeepSpeed's engine leaves no room for say so before anything runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fulgur.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from fulgur.errors import MisconfigurationException
from fulgur.strategies.deepspeed import DeepSpeedStrategy
from fulgur.testing import BoringModel


@pytest.mark.parametrize(("make", "error"), [
    (lambda: WeightAveraging(), MisconfigurationException),
    (lambda: EMAWeightAveraging(), MisconfigurationException),
    (lambda: StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1), MisconfigurationException),
    (lambda: ModelPruning("l1_unstructured"), MisconfigurationException),
    (lambda: GradientAccumulationScheduler({1: 2}), RuntimeError),
    (lambda: BackboneFinetuning(), NotImplementedError),
])  # fmt: skip
def test_deepspeed_is_refused(make: Any, error: type[Exception]) -> None:
    trainer: Any = SimpleNamespace(
        strategy=DeepSpeedStrategy.__new__(DeepSpeedStrategy), accumulate_grad_batches=1, max_epochs=2
    )
    module = BoringModel()
    module.backbone = module.layer  # type: ignore[attr-defined]
    with pytest.raises(error, match="DeepSpeed"):
        make().setup(trainer, module, "fit")
