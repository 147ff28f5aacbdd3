"""gluonts: a DeepAR and a feed-forward network on sine waves, trained, forecast, and read back from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from gluonts.dataset.common import ListDataset
from gluonts.model.predictor import Predictor
from gluonts.torch import DeepAREstimator, SimpleFeedForwardEstimator
from told import QUIET, numbers, tell

START = pd.Period("2020-01-01", freq="D")


def series() -> ListDataset:
    time = np.arange(120)
    rows = [{"start": START, "target": np.sin(time / (3 + n)) + n} for n in range(4)]
    return ListDataset(rows, freq="D")


def train(folder: Path) -> dict[str, Any]:
    results = {}
    for name, kind, arguments in (
        ("deepar", DeepAREstimator, {"freq": "D", "num_layers": 1, "hidden_size": 8}),
        ("feedforward", SimpleFeedForwardEstimator, {"hidden_dimensions": [8]}),
    ):
        pl.seed_everything(3)
        trainer_kwargs = {"max_epochs": 2, "default_root_dir": str(folder / name), **QUIET}
        estimator = kind(
            prediction_length=6, batch_size=8, num_batches_per_epoch=10, trainer_kwargs=trainer_kwargs, **arguments
        )
        output = estimator.train_model(series(), validation_data=series())
        torch.manual_seed(0)
        forecasts = list(output.predictor.predict(series(), num_samples=20))
        logged = {name: float(value) for name, value in output.trainer.callback_metrics.items()}
        results[name] = {
            "logged": logged,
            "mean": [numbers(forecast.mean) for forecast in forecasts],
            "best": Path(output.trainer.checkpoint_callback.best_model_path).name,
        }
        Path(output.trainer.checkpoint_callback.best_model_path).replace(folder / f"{name}.ckpt")
    (folder / "predictor").mkdir()
    output.predictor.serialize(folder / "predictor")
    return results


def load(folder: Path) -> dict[str, Any]:
    predictor = Predictor.deserialize(folder / "predictor")
    forecasts = predictor.predict(series())
    trainer = pl.Trainer(**QUIET, enable_checkpointing=False)
    estimator = SimpleFeedForwardEstimator(prediction_length=6, hidden_dimensions=[8], batch_size=8)
    module = estimator.create_lightning_module()
    batches = estimator.create_validation_data_loader(estimator.create_transformation().apply(series()), module)
    validated = trainer.validate(module, batches, ckpt_path=str(folder / "feedforward.ckpt"), verbose=False)
    return {"mean": [numbers(forecast.mean) for forecast in forecasts], "validated": validated}


if __name__ == "__main__":
    tell(train, load)
