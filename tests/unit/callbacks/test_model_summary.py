from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from fulgur.callbacks import ModelSummary, RichModelSummary
from fulgur.callbacks.summary import summarize


def fit(callback: ModelSummary, rank: int = 0) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=rank == 0)
    module: Any = nn.Sequential(nn.Linear(4, 2))
    callback.on_fit_start(trainer, module)


def test_prints_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    fit(ModelSummary())
    assert capsys.readouterr().out == f"{summarize(nn.Sequential(nn.Linear(4, 2)))}\n"


@pytest.mark.parametrize("kind", [ModelSummary, RichModelSummary])
def test_other_ranks_print_nothing(kind: type[ModelSummary], capsys: pytest.CaptureFixture[str]) -> None:
    fit(kind(), rank=1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", [ModelSummary, RichModelSummary])
def test_depth_zero_prints_nothing(kind: type[ModelSummary], capsys: pytest.CaptureFixture[str]) -> None:
    fit(kind(max_depth=0))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", [ModelSummary, RichModelSummary])
def test_bad_depth_is_refused(kind: type[ModelSummary]) -> None:
    with pytest.raises(ValueError, match="max_depth=-2"):
        kind(max_depth=-2)
