"""Precisions: names, formats of weights and contexts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fulgur.errors import MisconfigurationException
from fulgur.precision import DoublePrecision, FullPrecision, HalfPrecision, MixedPrecision, Precision, build_precision
from fulgur.precision.precision import DefaultDtype


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


@pytest.mark.parametrize(
    ("alias", "name", "kind"),
    [
        (None, "32-true", FullPrecision),
        (32, "32-true", FullPrecision),
        ("32", "32-true", FullPrecision),
        ("32-true", "32-true", FullPrecision),
        (64, "64-true", DoublePrecision),
        ("64", "64-true", DoublePrecision),
        ("64-true", "64-true", DoublePrecision),
        ("16-true", "16-true", HalfPrecision),
        ("bf16-true", "bf16-true", HalfPrecision),
        ("bf16", "bf16-mixed", MixedPrecision),
        ("bf16-mixed", "bf16-mixed", MixedPrecision),
    ],
)
def test_every_name_builds_its_precision(alias: Any, name: str, kind: type[Precision]) -> None:
    built = build_precision(alias, "cpu")
    assert built.name == name
    assert type(built) is kind


@pytest.mark.parametrize("name", [16, "16", "16-mixed"])
@pytest.mark.parametrize("device_type", ["cpu", "mps"])
def test_16_mixed_off_cuda_is_an_error_that_tells_the_way_out(name: Any, device_type: str) -> None:
    with pytest.raises(MisconfigurationException) as error:
        build_precision(name, device_type)
    assert str(error.value) == (
        f"precision='16-mixed' needs CUDA; this run uses {device_type}. "
        "Use precision='bf16-mixed', or accelerator='cuda'."
    )


@pytest.mark.parametrize("name", [8, "fp16", "", True, 16.0, "32-mixed"])
def test_unknown_name_is_an_error(name: Any) -> None:
    with pytest.raises(ValueError, match=r"precision=.* is unknown"):
        build_precision(name, "cpu")


def test_transformer_engine_is_refused_with_the_way_out() -> None:
    with pytest.raises(MisconfigurationException, match="Use precision='bf16-mixed'"):
        build_precision("transformer-engine", "cuda")


def test_double_on_mps_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match="float64, which the mps device lacks"):
        build_precision(64, "mps")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("32-true", torch.float32),
        ("64-true", torch.float64),
        ("16-true", torch.float16),
        ("bf16-true", torch.bfloat16),
        ("bf16-mixed", torch.float32),
    ],
)
def test_weights_get_their_format_and_integers_stay(name: str, dtype: torch.dtype) -> None:
    module = Mixed()
    assert build_precision(name, "cpu").convert_module(module) is module
    assert module.linear.weight.dtype == dtype
    assert module.count.dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "dtype"), [("64-true", torch.float64), ("16-true", torch.float16), ("bf16-true", torch.bfloat16)]
)
def test_true_precisions_cast_inputs_and_new_tensors(name: str, dtype: torch.dtype) -> None:
    precision = build_precision(name, "cpu")
    assert precision.input_dtype == dtype
    context = precision.step_context()
    assert context is not None
    for _ in range(2):
        with context:
            assert torch.zeros(1).dtype == dtype
        assert torch.zeros(1).dtype == torch.float32


def test_32_true_has_nothing_to_do() -> None:
    precision = build_precision(32, "cpu")
    assert precision.step_context() is None
    assert precision.input_dtype is None
    with precision.init_context():
        assert nn.Linear(1, 1).weight.dtype == torch.float32


def test_bf16_mixed_computes_in_bfloat16_each_time_it_is_entered() -> None:
    context = build_precision("bf16-mixed", "cpu").step_context()
    assert context is not None
    layer = nn.Linear(2, 2)
    for _ in range(2):
        with context:
            assert layer(torch.zeros(1, 2)).dtype == torch.bfloat16
        assert layer(torch.zeros(1, 2)).dtype == torch.float32


def test_bf16_mixed_keeps_the_gradient_of_a_weight_first_used_without_one() -> None:
    context = build_precision("bf16-mixed", "cpu").step_context()
    assert context is not None
    layer = nn.Linear(2, 2)
    with context:
        with torch.no_grad():
            layer(torch.ones(1, 2))
        loss = layer(torch.ones(1, 2)).sum()
    loss.backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("name", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_precisions_without_a_scaler_have_no_state(name: str) -> None:
    precision = build_precision(name, "cpu")
    assert precision.scaler is None
    assert precision.state_dict() == {}
    precision.load_state_dict({})


def test_init_context_builds_weights_in_their_format() -> None:
    with build_precision("bf16-true", "cpu").init_context():
        assert nn.Linear(1, 1).weight.dtype == torch.bfloat16


def test_default_dtype_can_be_entered_within_itself() -> None:
    context = DefaultDtype(torch.float64)
    with context:
        with context:
            pass
        assert torch.get_default_dtype() == torch.float64
    assert torch.get_default_dtype() == torch.float32


def test_default_dtype_comes_back_after_an_error() -> None:
    with pytest.raises(KeyError), DefaultDtype(torch.float64):
        raise KeyError
    assert torch.get_default_dtype() == torch.float32


def test_scaler_with_bfloat16_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match="takes no scaler"):
        MixedPrecision("bf16-mixed", "cpu", torch.amp.GradScaler("cpu"))


def test_16_mixed_saves_and_loads_its_scaler() -> None:
    precision = MixedPrecision("16-mixed", "cuda", torch.amp.GradScaler("cpu", init_scale=8.0))
    state = precision.state_dict()
    other = MixedPrecision("16-mixed", "cuda", torch.amp.GradScaler("cpu"))
    other.load_state_dict(state)
    assert other.scaler is not None
    assert other.scaler.get_scale() == 8.0


@pytest.mark.gpu
def test_16_mixed_computes_in_float16_and_scales() -> None:
    precision = build_precision(16, "cuda")
    assert precision.scaler is not None
    assert precision.scaler.is_enabled()
    context = precision.step_context()
    assert context is not None
    with context:
        assert nn.Linear(2, 2, device="cuda")(torch.zeros(1, 2, device="cuda")).dtype == torch.float16
