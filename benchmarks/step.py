"""CPU time of a training step against a hand-written loop: a small MLP with SGD, one thread.

python benchmarks/step.py --rounds 5 --only fulgur lightning
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from rounds import Comparison, Program, compare, format_table
from workload import (
    LEARNING_RATE,
    N_CLASSES,
    N_FEATURES,
    N_HIDDEN,
    TimedBatches,
    build_network,
    quiet,
    train_by_hand,
    train_with_trainer,
    use_one_thread,
)

FRAMEWORKS = ("fulgur", "lightning", "accelerate", "ignite", "keras")


def seconds_per_step(train: Callable[[TimedBatches], None], n_steps: int) -> float:
    batches = TimedBatches(n_steps)
    train(batches)
    return batches.seconds_per_step


def train_with_accelerate(batches: TimedBatches) -> None:
    accelerate = importlib.import_module("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = build_network()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE))
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        accelerator.backward(loss)
        optimizer.step()


def train_with_ignite(batches: TimedBatches) -> None:
    engine = importlib.import_module("ignite.engine")
    model = build_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    trainer = engine.create_supervised_trainer(model, optimizer, F.cross_entropy)
    trainer.run(batches, max_epochs=1)


def train_with_keras(batches: TimedBatches) -> None:
    keras = importlib.import_module("keras")
    layers = keras.layers
    dense = [layers.Dense(N_HIDDEN, activation="relu"), layers.Dense(N_HIDDEN, activation="relu")]
    model = keras.Sequential([keras.Input((N_FEATURES,)), *dense, layers.Dense(N_CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(LEARNING_RATE), loss=loss, jit_compile=False)
    with quiet():
        model.fit(iter(batches), steps_per_epoch=len(batches), epochs=1, verbose=0)


def _trainer_programs(title: str, package_name: str, limits: Sequence[float | None]) -> list[tuple[str, Any, Any]]:
    train = partial(train_with_trainer, package_name)
    return [
        (f"{title}, bare", train, limits[0]),
        (f"{title}, one log", partial(train, n_logs=1), limits[1]),
        (f"{title}, five logs + bar + CSV + checkpoint", partial(train, n_logs=5, with_parts=True), limits[2]),
    ]


def build_programs(frameworks: Sequence[str], n_steps: int) -> list[Program]:
    table: dict[str, list[tuple[str, Any, Any]]] = {
        "fulgur": _trainer_programs("fulgur", "fulgur", (1.03, 1.05, 1.10)),
        "lightning": _trainer_programs("lightning", "lightning.pytorch", (None, None, None)),
        "accelerate": [("accelerate", train_with_accelerate, None)],
        "ignite": [("ignite", train_with_ignite, None)],
        "keras": [("keras (torch backend)", train_with_keras, None)],
    }
    chosen = [row for framework in frameworks for row in table[framework]]
    return [Program(name, partial(seconds_per_step, train, n_steps), limit) for name, train, limit in chosen]


def run(frameworks: Sequence[str] = FRAMEWORKS, *, n_rounds: int = 40, n_steps: int = 500) -> list[Comparison]:
    """Compare every program; "the same loop again" shows how far two equal programs differ on this machine."""
    by_hand = partial(seconds_per_step, train_by_hand, n_steps)
    programs = [Program("the same loop again", by_hand), *build_programs(frameworks, n_steps)]
    return compare(Program("hand-written loop", by_hand), programs, n_rounds=n_rounds)


def report(comparisons: Sequence[Comparison]) -> str:
    rows = [
        [
            c.name,
            f"{c.cost * 1e6:.1f}",
            f"{c.ratio:.3f}",
            f"{c.ratio_low:.3f} to {c.ratio_high:.3f}",
            "" if c.limit is None else f"{c.limit:.2f} {'ok' if c.ratio <= c.limit else 'OVER'}",
        ]
        for c in comparisons
    ]
    return format_table(["a training step", "CPU µs", "ratio", "four groups", "limit"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=500, help="steps measured each time")
    parser.add_argument("--only", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS)
    args = parser.parse_args()
    use_one_thread()
    print(report(run(args.only, n_rounds=args.rounds, n_steps=args.steps)))


if __name__ == "__main__":
    main()
