"""``inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fulgur.checkpoint.tools.inspection import describe, stored_bytes
from fulgur.checkpoint.tools.source import open_file
from fulgur.checkpoint.write import write_checkpoint


@pytest.fixture
def described(run_dir: Path) -> dict[str, Any]:
    return describe(open_file(str(run_dir / "last.ckpt"), shapes_only=True))


def test_kind_and_size(described: dict[str, Any], run_dir: Path) -> None:
    assert described["kind"] == "fulgur"
    assert described["size_bytes"] == (run_dir / "epoch=2.ckpt").stat().st_size


def test_counters(described: dict[str, Any]) -> None:
    counters = described["counters"]
    assert (counters["epoch"], counters["batch"], counters["global_step"]) == (2, 4, 12)


def test_versions(described: dict[str, Any]) -> None:
    assert described["versions"] == {"pytorch-lightning_version": "2.6.0", "fulgur format": 1}


def test_tensors_with_shape_dtype_and_size(described: dict[str, Any]) -> None:
    entry = {"name": "into.weight", "shape": [4, 3], "dtype": "float32", "size_bytes": 48}
    assert described["tensors"][0] == entry
    assert described["weights"]["dtypes"] == {"float32": 10, "int64": 1}


def test_tied_weights_are_counted_once_in_the_size(described: dict[str, Any]) -> None:
    once = (12 + 4 + 12 + 3 + 4 * 3) * 4 + 8
    assert described["weights"]["size_bytes"] == once


def test_hyperparameters_are_readable(described: dict[str, Any]) -> None:
    assert described["hyper_parameters"]["hyper_parameters"] == {"width": 4, "root": "/data", "betas": [0.9, 0.99]}


def test_scores_of_callbacks_are_numbers(described: dict[str, Any]) -> None:
    state = described["callbacks"]["EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}"]
    assert state["best_score"] == -12.0


def test_optimizers_with_options_and_what_they_keep(described: dict[str, Any]) -> None:
    (optimizer,) = described["optimizers"]
    assert optimizer["state"] == ["exp_avg", "exp_avg_sq", "step"]
    assert (optimizer["groups"][0]["params"], optimizer["groups"][0]["betas"]) == (6, [0.9, 0.99])


def test_says_whether_training_can_resume(described: dict[str, Any], weights_only: Path) -> None:
    assert described["resume"].startswith("exact")
    assert describe(open_file(str(weights_only)))["resume"].startswith("weights only")


def test_tensors_stay_on_the_disk(tmp_path: Path, tool: Any) -> None:
    path = tmp_path / "large.ckpt"
    write_checkpoint({"state_dict": {"a": torch.arange(100_000.0)}}, path)
    content = bytearray(path.read_bytes())
    at = content.index(torch.tensor([90_000.0, 90_001.0]).numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    assert tool("verify", path).code == 1
    assert tool("inspect", path, "--json").data["tensors"][0]["shape"] == [100_000]


def test_bare_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    described = describe(open_file(str(tmp_path / "a.pt")))
    assert (described["kind"], described["weights"]["elements"]) == ("weights", 2)


def test_file_of_torch_save_that_is_no_checkpoint(tmp_path: Path, tool: Any) -> None:
    torch.save({"a": 1, "b": [torch.zeros(2)]}, tmp_path / "a.pt")
    said = tool("inspect", tmp_path / "a.pt", "--json")
    assert said.data["kind"] == "other"
    assert said.data["keys"][1] == {"key": "b", "holds": "list of 1", "tensors": 1, "size_bytes": 8}


def test_safetensors_without_reading_them(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3, dtype=torch.bfloat16)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    opened = open_file(str(tmp_path / "a.safetensors"), shapes_only=True)
    assert opened.content["state_dict"]["a"].is_meta
    described = describe(opened)
    assert described["tensors"] == [{"name": "a", "shape": [2, 3], "dtype": "bfloat16", "size_bytes": 12}]
    assert described["metadata"] == {"format": "pt"}


def test_remote_file(store: str, run_dir: Path) -> None:
    write_checkpoint(torch.load(run_dir / "last.ckpt", weights_only=True), f"{store}/a.ckpt")
    opened = open_file(f"{store}/a.ckpt", shapes_only=True)
    assert opened.content["state_dict"]["into.weight"].is_meta
    assert describe(opened)["tensors"][0]["shape"] == [4, 3]


def test_long_list_of_weights_is_cut_unless_all_is_said(tmp_path: Path, tool: Any) -> None:
    write_checkpoint({"state_dict": {f"w{i}": torch.zeros(1) for i in range(50)}}, tmp_path / "a.ckpt")
    assert "... and 20 more: --all shows them" in tool("inspect", tmp_path / "a.ckpt").out
    assert " w49 " in tool("inspect", tmp_path / "a.ckpt", "--all").out


def test_lines_fit_a_terminal_of_80_columns(run_dir: Path, tool: Any) -> None:
    path = run_dir / "epoch=2.ckpt"
    shown = tool("inspect", path).out.splitlines()[1:]  # the first one names the file
    assert [line for line in shown if len(line) > 80] == []
    assert any(len(line) > 80 for line in tool("inspect", path, "--all").out.splitlines())


def test_options_of_an_optimizer_have_a_line_each(run_dir: Path, tool: Any) -> None:
    shown = [" ".join(line.split()) for line in tool("inspect", run_dir / "last.ckpt").out.splitlines()]
    at = shown.index("Optimizer 0")
    for line in ("groups 1", "betas [0.9, 0.99]", "params 6", "state of each exp_avg, exp_avg_sq, step"):
        assert line in shown[at:]


def test_options_in_which_groups_differ_are_shown_for_each(tmp_path: Path, tool: Any) -> None:
    groups = [{"lr": 0.1, "momentum": 0.9, "params": [0]}, {"lr": 0.2, "momentum": 0.9, "params": [1]}]
    write_checkpoint({"state_dict": {}, "optimizer_states": [{"state": {}, "param_groups": groups}]}, tmp_path / "a")
    shown = [" ".join(line.split()) for line in tool("inspect", tmp_path / "a").out.splitlines()]
    assert {"groups 2", "lr [0.1, 0.2]", "momentum 0.9"} <= set(shown)


def test_long_value_shows_both_of_its_ends(tmp_path: Path, tool: Any) -> None:
    path = "/home/somebody/" + "very_long_name/" * 5 + "epoch=3.ckpt"
    write_checkpoint({"state_dict": {}, "hyper_parameters": {"init_from": path}}, tmp_path / "a")
    shown = tool("inspect", tmp_path / "a").out
    assert path not in shown
    assert "/home/somebody/" in shown
    assert "epoch=3.ckpt" in shown
    assert path in tool("inspect", tmp_path / "a", "--all").out


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path, tool: Any) -> None:
    write_checkpoint({"state_dict": {"[bold]w[/bold]": torch.zeros(1)}}, tmp_path / "a.ckpt")
    assert "[bold]w[/bold]" in tool("inspect", tmp_path / "a.ckpt").out


def test_view_takes_its_whole_memory_in_a_file() -> None:
    assert stored_bytes([torch.zeros(100)[:2]]) == 400


def test_sparse_tensor_takes_values_and_indices() -> None:
    assert stored_bytes([torch.eye(2).to_sparse()]) == 2 * 4 + 2 * 2 * 8
