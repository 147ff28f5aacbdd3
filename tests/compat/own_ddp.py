"""A strategy of the program's own, in a module of its own so that other processes can import it."""

from __future__ import annotations

from typing import Any

from fulgur.strategies import DDPStrategy
from fulgur.testing import BoringModel


class Counting(DDPStrategy):
    """Counts the steps of its rank."""

    n_steps = 0

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.n_steps += 1
        return super().training_step(*args, **kwargs)

    def model_to_device(self) -> None:
        super().model_to_device()
        self.was_moved = True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return super().lightning_module_state_dict()


class Telling(BoringModel):
    def on_train_end(self) -> None:
        assert self.trainer.strategy.n_steps == self.trainer.global_step == 2
        assert self.trainer.strategy.was_moved
