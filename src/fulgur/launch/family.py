"""Which processes belong to a world that fulgur has started, and which only inherited its variables."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

VARIABLE = "FULGUR_FAMILY"
"""Processes of a machine, machines, and the number of the process that this was written for."""

_INHERITED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")


@dataclass(frozen=True, slots=True)
class Layout:
    """How many processes there are.

    Attributes:
        num_devices: On each machine. >= 1.
        num_nodes: Machines. >= 1.
    """

    num_devices: int
    num_nodes: int

    @property
    def size(self) -> int:
        """All processes."""
        return self.num_devices * self.num_nodes

    def marker(self, pid: int) -> str:
        """Value of `VARIABLE` for the process `pid`."""
        return f"{self.num_devices} {self.num_nodes} {pid}"

    def __str__(self) -> str:
        return f"devices={self.num_devices}, num_nodes={self.num_nodes}"


started: Layout | None = None
"""Layout of the world whose further processes this one has started."""


def find_own_layout() -> Layout | None:
    """Layout of the world that fulgur has started and this process is a rank of. None for every other process."""
    if started is not None:
        return started
    parts = os.environ.get(VARIABLE, "").split()
    if len(parts) != 3 or parts[2] != str(os.getpid()):
        return None
    return Layout(int(parts[0]), int(parts[1]))


def find_joined_layout() -> Layout | None:
    """The same, once this process has met the others: what comes after that comes in all of them."""
    return find_own_layout() if torch.distributed.is_available() and torch.distributed.is_initialized() else None


def forget_inherited() -> None:
    """Remove what a program got from a rank that has started it, without being a rank itself."""
    if VARIABLE in os.environ and find_own_layout() is None:
        for name in (*_INHERITED, VARIABLE):
            os.environ.pop(name, None)
