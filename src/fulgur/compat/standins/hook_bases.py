"""The hooks of a module as classes of their own, for code that inherits from them or asks ``isinstance``.

They hold the very functions of `LightningModule`: what a subclass leaves alone does not count as overridden.
"""

from __future__ import annotations

from abc import ABC
from inspect import getattr_static

from fulgur.datamodule import LightningDataModule
from fulgur.module import LightningModule

_DATA = (
    *("prepare_data", "setup", "teardown"),
    *("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"),
    *("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"),
)
_CHECKPOINT = ("on_load_checkpoint", "on_save_checkpoint")
_OTHERS = frozenset((*_DATA, *_CHECKPOINT, "on_gpu"))
_MODEL = (
    *(name for name in dir(LightningModule) if name.startswith("on_") and name not in _OTHERS),
    "configure_model",
)


class ModelHooks(ABC):  # noqa: B024 - its methods are set below
    """Hooks of a run."""


class DataHooks(ABC):  # noqa: B024
    """Hooks around data."""


class CheckpointHooks(ABC):  # noqa: B024
    """Hooks around checkpoints."""


for _base, _names in ((ModelHooks, _MODEL), (DataHooks, _DATA), (CheckpointHooks, _CHECKPOINT)):
    for _name in _names:
        setattr(_base, _name, getattr_static(LightningModule, _name))
    _base.register(LightningModule)
DataHooks.register(LightningDataModule)
