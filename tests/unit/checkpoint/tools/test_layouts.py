"""Earlier layouts, as real files of Lightning have them, in today's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.tools.layouts import progress_of, to_common, to_current
from fulgur.checkpoint.tools.source import open_file

DATA = Path(__file__).resolve().parents[3] / "compat" / "data"
FILES = sorted(f"{path.parent.name}/{path.name}" for path in DATA.glob("*/*.ckpt"))


def converted(file: str, tool: Any, tmp_path: Path) -> dict[str, Any]:
    assert tool("convert", DATA / file, tmp_path / "a.ckpt").code == 0
    content: dict[str, Any] = torch.load(tmp_path / "a.ckpt", weights_only=True)
    return content


@pytest.mark.parametrize("file", FILES)
def test_file_of_every_version_is_found_to_be_one_and_converted(file: str, tool: Any, tmp_path: Path) -> None:
    assert open_file(str(DATA / file)).kind == "lightning"
    content = converted(file, tool, tmp_path)
    assert content["fulgur"]["progress"] == progress_of(load_checkpoint(DATA / file)).state_dict()
    assert "epoch_loop.automatic_optimization.state_dict" in content["loops"]["fit_loop"]


@pytest.mark.parametrize("version", ["1.9.5", "2.6.6"])
def test_counters_within_an_epoch(version: str, tool: Any, tmp_path: Path) -> None:
    progress = converted(f"{version}/mid_epoch.ckpt", tool, tmp_path)["fulgur"]["progress"]
    assert (progress["epoch"], progress["batch"], progress["global_step"]) == (1, 3, 7)


@pytest.mark.parametrize("version", ["1.9.5", "2.6.6"])
@pytest.mark.parametrize(("file", "is_last"), [("mid_epoch", False), ("last_batch", True), ("mid_validation", False)])
def test_last_batch_of_an_epoch_stays_the_last(
    version: str, file: str, is_last: bool, tool: Any, tmp_path: Path
) -> None:
    loops = converted(f"{version}/{file}.ckpt", tool, tmp_path)["loops"]
    assert loops["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] is is_last


def test_version_it_was_is_noted(tool: Any, tmp_path: Path) -> None:
    content = converted("1.9.5/mid_epoch.ckpt", tool, tmp_path)
    assert content["legacy_pytorch-lightning_version"] == "1.9.5"
    assert content["pytorch-lightning_version"].startswith("2.")


def test_names_of_the_first_years() -> None:
    old = {
        "pytorch-lightning_version": "0.9.0",
        "epoch": 3,
        "global_step": 30,
        "state_dict": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams": {"lr": 0.1},
        "native_amp_scaling_state": {"scale": 1.0},
        "checkpoint_callback_best_model_path": "a.ckpt",
        "early_stop_callback_wait": 2,
    }
    current = to_current(old)
    assert current["hyper_parameters"] == {"lr": 0.1}
    assert current["MixedPrecision"] == {"scale": 1.0}
    assert current["callbacks"] == {
        "ModelCheckpoint": {"best_model_path": "a.ckpt"},
        "EarlyStopping": {"wait_count": 2},
    }
    assert not {"hparams", "native_amp_scaling_state", "early_stop_callback_wait"} & set(current)
    progress = progress_of(old)
    assert (progress.epoch, progress.global_step) == (3, 30)


def test_callback_classes_as_keys_become_names() -> None:
    class EarlyStopping:
        pass

    EarlyStopping.__qualname__ = "EarlyStopping"
    assert to_current({"callbacks": {EarlyStopping: {"wait": 1}}})["callbacks"] == {"EarlyStopping": {"wait": 1}}


def test_weights_only_file_stays_one() -> None:
    assert "callbacks" not in to_current({"state_dict": {}})


def test_tagged_values_get_common_forms() -> None:
    from fulgur.checkpoint.plain import to_plain

    value = {
        "path": Path("/a"),
        "dtype": torch.float16,
        "set": {1},
        "pairs": ((1, 2), [torch.device("cpu")]),
        "range": range(3),
    }
    assert to_common(to_plain(value, where="test")) == {
        "path": "/a",
        "dtype": torch.float16,
        "set": {1},
        "pairs": ((1, 2), [torch.device("cpu")]),
        "range": [0, 3, 1],
    }


def test_common_forms_are_read_without_running_anything(tmp_path: Path) -> None:
    value = to_common(
        {"a": {"__fulgur__": "torch.dtype", "value": "float16"}, "b": {"__fulgur__": "set", "value": [1]}}
    )
    torch.save(value, tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True) == {"a": torch.float16, "b": {1}}
