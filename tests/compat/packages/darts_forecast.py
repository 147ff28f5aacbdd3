"""darts: N-BEATS and a recurrent network on a sine wave: early stopping, its bar, checkpoints, a search of rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.models import BlockRNNModel, NBEATSModel
from darts.utils.callbacks import TFMProgressBar
from pytorch_lightning.callbacks import EarlyStopping
from told import QUIET, numbers, tell


def series() -> TimeSeries:
    times = pd.date_range("2020-01-01", periods=120, freq="D")
    return TimeSeries.from_times_and_values(times, np.sin(np.arange(120) / 5).astype("float32"))


def train(folder: Path) -> dict[str, Any]:
    whole = series()
    start, end = whole[:90], whole[90:]
    nbeats = NBEATSModel(
        12,
        4,
        n_epochs=3,
        num_stacks=2,
        num_blocks=1,
        num_layers=1,
        layer_widths=16,
        batch_size=16,
        random_state=1,
        model_name="nbeats",
        work_dir=str(folder),
        save_checkpoints=True,
        force_reset=True,
        pl_trainer_kwargs={**QUIET, "callbacks": [EarlyStopping("val_loss", patience=3)]},
    )
    nbeats.fit(start, val_series=end)
    stopping = EarlyStopping("train_loss", patience=1, min_delta=1.0)
    bar = TFMProgressBar(enable_train_bar_only=True)
    shown = {**QUIET, "enable_progress_bar": True, "callbacks": [stopping, bar]}
    recurrent = BlockRNNModel(
        12, 4, model="LSTM", hidden_dim=8, n_epochs=4, batch_size=16, random_state=1, pl_trainer_kwargs=shown
    )
    found = recurrent.lr_find(start, num_training=15)
    recurrent.fit(start)
    return {
        "logged": {name: float(value) for name, value in nbeats.trainer.callback_metrics.items()},
        "forecast": numbers(nbeats.predict(8, series=start).values()),
        "recurrent": numbers(recurrent.predict(4).values()),
        "epochs": [nbeats.epochs_trained, recurrent.epochs_trained],
        "found": 1e-8 < found.suggestion() <= 1.0,
        "stopped": [stopping.stopped_epoch, float(stopping.best_score)],
    }


def load(folder: Path) -> dict[str, Any]:
    model = NBEATSModel.load_from_checkpoint("nbeats", work_dir=str(folder), best=True, trusted=True)
    return {"forecast": numbers(model.predict(8, series=series()[:90]).values())}


if __name__ == "__main__":
    tell(train, load)
