"""What fit, validate, test and predict take and give: models, sources of batches, checkpoints, results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import QUIET, Bare, Net, numbers, quiet
from torch import nn

from fulgur import Callback, LightningDataModule, LightningModule, Trainer
from fulgur.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from fulgur.errors import MisconfigurationException


class Data(LightningDataModule):
    """Loaders whose samples tell the stage: 0, 10, 20 and 30 and up."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.calls.append(f"setup {stage}")

    def teardown(self, stage: str) -> None:
        self.calls.append(f"teardown {stage}")

    def train_dataloader(self) -> Any:
        return [torch.full((1, 2), 0.0)]

    def val_dataloader(self) -> Any:
        return [torch.full((1, 2), 10.0)]

    def test_dataloader(self) -> Any:
        return [torch.full((1, 2), 20.0)]

    def predict_dataloader(self) -> Any:
        return [torch.full((1, 2), 30.0)]


ALL_FROM_DATA = {"train": [[0]], "validation": [[10]], "test": [[20]], "predict": [[30]]}


def run_all(trainer: Trainer, model: LightningModule, *args: Any, **kwargs: Any) -> None:
    trainer.fit(model, *args, **kwargs)
    trainer.validate(model, *args, verbose=False, **kwargs)
    trainer.test(model, *args, verbose=False, **kwargs)
    trainer.predict(model, *args, **kwargs)


# ------------------------------------------------------------------------------------------------- sources of batches


def test_datamodule_by_its_own_name_gives_every_loader() -> None:
    model, data = Net(), Data()
    trainer = quiet(max_epochs=1, limit_val_batches=1)
    trainer.fit(model, datamodule=data)
    assert {stage: seen for stage, seen in model.seen.items() if seen} == {"train": [[0]], "validation": [[10]]}


def test_datamodule_may_stand_in_the_place_of_loaders() -> None:
    model = Net()
    run_all(quiet(max_epochs=1), model, Data())
    assert model.seen == {**ALL_FROM_DATA, "validation": [[10], [10]]}


def test_loaders_and_datamodule_together_are_an_error() -> None:
    trainer = quiet(max_epochs=1)
    with pytest.raises(MisconfigurationException, match=r"Both train_dataloaders and a datamodule \(Data\)"):
        trainer.fit(Net(), numbers(1), datamodule=Data())
    with pytest.raises(MisconfigurationException, match="Both val_dataloaders and a datamodule"):
        trainer.fit(Net(), val_dataloaders=numbers(1), datamodule=Data())
    for run in (trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(MisconfigurationException, match="Both dataloaders and a datamodule"):
            run(Net(), numbers(1), datamodule=Data())


def test_datamodule_in_both_places_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match="datamodule"):
        quiet(max_epochs=1).fit(Net(), Data(), datamodule=Data())


def test_datamodule_wins_over_the_loaders_of_the_module() -> None:
    class Own(Net):
        def train_dataloader(self) -> Any:
            return numbers(3)

    model = Own()
    quiet(max_epochs=1).fit(model, datamodule=Data())
    assert model.seen["train"] == [[0]]


def test_loaders_passed_win_over_those_of_the_module() -> None:
    class Own(Net):
        def train_dataloader(self) -> Any:
            raise AssertionError

        val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    model = Own()
    trainer = quiet(max_epochs=1)
    trainer.fit(model, numbers(1), numbers(1))
    trainer.predict(model, numbers(2))
    assert model.seen["predict"] == [[0], [1]]


def test_bare_evaluations_after_fit_use_its_model_and_datamodule() -> None:
    model, trainer = Net(), quiet(max_epochs=1)
    trainer.fit(model, datamodule=Data())
    trainer.validate(verbose=False)
    trainer.test(verbose=False)
    trainer.predict()
    assert model.seen == {**ALL_FROM_DATA, "validation": [[10], [10]]}


def test_attached_datamodule_is_set_up_again_by_later_calls() -> None:
    data, trainer = Data(), quiet(max_epochs=1)
    trainer.fit(Net(), datamodule=data)
    data.calls.clear()
    trainer.test(verbose=False)
    assert data.calls == ["prepare_data", "setup test", "teardown test"]


def test_earlier_datamodule_gives_no_loader_to_a_call_that_passes_some() -> None:
    trainer, model = quiet(max_epochs=1), Net()
    trainer.fit(Net(), datamodule=Data())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, numbers(1))
    assert model.seen["validation"] == []


