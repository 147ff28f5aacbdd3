"""Runs of MLflow in a local database, read back with its own client."""

from __future__ import annotations

import importlib.util
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur import Trainer
from fulgur.errors import MisconfigurationException, MissingExtraError
from fulgur.loggers import MLFlowLogger
from fulgur.rank import rank_zero_only
from fulgur.testing import BoringModel, run_ranks

pytestmark = [
    pytest.mark.usefixtures("_no_network", "_database"),
    # not imported here: that would be before the logger has turned telemetry off
    pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow"),
]

QUIET: dict[str, Any] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "limit_val_batches": 0,
    "log_every_n_steps": 1,
}


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is made once: it takes seconds."""
    folder = tmp_path_factory.mktemp("made") / "mlruns"
    assert MLFlowLogger("made", save_dir=folder).name is not None
    return folder / "mlflow.db"


@pytest.fixture
def _database(database: Path, tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    shutil.copy(database, tmp_path / "mlruns")


def client(tmp_path: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")


def only_run(tmp_path: Path) -> Any:
    found = client(tmp_path)
    (run,) = found.search_runs([e.experiment_id for e in found.search_experiments()])
    return run


def history(tmp_path: Path, name: str) -> list[tuple[int, float]]:
    run_id = only_run(tmp_path).info.run_id
    return sorted((point.step, point.value) for point in client(tmp_path).get_metric_history(run_id, name))


def test_a_run_is_in_the_store(tmp_path: Path, fit: Any) -> None:
    logger = MLFlowLogger("digits", run_name="first", tags={"team": "a"})
    fit(logger)
    run = only_run(tmp_path)
    assert history(tmp_path, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert run.data.params == {"width": "3"}
    assert (run.data.tags["mlflow.runName"], run.data.tags["team"]) == ("first", "a")
    assert run.info.status == "FINISHED"
    assert client(tmp_path).get_experiment(run.info.experiment_id).name == "digits"
    assert (logger.name, logger.version) == (run.info.experiment_id, run.info.run_id)


def test_files_lie_in_save_dir(tmp_path: Path, fit: Any) -> None:
    logger = MLFlowLogger("digits", save_dir=tmp_path / "mlruns")
    trainer = fit(logger)
    assert logger.save_dir == str(tmp_path / "mlruns")
    expected = tmp_path / "mlruns" / logger.name / logger.version / "checkpoints"
    assert Path(trainer.checkpoint_callback.best_model_path).parent == expected
    logger.experiment.log_text(logger.run_id, "done", "note.txt")
    assert [path.read_text() for path in (tmp_path / "mlruns" / "artifacts").rglob("note.txt")] == ["done"]


def test_nothing_is_begun_before_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    logger = MLFlowLogger(save_dir=tmp_path / "new" / "mlruns")
    assert logger.version is None
    logger.finalize("success")
    assert logger.position() == {}
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "save_dir"), [("http://127.0.0.1:9", None), ("file:/a/b", "/a/b"), ("file:///a/b", "/a/b")]
)
def test_address_of_the_store(uri: str, save_dir: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MLFlowLogger(tracking_uri=uri).save_dir == save_dir
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert MLFlowLogger().save_dir == save_dir


def test_a_file_store_that_is_there_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    store = MlflowClient(f"file:{tmp_path / 'files'}")
    experiment = store.create_experiment("digits")
    logger = MLFlowLogger("digits", save_dir=tmp_path / "files")
    logger.log_metrics({"x": 1.5}, step=2)
    assert logger.name == experiment
    assert [(m.step, m.value) for m in store.get_metric_history(logger.version, "x")] == [(2, 1.5)]


def test_names_lose_what_mlflow_has_not_got(tmp_path: Path) -> None:
    logger = MLFlowLogger(prefix="a")
    with pytest.warns(UserWarning, match=r"'a-acc@1' is logged as 'a-acc1'"):
        logger.log_metrics({"acc@1": 0.5}, step=0)
    logger.log_metrics({"acc@1": 0.75}, step=1)
    assert history(tmp_path, "a-acc1") == [(0, 0.5), (1, 0.75)]


def test_parameters_are_flat_and_short_and_any_number(tmp_path: Path) -> None:
    many = {f"p{i}": i for i in range(150)}
    MLFlowLogger().log_hyperparams({"net": {"width": 3}, "text": "x" * 300, **many})
    params = only_run(tmp_path).data.params
    assert (params["net/width"], params["text"], len(params)) == ("3", "x" * 250, 152)


def test_a_parameter_that_changes_keeps_its_value(tmp_path: Path) -> None:
    logger = MLFlowLogger()
    logger.log_hyperparams({"lr": 0.1})
    logger.log_hyperparams({"lr": 0.1})
    with pytest.warns(UserWarning, match=r"logged with {'lr': '0.1'}, which MLflow does not change to {'lr': '0.2'}"):
        logger.log_hyperparams({"lr": 0.2, "new": 1})
    assert only_run(tmp_path).data.params == {"lr": "0.1", "new": "1"}


@pytest.mark.parametrize(("status", "there"), [("success", "FINISHED"), ("failed", "FAILED"), ("finished", "FINISHED")])
def test_how_a_run_ended(status: str, there: str, tmp_path: Path) -> None:
    logger = MLFlowLogger()
    logger.log_metrics({"x": 1.0})
    assert only_run(tmp_path).info.status == "RUNNING"
    logger.finalize(status)
    assert only_run(tmp_path).info.status == there


def test_a_failing_run_is_noted(tmp_path: Path, fit: Any) -> None:
    class Failing(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise KeyError("x")

    with pytest.raises(KeyError):
        fit(MLFlowLogger(), Failing())
    assert only_run(tmp_path).info.status == "FAILED"


def test_a_run_is_gone_on_with_by_its_id(tmp_path: Path) -> None:
    first = MLFlowLogger("digits")
    first.log_metrics({"x": 1.0}, step=0)
    second = MLFlowLogger("other", run_id=first.version)
    second.log_metrics({"x": 2.0}, step=1)
    assert history(tmp_path, "x") == [(0, 1.0), (1, 2.0)]
    assert second.name == first.name


def test_auto_goes_on_with_the_same_run(tmp_path: Path, fit: Any) -> None:
    fit(MLFlowLogger("digits"))
    trainer = Trainer(logger=MLFlowLogger("digits"), max_epochs=2, limit_train_batches=3, **QUIET)
    trainer.fit(BoringModel(), ckpt_path="auto")
    assert trainer.global_step == 6
    assert only_run(tmp_path).info.status == "FINISHED"


def test_a_pickled_logger_goes_on_with_its_run(tmp_path: Path) -> None:
    logger = MLFlowLogger()
    logger.log_metrics({"x": 1.0}, step=0)
    pickle.loads(pickle.dumps(logger)).log_metrics({"x": 2.0}, step=1)
    assert history(tmp_path, "x") == [(0, 1.0), (1, 2.0)]


def uploaded(tmp_path: Path) -> dict[str, str]:
    root = next((tmp_path / "mlruns" / "artifacts").rglob("checkpoints"))
    return {
        str(path.relative_to(root)): "" if path.suffix == ".ckpt" else path.read_text() for path in root.rglob("*.*")
    }


def test_each_checkpoint_is_an_artifact(tmp_path: Path, saved: Any) -> None:
    logger = MLFlowLogger(log_model="all")
    logger.after_save_checkpoint(saved)
    found = uploaded(tmp_path)
    assert sorted(found) == sorted(
        f"{name}/{file}" for name in ("best", "last") for file in (f"{name}.ckpt", "metadata.yaml", "aliases.txt")
    )
    assert found["best/aliases.txt"] == "['latest', 'best']"
    assert found["last/aliases.txt"] == "['latest']"
    assert "score: 0.5" in found["best/metadata.yaml"]


def test_checkpoints_of_a_run_at_its_end(tmp_path: Path, fit: Any) -> None:
    logger = MLFlowLogger(log_model=True)
    trainer = fit(logger)
    name = Path(trainer.checkpoint_callback.best_model_path).stem
    assert f"{name}/{name}.ckpt" in uploaded(tmp_path)


def test_a_directory_is_uploaded_whole(tmp_path: Path, saved: Any) -> None:
    folder = tmp_path / "shards.ckpt"
    folder.mkdir()
    torch.save({}, folder / "meta.pt")
    saved.best_model_path, saved.best_k_models = str(folder), {str(folder): torch.tensor(0.5)}
    MLFlowLogger(log_model="all").after_save_checkpoint(saved)
    assert [path.name for path in (tmp_path / "mlruns" / "artifacts").rglob("*.pt")] == ["meta.pt"]


def test_only_rank_zero_begins_a_run(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    logger = MLFlowLogger(save_dir=tmp_path / "new" / "mlruns")
    rank_zero_only.rank = 1
    try:
        logger.log_metrics({"x": 1.0}, step=0)
        logger.log_hyperparams({"lr": 0.1})
        logger.finalize("success")
        assert (logger.name, logger.version) == (None, None)
    finally:
        rank_zero_only.rank = None
    assert list((tmp_path / "new").iterdir()) == []


def on_two_ranks(folder: str) -> tuple[str, str]:
    trainer = Trainer(
        logger=MLFlowLogger("digits", save_dir=f"{folder}/mlruns"),
        max_epochs=1,
        limit_train_batches=2,
        devices=2,
        strategy="ddp",
        **QUIET,
    )
    trainer.fit(BoringModel())
    return str(trainer.checkpoint_callback.best_model_path), str(trainer.log_dir)  # type: ignore[union-attr]


def test_two_ranks_have_one_run_and_one_directory(tmp_path: Path) -> None:
    (first, log_dir), (second, other) = run_ranks(on_two_ranks, 2, str(tmp_path))
    assert first == second
    assert log_dir == other
    assert Path(first).is_relative_to(tmp_path / "mlruns")
    assert only_run(tmp_path).info.status == "FINISHED"


def test_other_values_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="log_model='best': use True"):
        MLFlowLogger(log_model="best")  # type: ignore[arg-type]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("fulgur.loggers.mlflow.find_spec", lambda name: None if name == "mlflow" else find(name))
    with pytest.raises(MissingExtraError, match=r"MLFlowLogger needs the package 'mlflow'.*fulgur\[mlflow\]"):
        MLFlowLogger()
