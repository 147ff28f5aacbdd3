"""Who started this process, and which one of how many it is. Each is imported where it is found or asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fulgur.launch.environments.environment import ClusterEnvironment
from fulgur.launch.environments.find import find_environment

if TYPE_CHECKING:
    from fulgur.launch.environments.kubeflow import KubeflowEnvironment
    from fulgur.launch.environments.lightning import LightningEnvironment
    from fulgur.launch.environments.lsf import LSFEnvironment
    from fulgur.launch.environments.mpi import MPIEnvironment
    from fulgur.launch.environments.ray import RayEnvironment
    from fulgur.launch.environments.slurm import SLURMEnvironment
    from fulgur.launch.environments.torchelastic import TorchElasticEnvironment

_HOMES = {
    "KubeflowEnvironment": "kubeflow",
    "LSFEnvironment": "lsf",
    "LightningEnvironment": "lightning",
    "MPIEnvironment": "mpi",
    "RayEnvironment": "ray",
    "SLURMEnvironment": "slurm",
    "TorchElasticEnvironment": "torchelastic",
}

__all__ = [
    "ClusterEnvironment",
    "KubeflowEnvironment",
    "LSFEnvironment",
    "LightningEnvironment",
    "MPIEnvironment",
    "RayEnvironment",
    "SLURMEnvironment",
    "TorchElasticEnvironment",
    "find_environment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
