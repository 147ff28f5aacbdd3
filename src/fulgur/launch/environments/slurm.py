"""SLURM: ``srun python train.py``."""

from __future__ import annotations

import os
import re
import signal

from fulgur import slurm
from fulgur.errors import LayoutError
from fulgur.launch.environments.environment import ClusterEnvironment, find_number, read_number
from fulgur.rank import rank_zero_warn


class SLURMEnvironment(ClusterEnvironment):
    """A task of ``srun`` in a job that runs by itself.

    Args:
        auto_requeue: Save and queue the job again when `requeue_signal` comes, shortly before its time is up.
        requeue_signal: As in ``#SBATCH --signal=SIGUSR1@90``. None is SIGUSR1.
    """

    launcher = "SLURM"

    def __init__(self, auto_requeue: bool = True, requeue_signal: signal.Signals | None = None) -> None:
        self.auto_requeue = auto_requeue
        self.requeue_signal = signal.SIGUSR1 if requeue_signal is None else requeue_signal

    @property
    def creates_processes_externally(self) -> bool:
        """Always true."""
        return True

    @property
    def main_address(self) -> str:
        """``MASTER_ADDR``, else the first host of ``SLURM_NODELIST``."""
        given = os.environ.get("MASTER_ADDR")
        hosts = os.environ.get("SLURM_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or "127.0.0.1"
        return given or self.resolve_root_node_address(hosts)

    @property
    def main_port(self) -> int:
        """``MASTER_PORT``, else 15000 and the last four digits of the job's number, else 12910."""
        given, job = find_number("MASTER_PORT"), os.environ.get("SLURM_JOB_ID", "")
        if given is not None:
            return given
        return 15000 + int(job[-4:]) if job[-4:].isdecimal() else 12910

    @staticmethod
    def detect() -> bool:
        """Whether SLURM runs this process: ``SLURM_NTASKS`` is set, and nobody sits at a prompt."""
        return slurm.is_managed()

    @staticmethod
    def job_name() -> str | None:
        """``SLURM_JOB_NAME``."""
        return os.environ.get("SLURM_JOB_NAME")

    @staticmethod
    def job_id() -> int | None:
        """``SLURM_JOB_ID``; None at a prompt."""
        return find_number("SLURM_JOB_ID") if SLURMEnvironment.job_name() not in ("bash", "interactive") else None

    def world_size(self) -> int:
        """``SLURM_NTASKS``."""
        return read_number("SLURM_NTASKS", "srun")

    def set_world_size(self, size: int) -> None:
        """Changes nothing: SLURM has decided it."""

    def global_rank(self) -> int:
        """``SLURM_PROCID``."""
        return read_number("SLURM_PROCID", "srun")

    def set_global_rank(self, rank: int) -> None:
        """Changes nothing: SLURM has decided it."""

    def local_rank(self) -> int:
        """``SLURM_LOCALID``."""
        return read_number("SLURM_LOCALID", "srun")

    def node_rank(self) -> int:
        """``SLURM_NODEID``."""
        return read_number("SLURM_NODEID", "srun")

    def local_world_size(self) -> int | None:
        """``SLURM_NTASKS_PER_NODE``, else what ``SLURM_TASKS_PER_NODE`` says of machines with equally many tasks."""
        given = find_number("SLURM_NTASKS_PER_NODE")
        if given is not None:
            return given
        each = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE", "")
        equal = re.fullmatch(r"(\d+)(\(x\d+\))?", each)
        if equal:
            return int(equal[1])
        return 1 if self.world_size() == 1 else None

    def num_nodes(self) -> int | None:
        """``SLURM_NNODES``."""
        return find_number("SLURM_NNODES")

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Compare the Trainer's layout with the job's.

        Raises:
            LayoutError: ``SLURM_NTASKS_PER_NODE`` is not `num_devices`, or ``SLURM_NNODES`` not `num_nodes`.
            RuntimeError: There are several tasks, and nothing says how many of them on each machine.
        """
        local, nodes = self.local_world_size(), self.num_nodes()
        if local is None:
            raise RuntimeError(
                f"SLURM_NTASKS={self.world_size()}, and how many of them are on each machine is not said. Use "
                f"`#SBATCH --ntasks-per-node={num_devices}` in the place of `--ntasks`."
            )
        if local != num_devices:
            raise LayoutError(
                f"devices={num_devices} contradicts {local} task(s) on each machine (SLURM_NTASKS_PER_NODE={local}, "
                f"SLURM_NTASKS={self.world_size()}). Use devices={local} or `#SBATCH --ntasks-per-node={num_devices}`; "
                "devices='auto' takes what SLURM says. plugins=[LightningEnvironment()] starts processes without srun, "
                "and strategy='single_device' trains in each task by itself."
            )
        if nodes is not None and nodes != num_nodes:
            raise LayoutError(
                f"num_nodes={num_nodes} contradicts SLURM_NNODES={nodes}. Use num_nodes={nodes} or "
                f"`#SBATCH --nodes={num_nodes}`."
            )
        super().validate_settings(num_devices, num_nodes)
        if self.world_size() > 1 and not {"SLURM_STEP_ID", "SLURM_STEPID"} & os.environ.keys():
            rank_zero_warn(
                f"SLURM_NTASKS={self.world_size()}, but srun has not started this process, so that the others may "
                "never come. Start it with `srun python ...`."
            )

    @staticmethod
    def resolve_root_node_address(nodes: str) -> str:
        """The first host of a list as SLURM writes it.

        Example:
            >>> SLURMEnvironment.resolve_root_node_address("rack2-node[007-010,12],other")
            'rack2-node007'
        """
        first_of_each = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes)
        return re.split(r"[\s,]+", first_of_each.strip())[0]

    def _told(self) -> str:
        return f"SLURM_NTASKS={self.world_size()}"
