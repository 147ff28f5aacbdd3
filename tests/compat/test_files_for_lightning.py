"""Lightning goes on training from the checkpoints that fulgur writes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import fulgur

NAMES = (
    "epoch_end",
    "mid_epoch",
    "last_batch",
    "validation_end",
    "mid_validation",
    "accumulating",
    "manual_mid_epoch",
    "manual_epoch_end",
)
# Lightning's own files of these moments go on in the same way: it skips the validation after a last batch, and
# repeats the first batches of an epoch it resumes in the middle.
REPEATING = ("mid_epoch", "mid_validation", "accumulating", "manual_mid_epoch")
OF_LIGHTNING = Path(__file__).parent / "data" / "2.6.6" / "expected.pt"


@pytest.fixture(scope="module")
def ends_and_resumed(
    workload: Any, lightning_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What our runs had at their end, and what Lightning made of each file."""
    directory = tmp_path_factory.mktemp("run")
    ends = {run: workload.train_and_save(fulgur, run, directory) for run in workload.RUNS}
    script = Path(__file__).with_name("resume_in_lightning.py")
    done = subprocess.run(
        [lightning_python, script, directory], cwd=directory, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return ends, torch.load(directory / "results.pt", weights_only=True)


@pytest.fixture
def pair(ends_and_resumed: Any) -> Any:
    """What Lightning made of our file, and what it made of its own."""
    theirs = torch.load(OF_LIGHTNING, weights_only=True)["files"]
    return lambda name: (ends_and_resumed[1][name], theirs[name])


@pytest.mark.parametrize("name", NAMES)
class TestResume:
    def test_begins_with_the_state_it_has_from_its_own_file(self, name: str, pair: Any) -> None:
        from_ours, from_its_own = (resumed["start"] for resumed in pair(name))
        for part in ("weights", "optimizer"):
            torch.testing.assert_close(from_ours[part], from_its_own[part], rtol=0, atol=1e-6)
        for part in ("epoch", "global_step", "lr", "scheduler", "hparams"):
            assert from_ours[part] == from_its_own[part]
        assert from_ours["early_stopping"] == pytest.approx(from_its_own["early_stopping"], abs=1e-6)

    def test_trains_on_the_batches_it_does_from_its_own_file(self, name: str, pair: Any) -> None:
        from_ours, from_its_own = pair(name)
        for part in ("batches", "steps", "validated_at"):
            assert from_ours[part] == from_its_own[part]

    def test_ends_where_it_does_from_its_own_file(self, name: str, pair: Any) -> None:
        from_ours, from_its_own = (resumed["end"] for resumed in pair(name))
        assert (from_ours["epoch"], from_ours["global_step"]) == (from_its_own["epoch"], from_its_own["global_step"])
        torch.testing.assert_close(from_ours["weights"], from_its_own["weights"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REPEATING])
def test_ends_where_our_run_does(name: str, ends_and_resumed: Any, workload: Any) -> None:
    ends, resumed = ends_and_resumed
    end = ends[workload.FILES[name][0]]
    torch.testing.assert_close(resumed[name]["end"]["weights"], end["weights"], rtol=0, atol=1e-6)


def test_weights_load_with_hyperparameters(ends_and_resumed: Any) -> None:
    assert ends_and_resumed[1]["weights"]["hparams"] == {"width": 4, "lr": 0.05, "betas": (0.9, 0.99)}
