"""One stream of random numbers for all ranks, beside each rank's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fulgur.data.generators import get_generator, set_generator
from fulgur.data.shard import Shard
from fulgur.rng import plain_rng, restore_rng, snapshot_rng


class CommonStream:
    """States of the global generators that are the same on all ranks, however far each rank's own have gone.

    What draws within `drawing` or `begun` draws the same on all ranks.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    @contextmanager
    def begun(self, shard: Shard, held: Sequence[Any] = ()) -> Iterator[None]:
        """Draw from where rank 0's own generators are. All ranks must reach this.

        Rank 0's move with it, as in a run on one rank, so that the next pass differs from this one. Those of the other
        ranks are put back.

        Args:
            shard: Shares the states.
            held: Generators of samplers, which get the states that rank 0's have and keep them.
        """
        own = snapshot_rng(include_cuda=False)
        state, of_held = shard.share(
            (own, [get_generator(generator) for generator in held])
        )  # all ranks must reach this
        if shard.rank:
            restore_rng(state)
            for generator, held_state in zip(held, of_held, strict=False):
                set_generator(generator, held_state)
        try:
            yield
        finally:
            self.note()
            if shard.rank:
                restore_rng(own)

    def note(self) -> None:
        """Go on from where the global generators are now."""
        self._state = snapshot_rng(include_cuda=False)

    def state_dict(self) -> dict[str, Any] | None:
        """The states, as plain data and tensors."""
        return plain_rng(self._state) if self._state is not None else None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state_dict` gave."""
        self._state = state

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Go on where the stream was left; the process's own generators are put back afterwards."""
        own = snapshot_rng(include_cuda=False)
        assert self._state is not None, "a pass began without its stream"
        restore_rng(self._state)
        try:
            yield
        finally:
            self.note()
            restore_rng(own)
