"""``average``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fulgur.checkpoint.write import write_checkpoint


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


@pytest.fixture
def files(run_dir: Path) -> list[Path]:
    return [run_dir / f"epoch={epoch}.ckpt" for epoch in range(3)]


@pytest.fixture
def mean(files: list[Path], tool: Any, tmp_path: Path) -> Path:
    assert tool("average", *files, "-o", tmp_path / "mean.ckpt").code == 0
    return tmp_path / "mean.ckpt"


def test_mean_of_floating_weights(files: list[Path], mean: Path) -> None:
    weights = [read(file)["state_dict"]["into.weight"].double() for file in files]
    assert torch.equal(read(mean)["state_dict"]["into.weight"], ((weights[0] + weights[1] + weights[2]) / 3).float())


def test_weights_that_are_no_floats_are_the_last_files(files: list[Path], mean: Path) -> None:
    counts = [int(read(file)["state_dict"]["norm.num_batches_tracked"]) for file in files]
    assert counts == [4, 8, 12]
    assert int(read(mean)["state_dict"]["norm.num_batches_tracked"]) == 12


def test_sum_is_rounded_once_in_half_precision(tmp_path: Path, tool: Any) -> None:
    for name, value in (("a", 1.0), ("b", 2048.0), ("c", 1.0), ("d", 1.0)):
        write_checkpoint({"state_dict": {"w": torch.tensor([value], dtype=torch.float16)}}, tmp_path / name)
    assert tool("average", *(tmp_path / name for name in "abcd"), "-o", tmp_path / "mean").code == 0
    mean = read(tmp_path / "mean")["state_dict"]["w"]
    assert (mean.dtype, mean.item()) == (torch.float16, torch.tensor(2051 / 4).half().item())


def test_tied_weights_stay_tied(mean: Path) -> None:
    weights = read(mean)["state_dict"]
    assert weights["tied.weight"].data_ptr() == weights["out.weight"].data_ptr()


def test_what_only_resuming_needs_is_dropped(mean: Path, files: list[Path]) -> None:
    content = read(mean)
    assert not {"optimizer_states", "lr_schedulers", "callbacks"} & set(content)
    assert not {"rng", "running"} & set(content["fulgur"])
    assert content["fulgur"]["averaged"] == [str(file) for file in files]


def test_mean_makes_the_module_and_can_be_validated(mean: Path, workshop: Any) -> None:
    module = workshop.Net.load_from_checkpoint(mean)
    assert module.hparams.root == Path("/data")
    assert workshop.trainer().validate(module, workshop.loader(), ckpt_path=mean, verbose=False)


def test_training_does_not_resume_from_a_mean(mean: Path, workshop: Any) -> None:
    with pytest.raises(KeyError, match="no optimizer states"):
        workshop.trainer().fit(workshop.Net(), workshop.loader(), workshop.loader(), ckpt_path=mean)


def test_mean_verifies(mean: Path, tool: Any) -> None:
    assert tool("verify", mean, "--json").data["files"][0]["verdict"] == "good"


def test_output_may_be_one_of_the_files(files: list[Path], mean: Path, tool: Any) -> None:
    assert tool("average", *files, "-o", files[2]).code == 0
    assert tool("diff", mean, files[2], "--weights-only").code == 0


def test_safetensors(tmp_path: Path, tool: Any) -> None:
    for name, value in (("a", 1.0), ("b", 3.0)):
        save_file({"w": torch.tensor([value])}, tmp_path / f"{name}.safetensors")
    words = (tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", tmp_path / "c.safetensors")
    assert tool("average", *words).code == 0
    assert load_file(tmp_path / "c.safetensors")["w"].item() == 2.0


def test_bare_weights_stay_bare(tmp_path: Path, tool: Any) -> None:
    for name, value in (("a", 1.0), ("b", 3.0)):
        torch.save({"w": torch.tensor([value])}, tmp_path / name)
    assert tool("average", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c").code == 0
    assert read(tmp_path / "c") == {"w": torch.tensor([2.0])}


def test_other_weights_are_named(tmp_path: Path, tool: Any) -> None:
    write_checkpoint({"state_dict": {"w": torch.zeros(1), "v": torch.zeros(1)}}, tmp_path / "a.ckpt")
    write_checkpoint({"state_dict": {"w": torch.zeros(1)}}, tmp_path / "b.ckpt")
    said = tool("average", tmp_path / "a.ckpt", tmp_path / "b.ckpt", "-o", tmp_path / "c.ckpt")
    assert said.code == 2
    assert f"The weight 'v' is in '{tmp_path}/a.ckpt' and not in '{tmp_path}/b.ckpt'" in said.err
    assert not (tmp_path / "c.ckpt").exists()


def test_other_shapes_are_named(tmp_path: Path, tool: Any) -> None:
    for size in (1, 2):
        write_checkpoint({"state_dict": {"w": torch.zeros(size)}}, tmp_path / f"{size}.ckpt")
    said = tool("average", tmp_path / "1.ckpt", tmp_path / "2.ckpt", "-o", tmp_path / "c.ckpt")
    assert said.code == 2
    assert "'w' is float32[1]" in said.err


def test_one_file_has_no_mean(run_dir: Path, tool: Any) -> None:
    said = tool("average", run_dir / "last.ckpt", "-o", "a.ckpt")
    assert said.code == 2
    assert "two files or more" in said.err
