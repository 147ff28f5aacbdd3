"""Which environment this process is in."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from fulgur.errors import MisconfigurationException
from fulgur.launch.environments.environment import ClusterEnvironment
from fulgur.launch.environments.lightning import LightningEnvironment
from fulgur.launch.family import forget_inherited

_DETECTED = {
    "ray.RayEnvironment": ("ray.train",),
    "torchelastic.TorchElasticEnvironment": ("TORCHELASTIC_RUN_ID",),
    "slurm.SLURMEnvironment": ("SLURM_NTASKS",),
    "lsf.LSFEnvironment": ("LSB_JOBID",),
    "mpi.MPIEnvironment": ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"),
}
"""What is tried, in this order, where one of these variables is set or modules loaded: torchrun within a SLURM job is
torchrun's."""


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
    for place, hints in _DETECTED.items():
        if any(name in os.environ or name in sys.modules for name in hints) and (kind := _import(place)).detect():
            return kind()
    return LightningEnvironment()


def _import(place: str) -> type[ClusterEnvironment]:
    module, _, name = place.partition(".")
    kind: type[ClusterEnvironment] = getattr(import_module(f"fulgur.launch.environments.{module}"), name)
    return kind


def _as_list(plugins: Any) -> list[Any]:
    if plugins is None:
        return []
    return list(plugins) if isinstance(plugins, (list, tuple)) else [plugins]
