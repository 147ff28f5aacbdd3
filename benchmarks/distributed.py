"""CPU time of a step of DistributedDataParallel on two ranks, against a loop written by hand; gloo, one thread each.

python benchmarks/distributed.py --rounds 5
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from rounds import Comparison

FOLDER = Path(__file__).resolve().parent
N_RANKS = 2
LIMIT = 1.03


def train_by_hand(batches: Any) -> None:
    from torch.nn.parallel import DistributedDataParallel

    workload = importlib.import_module("workload")
    model = DistributedDataParallel(workload.build_network())
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.LEARNING_RATE)
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()


def train_with_trainer(batches: Any, *, n_logs: int = 0) -> None:
    workload, fulgur = importlib.import_module("workload"), importlib.import_module("fulgur")
    with tempfile.TemporaryDirectory() as folder:
        trainer = fulgur.Trainer(
            accelerator="cpu",
            devices=N_RANKS,
            strategy="ddp",
            use_distributed_sampler=False,  # each rank has its own batches, as in the loop by hand
            max_epochs=1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        trainer.fit(workload.build_module(fulgur, n_logs), batches)


def measure(n_rounds: int, n_steps: int) -> list[Comparison]:
    """On a rank: compare the programs, together with the other ranks."""
    sys.path.insert(0, str(FOLDER))
    rounds, workload = importlib.import_module("rounds"), importlib.import_module("workload")
    workload.use_one_thread()
    torch.distributed.init_process_group("gloo")

    def seconds_per_step(train: Any) -> float:
        batches = workload.TimedBatches(n_steps)
        torch.distributed.barrier()
        train(batches)
        seconds: float = batches.seconds_per_step
        return seconds

    by_hand = partial(seconds_per_step, train_by_hand)
    programs = [
        rounds.Program("the same loop again", by_hand),
        rounds.Program("fulgur, bare", partial(seconds_per_step, train_with_trainer), LIMIT),
        rounds.Program("fulgur, one log", partial(seconds_per_step, partial(train_with_trainer, n_logs=1))),
    ]
    found: list[Comparison] = rounds.compare(
        rounds.Program("hand-written loop, 2 ranks", by_hand), programs, n_rounds=n_rounds
    )
    torch.distributed.destroy_process_group()
    return found


def run(*, n_rounds: int = 15, n_steps: int = 500) -> list[Comparison]:
    """Compare every program, as rank 0 measures them."""
    from fulgur.testing import run_ranks

    found: list[Comparison] = run_ranks(measure, N_RANKS, n_rounds, n_steps, timeout_s=900)[0]
    return found


def report(comparisons: Sequence[Comparison]) -> str:
    from step import report as report_steps

    return report_steps(comparisons).replace("a training step", "a training step of 2 ranks", 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=500, help="steps measured each time")
    args = parser.parse_args()
    print(report(run(n_rounds=args.rounds, n_steps=args.steps)))


if __name__ == "__main__":
    main()
