"""Which environment this process is in."""

from __future__ import annotations

from typing import Any

from fulgur.errors import MisconfigurationException
from fulgur.launch.environments.environment import ClusterEnvironment
from fulgur.launch.environments.lightning import LightningEnvironment
from fulgur.launch.environments.lsf import LSFEnvironment
from fulgur.launch.environments.mpi import MPIEnvironment
from fulgur.launch.environments.slurm import SLURMEnvironment
from fulgur.launch.environments.torchelastic import TorchElasticEnvironment
from fulgur.launch.family import forget_inherited

DETECTED: tuple[type[ClusterEnvironment], ...] = (
    TorchElasticEnvironment,
    SLURMEnvironment,
    LSFEnvironment,
    MPIEnvironment,
)
"""In the order in which they are tried: torchrun within a SLURM job is torchrun's."""


def find_environment(plugins: Any = None) -> ClusterEnvironment:
    """The environment among the plugins, else the one that this process is in.

    Raises:
        MisconfigurationException: The plugins hold several.
    """
    forget_inherited()
    given = [plugin for plugin in _as_list(plugins) if isinstance(plugin, ClusterEnvironment)]
    if len(given) > 1:
        names = ", ".join(type(plugin).__name__ for plugin in given)
        raise MisconfigurationException(f"plugins holds {len(given)} cluster environments: {names}. Keep one.")
    if given:
        return given[0]
    return next((kind() for kind in DETECTED if kind.detect()), None) or LightningEnvironment()


def _as_list(plugins: Any) -> list[Any]:
    if plugins is None:
        return []
    return list(plugins) if isinstance(plugins, (list, tuple)) else [plugins]
