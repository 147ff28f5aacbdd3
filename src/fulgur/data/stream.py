"""One stream of random numbers for all ranks, beside each rank's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fulgur.data.generators import get_generator, set_generator
from fulgur.data.shard import Shard
from fulgur.rng import is_same_rng, plain_rng, restore_rng, snapshot_rng


class CommonStream:
    """States of the global generators that are the same on all ranks, however far each rank's own have gone.

    What draws within `drawing` or `begun` draws the same on all ranks. Rank 0's own generators move with the stream
    until something else draws from them: so an order is that of a run on one rank, if only the loader draws. Those of
    the other ranks are put back each time.

    Args:
        shard: The ranks.
    """

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._state: dict[str, Any] = {}

    @contextmanager
    def begun(self, held: Sequence[Any] = ()) -> Iterator[None]:
        """Draw from where rank 0's own generators are. All ranks must reach this.

        Args:
            held: Generators of samplers, which get the states that rank 0's have and keep them.
        """
        own = snapshot_rng(include_cuda=False)
        of_held = [get_generator(generator) for generator in held]
        state, of_held = self.shard.share((own, of_held))  # all ranks must reach this
        if self.shard.rank:
            restore_rng(state)
            for generator, held_state in zip(held, of_held, strict=False):
                set_generator(generator, held_state)
        try:
            yield
        finally:
            self.note()
            if self.shard.rank:
                restore_rng(own)

    def note(self) -> None:
        """Go on from where the global generators are now."""
        self._state = snapshot_rng(include_cuda=False)

    def state_dict(self) -> dict[str, Any]:
        """The states, as plain data and tensors; empty before the first pass."""
        return plain_rng(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._state = state

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Go on where the stream was left."""
        own = snapshot_rng(include_cuda=False)
        moves_own = self.shard.rank == 0 and is_same_rng(own, self._state)
        if not moves_own:
            restore_rng(self._state)
        try:
            yield
        finally:
            self.note()
            if not moves_own:
                restore_rng(own)
