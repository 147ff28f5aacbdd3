"""What importing costs on top of torch: time and modules, each in a fresh interpreter.

python benchmarks/imports.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rounds import format_table

STATEMENTS = {
    "import fulgur": "import fulgur",
    "fulgur's Trainer and LightningModule": "from fulgur import LightningModule, Trainer",
    "lightning's Trainer and LightningModule": "from lightning.pytorch import LightningModule, Trainer",
    "accelerate's Accelerator": "from accelerate import Accelerator",
    "ignite's Engine": "from ignite.engine import Engine",
    "keras": "import os; os.environ['KERAS_BACKEND'] = 'torch'; import keras",
}
LIMITED = ("import fulgur", "fulgur's Trainer and LightningModule")
LIMIT_MS, LIMIT_MODULES = 150.0, 100

PROGRAM = """
import json, sys, time
import torch
n_modules, start_s = len(sys.modules), time.perf_counter()
{statement}
print(json.dumps([(time.perf_counter() - start_s) * 1e3, len(sys.modules) - n_modules]))
"""


@dataclass(frozen=True, slots=True)
class ImportCost:
    """Medians over all rounds.

    Attributes:
        name: What was imported.
        milliseconds: Wall-clock time after ``import torch``.
        n_modules: Modules loaded after ``import torch``.
    """

    name: str
    milliseconds: float
    n_modules: int

    @property
    def is_within_limit(self) -> bool:
        return self.milliseconds <= LIMIT_MS and self.n_modules <= LIMIT_MODULES

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run(statements: Mapping[str, str] = STATEMENTS, *, n_rounds: int = 7) -> list[ImportCost]:
    """Import each in turn, `n_rounds` times after one round that compiles the sources and fills the file cache."""
    samples: dict[str, list[tuple[float, int]]] = {name: [] for name in statements}
    with tempfile.TemporaryDirectory() as bytecode:
        for i_round in range(n_rounds + 1):
            for name, statement in statements.items():
                sample = _measure(statement, bytecode)
                if i_round:
                    samples[name].append(sample)
    return [
        ImportCost(name, statistics.median(ms for ms, _ in rows), max(modules for _, modules in rows))
        for name, rows in samples.items()
    ]


def _measure(statement: str, bytecode: str) -> tuple[float, int]:
    program = PROGRAM.format(statement=statement)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, "PYTHONPYCACHEPREFIX": bytecode}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    milliseconds, n_modules = json.loads(done.stdout.splitlines()[-1])
    return milliseconds, n_modules


def report(costs: Sequence[ImportCost]) -> str:
    limit = f"{LIMIT_MS:.0f} ms, {LIMIT_MODULES} modules"
    rows = [
        [
            cost.name,
            f"{cost.milliseconds:.0f}",
            str(cost.n_modules),
            f"{limit} {'ok' if cost.is_within_limit else 'OVER'}" if cost.name in LIMITED else "",
        ]
        for cost in costs
    ]
    return format_table(["importing, after torch", "ms", "modules", "limit"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only-fulgur", action="store_true", help="leave the others out")
    args = parser.parse_args()
    statements = {k: v for k, v in STATEMENTS.items() if "fulgur" in k or not args.only_fulgur}
    print(report(run(statements, n_rounds=args.rounds)))


if __name__ == "__main__":
    main()
