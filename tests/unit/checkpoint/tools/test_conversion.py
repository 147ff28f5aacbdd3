"""``convert``: what comes out loads, resumes, and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fulgur.checkpoint.tools.comparison import compare
from fulgur.checkpoint.write import write_checkpoint


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def weights_after(workshop: Any, path: Path) -> dict[str, Tensor]:
    """Weights of the run resumed from `path`, after one epoch more."""
    torch.manual_seed(7)
    module = workshop.Net()
    workshop.trainer(max_epochs=4).fit(module, workshop.loader(), workshop.loader(), ckpt_path=path)
    return dict(module.state_dict())


@pytest.fixture
def lightning_file(run_dir: Path, tool: Any) -> Path:
    """A checkpoint in Lightning's form."""
    path = run_dir.parent / "lightning.ckpt"
    assert tool("convert", run_dir / "last.ckpt", path, "--to", "lightning").code == 0
    return path


class TestFromFulgurToLightning:
    def test_has_the_keys_that_lightning_reads_and_no_other(self, lightning_file: Path) -> None:
        assert set(read(lightning_file)) == {
            "epoch",
            "global_step",
            "pytorch-lightning_version",
            "state_dict",
            "loops",
            "callbacks",
            "optimizer_states",
            "lr_schedulers",
            "hparams_name",
            "hyper_parameters",
        }

    def test_hyperparameters_get_the_nearest_common_form(self, lightning_file: Path) -> None:
        assert read(lightning_file)["hyper_parameters"] == {"width": 4, "root": "/data", "betas": (0.9, 0.99)}

    def test_weights_optimizers_and_counters_stay_as_they_are(self, lightning_file: Path, run_dir: Path) -> None:
        before, after = read(run_dir / "last.ckpt"), read(lightning_file)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step"):
            assert not any(compare({key: before[key]}, {key: after[key]}).values())

    def test_says_what_is_left_behind(self, run_dir: Path, tool: Any) -> None:
        said = tool("convert", run_dir / "last.ckpt", run_dir / "b.ckpt", "--to", "lightning", "--json")
        assert said.data["notes"] == ["Lightning has no place for the generators: they stay behind."]


class TestFromLightningToFulgur:
    def test_counters_come_back(self, lightning_file: Path, tool: Any, tmp_path: Path) -> None:
        assert tool("convert", lightning_file, tmp_path / "back.ckpt").code == 0
        progress = read(tmp_path / "back.ckpt")["fulgur"]["progress"]
        assert (progress["epoch"], progress["batches_total"], progress["global_step"]) == (3, 12, 12)

    def test_training_goes_on_from_it_as_from_the_first_file(
        self, lightning_file: Path, run_dir: Path, workshop: Any, tool: Any, tmp_path: Path
    ) -> None:
        tool("convert", lightning_file, tmp_path / "back.ckpt")
        first, back = (weights_after(workshop, path) for path in (run_dir / "last.ckpt", tmp_path / "back.ckpt"))
        assert not any(compare(first, back).values())

    def test_is_refused_for_a_file_of_fulgur(self, run_dir: Path, tool: Any) -> None:
        said = tool("convert", run_dir / "last.ckpt", run_dir / "b.ckpt")
        assert said.code == 2
        assert "is a fulgur checkpoint already. Use --to lightning or --to safetensors." in said.err