def test_missing_loader_is_an_error_that_tells_where_one_could_come_from() -> None:
    class Little(LightningDataModule):
        pass

    trainer = quiet(max_epochs=1)
    with pytest.raises(MisconfigurationException, match="train_dataloader must be implemented by Net"):
        trainer.fit(Net())
    with pytest.raises(MisconfigurationException, match="val_dataloader must be implemented"):
        trainer.validate(Net())
    with pytest.raises(MisconfigurationException, match="test_dataloader must be implemented"):
        trainer.test(Net(), datamodule=Little())
    with pytest.raises(MisconfigurationException, match="predict_dataloader must be implemented"):
        trainer.predict(Net())


@pytest.mark.parametrize("loader", [3, object(), numbers])
def test_loader_that_cannot_be_iterated_over_is_a_type_error(loader: Any) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        quiet(max_epochs=1).fit(Net(), loader)


def test_fit_needs_no_validation_step_to_have_a_validation_loader() -> None:
    class Half(Bare):
        def train_dataloader(self) -> Any:
            return numbers(2)

        def val_dataloader(self) -> Any:
            raise AssertionError("nobody asks for it")

    trainer = quiet(max_epochs=1, num_sanity_val_steps=2)
    trainer.fit(Half())
    assert (trainer.global_step, trainer.enable_validation, trainer.num_val_batches) == (2, False, [])


def test_fit_needs_no_validation_loader_to_have_a_validation_step() -> None:
    trainer = quiet(max_epochs=1, num_sanity_val_steps=2)
    trainer.fit(Net(), numbers(2))
    assert (trainer.global_step, trainer.enable_validation) == (2, False)


def test_names_of_1x_for_loaders_are_accepted() -> None:
    model, trainer = Net(), quiet(max_epochs=1)
    trainer.fit(model, train_dataloader=numbers(1), val_dataloaders=numbers(2))
    trainer.validate(model, val_dataloaders=numbers(1), verbose=False)
    trainer.test(model, test_dataloaders=numbers(1), verbose=False)
    assert {stage: len(seen) for stage, seen in model.seen.items()} == {
        "train": 1,
        "validation": 3,
        "test": 1,
        "predict": 0,
    }


