"""CPU time of an epoch of one batch with validation, over a hand-written loop: what starting and ending costs.

python benchmarks/epochs.py --rounds 5 --only fulgur
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

from rounds import Comparison, Program, compare, format_table
from workload import TimedEpochs, train_epochs_by_hand, train_epochs_with_trainer, use_one_thread

PACKAGES = {"fulgur": "fulgur", "lightning": "lightning.pytorch"}
FULGUR_LIMIT_S = 0.15e-3


def seconds_per_epoch(train: Callable[[TimedEpochs], None], n_epochs: int) -> float:
    epochs = TimedEpochs(n_epochs)
    train(epochs)
    return epochs.seconds_per_epoch


def run(frameworks: Sequence[str] = tuple(PACKAGES), *, n_rounds: int = 40, n_epochs: int = 150) -> list[Comparison]:
    by_hand = partial(seconds_per_epoch, train_epochs_by_hand, n_epochs)
    programs = [Program("the same loop again", by_hand)]
    for name in frameworks:
        train = partial(train_epochs_with_trainer, PACKAGES[name])
        limit = FULGUR_LIMIT_S if name == "fulgur" else None
        programs.append(Program(name, partial(seconds_per_epoch, train, n_epochs), limit))
    return compare(Program("hand-written loop", by_hand), programs, n_rounds=n_rounds)


def report(comparisons: Sequence[Comparison]) -> str:
    rows = [
        [
            c.name,
            f"{c.cost * 1e3:.3f}",
            f"{c.difference * 1e3:+.3f}",
            f"{c.difference_low * 1e3:+.3f} to {c.difference_high * 1e3:+.3f}",
            "" if c.limit is None else f"{c.limit * 1e3:.2f} {'ok' if c.difference <= c.limit else 'OVER'}",
        ]
        for c in comparisons
    ]
    return format_table(["an epoch of one batch, with validation", "CPU ms", "over hand", "four groups", "limit"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=150, help="epochs measured each time")
    parser.add_argument("--only", nargs="+", choices=tuple(PACKAGES), default=tuple(PACKAGES))
    args = parser.parse_args()
    use_one_thread()
    print(report(run(args.only, n_rounds=args.rounds, n_epochs=args.epochs)))


if __name__ == "__main__":
    main()
