"""A module, its data and what a test of a command line needs of both; importable by name, as a program's are."""

from __future__ import annotations

from typing import Any

from torch import nn

from fulgur.testing import BoringDataModule, BoringModel

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "max_steps": 2,
    "limit_val_batches": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
}


class Encoder(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.width = width


class WideEncoder(Encoder):
    def __init__(self, width: int = 20, depth: int = 1) -> None:
        super().__init__(width)
        self.depth = depth


class CliNet(BoringModel):
    """A net.

    Args:
        width: How wide it is.
        lr: Rate of learning.
        encoder: What comes first.
    """

    def __init__(self, width: int = 4, lr: float = 0.1, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width, self.lr, self.encoder = width, lr, encoder


class Anything(BoringModel):
    def __init__(self, thing: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.thing = thing


class Needy(BoringModel):
    """Needs a width."""

    def __init__(self, width: int, sizes: list[int] | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width = width


class CliData(BoringDataModule):
    """Noise.

    Args:
        batch_size: Rows to a batch.
    """

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size
