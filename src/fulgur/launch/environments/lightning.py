"""No launcher, or somebody who starts the processes by hand."""

from __future__ import annotations

import os

from fulgur.errors import LayoutError, MisconfigurationException
from fulgur.launch.environments.environment import ClusterEnvironment, find_number
from fulgur.launch.family import find_own_layout


class LightningEnvironment(ClusterEnvironment):
    """One machine, whose further processes fulgur starts; or several on which the same command is run by hand.

    On several machines set ``NODE_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT`` on each. Where ``LOCAL_RANK`` is set too,
    every process has been started by somebody.
    """

    launcher = "whoever set LOCAL_RANK"

    def __init__(self) -> None:
        self._world_size = 1
        self._global_rank = 0

    @property
    def creates_processes_externally(self) -> bool:
        """Whether ``LOCAL_RANK`` is set."""
        return "LOCAL_RANK" in os.environ

    @property
    def main_address(self) -> str:
        """``MASTER_ADDR``, else this machine."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """``MASTER_PORT``, else ``STANDALONE_PORT``, else a free port, which becomes ``MASTER_PORT``."""
        given = find_number("MASTER_PORT")
        if given is not None:
            return given
        from fulgur.launch.ports import find_free_port

        alone = find_number("STANDALONE_PORT")
        port = find_free_port() if alone is None else alone
        os.environ["MASTER_PORT"] = str(port)
        return port

    @staticmethod
    def detect() -> bool:
        """Always: it is what remains."""
        return True

    def world_size(self) -> int:
        """As the strategy said."""
        return self._world_size

    def set_world_size(self, size: int) -> None:
        self._world_size = size

    def global_rank(self) -> int:
        """As the strategy said."""
        return self._global_rank

    def set_global_rank(self, rank: int) -> None:
        self._global_rank = rank

    def local_rank(self) -> int:
        """``LOCAL_RANK``; 0 in the process that starts the others."""
        return find_number("LOCAL_RANK") or 0

    def node_rank(self) -> int:
        """``NODE_RANK``, else ``GROUP_RANK``."""
        own = find_number("NODE_RANK")
        return own if own is not None else find_number("GROUP_RANK") or 0

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Compare the Trainer's layout with the variables that are set.

        Processes that fulgur has started itself are checked when a run begins: the program of the first one may
        build other Trainers, too.

        Raises:
            LayoutError: ``WORLD_SIZE``, ``LOCAL_RANK``, ``NODE_RANK`` or ``RANK`` does not fit.
            MisconfigurationException: Processes of several machines, or started by hand, are not told where to meet.
        """
        if find_own_layout() is not None:
            return
        asked, size = num_devices * num_nodes, find_number("WORLD_SIZE")
        if size is not None and size != asked and (size > 1 or self.creates_processes_externally):
            raise LayoutError(self._wrong_size(num_devices, num_nodes, size))
        self._check_below("LOCAL_RANK", num_devices, f"devices={num_devices}")
        self._check_below("NODE_RANK", num_nodes, f"num_nodes={num_nodes}")
        rank, expected = find_number("RANK"), self.node_rank() * num_devices + self.local_rank()
        if self.creates_processes_externally and rank not in (None, expected):
            raise LayoutError(
                f"RANK={rank} contradicts NODE_RANK={self.node_rank()}, LOCAL_RANK={self.local_rank()} and "
                f"devices={num_devices}, which make rank {expected}. Unset RANK, or correct the others."
            )
        if asked > 1:
            self._check_meeting_point(num_nodes)

    def _wrong_size(self, num_devices: int, num_nodes: int, size: int) -> str:
        asked = num_devices * num_nodes
        return (
            f"devices={num_devices} on num_nodes={num_nodes} is {asked} process{'es' if asked > 1 else ''}, but the "
            f"environment says WORLD_SIZE={size}. Use devices and num_nodes whose product is {size}, or unset "
            "WORLD_SIZE. In a pod of Kubeflow pass plugins=[KubeflowEnvironment()]. To train in each process by "
            "itself, say strategy='single_device'."
        )

    def _check_below(self, variable: str, limit: int, asked: str) -> None:
        number = find_number(variable)
        if number is not None and number >= limit:
            raise LayoutError(
                f"{variable}={number} contradicts {asked}, of which the last is {limit - 1}. Correct one of them, or "
                f"unset {variable}."
            )

    def _check_meeting_point(self, num_nodes: int) -> None:
        needed = {"MASTER_PORT"} if self.creates_processes_externally else set()
        needed |= {"MASTER_ADDR", "MASTER_PORT"} if num_nodes > 1 else set()
        missing = sorted(needed - os.environ.keys())
        if missing:
            raise MisconfigurationException(
                f"{' and '.join(missing)} not set: with num_nodes={num_nodes} and processes that are started apart, "
                "all must be told where to meet. Set MASTER_ADDR and MASTER_PORT to the host of rank 0 and a free port "
                "of it, or use torchrun."
            )

    def teardown(self) -> None:
        """Forget ``WORLD_SIZE``, so that programs started afterwards do not take it for theirs."""
        if find_own_layout() is None:
            os.environ.pop("WORLD_SIZE", None)
