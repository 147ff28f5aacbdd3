"""A PyTorchJob of Kubeflow with one process in each pod."""

from __future__ import annotations

import os

from fulgur.errors import MisconfigurationException
from fulgur.launch.environments.environment import ClusterEnvironment, read_number


class KubeflowEnvironment(ClusterEnvironment):
    """``RANK`` and ``WORLD_SIZE`` as the training operator sets them. Never detected: pass it in `plugins`.

    Pods whose command is torchrun need nothing: that is `TorchElasticEnvironment`.
    """

    launcher = "Kubeflow"

    @property
    def creates_processes_externally(self) -> bool:
        """Always true."""
        return True

    @property
    def main_address(self) -> str:
        """``MASTER_ADDR``."""
        if "MASTER_ADDR" not in os.environ:
            raise MisconfigurationException(
                "MASTER_ADDR is not set, which the training operator of Kubeflow does. Leave out KubeflowEnvironment "
                "where there is none."
            )
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        """``MASTER_PORT``."""
        return read_number("MASTER_PORT", self.launcher)

    @staticmethod
    def detect() -> bool:
        """Whether the operator's variables are there, and no torchrun is. Not asked by the Trainer."""
        needed = ("KUBERNETES_PORT", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
        return all(name in os.environ for name in needed) and "GROUP_RANK" not in os.environ

    def world_size(self) -> int:
        """``WORLD_SIZE``."""
        return read_number("WORLD_SIZE", self.launcher)

    def set_world_size(self, size: int) -> None:
        """Changes nothing: the job has decided it."""

    def global_rank(self) -> int:
        """``RANK``."""
        return read_number("RANK", self.launcher)

    def set_global_rank(self, rank: int) -> None:
        """Changes nothing: the job has decided it."""

    def local_rank(self) -> int:
        """0: each pod has one process."""
        return 0

    def node_rank(self) -> int:
        """``RANK``: each pod is a machine of its own."""
        return self.global_rank()

    def local_world_size(self) -> int | None:
        """One."""
        return 1

    def num_nodes(self) -> int | None:
        """As many as there are processes."""
        return self.world_size()
