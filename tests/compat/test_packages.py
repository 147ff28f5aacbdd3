"""Packages of others that train through Lightning: the same results on fulgur, and each opens the other's files.

Needs `.venv-compat`, which `make compat` makes. Each package's script trains and loads in the two worlds; times are
printed (``pytest -s``), not judged.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
PYTHON = FOLDER.parents[1] / ".venv-compat" / "bin" / "python"
SCRIPTS = sorted(path for path in (FOLDER / "packages").glob("*.py") if path.stem != "told")
WORLDS: dict[str, tuple[str, ...]] = {"lightning": (), "fulgur": ("-m", "fulgur.compat")}

# Means over an epoch are summed in another order and precision.
TOLERANCE = 1e-6

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="needs the packages in .venv-compat: run `make compat`"),
    pytest.mark.slow,
]


def run(world: str, script: Path, task: str, folder: Path) -> dict[str, Any]:
    """The results that a script prints, and the time its process took."""
    start = time.perf_counter()
    done = subprocess.run(
        [PYTHON, "-W", "ignore", *WORLDS[world], script, task, folder],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{script.stem} {task} on {world}\n{done.stdout[-500:]}\n{done.stderr[-3000:]}"
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**results, "process_seconds": time.perf_counter() - start}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, dict[str, Any]]]:
    """Folder and results of each training, by script and world; made when first asked for."""

    class Trained(dict[tuple[str, str], tuple[Path, dict[str, Any]]]):
        def __missing__(self, key: tuple[str, str]) -> tuple[Path, dict[str, Any]]:
            name, world = key
            folder = tmp_path_factory.mktemp(f"{name}_{world}")
            self[key] = folder, run(world, FOLDER / "packages" / f"{name}.py", "train", folder)
            return self[key]

    return Trained()


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """What is in nested lists and dicts, by path, without the times."""
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return {name: value}
    return {path: v for k, item in items if "seconds" not in str(k) for path, v in flat(item, f"{name}.{k}").items()}


def assert_close(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    one, other = flat(ours), flat(theirs)
    assert one.keys() == other.keys()
    different = {
        path: (one[path], other[path])
        for path in one
        if one[path] != other[path]
        and not (isinstance(one[path], float) and math.isclose(one[path], other[path], rel_tol=TOLERANCE))
    }
    assert different == {}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_package_gives_the_results_that_it_gives_on_lightning(script: Path, trained: Any) -> None:
    theirs, ours = (trained[script.stem, world][1] for world in WORLDS)
    inside, whole = (ours[key] / theirs[key] for key in ("seconds", "process_seconds"))
    print(f"\n{script.stem}: {inside:.2f} of Lightning's time, {whole:.2f} with the start of Python")
    assert_close(ours, theirs)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("writer", WORLDS)
def test_what_one_has_written_the_other_opens_with_the_same_results(script: Path, writer: str, trained: Any) -> None:
    folder = trained[script.stem, writer][0]
    theirs, ours = (run(world, script, "load", folder) for world in WORLDS)
    assert_close(ours, theirs)


def test_six_packages_are_tried() -> None:
    assert len(SCRIPTS) == 6
