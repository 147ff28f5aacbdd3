"""`run_ranks`: results by rank, the first failure, and no hang."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fulgur.testing import run_ranks


def _sum_of_ranks() -> tuple[int, float]:
    dist.init_process_group("gloo")
    total = torch.tensor(float(dist.get_rank() + 1))
    dist.all_reduce(total)
    return dist.get_rank(), total.item()


def _raise_on(rank: int) -> None:
    dist.init_process_group("gloo")
    if dist.get_rank() == rank:
        raise ValueError(f"rank {rank} cannot go on")
    dist.barrier()


def _hang_on(rank: int) -> None:
    if os.environ["RANK"] == str(rank):
        time.sleep(600)


def _be_killed_on(rank: int) -> None:
    if os.environ["RANK"] == str(rank):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def _surroundings() -> tuple[str | None, str | None, str, int]:
    return os.environ.get("MORE"), os.environ.get("LESS"), os.getcwd(), torch.get_num_threads()


def _warn() -> None:
    warnings.warn("beware", UserWarning, stacklevel=1)


def test_ranks_reach_each_other_and_results_come_by_rank() -> None:
    assert run_ranks(_sum_of_ranks, 2) == [(0, 3.0), (1, 3.0)]


@pytest.mark.parametrize("rank", [0, 1])
def test_error_of_the_first_failing_rank_is_raised_with_its_traceback(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} cannot go on") as caught:
        run_ranks(_raise_on, 2, rank)
    assert f"on rank {rank} of 2" in str(caught.value.__cause__)
    assert "in _raise_on" in str(caught.value.__cause__)


def test_hang_is_ended_and_shows_where_each_rank_was() -> None:
    with pytest.raises(TimeoutError, match=r"of 2 ranks these were still running: 1\.(.|\n)*in _hang_on"):
        run_ranks(_hang_on, 2, 1, timeout_s=2)


def test_killed_rank_is_named_and_others_do_not_wait_for_it() -> None:
    with pytest.raises(ChildProcessError, match="rank 1 was ended by SIGKILL"):
        run_ranks(_be_killed_on, 2, 1)


def test_rank_has_environment_and_folder_of_the_caller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LESS", "1")
    assert run_ranks(_surroundings, 1, env={"MORE": "2", "LESS": None}) == [("2", None, str(tmp_path), 1)]


def test_rank_has_warning_filters_of_the_caller() -> None:
    with pytest.raises(UserWarning, match="beware"):
        run_ranks(_warn, 1)


def test_function_that_cannot_be_sent_is_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match="top of a module"):
        run_ranks(lambda: None, 1)
