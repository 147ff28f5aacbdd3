"""What changes a whole run: overfitting on purpose, quick tries, barebones, gradients, determinism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import Bare, Net, Stream, letters, numbers, quiet
from torch.utils.data import DataLoader

from fulgur import Callback, Trainer
from fulgur.callbacks import EarlyStopping, ModelCheckpoint
from fulgur.loggers import CSVLogger

# ---------------------------------------------------------------------------------------------------- overfit_batches


def test_overfit_batches_trains_on_the_same_first_batches_in_order() -> None:
    model = Net()
    quiet(max_epochs=2, overfit_batches=2).fit(model, numbers(8, shuffle=True), numbers(5))
    assert model.seen["train"] == [[0], [1]] * 2


def test_overfit_batches_validates_on_the_validation_loader_limited_too() -> None:
    class Distinct(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.seen["validation"].append(batch.shape[0])

    model = Distinct()
    quiet(max_epochs=2, overfit_batches=2).fit(model, numbers(8), numbers(5, batch_size=3, shuffle=True))
    assert model.seen["validation"] == [3, 3] * 2


def test_overfit_batches_as_a_fraction_of_each_loader() -> None:
    trainer = quiet(max_epochs=1, overfit_batches=0.5)
    trainer.fit(Net(), numbers(8), numbers(4))
    assert (trainer.num_training_batches, trainer.num_val_batches) == (4, [2])


def test_overfit_batches_leaves_the_users_loader_as_it_is() -> None:
    loader = numbers(8, shuffle=True)
    sampler = loader.sampler
    quiet(max_epochs=1, overfit_batches=2).fit(Net(), loader)
    assert loader.sampler is sampler


def test_overfit_batches_takes_a_stream_as_it_comes() -> None:
    model = Net()
    quiet(max_epochs=2, overfit_batches=2).fit(model, DataLoader(Stream(5), batch_size=1))
    assert model.seen["train"] == [[0], [1]] * 2


# ------------------------------------------------------------------------------------------------------- fast_dev_run


@pytest.mark.parametrize(("n_batches", "expected"), [(True, "<tVE>"), (1, "<tVE>"), (2, "<ttVE>")])
def test_fast_dev_run_goes_through_everything_once(n_batches: int, expected: str) -> None:
    arguments: dict[str, Any] = {"num_sanity_val_steps": 2, "max_epochs": 5, "val_check_interval": 0.1}
    assert letters(Net(), numbers(4), numbers(4), fast_dev_run=n_batches, **arguments) == expected


def test_fast_dev_run_limits_every_entry_point() -> None:
    model, trainer = Net(), quiet(fast_dev_run=2)
    trainer.fit(model, numbers(4), numbers(4))
    trainer.test(model, numbers(4), verbose=False)
    trainer.predict(model, numbers(4))
    assert {stage: len(seen) for stage, seen in model.seen.items()} == dict.fromkeys(model.seen, 2)


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train", batch.mean())
            return super().training_step(batch, batch_idx)

    trainer = Trainer(
        accelerator="cpu",
        fast_dev_run=True,
        logger=CSVLogger(tmp_path / "logs"),
        callbacks=[ModelCheckpoint(tmp_path / "files", save_last=True)],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Logs(), numbers(2), numbers(2))
    trainer.test(Logs(), numbers(2), verbose=False)
    assert list(tmp_path.rglob("*")) == []
    assert trainer.log_dir is None


def test_fast_dev_run_does_not_look_for_the_metric_of_early_stopping() -> None:
    quiet(fast_dev_run=True, callbacks=[EarlyStopping("never_logged")]).fit(Bare(), numbers(2))


def test_fast_dev_run_has_no_best_checkpoint() -> None:
    trainer = quiet(fast_dev_run=True)
    trainer.fit(Net(), numbers(2), numbers(2))
    with pytest.raises(ValueError, match="ckpt_path='best'"):
        trainer.test(ckpt_path="best", dataloaders=numbers(1))


# ---------------------------------------------------------------------------------------------------------- barebones


def test_barebones_trains_without_anything_around(tmp_path: Path) -> None:
    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train", batch.mean())
            self.log_dict({"a": 1.0})
            return super().training_step(batch, batch_idx)

    trainer = Trainer(accelerator="cpu", barebones=True, max_epochs=1)
    model = Logs()
    trainer.fit(model, numbers(2), numbers(3))
    assert (trainer.callbacks, trainer.loggers, trainer.num_sanity_val_steps) == ([], [], 0)
    assert (trainer.callback_metrics, trainer.log_every_n_steps) == ({}, 0)
    assert {stage: len(seen) for stage, seen in model.seen.items() if seen} == {"train": 2, "validation": 3}
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- gradients


class Modes(Net):
    """Notes under which gradient mode each step runs."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: dict[str, str] = {}

    def note(self, step: str) -> None:
        inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        self.modes[step] = "inference" if inference else "grad" if grad else "no_grad"

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("training_step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note("sanity_check" if self.trainer.sanity_checking else "validation_step")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.note("test_step")

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        self.note("predict_step")


def test_validation_in_fit_runs_under_no_grad() -> None:
    model = Modes()
    quiet(max_epochs=1, num_sanity_val_steps=1).fit(model, numbers(1), numbers(1))
    expected = {"training_step": "grad", "sanity_check": "no_grad", "validation_step": "no_grad"}
    assert model.modes == expected


@pytest.mark.parametrize(("inference_mode", "expected"), [(True, "inference"), (False, "no_grad")])
def test_evaluations_run_under_inference_mode_unless_told_otherwise(inference_mode: bool, expected: str) -> None:
    model, trainer = Modes(), quiet(inference_mode=inference_mode)
    trainer.validate(model, numbers(1), verbose=False)
    trainer.test(model, numbers(1), verbose=False)
    trainer.predict(model, numbers(1))
    assert model.modes == dict.fromkeys(["validation_step", "test_step", "predict_step"], expected)
    assert torch.is_grad_enabled()


def test_gradients_are_on_again_after_an_evaluation_that_failed() -> None:
    class Fails(Net):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("no test today")

    with pytest.raises(RuntimeError, match="no test today"):
        quiet().test(Fails(), numbers(1))
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_detect_anomaly_is_on_around_fit_only() -> None:
    found: dict[str, bool] = {}

    class Look(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            found["fit"] = torch.is_anomaly_enabled()

        def on_test_batch_end(self, *args: Any) -> None:
            found["test"] = torch.is_anomaly_enabled()

    model, trainer = Net(), quiet(max_epochs=1, detect_anomaly=True, callbacks=[Look()])
    trainer.fit(model, numbers(1))
    trainer.test(model, numbers(1), verbose=False)
    assert found == {"fit": True, "test": False}
    assert not torch.is_anomaly_enabled()


def test_detect_anomaly_finds_the_operation_that_made_a_nan() -> None:
    class Nan(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return torch.sqrt(self(batch).sum() * 0 - 1)

    with pytest.warns(UserWarning, match="SqrtBackward0"), pytest.raises(RuntimeError, match="SqrtBackward0"):
        quiet(max_epochs=1, detect_anomaly=True).fit(Nan(), numbers(1))


# ---------------------------------------------------------------------------------------------------- torch's switches


class Switches(Callback):
    """Notes torch's switches in a training batch."""

    def __init__(self) -> None:
        self.found: dict[str, bool] = {}

    def on_train_batch_end(self, *args: Any) -> None:
        self.found = {
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
            "benchmark": torch.backends.cudnn.benchmark,
        }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"deterministic": True}, {"deterministic": True, "warn_only": False, "benchmark": False}),
        ({"deterministic": "warn"}, {"deterministic": True, "warn_only": True, "benchmark": False}),
        ({"benchmark": True}, {"deterministic": False, "warn_only": False, "benchmark": True}),
        ({}, {"deterministic": False, "warn_only": False, "benchmark": False}),
    ],
)
def test_determinism_holds_during_the_run_and_is_put_back(
    arguments: dict[str, Any], expected: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    switches = Switches()
    trainer = quiet(max_epochs=1, callbacks=[switches], **arguments)
    trainer.fit(Bare(), numbers(1))
    assert switches.found == expected
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark


def test_determinism_that_the_user_switched_on_stays_on() -> None:
    torch.use_deterministic_algorithms(True)
    switches = Switches()
    quiet(max_epochs=1, callbacks=[switches]).fit(Bare(), numbers(1))
    assert switches.found["deterministic"]
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)


def test_determinism_is_put_back_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("stop")

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with pytest.raises(RuntimeError, match="stop"):
        quiet(max_epochs=1, deterministic=True).fit(Fails(), numbers(1))
    assert not torch.are_deterministic_algorithms_enabled()
