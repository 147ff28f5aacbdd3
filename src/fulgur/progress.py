"""The counters of a run. They are saved as they are, and only ever between two steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Phase = Literal["start", "batch", "validated", "settled", "cut", "ended"]


@dataclass(slots=True)
class Progress:
    """Where the training is.

    Attributes:
        epoch: Completed epochs, which is the index of the running one. Rises after its last hook.
        batch: Batches completed in the running epoch. Rises before ``on_train_batch_end``, so that a checkpoint
            taken in that hook counts the batch whose update it holds.
        batches_total: Batches completed since the first epoch began.
        global_step: Training batches, or accumulation windows, that updated anything.
        log_step: Axis of the loggers: `global_step` before the batch that runs or ran last.
        phase: What of the running epoch is done beyond `batch`: ``"start"`` nothing, ``"batch"`` the last batch,
            ``"validated"`` also the validation after it, ``"settled"`` all that follows a batch, ``"ended"`` also the
            hooks of the epoch's end; ``"cut"`` is the end of an epoch that a limit cut short.
        cut_at: Batches of the epoch before this one, if a limit cut it short; else 0.
    """

    epoch: int = 0
    batch: int = 0
    batches_total: int = 0
    global_step: int = 0
    log_step: int = 0
    phase: Phase = "start"
    cut_at: int = 0

    def restart_epoch(self) -> None:
        """Begin the running epoch anew, where an exception broke it off: its loaders begin anew too."""
        if self.phase != "start":
            self.batch, self.phase = 0, "start"
        self.cut_at = 0  # another fit begins with the next epoch

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        known = {field.name for field in fields(self)}
        for name, value in state.items():
            if name in known:
                setattr(self, name, value)
