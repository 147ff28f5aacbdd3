"""Print a table of the module's layers when a fit begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulgur.callbacks.summary import Summary, check_max_depth, summarize
from fulgur.hooks import Callback

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer


class ModelSummary(Callback):
    """Print layers, parameter counts and sizes on rank 0 when a fit begins.

    With ``module.example_input_array``, one forward pass in eval mode finds the sizes and FLOPs of each layer; it
    leaves weights, modes and random generators as they were. Override `show` to present the summary in another way.

    Args:
        max_depth: Levels of submodules to list: 1 lists the direct children, -1 everything, 0 turns the table off.

    Raises:
        ValueError: `max_depth` is below -1.

    Example:
        >>> trainer = Trainer(callbacks=[ModelSummary(max_depth=-1)])
    """

    def __init__(self, max_depth: int = 1) -> None:
        self._max_depth = check_max_depth(max_depth)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._max_depth == 0:
            return
        # A sharded module communicates in its forward pass: all ranks must reach this
        summary = summarize(pl_module, max_depth=self._max_depth)
        if trainer.is_global_zero:
            self.show(summary)

    def show(self, summary: Summary) -> None:
        """Print `summary`; runs on rank 0 only."""
        print(summary)  # noqa: T201
