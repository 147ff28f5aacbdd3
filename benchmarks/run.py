"""`make bench`: every benchmark, one table, and a record in benchmarks/results/.

python benchmarks/run.py           # about ten minutes
python benchmarks/run.py --quick   # two rounds each, to see that everything runs
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import checkpoints
import distributed
import epochs
import imports
import memory
import step
from workload import use_one_thread

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("fulgur", "torch", "lightning", "accelerate", "pytorch-ignite", "keras", "rich", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two rounds each")
    args = parser.parse_args()
    use_one_thread()
    surroundings = describe_surroundings()
    print(describe(surroundings))
    results = run_all(n_rounds=2 if args.quick else None)
    path = write_record({"surroundings": surroundings, "results": results})
    print(f"\nrecord: {path.relative_to(FOLDER.parent)}")


def run_all(*, n_rounds: int | None) -> dict[str, list[dict[str, Any]]]:
    """Run and print one after the other; `n_rounds` None leaves each benchmark its own number."""
    rounds = {} if n_rounds is None else {"n_rounds": n_rounds}
    results: dict[str, list[dict[str, Any]]] = {}
    for name, benchmark in {
        "step": step,
        "epochs": epochs,
        "imports": imports,
        "memory": memory,
        "checkpoints": checkpoints,
        "distributed": distributed,
    }.items():
        costs = benchmark.run(**rounds)
        print("\n" + benchmark.report(costs), flush=True)
        results[name] = [cost.as_dict() for cost in costs]
    return results


def describe_surroundings() -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine or its owner."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "has_uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "n_cpus": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
    }


def describe(surroundings: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in surroundings["versions"].items() if number)
    changed = " with uncommitted changes" if surroundings["has_uncommitted_changes"] else ""
    return (
        f"{surroundings['date']}, commit {surroundings['commit']}{changed}\n"
        f"{surroundings['cpu']}, {surroundings['n_threads']} thread, Python {surroundings['python']}\n"
        f"{versions}"
    )


def write_record(record: dict[str, Any]) -> Path:
    folder = FOLDER / "results"
    folder.mkdir(exist_ok=True)
    surroundings = record["surroundings"]
    path = folder / f"{surroundings['date']}-{surroundings['commit'] or 'uncommitted'}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
