"""CPU time of a step on two ranks, under DistributedDataParallel and FSDP2, against loops written by hand.

gloo, one thread each.

python benchmarks/distributed.py --rounds 5 --strategies ddp
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
N_STEPS = {"ddp": 500, "fsdp": 200}
"""Steps measured each time: enough for a second or so."""
TITLES = {"ddp": "DDP", "fsdp": "FSDP2"}


def train_by_hand(strategy: str, batches: Any) -> None:
    workload = importlib.import_module("workload")
    model = _wrap(strategy, workload.build_network())
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.LEARNING_RATE)
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()


def _wrap(strategy: str, network: torch.nn.Module) -> torch.nn.Module:
    if strategy == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(network)
    from torch.distributed.fsdp import fully_shard

    fully_shard(network)
    return network


def train_with_trainer(strategy: str, batches: Any, *, n_logs: int = 0) -> None:
    workload, fulgur = importlib.import_module("workload"), importlib.import_module("fulgur")
    with tempfile.TemporaryDirectory() as folder:
        trainer = fulgur.Trainer(
            accelerator="cpu",
            devices=N_RANKS,
            strategy=strategy,
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


def measure(strategy: str, n_rounds: int, n_steps: int) -> list[Comparison]:
    """On a rank: compare the programs, together with the other ranks."""
    sys.path.insert(0, str(FOLDER))
    rounds, workload = importlib.import_module("rounds"), importlib.import_module("workload")
    workload.use_one_thread()
    torch.distributed.init_process_group("gloo")

    def seconds_per_step(train: Any) -> float:
        batches = workload.TimedBatches(n_steps)
        torch.distributed.barrier()
        train(strategy, batches)
        seconds: float = batches.seconds_per_step
        return seconds

    title = TITLES[strategy]
    by_hand = partial(seconds_per_step, train_by_hand)
    programs = [
        rounds.Program(f"{title}: the same loop again", by_hand),
        rounds.Program(f"{title}: fulgur, bare", partial(seconds_per_step, train_with_trainer), LIMIT),
        rounds.Program(f"{title}: fulgur, one log", partial(seconds_per_step, partial(train_with_trainer, n_logs=1))),
    ]
    found: list[Comparison] = rounds.compare(
        rounds.Program(f"{title}: hand-written loop", by_hand), programs, n_rounds=n_rounds
    )
    torch.distributed.destroy_process_group()
    return found


def run(
    *, n_rounds: int = 15, n_steps: int | None = None, strategies: Sequence[str] = tuple(N_STEPS)
) -> list[Comparison]:
    """Compare every program as rank 0 measures them; `n_steps` None: as many as `N_STEPS` says."""
    from fulgur.testing import run_ranks

    found: list[Comparison] = []
    for strategy in strategies:
        found += run_ranks(measure, N_RANKS, strategy, n_rounds, n_steps or N_STEPS[strategy], timeout_s=900)[0]
    return found


def report(comparisons: Sequence[Comparison]) -> str:
    from step import report as report_steps

    return report_steps(comparisons).replace("a training step", "a training step of 2 ranks", 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, help="steps measured each time")
    parser.add_argument("--strategies", nargs="+", choices=sorted(N_STEPS), default=sorted(N_STEPS))
    args = parser.parse_args()
    print(report(run(n_rounds=args.rounds, n_steps=args.steps, strategies=args.strategies)))


if __name__ == "__main__":
    main()
