"""What a run needs to know of SLURM: whether it is there, which file to go on from, and how to be queued again."""

from __future__ import annotations

import os
import re
import subprocess

from fulgur.checkpoint.location import join, list_files
from fulgur.rank import rank_zero_info, rank_zero_warn

_NAME = re.compile(r"hpc_ckpt_(\d+)\.ckpt")


def is_managed() -> bool:
    """Whether SLURM started this process as part of a job that runs by itself: not one with somebody at a prompt."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def find_requeue_checkpoint(directory: str) -> str | None:
    """The file in `directory` that was saved last before a requeue."""
    number = _highest(directory)
    return join(directory, f"hpc_ckpt_{number}.ckpt") if number else None


def next_requeue_checkpoint(directory: str) -> str:
    """Path of the file to save before a requeue."""
    return join(directory, f"hpc_ckpt_{_highest(directory) + 1}.ckpt")


def _highest(directory: str) -> int:
    return max((int(match[1]) for match in map(_NAME.fullmatch, list_files(directory)) if match), default=0)


def requeue_job() -> bool:
    """Queue the job of this process again. Returns whether SLURM has agreed; if not, there is a warning."""
    job = _job_id()
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        rank_zero_warn(f"The job {job!r} could not be queued again: {error}. Submit it once more.")
        return False
    if done.returncode:
        rank_zero_warn(
            f"The job {job!r} could not be queued again: `scontrol requeue {job}` ended with {done.returncode}: "
            f"{done.stderr.strip()} Submit it once more."
        )
        return False
    rank_zero_info(f"The job {job} was queued again.")
    return True


def _job_id() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
