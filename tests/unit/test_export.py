"""Modules as TorchScript and ONNX."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur import LightningModule, Trainer
from fulgur.errors import CheckpointError, MissingExtraError
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


class Example(Net):
    """Has hyperparameters, an example of its input, and two names for one weight."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.head = torch.nn.Linear(2, width)
        self.tied = torch.nn.Linear(2, width, bias=False)
        self.tied.weight = self.head.weight
        self.example_input_array = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = super().forward(x)
        output: torch.Tensor = self.head(inner) + self.tied(inner).relu()
        return output


def predicted(model: LightningModule, x: torch.Tensor) -> torch.Tensor:
    was_training = model.training
    with torch.no_grad():
        output: torch.Tensor = model.eval()(x)
    model.train(was_training)
    return output


def train(model: LightningModule) -> LightningModule:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 0, "accelerator": "cpu"}
    Trainer(enable_checkpointing=False, **quiet, **limits).fit(model)
    return model


# ------------------------------------------------------------------------------------------------------- torch.export


def test_exported_program_loads_back_and_predicts_the_same(tmp_path: Path) -> None:
    model = train(Example())
    x = model.example_input_array
    program = model.to_exported(tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    expected = predicted(model, x)
    assert torch.equal(program.module()(x), expected)
    assert torch.equal(loaded.module()(x), expected)
    assert model.training


def test_exported_program_takes_the_shapes_that_were_left_open(tmp_path: Path) -> None:
    model, x = Example(), torch.randn(7, 32)
    batch = torch.export.Dim("batch")
    program = model.to_exported(dynamic_shapes={"x": {0: batch}})
    assert torch.equal(program.module()(x), predicted(model, x))
    with pytest.raises(AssertionError, match=r"Guard failed"):
        model.to_exported().module()(x)


@pytest.mark.parametrize("sample", [(torch.ones(2, 32),), {"x": torch.ones(2, 32)}, torch.ones(2, 32)])
def test_sample_may_be_a_tensor_a_tuple_or_keywords(sample: Any) -> None:
    model = Example()
    program = model.to_exported(input_sample=sample).module()
    given = program(**sample) if isinstance(sample, dict) else program(torch.ones(2, 32))
    assert torch.equal(given, predicted(model, torch.ones(2, 32)))


def test_exported_program_goes_into_an_open_file(tmp_path: Path) -> None:
    model = Example()
    with open(tmp_path / "model.pt2", "wb") as file:
        model.to_exported(file)
    x = model.example_input_array
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(x), predicted(model, x))


def test_exporting_without_an_input() -> None:
    with pytest.raises(ValueError, match=r"Net.to_exported needs an input of forward. Pass input_sample=..."):
        Net().to_exported()


# --------------------------------------------------------------------------------------------------------------- ONNX


def run_onnx(path: Path, x: torch.Tensor) -> torch.Tensor:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    (output,) = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
    return torch.from_numpy(output)


def test_onnx_loads_back_and_predicts_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    model = train(Example())
    x = model.example_input_array
    capfd.readouterr()
    model.to_onnx(tmp_path / "model.onnx")
    assert capfd.readouterr().out == ""
    torch.testing.assert_close(run_onnx(tmp_path / "model.onnx", x), predicted(model, x), rtol=1e-6, atol=1e-6)
    assert model.training


def test_onnx_takes_the_shapes_that_were_left_open(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model, x = Example(), torch.randn(7, 32)
    model.to_onnx(tmp_path / "model.onnx", dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    torch.testing.assert_close(run_onnx(tmp_path / "model.onnx", x), predicted(model, x), rtol=1e-6, atol=1e-6)


def test_onnx_program_is_returned_where_no_file_is_named() -> None:
    pytest.importorskip("onnx")
    program = Example().to_onnx()
    assert [value.name for value in program.model.graph.inputs] == ["x"]


def test_onnx_without_an_input() -> None:
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match=r"Net.to_onnx needs an input of forward. Pass input_sample=..."):
        Net().to_onnx()


@pytest.mark.parametrize(("package", "dynamo"), [("onnx", False), ("onnxscript", True)])
def test_onnx_names_the_extra(package: str, dynamo: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulgur.export.find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(MissingExtraError, match=rf"needs the package '{package}'.*fulgur\[onnx\]"):
        LightningModule().to_onnx(dynamo=dynamo)


# -------------------------------------------------------------------------------------------------------- safetensors


def test_safetensors_load_back_and_predict_the_same(tmp_path: Path) -> None:
    model = train(Example(width=5))
    model.to_safetensors(tmp_path / "model.safetensors")
    loaded = Example.load_from_checkpoint(tmp_path / "model.safetensors")
    x = model.example_input_array
    assert loaded.hparams == {"width": 5}
    assert torch.equal(predicted(loaded, x), predicted(model, x))


def test_safetensors_are_what_the_package_reads(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = Example()
    model.to_safetensors(tmp_path / "model.safetensors")
    weights = safetensors.load_file(tmp_path / "model.safetensors")
    assert weights.keys() == model.state_dict().keys()
    other = Example()
    other.load_state_dict(weights)
    assert torch.equal(other.tied.weight, model.head.weight)
    assert other.tied.weight is other.head.weight


def test_safetensors_are_a_checkpoint_for_an_evaluation(tmp_path: Path) -> None:
    model = Example()
    model.to_safetensors(tmp_path / "model.safetensors")
    other = Example()
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", limit_test_batches=1)
    trainer.test(other, ckpt_path=tmp_path / "model.safetensors", verbose=False)
    assert torch.equal(other.head.weight, model.head.weight)


def test_safetensors_hold_tensors_only(tmp_path: Path) -> None:
    class WithState(Net):
        def get_extra_state(self) -> str:
            return "x"

        def set_extra_state(self, state: str) -> None: ...

    with pytest.raises(CheckpointError, match=r"safetensors holds tensors only, and these weights are none: \['_extra"):
        WithState().to_safetensors(tmp_path / "model.safetensors")


def test_safetensors_have_their_own_ending(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"to_safetensors\(.*model.pt'\): a file of this format ends in '.safetensors'"
    ):
        Net().to_safetensors(tmp_path / "model.pt")


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(CheckpointError, match="cannot be read: it is damaged"):
        Example.load_from_checkpoint(tmp_path / "model.safetensors")
