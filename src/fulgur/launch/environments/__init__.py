"""Who started this process, and which one of how many it is."""

from fulgur.launch.environments.environment import ClusterEnvironment
from fulgur.launch.environments.find import find_environment
from fulgur.launch.environments.kubeflow import KubeflowEnvironment
from fulgur.launch.environments.lightning import LightningEnvironment
from fulgur.launch.environments.lsf import LSFEnvironment
from fulgur.launch.environments.mpi import MPIEnvironment
from fulgur.launch.environments.slurm import SLURMEnvironment
from fulgur.launch.environments.torchelastic import TorchElasticEnvironment

__all__ = [
    "ClusterEnvironment",
    "KubeflowEnvironment",
    "LSFEnvironment",
    "LightningEnvironment",
    "MPIEnvironment",
    "SLURMEnvironment",
    "TorchElasticEnvironment",
    "find_environment",
]
