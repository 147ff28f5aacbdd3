"""What all ranks do at the same place of a run, agreed on without a collective in any step.

The loops of all ranks pass the same boundaries in the same order: the ends of training batches, of evaluation
batches, of validations and epochs. A rank that wants something of all (to stop, to validate, to save) *posts* a wish in
the store of the process group and wakes the others. On each of them a thread answers at once, whatever the main thread
waits for: it sets the loops' `interrupt`, so that the next boundary does not pass unnoticed, and then posts the last
boundary that may have passed already. Whoever comes to a boundary with `interrupt` set waits for the posts of all; the
wish is fulfilled at the first boundary after the highest of them. Nobody can be past it, for each rank's post tells
how far it may have come unnoticed; and nobody waits for a rank that waits for him, for the posts come from the threads.

A wish that all ranks have between the same two boundaries is fulfilled at the second of them, as on one process. A wish
of one rank alone comes true one or two boundaries later.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

Clock = tuple[float, ...]
Wish = tuple[str, Any]

_A_WHILE = timedelta(hours=1)
_END_S = 3.0
"""How long the store may take at the end."""


class Agreement:
    """The wishes of all ranks, and where they are fulfilled.

    Args:
        open_stores: Opens a store that all ranks share, by name, once for each of several connections.
        rank: Of this process.
        world_size: Number of ranks.
        loops: Whose `interrupt` is set where something is to be agreed on.
        clock: The boundary passed last; of two boundaries the later has the greater one. Read by another thread.
        timeout: How long to wait for the other ranks.

    Attributes:
        on_agreed: For kinds of wishes what fulfils them, given the payloads of all ranks that had one. Called by the
            main thread. `agree` tells of all others.
        on_message: For each kind of message what receives it, given the payload. Called by the thread.
    """

    def __init__(
        self,
        open_stores: Callable[[str, Sequence[str]], Sequence[Any]],
        *,
        rank: int,
        world_size: int,
        loops: Sequence[Any],
        clock: Callable[[], Clock],
        timeout: timedelta,
    ) -> None:
        self.on_agreed: dict[str, Callable[[list[Any]], None]] = {}
        self.on_message: dict[str, Callable[[Any], None]] = {}
        self.world_size, self.rank, self.timeout = world_size, rank, timeout
        self._loops, self._clock = loops, clock
        # order matters: all ranks open the same stores in the same order. Those that wait have their own connections
        self._store, self._listening = open_stores("agreement", ("main", "listening"))
        self._lock = threading.RLock()
        self._round, self._asked_round = 0, -1
        self._wishes: list[Wish] = []
        self._noted: list[Wish] = []
        self._posted: list[Wish] | None = None
        self._agreed: tuple[Clock, list[Wish]] | None = None
        self._n_points = self._n_told = 0
        self._granted: set[str] = set()
        self._displaced: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------------------------------------ its lifetime

    def start(self) -> None:
        """Listen to the other ranks. All ranks must do it."""
        self._thread = threading.Thread(target=self._listen, name="fulgur-agreement", daemon=True)
        self._thread.start()

    def close(self, *, is_clean: bool) -> list[Wish]:
        """Stop listening.

        Args:
            is_clean: Whether this rank has come to the end of its loops, as all others do. Then all ranks must reach
                this, and wait for each other.

        Returns:
            The wishes, of all ranks, that were not fulfilled.
        """
        left: list[Wish] = []
        if is_clean:
            with self._lock:
                own = (self._posted or []) + self._wishes + self._take_noted()
            self._store.set(f"end/{self.rank}", pickle.dumps(own))
            left = [wish for wishes in self._read_all("end") for wish in wishes]
        for loop in self._loops:
            loop.interrupt = None
        ending = threading.Thread(target=self._end_thread, name="fulgur-agreement-end", daemon=True)
        ending.start()
        ending.join(timeout=_END_S)  # a store behind a link that was cut does not answer
        return left

    def _end_thread(self) -> None:
        if self._thread is not None:
            with suppress(RuntimeError):  # the store may be gone with the rank that held it
                self._send(self._store, self.rank, ("end", None, None))
                self._thread.join()

    def find_silent(self, patience_s: float) -> list[int]:
        """Ranks that give no sign of life for so many seconds. For a thread: the main one may be waiting for them."""
        with suppress(RuntimeError):
            asking = self._store.clone()  # the main thread may be waiting on the other connection
            with self._lock:
                if self._posted is None:
                    self._post(asking)
                keys = [f"post/{self._round}/{rank}" for rank in range(self.world_size)]
            try:
                asking.wait(keys, timedelta(seconds=patience_s))
            except RuntimeError:
                return [rank for rank, key in enumerate(keys) if not asking.check([key])]
            return []
        return [rank for rank in range(self.world_size) if rank != self.rank]  # not even the store is there

    # ---------------------------------------------------------------------------------------------------- wishes

    def request(self, kind: str, payload: Any = None) -> None:
        """Have `kind` done on all ranks, at the first boundary that no rank has passed."""
        with self._lock:
            self._wishes.append((kind, payload))
            if self._posted is None:
                self._post(self._store)

    def note(self, kind: str, payload: Any = None) -> None:
        """The same from a signal handler: the wish is posted at this rank's next boundary."""
        self._noted.append((kind, payload))
        self._arm()

    def wishes(self, kind: str) -> bool:
        """Whether this rank has a wish of this kind that is not fulfilled yet."""
        return any(name == kind for name, _ in (*(self._posted or ()), *self._wishes, *self._noted))

    def agree(self, kind: str, is_wanted: bool) -> bool:
        """Whether all ranks do `kind` now. Called at the same places on all ranks; exchanges nothing by itself.

        Args:
            kind: What to do.
            is_wanted: Whether this rank wants it, by what only it knows, such as its clock.

        Returns:
            True once, on all ranks at the same place, soon after any of them has wanted it.
        """
        if kind in self._granted:
            self._granted.remove(kind)
            return True
        if is_wanted and not self.wishes(kind):
            self.request(kind)
        return False

    def at_point(self) -> None:
        """A boundary that no batch stands for: the beginning of the epochs, the end of a validation or of an epoch."""
        self._n_points += 1
        if any(loop.interrupt is not None for loop in self._loops):
            self.consult()

    def consult(self) -> None:
        """At a boundary: learn whether it is the one agreed on, and if it is, do what was."""
        displaced, self._displaced = self._displaced, []
        for call in displaced:
            call()
        here = self._now()
        with self._lock:
            if self._posted is None:
                self._post(self._store, here)
        if self._agreed is None:
            posts = self._read_all(f"post/{self._round}")
            self._agreed = max(clock for clock, _ in posts), [wish for _, wishes in posts for wish in wishes]
        boundary, wishes = self._agreed
        if here >= boundary:
            self._begin_round()
            for kind in dict.fromkeys(name for name, _ in wishes):
                if kind in self.on_agreed:
                    self.on_agreed[kind]([payload for name, payload in wishes if name == kind])
                else:
                    self._granted.add(kind)

    def _begin_round(self) -> None:
        with self._lock:
            self._round += 1
            self._posted = self._agreed = None
            for loop in self._loops:
                loop.interrupt = None
            if self._wishes or self._noted or self._asked_round == self._round:
                self._post(self._store)

    def _post(self, store: Any, clock: Clock | None = None) -> None:
        """Answer for this rank; the first to do so wakes the others."""
        self._arm()  # order matters: what passes after this does not pass unnoticed
        clock = (*self._stable_now(), 0.0) if clock is None else clock
        self._posted = self._wishes + self._take_noted()
        self._wishes = []
        store.set(f"post/{self._round}/{self.rank}", pickle.dumps((clock, self._posted)))
        if store.add(f"woken/{self._round}", 1) == 1:
            self._send_others(store, ("round", self.rank, self._round))

    def _take_noted(self) -> list[Wish]:
        taken = self._noted[:]
        del self._noted[: len(taken)]
        return taken

    def _arm(self) -> None:
        for loop in self._loops:
            if loop.interrupt is not None and loop.interrupt != self.consult:
                self._displaced.append(loop.interrupt)
            loop.interrupt = self.consult

    def _now(self) -> Clock:
        return (*self._clock(), self._n_points)

    def _stable_now(self) -> Clock:
        """The clock, read while the main thread may be changing it."""
        before = self._now()
        while (now := self._now()) != before:
            before = now
        return now

    def _read_all(self, name: str) -> list[Any]:
        keys = [f"{name}/{rank}" for rank in range(self.world_size)]
        try:
            self._store.wait(keys, self.timeout)
        except RuntimeError as error:
            silent = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
            raise RuntimeError(
                f"Rank {self.rank} waited {self.timeout} at a step boundary for the ranks {silent}, which did not come "
                "to one."
            ) from error
        return [pickle.loads(self._store.get(key)) for key in keys]

    # -------------------------------------------------------------------------------------------------- messages

    def tell_others(self, kind: str, payload: Any) -> None:
        """Have `on_message` of all other ranks called, and wait until that is done."""
        self._n_told += 1
        self._send_others(self._store, (kind, self.rank, (self._n_told, payload)))
        self._store.wait([f"heard/{self.rank}/{self._n_told}"], self.timeout)

    def _send_others(self, store: Any, message: tuple[str, Any, Any]) -> None:
        for rank in range(self.world_size):
            if rank != self.rank:
                self._send(store, rank, message)

    @staticmethod
    def _send(store: Any, rank: int, message: tuple[str, Any, Any]) -> None:
        number = store.add(f"sent/{rank}", 1) - 1
        store.set(f"mail/{rank}/{number}", pickle.dumps(message))

    def _listen(self) -> None:
        store, number = self._listening, 0
        while True:
            key = f"mail/{self.rank}/{number}"
            try:
                store.wait([key], _A_WHILE)
            except RuntimeError as error:
                if type(error).__name__ == "DistStoreError":  # nothing came
                    continue
                return  # the store is gone, and with it the run
            kind, sender, payload = pickle.loads(store.get(key))
            store.delete_key(key)
            number += 1
            if kind == "end":
                return
            if kind == "round":
                self._answer(store, payload)
            else:
                told, content = payload
                self.on_message[kind](content)
                if store.add(f"hears/{sender}/{told}", 1) == self.world_size - 1:
                    store.set(f"heard/{sender}/{told}", b"")

    def _answer(self, store: Any, number: int) -> None:
        with self._lock:
            self._asked_round = number
            if number == self._round and self._posted is None:
                self._post(store)
