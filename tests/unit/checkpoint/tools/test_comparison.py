"""``diff``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from fulgur.checkpoint.tools.comparison import compare

INF, NAN = math.inf, math.nan


def test_same_content_has_no_differences() -> None:
    content = {"a": torch.tensor([1.0, NAN]), "b": [1, {"c": "x"}], "d": NAN, "e": {}}
    assert not any(compare(content, {**content, "a": content["a"].clone()}).values())


def test_keys_only_in_one() -> None:
    found = compare({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 2}, "e": []})
    assert (found["only_a"], found["only_b"]) == (["a", "b.d"], ["e"])


def test_values_that_differ() -> None:
    found = compare({"a": [1, 2], "b": True}, {"a": [1, 3], "b": 1})
    assert found["values"] == [{"name": "a[1]", "a": 2, "b": 3}, {"name": "b", "a": True, "b": 1}]


def test_largest_difference_of_tensors() -> None:
    found = compare({"a": torch.tensor([1.0, 2.0, 3.0])}, {"a": torch.tensor([1.0, 2.5, 2.0])})
    assert found["tensors"] == [{"name": "a", "max_abs_difference": 1.0, "n_different": 2, "n": 3}]


def test_tensor_larger_than_what_is_compared_at_a_time() -> None:
    a = torch.zeros(2**20 + 5)
    b = a.clone()
    b[3], b[-1] = 1.0, -2.0
    assert compare({"a": a}, {"a": b})["tensors"][0]["max_abs_difference"] == 2.0
    assert compare({"a": a}, {"a": b})["tensors"][0]["n_different"] == 2


@pytest.mark.parametrize(
    ("x", "y", "difference"),
    [(INF, INF, None), (INF, -INF, INF), (NAN, NAN, None), (0.0, -0.0, None), (1.0, INF, INF)],
)
def test_values_that_are_no_numbers(x: float, y: float, difference: float | None) -> None:
    found = compare({"a": torch.tensor([x])}, {"a": torch.tensor([y])})["tensors"]
    assert [entry["max_abs_difference"] for entry in found] == ([] if difference is None else [difference])


def test_nan_against_a_number_is_a_difference_of_any_size() -> None:
    found = compare({"a": torch.tensor([NAN, 1.0])}, {"a": torch.tensor([0.0, 1.0])}, tolerance=100.0)["tensors"]
    assert math.isnan(found[0]["max_abs_difference"])
    assert found[0]["n_different"] == 1


def test_shape_or_dtype_that_differs() -> None:
    found = compare({"a": torch.zeros(2), "b": torch.zeros(1)}, {"a": torch.zeros(3), "b": torch.zeros(1).half()})
    assert found["tensors"] == [
        {"name": "a", "a": "float32[2]", "b": "float32[3]"},
        {"name": "b", "a": "float32[1]", "b": "float16[1]"},
    ]


def test_integers_that_float64_cannot_tell_apart() -> None:
    large = 2**60
    assert compare({"a": torch.tensor([large])}, {"a": torch.tensor([large + 1])})["tensors"][0]["n_different"] == 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.complex64, torch.float8_e4m3fn])
def test_every_dtype(dtype: torch.dtype) -> None:
    x, y = torch.tensor([0.0, 1.0]).to(dtype), torch.tensor([1.0, 1.0]).to(dtype)
    assert not compare({"a": x}, {"a": x.clone()})["tensors"]
    assert compare({"a": x}, {"a": y})["tensors"][0]["max_abs_difference"] == 1.0


def test_sparse_tensors() -> None:
    x, y = torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()
    assert compare({"a": x}, {"a": y})["tensors"][0]["max_abs_difference"] == 1.0


def test_differences_within_the_tolerance_are_none() -> None:
    a, b = {"a": torch.tensor([1.0]), "b": 1.0}, {"a": torch.tensor([1.25]), "b": 1.25}
    assert not any(compare(a, b, tolerance=0.25).values())
    assert len(compare(a, b, tolerance=0.2)["values"]) == 1


def test_same_file_exits_with_0(run_dir: Path, tool: Any) -> None:
    said = tool("diff", run_dir / "last.ckpt", run_dir / "epoch=2.ckpt")
    assert said.code == 0
    assert "hold the same" in said.out


def test_weights_only(run_dir: Path, weights_only: Path, tool: Any) -> None:
    assert tool("diff", run_dir / "last.ckpt", weights_only).code == 1
    assert tool("diff", run_dir / "last.ckpt", weights_only, "--weights-only").code == 0


def test_counters_of_the_other_layout_are_shown_on_demand(run_dir: Path, tool: Any) -> None:
    words = ("diff", run_dir / "epoch=0.ckpt", run_dir / "epoch=1.ckpt")
    assert "loops.fit_loop" not in tool(*words).out
    assert "loops.fit_loop.epoch_progress" in tool(*words, "--all").out


def test_json_has_no_words_for_infinity(tmp_path: Path, tool: Any) -> None:
    for name, value in (("a", INF), ("b", -INF)):
        torch.save({"state_dict": {"w": torch.tensor([value])}}, tmp_path / name)
    said = tool("diff", tmp_path / "a", tmp_path / "b", "--json")
    assert said.data["tensors"][0]["max_abs_difference"] == "inf"


@pytest.mark.parametrize("command", ["diff", "convert", "average"])
def test_damaged_file_is_refused_by_its_checksum_as_by_verify(command: str, run_dir: Path, tool: Any) -> None:
    path = run_dir / "epoch=1.ckpt"
    content = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["state_dict"]["into.weight"]
    content[content.index(weight.numpy().tobytes())] ^= 1
    path.write_bytes(content)
    reason = tool("verify", path, "--json").data["files"][0]["reason"]
    assert "its checksum is" in reason
    words = {"diff": (), "convert": ("--to", "lightning"), "average": ("-o", run_dir / "mean.ckpt")}[command]
    others = (run_dir / "out.ckpt",) if command == "convert" else (run_dir / "epoch=2.ckpt",)
    said = tool(command, path, *others, *words)
    assert said.code == 2
    assert reason in said.err
    assert not (run_dir / "out.ckpt").exists()


def test_damaged_file_of_a_store_is_refused_by_its_checksum(run_dir: Path, store: str, tool: Any) -> None:
    content = bytearray((run_dir / "epoch=1.ckpt").read_bytes())
    weight = torch.load(run_dir / "epoch=1.ckpt", weights_only=True)["state_dict"]["into.weight"]
    content[content.index(weight.numpy().tobytes())] ^= 1
    with fsspec.open(f"{store}/a.ckpt", "wb") as file:
        file.write(bytes(content))
    said = tool("diff", f"{store}/a.ckpt", run_dir / "epoch=2.ckpt")
    assert (said.code, "its checksum is" in said.err) == (2, True)
