"""ClusterEnvironment: what a launcher tells the processes that it starts."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

from fulgur.errors import LayoutError, MisconfigurationException


class ClusterEnvironment(ABC):
    """Reads which process of how many this one is. Subclass it for a launcher of your own, and pass it in `plugins`.

    Attributes:
        launcher: What started the processes, as messages name it.
    """

    launcher: str = "the launcher"

    @property
    @abstractmethod
    def creates_processes_externally(self) -> bool:
        """Whether somebody else starts all processes; otherwise the first one of each machine starts the others."""

    @property
    @abstractmethod
    def main_address(self) -> str:
        """Host of global rank 0, where the ranks meet."""

    @property
    @abstractmethod
    def main_port(self) -> int:
        """Port on that host."""

    @staticmethod
    @abstractmethod
    def detect() -> bool:
        """Whether this process runs in such an environment."""

    @abstractmethod
    def world_size(self) -> int:
        """Number of processes."""

    @abstractmethod
    def set_world_size(self, size: int) -> None:
        """Told by the strategy, for environments that do not know it; the others ignore it."""

    @abstractmethod
    def global_rank(self) -> int:
        """Rank among all processes."""

    @abstractmethod
    def set_global_rank(self, rank: int) -> None:
        """Told by the strategy, for environments that do not know it; the others ignore it."""

    @abstractmethod
    def local_rank(self) -> int:
        """Rank among the processes of this machine."""

    @abstractmethod
    def node_rank(self) -> int:
        """Index of this machine."""

    def local_world_size(self) -> int | None:
        """Processes of this machine. None where the launcher does not say."""
        return None

    def num_nodes(self) -> int | None:
        """Machines. None where the launcher does not say."""
        return None

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Compare what the Trainer was given with what the launcher says.

        Args:
            num_devices: Processes of each machine.
            num_nodes: Machines.

        Raises:
            LayoutError: They contradict each other.
        """
        if not self.creates_processes_externally:
            return
        told = (self.world_size(), self.local_world_size() or num_devices, self.num_nodes() or num_nodes)
        if told != (num_devices * num_nodes, num_devices, num_nodes):
            raise LayoutError(self._contradiction(num_devices, num_nodes))

    def _contradiction(self, num_devices: int, num_nodes: int) -> str:
        size, local, nodes = self.world_size(), self.local_world_size(), self.num_nodes()
        asked = num_devices * num_nodes
        where = f" on {nodes} machine{'s' if nodes > 1 else ''}" if nodes else ""
        fitting = f"devices={local}" if local else f"devices and num_nodes whose product is {size}"
        fitting += f" and num_nodes={nodes}" if local and nodes and nodes != num_nodes else ""
        return (
            f"devices={num_devices} on num_nodes={num_nodes} is {asked} process{'es' if asked > 1 else ''}, but "
            f"{self.launcher} has started {size}{where} ({self._told()}). Use {fitting}, or devices='auto' to take "
            f"what {self.launcher} says. To train in each process by itself, say strategy='single_device'."
        )

    def _told(self) -> str:
        """The variable that holds the number of processes, with its value."""
        return f"WORLD_SIZE={self.world_size()}"

    def teardown(self) -> None:
        """Called when a run is over."""

    def name(self) -> str:
        """Name of the class."""
        return type(self).__name__


def read_number(variable: str, launcher: str) -> int:
    """The number in a variable that a launcher sets.

    Raises:
        MisconfigurationException: It is not there, or no number.
    """
    text = os.environ.get(variable)
    if text is None or not text.strip().isdecimal():
        what = "is not set" if text is None else f"is {text!r}, which is no number"
        raise MisconfigurationException(
            f"{variable} {what}, though this process seems to be started by {launcher}. Start it with {launcher}, or "
            "pass plugins=[LightningEnvironment()] for a run that starts its own processes."
        )
    return int(text)


def find_number(variable: str) -> int | None:
    """The number in a variable; None where there is none."""
    text = os.environ.get(variable, "").strip()
    return int(text) if text.isdecimal() else None
