"""Runs of W&B, offline, with their files read back."""

from __future__ import annotations

import importlib.util
import json
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur.callbacks import GradientMonitor
from fulgur.errors import MisconfigurationException, MissingExtraError
from fulgur.loggers import WandbLogger
from fulgur.rank import rank_zero_only
from fulgur.testing import BoringModel

wandb = pytest.importorskip("wandb")
pytestmark = pytest.mark.usefixtures("_no_network")

_BLOCK = 32768


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    yield
    wandb.finish()
    wandb.teardown()


def records(folder: Path, run_id: str = "*") -> list[Any]:
    """Everything in the files of the runs: logs of LevelDB that hold messages of protobuf."""
    from wandb.proto import wandb_internal_pb2

    wandb.finish()
    wandb.teardown()  # what the service has not written yet
    found = []
    for path in sorted(folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb")):
        data, position, parts = path.read_bytes(), 7, b""
        while position + 7 <= len(data):
            if _BLOCK - position % _BLOCK < 7:
                position += _BLOCK - position % _BLOCK
                continue
            _, length, kind = struct.unpack_from("<IHB", data, position)
            parts += data[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # whole, or the last part
                record = wandb_internal_pb2.Record()
                record.ParseFromString(parts)
                found.append(record)
                parts = b""
    return found


def rows(found: list[Any]) -> list[dict[str, Any]]:
    """The history, without what W&B adds."""
    all_rows = []
    for record in found:
        if record.HasField("history"):
            row: dict[str, Any] = {}
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                inner = row
                for name in outer:
                    inner = inner.setdefault(name, {})
                inner[last] = json.loads(item.value_json)
            all_rows.append({name: value for name, value in row.items() if not name.startswith("_")})
    return all_rows


def config(found: list[Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for record in found:
        update = record.config.update if record.HasField("config") else record.run.config.update
        merged |= {item.key: json.loads(item.value_json) for item in update if not item.key.startswith("_")}
    return merged


def test_a_run_is_in_the_files(tmp_path: Path, fit: Any) -> None:
    logger = WandbLogger("first", tmp_path / "logs", version="abc", project="digits", offline=True)
    fit(logger)
    found = records(tmp_path / "logs")
    assert rows(found) == [{"loss": float(i), "epoch": 0, "trainer/global_step": i} for i in range(3)]
    assert config(found) == {"width": 3}
    run = next(record.run for record in found if record.HasField("run"))
    assert (run.run_id, run.display_name, run.project) == ("abc", "first", "digits")


def test_axis_of_all_charts_is_the_logger_step(tmp_path: Path) -> None:
    WandbLogger(save_dir=tmp_path, offline=True).log_metrics({"x": 1.0}, step=3)
    metrics = [record.metric for record in records(tmp_path) if record.HasField("metric")]
    assert [(m.name or m.glob_name, m.step_metric) for m in metrics] == [
        ("trainer/global_step", ""),
        ("*", "trainer/global_step"),
    ]


def test_nothing_is_begun_before_it_is_needed(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    assert (logger.name, logger.version, logger.save_dir) == ("lightning_logs", None, str(tmp_path))
    logger.finalize("success")
    logger.after_save_checkpoint(BoringModel())  # type: ignore[arg-type]
    assert wandb.run is None
    assert list(tmp_path.iterdir()) == []


def test_project_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "from-env")
    assert WandbLogger().name == "from-env"
    assert WandbLogger(project="own").name == "own"


def test_older_names_of_arguments(tmp_path: Path) -> None:
    logger = WandbLogger(dir=tmp_path, id="abc")
    assert (logger.save_dir, logger.version) == (str(tmp_path), "abc")


def test_prefix_is_put_before_names(tmp_path: Path) -> None:
    WandbLogger(save_dir=tmp_path, offline=True, prefix="a").log_metrics({"x": 1.0}, step=5)
    assert rows(records(tmp_path)) == [{"a-x": 1.0, "trainer/global_step": 5}]


def test_hyperparameters_become_plain_data(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    logger.log_hyperparams({"net": {"width": 3}, "dtype": torch.float16, "path": Path("x")})
    logger.log_hyperparams({"lr": 0.1})
    assert config(records(tmp_path)) == {"net": {"width": 3}, "dtype": "torch.float16", "path": "x", "lr": 0.1}


def test_only_rank_zero_begins_a_run(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    rank_zero_only.rank = 1
    try:
        logger.log_metrics({"x": 1.0}, step=0)
        logger.log_hyperparams({"lr": 0.1})
        logger.log_text("t", ["a"], [["b"]])
        logger.watch(BoringModel())
        logger.experiment.anything()
    finally:
        rank_zero_only.rank = None
    assert wandb.run is None


def test_tables_and_texts(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    logger.log_text("texts", ["in", "out"], [["a", "b"]], step=2)
    row = rows(records(tmp_path))[0]
    file = next(tmp_path.glob("wandb/offline-run-*/files")) / row["texts"]["path"]
    table = json.loads(file.read_text())
    assert (table["columns"], table["data"]) == (["in", "out"], [["a", "b"]])
    assert row["trainer/global_step"] == 2


def test_images_with_captions(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    logger.log_image("inputs", [torch.zeros(3, 4, 5), torch.ones(3, 4, 5)], caption=["black", "white"])
    row = rows(records(tmp_path))[0]["inputs"]
    assert (row["count"], row["width"], row["height"], row["captions"]) == (2, 5, 4, ["black", "white"])


def test_a_list_of_captions_of_another_length(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    with pytest.raises(ValueError, match=r"caption=\['a'\] must be a list with one value for each of the 2 items"):
        logger.log_image("inputs", [torch.zeros(3, 4, 4)] * 2, caption=["a"])


def test_one_image_in_the_place_of_a_list(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"log_image\(images=...\) takes a list, and got a Tensor"):
        WandbLogger(save_dir=tmp_path, offline=True).log_image("inputs", torch.zeros(3, 4, 4))  # type: ignore[arg-type]


def test_watched_gradients_are_there(tmp_path: Path, fit: Any) -> None:
    logger, model = WandbLogger(save_dir=tmp_path, offline=True), BoringModel()
    logger.watch(model, log_freq=1, log_graph=False)
    fit(logger, model)
    logger.unwatch(model)
    print(rows(records(tmp_path)))
    assert any("gradients/layer.weight" in row for row in rows(records(tmp_path)))


def test_histograms_of_gradients_are_there(tmp_path: Path, fit: Any) -> None:
    fit(WandbLogger(save_dir=tmp_path, offline=True), callbacks=[GradientMonitor(histograms=True)])
    found = [row["grad/layer"] for row in rows(records(tmp_path)) if "grad/layer" in row]
    assert [sum(histogram["values"]) for histogram in found] == [66.0] * 3


def artifacts(found: list[Any]) -> list[Any]:
    sent = [r.artifact for r in found if r.HasField("artifact")]
    return sent + [r.request.log_artifact.artifact for r in found if r.request.HasField("log_artifact")]


def run_of(tmp_path: Path) -> Any:
    return wandb.init(mode="offline", dir=tmp_path, id="abc", project="p")


def test_each_checkpoint_is_an_artifact(tmp_path: Path, saved: Any) -> None:
    logger = WandbLogger(experiment=run_of(tmp_path), log_model="all")
    logger.after_save_checkpoint(saved)
    logger.after_save_checkpoint(saved)
    logger.finalize("success")
    found = artifacts(records(tmp_path))
    assert [(a.name, a.type, set(a.aliases)) for a in found] == [
        ("model-abc", "model", {"latest", "best"}),
        ("model-abc", "model", {"latest"}),
    ]
    about = [json.loads(a.metadata) for a in found]
    assert [(m["score"], m["original_filename"]) for m in about] == [(0.5, "best.ckpt"), (0.75, "last.ckpt")]
    assert about[0]["SimpleNamespace"] == {"monitor": "loss", "mode": "min", "save_top_k": 2}


@pytest.mark.parametrize(("status", "number"), [("success", 2), ("failed", 0)])
def test_checkpoints_at_the_end_of_a_run(status: str, number: int, tmp_path: Path, saved: Any) -> None:
    logger = WandbLogger(experiment=run_of(tmp_path), log_model=True, checkpoint_name="net")
    logger.after_save_checkpoint(saved)
    logger.finalize(status)
    assert [a.name for a in artifacts(records(tmp_path))] == ["net"] * number


def test_a_run_that_is_there_is_gone_on_with(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    with pytest.warns(UserWarning, match="goes on with the run 'abc', which is there already"):
        assert logger.experiment is run
    assert logger.version == "abc"


def test_auto_goes_on_with_the_same_run(tmp_path: Path, fit: Any) -> None:
    from fulgur import Trainer

    first = WandbLogger(save_dir=tmp_path, project="p", offline=True)
    fit(first, enable_checkpointing=True)
    wandb.finish()
    second = WandbLogger(save_dir=tmp_path, project="p", offline=True)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(logger=second, max_epochs=2, limit_train_batches=3, limit_val_batches=0, **quiet)
    trainer.fit(BoringModel(), ckpt_path="auto")
    assert first.version == second.version is not None
    assert trainer.global_step == 6


def test_a_pickled_logger_goes_on_with_its_run(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    logger.log_metrics({"x": 1.0})
    run_id = logger.version
    wandb.finish()
    copy = pickle.loads(pickle.dumps(logger))
    assert copy.version == run_id
    copy.log_metrics({"x": 2.0})
    assert copy.experiment.id == run_id


def test_uploads_offline_are_refused() -> None:
    with pytest.raises(
        MisconfigurationException, match=r"offline=True, log_model='all'\): checkpoints cannot be uploaded"
    ):
        WandbLogger(offline=True, log_model="all")


def test_other_values_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="log_model='best': use True"):
        WandbLogger(log_model="best")  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match="add_file_policy='x': use 'mutable' or 'immutable'"):
        WandbLogger(add_file_policy="x")  # type: ignore[arg-type]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("fulgur.loggers.wandb.find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(MissingExtraError, match=r"WandbLogger needs the package 'wandb'.*fulgur\[wandb\]"):
        WandbLogger()
