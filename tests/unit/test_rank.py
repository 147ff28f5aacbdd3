"""Ranks before and after a run has set up its processes, and what only rank 0 says."""

from __future__ import annotations

import linecache
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import fulgur
from fulgur import rank
from fulgur.errors import PossibleUserWarning
from fulgur.rank import (
    find_launcher_rank,
    rank_zero_debug,
    rank_zero_deprecation,
    rank_zero_info,
    rank_zero_only,
    rank_zero_warn,
)

VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    rank_zero_only.rank = None
    yield
    rank_zero_only.rank = None
    rank._announced_deprecations.clear()


def test_rank_is_zero_without_a_launcher() -> None:
    assert find_launcher_rank() is None
    assert rank_zero_only.rank == 0


@pytest.mark.parametrize("variable", VARIABLES)
def test_rank_comes_from_each_launchers_variable(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "3")
    assert rank_zero_only.rank == 3


def test_global_rank_wins_over_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert rank_zero_only.rank == 5


def test_variable_that_is_no_number_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "captain")
    assert rank_zero_only.rank == 0


def test_rank_that_was_set_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "5")
    rank_zero_only.rank = 2
    assert rank_zero_only.rank == 2


def test_decorated_function_runs_on_rank_zero_only() -> None:
    @rank_zero_only
    def double(x: int) -> int:
        return 2 * x

    assert double(4) == 8
    rank_zero_only.rank = 1
    assert double(4) is None


def test_decorated_function_returns_its_default_elsewhere() -> None:
    function = rank_zero_only(lambda: "real", "default")
    rank_zero_only.rank = 1
    assert function() == "default"


def test_decorated_function_keeps_its_name() -> None:
    @rank_zero_only
    def announce() -> None:
        """Say it."""

    assert (announce.__name__, announce.__doc__) == ("announce", "Say it.")


def test_info_goes_to_the_package_logger(caplog: pytest.LogCaptureFixture) -> None:
    rank_zero_info("epoch %d", 3)
    assert [(r.name, r.levelno, r.getMessage()) for r in caplog.records] == [("fulgur", logging.INFO, "epoch 3")]


def test_info_names_the_line_that_called_it(caplog: pytest.LogCaptureFixture) -> None:
    rank_zero_info("here")
    assert caplog.records[0].filename == "test_rank.py"


def test_info_is_silent_on_other_ranks(caplog: pytest.LogCaptureFixture) -> None:
    rank_zero_only.rank = 1
    rank_zero_info("epoch")
    assert caplog.records == []


def test_debug_shows_at_debug_level_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fulgur"):
        rank_zero_debug("hidden")
    with caplog.at_level(logging.DEBUG, "fulgur"):
        rank_zero_debug("shown")
    assert caplog.messages == ["shown"]


def stderr_of(program: str) -> list[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return result.stderr.splitlines()


def test_info_reaches_stderr_when_nobody_configured_logging() -> None:
    assert stderr_of("from fulgur.rank import rank_zero_info as say; say('one'); say('two')") == ["one", "two"]


def test_info_is_not_doubled_when_logging_is_configured_later() -> None:
    program = """
import logging
from fulgur.rank import rank_zero_info
rank_zero_info("one")
logging.basicConfig(format="root: %(message)s")
rank_zero_info("two")
"""
    assert stderr_of(program) == ["one", "root: two"]


def test_level_of_the_users_choice_is_kept() -> None:
    program = """
import logging
from fulgur.rank import rank_zero_info
logging.getLogger("fulgur").setLevel(logging.WARNING)
rank_zero_info("one")
"""
    assert stderr_of(program) == []


def test_importing_adds_no_handler() -> None:
    assert stderr_of("import logging, fulgur.rank; assert not logging.getLogger('fulgur').handlers") == []


def test_warning_points_at_the_caller() -> None:
    def setting() -> None:
        rank_zero_warn("may be wrong", RuntimeWarning)

    with pytest.warns(RuntimeWarning, match="may be wrong") as caught:
        setting()
    assert caught[0].filename == __file__
    assert caught[0].lineno == sys._getframe().f_lineno - 2


def test_warning_of_fulgur_points_at_the_line_of_the_program() -> None:
    """Through several functions of fulgur, a context manager and `nn.Module.__call__`."""

    class Net(fulgur.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch).mean()

        def valdation_step(self, batch: Any, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    net = Net()
    net.layer = torch.nn.Linear(1, 1)
    trainer = fulgur.Trainer(fast_dev_run=True, accelerator="cpu", enable_progress_bar=False)
    data = [torch.ones(1, 1)]
    with pytest.warns(PossibleUserWarning, match="valdation_step") as caught:
        trainer.fit(net, data, data)
    assert (caught[0].filename, caught[0].lineno) == (__file__, sys._getframe().f_lineno - 1)


def test_warning_within_a_hook_points_into_the_hook() -> None:
    batch = {"a": torch.ones(3), "b": torch.ones(2)}

    class Net(fulgur.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.layer.weight.sum()
            self.log("loss", loss, on_epoch=True)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    net = Net()
    net.layer = torch.nn.Linear(1, 1)
    trainer = fulgur.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with pytest.warns(PossibleUserWarning, match="differ in their first dimension") as caught:
        trainer.fit(net, [batch])
    assert caught[0].filename == __file__
    assert "self.log" in linecache.getline(__file__, caught[0].lineno)


def test_warning_without_a_line_of_the_program_is_issued_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "_PASSED_OVER", ("",))
    with pytest.warns(RuntimeWarning, match="may be wrong"):
        rank_zero_warn("may be wrong", RuntimeWarning)


def test_stacklevel_of_a_program_counts_for_its_own_calls() -> None:
    def inner() -> None:
        rank_zero_warn("may be wrong", RuntimeWarning, stacklevel=1)

    with pytest.warns(RuntimeWarning) as caught:
        inner()
    assert "rank_zero_warn(" in linecache.getline(__file__, caught[0].lineno)


def test_warning_is_silent_on_other_ranks() -> None:
    rank_zero_only.rank = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rank_zero_warn("may be wrong")


def test_deprecation_is_announced_once_a_process() -> None:
    def announce() -> None:
        rank_zero_deprecation("`old` is deprecated, use `new`")

    with pytest.warns(DeprecationWarning, match="use `new`"):
        announce()
    announce()


def test_deprecation_points_at_the_caller() -> None:
    def old() -> None:
        rank_zero_deprecation("use `new`")

    with pytest.warns(DeprecationWarning, match="use `new`") as caught:
        old()
    assert (caught[0].filename, caught[0].lineno) == (__file__, sys._getframe().f_lineno - 1)
