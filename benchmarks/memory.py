"""Memory of training against a hand-written loop: the peak, and whether it grows with steps. Linux only.

    python benchmarks/memory.py --rounds 3

Each measurement is a fresh process. *Peak* is how far resident memory rises above what it was just before training,
with layers wide enough that a tensor kept one step too long shows. *Growth* is what a step leaves behind: resident
memory, and blocks that Python holds, between an early and a late step of a long run of small batches.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rounds import format_table
from workload import (
    N_CLASSES,
    N_FEATURES,
    Batch,
    OneBatch,
    build_batch,
    train_by_hand,
    train_with_trainer,
    use_one_thread,
)

PEAK_LIMIT = 1.05
BIG_BATCH_SIZE, BIG_HIDDEN = 1024, 1536
N_BIG_STEPS, N_SMALL_STEPS, N_SETTLING_STEPS = 5, 20_000, 4_000

PROGRAMS: dict[str, Callable[..., None]] = {
    "hand-written loop": train_by_hand,
    "fulgur, bare": partial(train_with_trainer, "fulgur"),
    "fulgur, five logs + bar + CSV + checkpoint": partial(train_with_trainer, "fulgur", n_logs=5, with_parts=True),
    "lightning, bare": partial(train_with_trainer, "lightning.pytorch"),
}


@dataclass(frozen=True, slots=True)
class MemoryCost:
    """Medians over all rounds.

    Attributes:
        name: The program.
        peak_mib: Rise of resident memory while training wide layers.
        peak_ratio: The same over the hand-written loop's.
        growth_bytes_per_step: Rise of resident memory per step, once settled.
        growth_blocks_per_step: Rise of the blocks that Python holds, per step, once settled.
    """

    name: str
    peak_mib: float
    peak_ratio: float
    growth_bytes_per_step: float
    growth_blocks_per_step: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class BigBatches:
    """A few large batches, each a new one."""

    def __len__(self) -> int:
        return N_BIG_STEPS

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(N_BIG_STEPS):
            yield torch.randn(BIG_BATCH_SIZE, N_FEATURES), torch.zeros(BIG_BATCH_SIZE, dtype=torch.long)


class WatchedBatches:
    """Many small batches; memory is read after the settling steps and at the end."""

    def __init__(self) -> None:
        self.resident_bytes: list[int] = []
        self.n_blocks: list[int] = []

    def __len__(self) -> int:
        return N_SMALL_STEPS + 1

    def __iter__(self) -> Iterator[Batch]:
        batch = build_batch()
        for step in range(N_SMALL_STEPS + 1):
            if step in (N_SETTLING_STEPS, N_SMALL_STEPS):
                gc.collect()
                self.resident_bytes.append(resident_bytes())
                self.n_blocks.append(sys.getallocatedblocks())
            yield batch


def resident_bytes() -> int:
    n_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return n_pages * resource.getpagesize()


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident_bytes() -> int:
    """Highest resident memory since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak_kib,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak_kib) * 1024


def measure_peak(name: str) -> float:
    """Rise of resident memory in MiB. The program runs once before on small batches, so that imports do not count."""
    program = PROGRAMS[name]
    program(OneBatch())
    gc.collect()
    forget_peak()
    before = resident_bytes()
    program(BigBatches(), network=build_wide_network)
    return (peak_resident_bytes() - before) / 2**20


def build_wide_network() -> nn.Module:
    wide = [layer for _ in range(4) for layer in (nn.Linear(BIG_HIDDEN, BIG_HIDDEN), nn.ReLU())]
    return nn.Sequential(nn.Linear(N_FEATURES, BIG_HIDDEN), *wide, nn.Linear(BIG_HIDDEN, N_CLASSES))


def measure_growth(name: str) -> tuple[float, float]:
    """Bytes and blocks left behind by a step."""
    batches = WatchedBatches()
    PROGRAMS[name](batches)
    n_steps = N_SMALL_STEPS - N_SETTLING_STEPS
    return (
        (batches.resident_bytes[1] - batches.resident_bytes[0]) / n_steps,
        (batches.n_blocks[1] - batches.n_blocks[0]) / n_steps,
    )


def run(names: Sequence[str] = tuple(PROGRAMS), *, n_rounds: int = 3) -> list[MemoryCost]:
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for _ in range(n_rounds):
        for name in names:
            samples[name].append(_in_fresh_process(name))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in samples.items()
    }
    base = medians["hand-written loop"][0]
    return [MemoryCost(name, peak, peak / base, grown, blocks) for name, (peak, grown, blocks) in medians.items()]


def _in_fresh_process(name: str) -> tuple[float, float, float]:
    peak = _child("--peak-of", name)
    grown, blocks = _child("--growth-of", name)
    return peak, grown, blocks


def _child(option: str, name: str) -> Any:
    # Each tensor gets pages of its own, given back when it goes: the peak is then the same in every run.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, __file__, option, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def report(costs: Sequence[MemoryCost]) -> str:
    rows = [
        [
            cost.name,
            f"{cost.peak_mib:.0f}",
            f"{cost.peak_ratio:.3f}",
            f"{cost.growth_bytes_per_step:.1f}",
            f"{cost.growth_blocks_per_step:.3f}",
            f"{PEAK_LIMIT} {'ok' if cost.peak_ratio <= PEAK_LIMIT else 'OVER'}" if "fulgur" in cost.name else "",
        ]
        for cost in costs
    ]
    return format_table(["memory", "peak MiB", "ratio", "bytes a step", "blocks a step", "limit"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=tuple(PROGRAMS), default=tuple(PROGRAMS))
    parser.add_argument("--peak-of", choices=tuple(PROGRAMS), help=argparse.SUPPRESS)
    parser.add_argument("--growth-of", choices=tuple(PROGRAMS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    use_one_thread()
    if args.peak_of:
        print(json.dumps(measure_peak(args.peak_of)))
    elif args.growth_of:
        print(json.dumps(measure_growth(args.growth_of)))
    else:
        print(report(run(args.only, n_rounds=args.rounds)))


if __name__ == "__main__":
    main()
