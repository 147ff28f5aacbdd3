"""``mpirun python train.py``: Open MPI, MPICH and their kin."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from fulgur.errors import MisconfigurationException
from fulgur.launch.environments.environment import ClusterEnvironment, find_number

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK")
_LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")


class MPIEnvironment(ClusterEnvironment):
    """A process of ``mpirun``. Ranks come from its variables; mpi4py is used for what these do not say."""

    launcher = "mpirun"

    def __init__(self) -> None:
        self._meeting_point: tuple[str, int] | None = None

    @property
    def creates_processes_externally(self) -> bool:
        """Always true."""
        return True

    @property
    def main_address(self) -> str:
        """``MASTER_ADDR``, else the host of rank 0, which mpi4py asks for. All ranks must reach this."""
        return os.environ.get("MASTER_ADDR") or self._meet()[0]

    @property
    def main_port(self) -> int:
        """``MASTER_PORT``, else a free port of rank 0, which mpi4py asks for. All ranks must reach this."""
        given = find_number("MASTER_PORT")
        return given if given is not None else self._meet()[1]

    @staticmethod
    def detect() -> bool:
        """Whether mpirun has started several processes."""
        return (_first(_SIZES) or 1) > 1

    def world_size(self) -> int:
        """Size of ``COMM_WORLD``."""
        size = _first(_SIZES)
        return size if size is not None else int(_communicator().Get_size())

    def set_world_size(self, size: int) -> None:
        """Changes nothing: mpirun has decided it."""

    def global_rank(self) -> int:
        """Rank in ``COMM_WORLD``."""
        rank = _first(_RANKS)
        return rank if rank is not None else int(_communicator().Get_rank())

    def set_global_rank(self, rank: int) -> None:
        """Changes nothing: mpirun has decided it."""

    def local_rank(self) -> int:
        """Rank among the processes of this machine."""
        rank = _first(_LOCAL_RANKS)
        return rank if rank is not None else self._names()[: self.global_rank()].count(_processor())

    def node_rank(self) -> int:
        """Index of this machine, in the order of the ranks."""
        local, size = self.local_world_size(), self.world_size()
        if local is not None and (local == size or find_spec("mpi4py") is None):
            return self.global_rank() // local
        return list(dict.fromkeys(self._names())).index(_processor())

    def local_world_size(self) -> int | None:
        """Processes of this machine, where mpirun says it."""
        return _first(_LOCAL_SIZES)

    def num_nodes(self) -> int | None:
        """Machines, if all have equally many processes."""
        local = self.local_world_size()
        return self.world_size() // local if local and self.world_size() % local == 0 else None

    def _names(self) -> list[str]:
        return list(_communicator().allgather(_processor()))  # all ranks must reach this

    def _meet(self) -> tuple[str, int]:
        if self._meeting_point is None:
            from fulgur.launch.ports import find_free_port

            own = (_processor(), find_free_port()) if self.global_rank() == 0 else None
            self._meeting_point = tuple(_communicator().bcast(own, root=0))  # all ranks must reach this
        return self._meeting_point

    def _told(self) -> str:
        name = next((name for name in _SIZES if find_number(name) is not None), "the size of COMM_WORLD")
        return f"{name}={self.world_size()}"


def _first(variables: tuple[str, ...]) -> int | None:
    return next((value for value in map(find_number, variables) if value is not None), None)


def _communicator() -> Any:
    try:
        from mpi4py import MPI  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError:
        raise MisconfigurationException(
            "mpirun has started this process, and without the package 'mpi4py' its ranks cannot agree where to meet. "
            "Install it with `pip install mpi4py`, or set MASTER_ADDR and MASTER_PORT to a host and port of rank 0."
        ) from None
    return MPI.COMM_WORLD


def _processor() -> str:
    import socket

    return socket.gethostname()
