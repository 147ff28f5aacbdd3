"""Saving a model of 200 MB: at once, against `torch.save` and fsync; while training goes on, against a copy.

    python benchmarks/checkpoints.py --rounds 15 --folder /some/disk

*At once* is the whole save. *Asynchronous* is how long the loop stands still; the write itself is awaited outside of
the measurement. torch uses one thread; fulgur copies with two of its own. Lightning's saves are its own plugins, called
as its Trainer calls them; they do not fsync.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fulgur.checkpoint.io import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO
from rounds import Comparison, Program, compare, format_table
from workload import use_one_thread

N_LAYERS, WIDTH = 48, 1024
SYNC_LIMIT, ASYNC_LIMIT, STALL_LIMIT = 1.1, 1.2, 0.1


@dataclass(frozen=True, slots=True)
class SaveCost:
    """Means of the cheapest quarter of all rounds.

    Attributes:
        name: What was done.
        milliseconds: How long the loop stands still.
        ratio: The same over the baseline's, of the measurements beside it.
        ratio_low: Smallest ratio of the four groups of rounds.
        ratio_high: Largest ratio of the four groups.
        limit: Largest ratio that the project allows itself. None for the others.
    """

    name: str
    milliseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    limit: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def build_checkpoint() -> dict[str, Any]:
    layers = [layer for _ in range(N_LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))]
    return {"state_dict": nn.Sequential(*layers).state_dict(), "global_step": 1}


def save_by_hand(checkpoint: dict[str, Any], path: Path) -> None:
    torch.save(checkpoint, path)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def timed(path: Path, call: Callable[[], None], settle: Callable[[], None] | None = None) -> Callable[[], float]:
    """Measures `call` in seconds, each time with nothing at `path` and nothing on its way to the disk."""

    def measure() -> float:
        path.unlink(missing_ok=True)
        os.sync()
        start_s = time.perf_counter()
        call()
        cost_s = time.perf_counter() - start_s
        if settle is not None:
            settle()
        return cost_s

    return measure


@contextmanager
def temporary_folder(parent: str | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run(*, n_rounds: int = 15, folder: str | None = None) -> list[SaveCost]:
    checkpoint = build_checkpoint()
    with temporary_folder(folder) as directory:
        path = directory / "model.ckpt"
        at_once = _compare_at_once(checkpoint, path, n_rounds)
        asynchronous = _compare_asynchronous(checkpoint, path, n_rounds)
        stalls = _compare_stalls(checkpoint, path, n_rounds)
    return [*at_once, *asynchronous, *stalls]


def _compare_at_once(checkpoint: dict[str, Any], path: Path, n_rounds: int) -> list[SaveCost]:
    plugin = TorchCheckpointIO()
    programs = [Program("fulgur, at once", timed(path, lambda: plugin.save_checkpoint(checkpoint, path)), SYNC_LIMIT)]
    lightning = _lightning_plugin("TorchCheckpointIO")
    if lightning is not None:
        programs.append(Program("lightning, at once", timed(path, lambda: lightning.save_checkpoint(checkpoint, path))))
    baseline = Program("torch.save, fsync", timed(path, lambda: save_by_hand(checkpoint, path)))
    return [_cost(comparison) for comparison in compare(baseline, programs, n_rounds=n_rounds)]


def _compare_asynchronous(checkpoint: dict[str, Any], path: Path, n_rounds: int) -> list[SaveCost]:
    weights = list(checkpoint["state_dict"].values())
    copies = [torch.empty_like(weight) for weight in weights]

    def copy() -> None:
        for target, source in zip(copies, weights, strict=True):
            target.copy_(source)

    writer = AsyncCheckpointIO()
    save = timed(path, lambda: writer.save_checkpoint(checkpoint, path), writer.wait)
    programs = [Program("fulgur, asynchronous", save, ASYNC_LIMIT)]
    lightning = _lightning_plugin("AsyncCheckpointIO")
    if lightning is not None:
        programs.append(Program("lightning, asynchronous", _lightning_stall(lightning, checkpoint, path)))
    costs = [_cost(c) for c in compare(Program("copy to the host", timed(path, copy)), programs, n_rounds=n_rounds)]
    writer.teardown()
    return costs


def _compare_stalls(checkpoint: dict[str, Any], path: Path, n_rounds: int) -> list[SaveCost]:
    plugin, writer = TorchCheckpointIO(), AsyncCheckpointIO()
    baseline = Program("fulgur, at once (2)", timed(path, lambda: plugin.save_checkpoint(checkpoint, path)))
    save = timed(path, lambda: writer.save_checkpoint(checkpoint, path), writer.wait)
    program = Program("fulgur, asynchronous, against at once", save, STALL_LIMIT)
    _, cost = [_cost(c) for c in compare(baseline, [program], n_rounds=n_rounds)]
    writer.teardown()
    return [cost]


def _lightning_plugin(name: str) -> Any:
    try:
        from lightning.pytorch.plugins import io
    except ModuleNotFoundError:
        return None
    return io.TorchCheckpointIO() if name == "TorchCheckpointIO" else io.AsyncCheckpointIO


def _lightning_stall(kind: Any, checkpoint: dict[str, Any], path: Path) -> Callable[[], float]:
    """Its plugin takes no second save after it has been waited for: a new one for each."""
    from lightning.pytorch.plugins.io import TorchCheckpointIO as LightningTorchCheckpointIO

    plugins: list[Any] = []

    def save() -> None:
        plugins[-1].save_checkpoint(checkpoint, path)

    measure = timed(path, save, lambda: plugins.pop().teardown())

    def measure_new() -> float:
        plugins.append(kind(LightningTorchCheckpointIO()))
        return measure()

    return measure_new


def _cost(comparison: Comparison) -> SaveCost:
    return SaveCost(
        name=comparison.name,
        milliseconds=comparison.cost * 1e3,
        ratio=comparison.ratio,
        ratio_low=comparison.ratio_low,
        ratio_high=comparison.ratio_high,
        limit=comparison.limit,
    )


def report(costs: Sequence[SaveCost]) -> str:
    rows = [
        [
            cost.name,
            f"{cost.milliseconds:.1f}",
            f"{cost.ratio:.3f}",
            f"{cost.ratio_low:.3f} .. {cost.ratio_high:.3f}",
            f"{cost.limit} {'ok' if cost.ratio <= cost.limit else 'OVER'}" if cost.limit is not None else "",
        ]
        for cost in costs
    ]
    return format_table(["saving 200 MB", "ms", "ratio", "four groups", "limit"], rows)


def measure_interference(plugin: CheckpointIO, *, n_steps: int, folder: str | None = None) -> tuple[float, float]:
    """Median milliseconds of a small training step, alone and while a checkpoint is being written."""
    checkpoint, writer = build_checkpoint(), AsyncCheckpointIO(plugin)
    network = nn.Linear(256, 256)
    optimizer, batch = torch.optim.SGD(network.parameters(), lr=0.0), torch.randn(64, 256)

    def step() -> float:
        start_s = time.perf_counter()
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()
        return (time.perf_counter() - start_s) * 1e3

    with temporary_folder(folder) as directory:
        alone = [step() for _ in range(n_steps)]
        beside: list[float] = []
        while len(beside) < n_steps:
            writer.save_checkpoint(checkpoint, directory / "model.ckpt")
            while not (directory / "model.ckpt").exists() and len(beside) < n_steps:
                beside.append(step())
            writer.wait()
            (directory / "model.ckpt").unlink()
    writer.teardown()
    return statistics.median(alone), statistics.median(beside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", help="on the disk to measure; the system's for temporary files by default")
    args = parser.parse_args()
    use_one_thread()
    print(report(run(n_rounds=args.rounds, folder=args.folder)))
    alone, beside = measure_interference(TorchCheckpointIO(), n_steps=2000, folder=args.folder)
    print(f"\na small training step: {alone:.3f} ms alone, {beside:.3f} ms while a checkpoint is being written")


if __name__ == "__main__":
    main()
