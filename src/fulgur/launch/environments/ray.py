"""A worker of Ray Train: a `TorchTrainer` has started it."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from fulgur.errors import LayoutError, MisconfigurationException
from fulgur.launch.environments.environment import ClusterEnvironment, read_number

if TYPE_CHECKING:
    from fulgur.trainer import Trainer


class RayEnvironment(ClusterEnvironment):
    """Inside the function that ``ray.train.torch.TorchTrainer`` runs. Found there by itself.

    Ray has opened the process group already. Leave out `devices` and `num_nodes` of the Trainer: Ray has decided them.

    Raises:
        LayoutError: Ray has put different numbers of workers on its machines.
    """

    launcher = "Ray Train"

    def __init__(self) -> None:
        size, local = self.world_size(), self.local_world_size()
        if size % local:
            raise LayoutError(
                f"Ray Train has put {local} of {size} workers on this machine, so others have another number. Use "
                "ScalingConfig(placement_strategy='STRICT_PACK') or 'STRICT_SPREAD', or a number of workers that every "
                "machine can have its equal share of."
            )

    @property
    def creates_processes_externally(self) -> bool:
        """Always true."""
        return True

    @property
    def main_address(self) -> str:
        """``MASTER_ADDR``, which Ray sets."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """``MASTER_PORT``, which Ray sets."""
        return read_number("MASTER_PORT", self.launcher)

    @staticmethod
    def detect() -> bool:
        """Whether Ray Train runs the function that we are called from."""
        train = sys.modules.get("ray.train")
        if train is None:
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Ray's first API answers anywhere, with a warning
            try:
                return int(train.get_context().get_world_size()) >= 1
            except Exception:  # whatever Ray says outside of its workers
                return False

    def world_size(self) -> int:
        """Ray's number of workers."""
        return int(_context().get_world_size())

    def set_world_size(self, size: int) -> None:
        """Changes nothing: Ray has decided it."""

    def global_rank(self) -> int:
        """Ray's world rank."""
        return int(_context().get_world_rank())

    def set_global_rank(self, rank: int) -> None:
        """Changes nothing: Ray has decided it."""

    def local_rank(self) -> int:
        """Ray's local rank."""
        return int(_context().get_local_rank())

    def node_rank(self) -> int:
        """Ray's node rank."""
        return int(_context().get_node_rank())

    def local_world_size(self) -> int:
        """Workers of this machine."""
        return int(_context().get_local_world_size())

    def num_nodes(self) -> int:
        """Machines, which have as many workers each."""
        return self.world_size() // self.local_world_size()

    def _told(self) -> str:
        return f"get_world_size()={self.world_size()}"


RayLightningEnvironment = RayEnvironment
"""The name that programs know from Ray's package for Lightning."""


def prepare_trainer(trainer: Trainer) -> Trainer:
    """Check that `trainer` trains together with the other workers of Ray. Returns it.

    Raises:
        MisconfigurationException: It does not.
    """
    if not RayEnvironment.detect():
        raise MisconfigurationException(
            "prepare_trainer was called outside of a worker of Ray Train. Call it in the function that is passed to "
            "TorchTrainer."
        )
    environment, size = trainer.strategy.cluster_environment, int(_context().get_world_size())
    is_joined = size == 1 or (isinstance(environment, RayEnvironment) and trainer.world_size == size)
    if not is_joined:
        found = "none" if environment is None else environment.name()
        raise MisconfigurationException(
            f"Ray Train has started {size} workers, and this Trainer is one of {trainer.world_size} (its cluster "
            f"environment: {found}). Leave out devices, num_nodes and plugins, and use a strategy of several processes."
        )
    return trainer


def _context() -> Any:
    return sys.modules["ray.train"].get_context()
