"""Callbacks that come with fulgur. Each is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulgur.callbacks.batch_size_finder import BatchSizeFinder as BatchSizeFinder
    from fulgur.callbacks.checkpoint import Checkpoint as Checkpoint
    from fulgur.callbacks.device_stats_monitor import DeviceStatsMonitor as DeviceStatsMonitor
    from fulgur.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from fulgur.callbacks.early_stopping import EarlyStoppingReason as EarlyStoppingReason
    from fulgur.callbacks.finetuning import BackboneFinetuning as BackboneFinetuning
    from fulgur.callbacks.finetuning import BaseFinetuning as BaseFinetuning
    from fulgur.callbacks.gradient_accumulation_scheduler import (
        GradientAccumulationScheduler as GradientAccumulationScheduler,
    )
    from fulgur.callbacks.gradient_monitor import GradientMonitor as GradientMonitor
    from fulgur.callbacks.lambda_function import LambdaCallback as LambdaCallback
    from fulgur.callbacks.lr_finder import LearningRateFinder as LearningRateFinder
    from fulgur.callbacks.lr_monitor import LearningRateMonitor as LearningRateMonitor
    from fulgur.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
    from fulgur.callbacks.model_summary import ModelSummary as ModelSummary
    from fulgur.callbacks.on_exception_checkpoint import OnExceptionCheckpoint as OnExceptionCheckpoint
    from fulgur.callbacks.prediction_writer import BasePredictionWriter as BasePredictionWriter
    from fulgur.callbacks.progress import ProgressBar as ProgressBar
    from fulgur.callbacks.progress import RichProgressBar as RichProgressBar
    from fulgur.callbacks.pruning import ModelPruning as ModelPruning
    from fulgur.callbacks.ray_report import RayTrainReportCallback as RayTrainReportCallback
    from fulgur.callbacks.rich_model_summary import RichModelSummary as RichModelSummary
    from fulgur.callbacks.spike import SpikeDetection as SpikeDetection
    from fulgur.callbacks.stochastic_weight_avg import StochasticWeightAveraging as StochasticWeightAveraging
    from fulgur.callbacks.throughput_monitor import ThroughputMonitor as ThroughputMonitor
    from fulgur.callbacks.timer import Timer as Timer
    from fulgur.callbacks.tqdm_progress import TQDMProgressBar as TQDMProgressBar
    from fulgur.callbacks.weight_averaging import EMAWeightAveraging as EMAWeightAveraging
    from fulgur.callbacks.weight_averaging import WeightAveraging as WeightAveraging
    from fulgur.hooks import Callback as Callback

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "BasePredictionWriter",
    "BatchSizeFinder",
    "Callback",
    "Checkpoint",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "EarlyStoppingReason",
    "GradientAccumulationScheduler",
    "GradientMonitor",
    "LambdaCallback",
    "LearningRateFinder",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelPruning",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "RayTrainReportCallback",
    "RichModelSummary",
    "RichProgressBar",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
    "WeightAveraging",
]

_HOMES = {
    "BackboneFinetuning": "fulgur.callbacks.finetuning",
    "BaseFinetuning": "fulgur.callbacks.finetuning",
    "BasePredictionWriter": "fulgur.callbacks.prediction_writer",
    "BatchSizeFinder": "fulgur.callbacks.batch_size_finder",
    "Callback": "fulgur.hooks",
    "Checkpoint": "fulgur.callbacks.checkpoint",
    "DeviceStatsMonitor": "fulgur.callbacks.device_stats_monitor",
    "EMAWeightAveraging": "fulgur.callbacks.weight_averaging",
    "EarlyStopping": "fulgur.callbacks.early_stopping",
    "EarlyStoppingReason": "fulgur.callbacks.early_stopping",
    "GradientAccumulationScheduler": "fulgur.callbacks.gradient_accumulation_scheduler",
    "GradientMonitor": "fulgur.callbacks.gradient_monitor",
    "LambdaCallback": "fulgur.callbacks.lambda_function",
    "LearningRateFinder": "fulgur.callbacks.lr_finder",
    "LearningRateMonitor": "fulgur.callbacks.lr_monitor",
    "ModelCheckpoint": "fulgur.callbacks.model_checkpoint",
    "ModelPruning": "fulgur.callbacks.pruning",
    "ModelSummary": "fulgur.callbacks.model_summary",
    "OnExceptionCheckpoint": "fulgur.callbacks.on_exception_checkpoint",
    "ProgressBar": "fulgur.callbacks.progress",
    "RayTrainReportCallback": "fulgur.callbacks.ray_report",
    "RichModelSummary": "fulgur.callbacks.rich_model_summary",
    "RichProgressBar": "fulgur.callbacks.progress",
    "SpikeDetection": "fulgur.callbacks.spike",
    "StochasticWeightAveraging": "fulgur.callbacks.stochastic_weight_avg",
    "TQDMProgressBar": "fulgur.callbacks.tqdm_progress",
    "ThroughputMonitor": "fulgur.callbacks.throughput_monitor",
    "Timer": "fulgur.callbacks.timer",
    "WeightAveraging": "fulgur.callbacks.weight_averaging",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
