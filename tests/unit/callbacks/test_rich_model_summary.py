from __future__ import annotations

import pytest
import torch
from torch import nn

from fulgur.callbacks import RichModelSummary
from fulgur.callbacks.summary import summarize


def test_draws_layers_sizes_and_totals(capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    net.example_input_array = torch.zeros(3, 4)
    RichModelSummary(header_style="bold blue").show(summarize(net))
    out = capsys.readouterr().out
    assert all(text in out for text in ("Linear", "[3, 4]", "[3, 2]", "Total params", "48"))