class TestSafetensors:
    @pytest.fixture
    def exported(self, run_dir: Path, tool: Any) -> Path:
        path = run_dir.parent / "net.safetensors"
        assert tool("convert", run_dir / "last.ckpt", path).code == 0
        return path

    def test_holds_every_weight_tied_ones_too(self, exported: Path, run_dir: Path) -> None:
        assert not any(compare(load_file(exported), dict(read(run_dir / "last.ckpt")["state_dict"])).values())

    def test_keeps_hyperparameters_and_counters_that_json_has_a_form_of(self, exported: Path) -> None:
        with safe_open(exported, framework="pt") as file:
            metadata = file.metadata()
        assert metadata["format"] == "pt"
        assert (metadata["epoch"], metadata["global_step"]) == ("2", "12")
        assert '"width": 4' in metadata["hyper_parameters"]

    def test_names_hyperparameters_that_it_leaves_out(self, run_dir: Path, tool: Any) -> None:
        said = tool("convert", run_dir / "last.ckpt", run_dir / "b.safetensors", "--json")
        assert said.data["notes"] == ["Left out, for JSON has no form of them: the hyperparameters ['betas']."]

    def test_comes_back_as_a_checkpoint_that_makes_the_module(
        self, exported: Path, run_dir: Path, workshop: Any, tool: Any, tmp_path: Path
    ) -> None:
        assert tool("convert", exported, tmp_path / "back.ckpt").code == 0
        module = workshop.Net.load_from_checkpoint(tmp_path / "back.ckpt")
        assert (module.hparams.width, module.hparams.root) == (4, Path("/data"))
        assert not any(compare(dict(module.state_dict()), dict(read(run_dir / "last.ckpt")["state_dict"])).values())

    def test_of_another_program_becomes_a_checkpoint_that_can_be_tested(
        self, run_dir: Path, workshop: Any, tool: Any, tmp_path: Path
    ) -> None:
        weights = {name: tensor.clone() for name, tensor in read(run_dir / "last.ckpt")["state_dict"].items()}
        save_file(weights, tmp_path / "a.safetensors")
        assert tool("convert", tmp_path / "a.safetensors", tmp_path / "a.ckpt").code == 0
        module = workshop.Net()
        workshop.trainer().validate(module, workshop.loader(), ckpt_path=tmp_path / "a.ckpt", verbose=False)
        assert not any(compare(dict(module.state_dict()), weights).values())

    def test_output_of_another_name_is_refused(self, run_dir: Path, tool: Any) -> None:
        said = tool("convert", run_dir / "last.ckpt", run_dir / "b.ckpt", "--to", "safetensors")
        assert said.code == 2
        assert "end in .safetensors" in said.err

    def test_values_that_are_no_tensors_are_left_out_by_name(self, tmp_path: Path, tool: Any) -> None:
        write_checkpoint({"state_dict": {"w": torch.ones(1), "_extra_state": {"a": 1}}}, tmp_path / "a.ckpt")
        said = tool("convert", tmp_path / "a.ckpt", tmp_path / "a.safetensors", "--json")
        assert said.data["notes"] == ["Left out, for they are no tensors: ['_extra_state']."]
        assert set(load_file(tmp_path / "a.safetensors")) == {"w"}

    def test_missing_package_names_the_extra(self, run_dir: Path, tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
        said = tool("convert", run_dir / "last.ckpt", run_dir / "b.safetensors")
        assert said.code == 2
        assert "fulgur[safetensors]" in said.err

    def test_damaged_file_is_named(self, exported: Path, tool: Any, tmp_path: Path) -> None:
        exported.write_bytes(exported.read_bytes()[:200])
        said = tool("convert", exported, tmp_path / "a.ckpt")
        assert said.code == 2
        assert "net.safetensors' cannot be read" in said.err


def test_bare_weights_become_a_checkpoint(run_dir: Path, workshop: Any, tool: Any, tmp_path: Path) -> None:
    torch.save(read(run_dir / "last.ckpt")["state_dict"], tmp_path / "bare.pt")
    assert tool("convert", tmp_path / "bare.pt", tmp_path / "a.ckpt").code == 0
    module = workshop.Net.load_from_checkpoint(tmp_path / "a.ckpt")
    assert not any(compare(dict(module.state_dict()), dict(read(run_dir / "last.ckpt")["state_dict"])).values())


def test_file_without_weights_is_refused(tmp_path: Path, tool: Any) -> None:
    torch.save({"a": 1}, tmp_path / "a.pt")
    said = tool("convert", tmp_path / "a.pt", tmp_path / "a.ckpt")
    assert said.code == 2
    assert "has no 'state_dict'" in said.err
    assert not (tmp_path / "a.ckpt").exists()


def test_from_a_store_to_a_store(store: str, run_dir: Path, tool: Any) -> None:
    write_checkpoint(read(run_dir / "last.ckpt"), f"{store}/a.ckpt")
    assert tool("convert", f"{store}/a.ckpt", f"{store}/deep/a.safetensors").code == 0
    assert tool("convert", f"{store}/deep/a.safetensors", f"{store}/b.ckpt").code == 0
    assert tool("diff", f"{store}/a.ckpt", f"{store}/b.ckpt", "--weights-only").code == 0


def test_line_says_what_it_was_made_from(run_dir: Path, tool: Any) -> None:
    path, weights = run_dir / "epoch=2.ckpt", run_dir / "a.safetensors"
    assert tool("convert", path, weights).out.splitlines()[0] == f"{weights}: safetensors, from a fulgur checkpoint."
    back = run_dir / "back.ckpt"
    assert tool("convert", weights, back).out.splitlines()[0] == f"{back}: fulgur, from weights in safetensors."
