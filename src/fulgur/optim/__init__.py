"""Optimizers: what `configure_optimizers` may return, manual optimization, and gradient clipping."""

from fulgur.optim.clip import clip_gradients
from fulgur.optim.configure import LRSchedulerConfig, OptimizerSetup, build_optimizers
from fulgur.optim.manual import LightningOptimizer
from fulgur.optim.toggle import toggle_parameters, untoggle_parameters

__all__ = [
    "LRSchedulerConfig",
    "LightningOptimizer",
    "OptimizerSetup",
    "build_optimizers",
    "clip_gradients",
    "toggle_parameters",
    "untoggle_parameters",
]
