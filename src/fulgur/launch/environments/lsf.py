"""IBM's LSF with ``jsrun``."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from fulgur.errors import MisconfigurationException
from fulgur.launch.environments.environment import ClusterEnvironment, find_number, read_number

_VARIABLES = ("LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE")


class LSFEnvironment(ClusterEnvironment):
    """``jsrun python train.py`` in a job of LSF."""

    launcher = "jsrun"

    @property
    def creates_processes_externally(self) -> bool:
        """Always true."""
        return True

    @property
    def main_address(self) -> str:
        """The first host that computes: line two of ``LSB_DJOB_RANKFILE``. Line one is the host of the job script."""
        return self._hosts()[0]

    @property
    def main_port(self) -> int:
        """``MASTER_PORT``, else 10000 and the last three digits of the job's number."""
        given = find_number("MASTER_PORT")
        return given if given is not None else 10000 + read_number("LSB_JOBID", "LSF") % 1000

    @staticmethod
    def detect() -> bool:
        """Whether the variables of a job and of jsrun are there."""
        return all(name in os.environ for name in _VARIABLES)

    def world_size(self) -> int:
        """``JSM_NAMESPACE_SIZE``."""
        return read_number("JSM_NAMESPACE_SIZE", self.launcher)

    def set_world_size(self, size: int) -> None:
        """Changes nothing: jsrun has decided it."""

    def global_rank(self) -> int:
        """``JSM_NAMESPACE_RANK``."""
        return read_number("JSM_NAMESPACE_RANK", self.launcher)

    def set_global_rank(self, rank: int) -> None:
        """Changes nothing: jsrun has decided it."""

    def local_rank(self) -> int:
        """``JSM_NAMESPACE_LOCAL_RANK``."""
        return read_number("JSM_NAMESPACE_LOCAL_RANK", self.launcher)

    def node_rank(self) -> int:
        """Place of this host among those that compute."""
        here, hosts = socket.gethostname(), list(dict.fromkeys(self._hosts()))
        if here in hosts:
            return hosts.index(here)
        raise MisconfigurationException(
            f"This host is {here!r}, which {os.environ['LSB_DJOB_RANKFILE']!r} does not name: {', '.join(hosts)}."
        )

    def local_world_size(self) -> int | None:
        """``JSM_NAMESPACE_LOCAL_SIZE``, where this version of jsrun sets it."""
        return find_number("JSM_NAMESPACE_LOCAL_SIZE")

    def num_nodes(self) -> int | None:
        """Hosts that compute."""
        return len(set(self._hosts()))

    def _hosts(self) -> list[str]:
        path = os.environ["LSB_DJOB_RANKFILE"]
        lines = Path(path).read_text().split()
        if len(lines) < 2:
            raise MisconfigurationException(
                f"LSB_DJOB_RANKFILE={path!r} names {len(lines)} host(s): the one of the job script, "
                "and none that computes."
            )
        return lines[1:]

    def _told(self) -> str:
        return f"JSM_NAMESPACE_SIZE={self.world_size()}"
