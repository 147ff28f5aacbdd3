"""pytorch-forecasting: a temporal fusion transformer on four groups of series, with its tuner, and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from pytorch_forecasting import QuantileLoss, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.tuning import Tuner
from told import QUIET, numbers, tell


def sets() -> tuple[TimeSeriesDataSet, TimeSeriesDataSet]:
    rows = [
        {"time": time, "group": str(group), "value": float(np.sin(time / (3 + group)) + group)}
        for group in range(4)
        for time in range(40)
    ]
    frame = pd.DataFrame(rows)
    training = TimeSeriesDataSet(
        frame[frame.time < 34],
        time_idx="time",
        target="value",
        group_ids=["group"],
        max_encoder_length=10,
        max_prediction_length=4,
        static_categoricals=["group"],
        time_varying_known_reals=["time"],
        time_varying_unknown_reals=["value"],
    )
    return training, TimeSeriesDataSet.from_dataset(training, frame, predict=True, stop_randomization=True)


def train(folder: Path) -> dict[str, Any]:
    pl.seed_everything(11)
    training, validation = sets()
    loaders = training.to_dataloader(train=True, batch_size=16), validation.to_dataloader(train=False, batch_size=4)
    model = TemporalFusionTransformer.from_dataset(
        training,
        learning_rate=0.01,
        hidden_size=8,
        attention_head_size=1,
        hidden_continuous_size=4,
        loss=QuantileLoss(),
    )
    searching = pl.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    found = Tuner(searching).lr_find(model, *loaders, num_training=15, update_attr=False)
    saving = ModelCheckpoint(folder, "best", monitor="val_loss")
    trainer = pl.Trainer(
        max_epochs=2,
        gradient_clip_val=0.1,
        callbacks=[saving, EarlyStopping("val_loss", patience=2), LearningRateMonitor()],
        **{**QUIET, "logger": CSVLogger(folder, "logs", "0")},
    )
    trainer.fit(model, *loaders)
    return {
        "tried": sorted(found.results),
        "logged": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "validated": trainer.validate(model, loaders[1], verbose=False),
        "predicted": numbers(model.predict(loaders[1], trainer_kwargs=QUIET)),
        "steps": trainer.global_step,
    }


def load(folder: Path) -> dict[str, Any]:
    _, validation = sets()
    model = TemporalFusionTransformer.load_from_checkpoint(folder / "best.ckpt", weights_only=False)
    loader = validation.to_dataloader(train=False, batch_size=4)
    return {"predicted": numbers(model.predict(loader, trainer_kwargs=QUIET))}


if __name__ == "__main__":
    tell(train, load)
