"""torchrun, and whatever else is built on torch's elastic agent."""

from __future__ import annotations

import os

from fulgur.launch.environments.environment import ClusterEnvironment, find_number, read_number
from fulgur.rank import rank_zero_warn


class TorchElasticEnvironment(ClusterEnvironment):
    """``torchrun train.py``: all processes are there when the program begins."""

    launcher = "torchrun"

    @property
    def creates_processes_externally(self) -> bool:
        """Always true."""
        return True

    @property
    def main_address(self) -> str:
        """``MASTER_ADDR``, which torchrun sets."""
        if "MASTER_ADDR" not in os.environ:
            rank_zero_warn("MASTER_ADDR is not set, so the ranks meet at 127.0.0.1. Set it, or use torchrun.")
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """``MASTER_PORT``, which torchrun sets."""
        if "MASTER_PORT" not in os.environ:
            rank_zero_warn("MASTER_PORT is not set, so the ranks meet at port 12910. Set it, or use torchrun.")
            return 12910
        return read_number("MASTER_PORT", self.launcher)

    @staticmethod
    def detect() -> bool:
        """Whether ``TORCHELASTIC_RUN_ID`` is set."""
        return "TORCHELASTIC_RUN_ID" in os.environ

    def world_size(self) -> int:
        """``WORLD_SIZE``."""
        return read_number("WORLD_SIZE", self.launcher)

    def set_world_size(self, size: int) -> None:
        """Changes nothing: torchrun has decided it."""

    def global_rank(self) -> int:
        """``RANK``."""
        return read_number("RANK", self.launcher)

    def set_global_rank(self, rank: int) -> None:
        """Changes nothing: torchrun has decided it."""

    def local_rank(self) -> int:
        """``LOCAL_RANK``."""
        return read_number("LOCAL_RANK", self.launcher)

    def node_rank(self) -> int:
        """``GROUP_RANK``."""
        return find_number("GROUP_RANK") or 0

    def local_world_size(self) -> int | None:
        """``LOCAL_WORLD_SIZE``."""
        return find_number("LOCAL_WORLD_SIZE")

    def num_nodes(self) -> int | None:
        """``GROUP_WORLD_SIZE``: the machines that are there now; an elastic job may have had others before."""
        return find_number("GROUP_WORLD_SIZE")
