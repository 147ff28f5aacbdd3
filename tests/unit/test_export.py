"""Modules as TorchScript and ONNX."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur import LightningModule
from fulgur.errors import MissingExtraError
from fulgur.testing import BoringModel

# torch's own, of torch.jit
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Net(BoringModel):
    """Has a mode that changes what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.dropout(self.layer(x))
        return output


@pytest.mark.parametrize("method", ["script", "trace"])
def test_torchscript_gives_what_the_module_gives_in_evaluation(method: str, tmp_path: Path) -> None:
    model, x = Net(), torch.randn(3, 32)
    compiled = model.to_torchscript(tmp_path / "model.pt", method=method, example_inputs=x)
    expected = model.layer(x)
    assert torch.equal(compiled(x), expected)
    assert torch.equal(torch.jit.load(tmp_path / "model.pt")(x), expected)
    assert model.training
    assert model.dropout.training


def test_tracing_takes_the_example_of_the_module() -> None:
    model = Net()
    model.example_input_array = torch.randn(1, 32)
    assert model.to_torchscript(method="trace")(torch.zeros(2, 32)).shape == (2, 2)


def test_tracing_without_an_input() -> None:
    with pytest.raises(ValueError, match=r"Net.to_torchscript needs an input of forward. Pass example_inputs=..."):
        Net().to_torchscript(method="trace")


def test_an_unknown_method() -> None:
    with pytest.raises(ValueError, match="method='onnx' is neither 'script' nor 'trace'"):
        Net().to_torchscript(method="onnx")


def test_mode_is_put_back_after_an_error() -> None:
    class Broken(Net):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("no")

    model = Broken()
    with pytest.raises(RuntimeError, match="no"):
        model.to_torchscript(method="trace", example_inputs=torch.zeros(1, 32))
    assert model.dropout.training


@pytest.mark.skipif(find_spec("onnx") is not None, reason="onnx is installed")
def test_onnx_names_the_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"fulgur\[onnx\]"):
        LightningModule().to_onnx(dynamo=False)