# -------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("model", [nn.Linear(1, 1), "model", Net])
def test_model_that_is_no_lightning_module_is_a_type_error(model: Any) -> None:
    trainer = quiet(max_epochs=1)
    for run in (trainer.fit, trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(TypeError, match="needs a LightningModule"):
            run(model, numbers(1))


def test_evaluation_without_any_model_is_a_type_error() -> None:
    trainer = quiet()
    for run in (trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(TypeError, match="without a model"):
            run(dataloaders=numbers(1))


def test_datamodule_that_is_none_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="is no LightningDataModule"):
        quiet(max_epochs=1).fit(Net(), datamodule=numbers(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(("entry", "step"), [("validate", "validation_step"), ("test", "test_step")])
def test_evaluation_without_its_step_is_an_error(entry: str, step: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"Bare has no {step}"):
        getattr(quiet(), entry)(Bare(), numbers(1))


def test_predict_without_a_step_calls_the_model() -> None:
    model = Bare()
    predictions = quiet().predict(model, numbers(2))
    expected = [model(torch.full((1, 2), float(index))).detach() for index in range(2)]
    assert [torch.equal(a, b) for a, b in zip(predictions or [], expected, strict=True)] == [True, True]


# ------------------------------------------------------------------------------------------------------------- results


def test_validate_and_test_return_what_was_logged_for_each_loader() -> None:
    class Logs(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("mean", batch.mean())
            self.log("hidden", 1.0, logger=False)

        def on_validation_epoch_end(self) -> None:
            self.log("end", 5.0)

    one = quiet().validate(Logs(), numbers(3), verbose=False)
    two = quiet().validate(Logs(), [numbers(3), numbers(1)], verbose=False)
    assert one == [{"mean": 1.0, "end": 5.0}]
    assert two == [{"mean/dataloader_idx_0": 1.0, "end": 5.0}, {"mean/dataloader_idx_1": 0.0, "end": 5.0}]
    assert type(one[0]["mean"]) is float


def test_results_are_printed_as_a_table_only_when_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    quiet().test(Net(), numbers(3), verbose=False)
    assert capsys.readouterr().out == ""
    quiet().test(Net(), numbers(3))
    printed = capsys.readouterr().out
    assert "Test metric" in printed
    assert "DataLoader 0" in printed
    quiet().validate(Net(), numbers(3))
    assert "Validate metric" in capsys.readouterr().out


def test_predict_returns_a_list_over_batches_or_over_loaders() -> None:
    class Echo(Net):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return (int(batch[0, 0]), batch_idx, dataloader_idx)

    assert quiet().predict(Echo(), numbers(2)) == [(0, 0, 0), (1, 1, 0)]
    assert quiet().predict(Echo(), [numbers(2), numbers(1)]) == [[(0, 0, 0), (1, 1, 0)], [(0, 0, 1)]]


def test_predict_keeps_nothing_when_told_so() -> None:
    trainer, model = quiet(), Net()
    assert trainer.predict(model, numbers(2), return_predictions=False) is None
    assert model.seen["predict"] == [[0], [1]]
    assert trainer.predict_loop.predictions == []


def test_predict_keeps_the_samples_that_a_loader_would_drop() -> None:
    model = Net()
    quiet().predict(model, torch.utils.data.DataLoader(numbers(5).dataset, batch_size=2, drop_last=True))
    assert model.seen["predict"] == [[0, 1], [2, 3], [4]]


# --------------------------------------------------------------------------------------------------------- checkpoints


class Steps(Net):
    """Its weight counts the training steps; what is tested tells which weights were loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.layer.weight.data.zero_()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return -self.layer.weight.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", abs(self.layer.weight.mean() - 2.0))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("steps", self.layer.weight.mean())

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer.weight.mean().item()


def trained(tmp_path: Path, **kwargs: Any) -> tuple[Trainer, Steps]:
    """Four epochs of one step; the best score is that of the second."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="score", save_last=True, **kwargs)
    trainer = quiet(max_epochs=4, callbacks=[checkpoint], enable_checkpointing=None)
    model = Steps()
    trainer.fit(model, numbers(1), numbers(1))
    return trainer, model


def steps_of_test(trainer: Trainer, *args: Any, **kwargs: Any) -> float:
    return trainer.test(*args, dataloaders=numbers(1), verbose=False, **kwargs)[0]["steps"]


def test_bare_test_loads_the_best_checkpoint_without_a_warning(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path)
    assert steps_of_test(trainer) == 2.0
    assert trainer.ckpt_path == str(tmp_path / "epoch=1-step=2.ckpt")


def test_model_passed_is_tested_as_it_is(tmp_path: Path) -> None:
    trainer, model = trained(tmp_path)
    assert steps_of_test(trainer, model) == 4.0
    assert trainer.ckpt_path is None


def test_bare_evaluation_without_checkpoints_takes_the_weights_as_they_are() -> None:
    trainer = quiet(max_epochs=3)
    trainer.fit(Steps(), numbers(1), numbers(1))
    assert steps_of_test(trainer) == 3.0
    assert trainer.validate(dataloaders=numbers(1), verbose=False) == [{"score": 1.0}]
    assert trainer.predict(dataloaders=numbers(1)) == [3.0]


def test_every_evaluation_takes_best_last_and_a_path(tmp_path: Path) -> None:
    trainer, model = trained(tmp_path, save_top_k=-1)
    assert steps_of_test(trainer, model, ckpt_path="best") == 2.0
    assert steps_of_test(trainer, model, ckpt_path="last") == 4.0
    assert steps_of_test(trainer, model, ckpt_path=tmp_path / "epoch=0-step=1.ckpt") == 1.0
    assert trainer.predict(model, numbers(1), ckpt_path=str(tmp_path / "epoch=2-step=3.ckpt")) == [3.0]
    assert trainer.validate(model, numbers(1), ckpt_path="best", verbose=False) == [{"score": 0.0}]


def test_last_is_the_newest_of_the_last_checkpoints(tmp_path: Path) -> None:
    trainer, model = trained(tmp_path)
    os.utime(tmp_path / "last.ckpt", (1, 1))
    trainer.save_checkpoint(tmp_path / "last-v1.ckpt")
    os.rename(tmp_path / "epoch=1-step=2.ckpt", tmp_path / "last-v2.ckpt")
    os.utime(tmp_path / "last-v2.ckpt", (2, 2))
    assert steps_of_test(trainer, model, ckpt_path="last") == 4.0


def test_last_without_any_file_warns_and_loads_nothing() -> None:
    trainer = quiet(max_epochs=1)
    with pytest.warns(UserWarning, match="no last checkpoint was found"):
        trainer.fit(Steps(), numbers(1), ckpt_path="last")
    assert trainer.global_step == 1


def test_best_without_a_checkpoint_callback_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no ModelCheckpoint"):
        quiet().test(Steps(), numbers(1), ckpt_path="best")


def test_best_before_anything_was_saved_is_an_error(tmp_path: Path) -> None:
    trainer = quiet(callbacks=[ModelCheckpoint(tmp_path)], enable_checkpointing=None)
    with pytest.raises(ValueError, match="no checkpoint has been saved yet"):
        trainer.test(Steps(), numbers(1), ckpt_path="best")


def test_path_without_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        quiet(max_epochs=1).fit(Steps(), numbers(1), ckpt_path=tmp_path / "nowhere.ckpt")


def test_ckpt_path_set_on_the_trainer_is_loaded_by_every_call_until_none(tmp_path: Path) -> None:
    trainer, model = trained(tmp_path, save_top_k=-1)
    trainer.ckpt_path = str(tmp_path / "epoch=0-step=1.ckpt")
    assert [steps_of_test(trainer, model), steps_of_test(trainer)] == [1.0, 1.0]
    trainer.ckpt_path = None
    trainer.fit_loop.max_epochs = 5
    trainer.fit(model, numbers(1), numbers(1))
    assert (steps_of_test(trainer, model), trainer.ckpt_path) == (2.0, None)


def test_ckpt_path_of_a_call_clears_that_of_the_trainer_with_a_warning(tmp_path: Path) -> None:
    trainer, model = trained(tmp_path, save_top_k=-1)
    trainer.ckpt_path = str(tmp_path / "epoch=0-step=1.ckpt")
    with pytest.warns(UserWarning, match="takes the place of"):
        assert steps_of_test(trainer, model, ckpt_path="last") == 4.0
    assert steps_of_test(trainer) == 2.0


def test_resume_from_checkpoint_of_1x_is_for_fit_only(tmp_path: Path) -> None:
    trained(tmp_path, save_top_k=-1)
    trainer = quiet(max_epochs=3, resume_from_checkpoint=str(tmp_path / "epoch=0-step=1.ckpt"))
    trainer.fit(Steps(), numbers(1), numbers(1))
    assert trainer.ckpt_path == str(tmp_path / "epoch=0-step=1.ckpt")
    assert steps_of_test(trainer) == 3.0


def test_fit_resumes_from_what_an_exception_left_and_a_clean_run_leaves_nothing(tmp_path: Path) -> None:
    class Fails(Steps):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 2:
                raise RuntimeError("power cut")
            return super().training_step(batch, batch_idx)

    def build() -> Trainer:
        return quiet(max_epochs=4, callbacks=[OnExceptionCheckpoint(tmp_path)], enable_checkpointing=None)

    with pytest.raises(RuntimeError, match="power cut"):
        build().fit(Fails(), numbers(1))
    assert (tmp_path / "on_exception.ckpt").exists()
    trainer, model = build(), Steps()
    trainer.fit(model, numbers(1))
    assert (trainer.global_step, model.layer.weight.mean().item()) == (4, 4.0)
    assert not (tmp_path / "on_exception.ckpt").exists()


def test_bare_run_needs_no_folder_of_its_own(tmp_path: Path) -> None:
    trainer = Trainer(**QUIET, max_epochs=1)
    trainer.fit(Net(), numbers(1))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- exceptions


def test_batch_of_a_step_that_failed_is_not_kept() -> None:
    class Failing(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("broken")

    trainer = quiet()
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(Failing(), numbers(4))
    assert trainer.metrics.batch is None


def test_teardown_that_fails_is_an_exception_of_the_run() -> None:
    seen: list[Any] = []

    class Fails(Callback):
        def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
            raise RuntimeError("cannot close")

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            seen.append(str(exception))

    trainer = quiet(max_epochs=1, callbacks=[Fails()])
    with pytest.raises(RuntimeError, match="cannot close"):
        trainer.fit(Bare(), numbers(1))
    assert seen == ["cannot close"]
    assert trainer.interrupted
