"""A loader that keeps its own position, and a run that notes what it gives. Runs under fulgur and under Lightning.

``python stateful.py FILE`` lets Lightning go on from a checkpoint and prints the batches that it trains on.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

N_BATCHES = 4
MAX_EPOCHS = 2


class Positioned:
    """Batches in another order in every pass, which only its state tells."""

    def __init__(self) -> None:
        self.n_passes, self.n_given, self.is_resumed = 0, 0, False

    def __len__(self) -> int:
        return N_BATCHES

    def __iter__(self) -> Iterator[Tensor]:
        if not self.is_resumed:
            self.n_passes, self.n_given = self.n_passes + 1, 0
        self.is_resumed = False
        while self.n_given < N_BATCHES:
            self.n_given += 1
            yield torch.full((1, 1), 10.0 * self.n_passes + self.n_given)

    def state_dict(self) -> dict[str, int]:
        return {"n_passes": self.n_passes, "n_given": self.n_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.n_passes, self.n_given = state["n_passes"], state["n_given"]
        self.is_resumed = self.n_given < N_BATCHES


def train(pl: Any, *, path: Any = None, save_as: Any = None, save_at: int = 0) -> list[float]:
    """Train, from the file `path` if there is one, saving after `save_at` batches. Returns the batches trained on."""

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.seen: list[float] = []

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.seen.append(batch.item())
            return self.layer(batch / 100).mean()

        def on_train_batch_end(self, *_: Any) -> None:
            if save_as is not None and len(self.seen) == save_at:
                self.trainer.save_checkpoint(save_as)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    trainer = pl.Trainer(
        max_epochs=MAX_EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Positioned(), ckpt_path=path)
    return module.seen


if __name__ == "__main__":
    import lightning.pytorch

    warnings.simplefilter("ignore")
    print(json.dumps(train(lightning.pytorch, path=sys.argv[1])))
