"""Lets Lightning go on from checkpoints: ``python resume_in_lightning.py DIRECTORY``. Run by a test, under Lightning.

Each ``<name>.ckpt`` of ``workload.FILES`` in the directory is resumed; ``results.pt`` there tells what came of it.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

import workload


def main(directory: Path) -> None:
    """Resume from every file, as a user would, without `weights_only`."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, (run, *_) in workload.FILES.items():
        results[name] = workload.resume(pl, run, directory / f"{name}.ckpt", directory / run)
    cls = type(workload.build_module(pl, "automatic"))
    module = cls.load_from_checkpoint(directory / "weights.ckpt", weights_only=True)
    results["weights"] = {"hparams": dict(module.hparams)}
    torch.save(results, directory / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
