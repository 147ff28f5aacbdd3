"""ModelCheckpoint in real fits: when it saves, under which names, what it keeps."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur import Callback
from fulgur.callbacks import ModelCheckpoint
from fulgur.errors import MisconfigurationException, PossibleUserWarning


def names(folder: Any) -> list[str]:
    """Files below `folder`, oldest epoch first."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


class Saves(Callback):
    """Notes the files that are there after every batch, validation and epoch."""

    is_monitor = True

    def __init__(self, folder: Any) -> None:
        self.folder = folder
        self.seen: list[tuple[str, list[str]]] = []

    def note(self, where: str) -> None:
        found = names(self.folder)
        if not self.seen or self.seen[-1][1] != found:
            self.seen.append((where, found))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.note(f"before batch {trainer.global_step}")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.note("end")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "saved"


@pytest.fixture
def fit(tiny: Any, make_trainer: Any, loader: Any, folder: Path) -> Any:
    """Fits with a ModelCheckpoint; gives back the callback and the Trainer."""

    def run(
        scores: tuple[float, ...] = (0.0,),
        *,
        n_train: int = 2,
        n_val: int | None = 1,
        trainer: dict[str, Any] | None = None,
        module: Any = None,
        ckpt_path: Any = None,
        **options: Any,
    ) -> tuple[ModelCheckpoint, Any]:
        saver = ModelCheckpoint(**({"dirpath": folder} | options))
        callbacks = [saver, *(trainer or {}).pop("callbacks", [])]
        runner = make_trainer(callbacks=callbacks, **({"max_epochs": 4} | (trainer or {})))
        loaders = (loader(n_train),) if n_val is None else (loader(n_train), loader(n_val))
        runner.fit(module if module is not None else tiny(*scores), *loaders, ckpt_path=ckpt_path)
        return saver, runner

    return run


# ----------------------------------------------------------------------------------------------------- when and where


def test_default_keeps_the_newest_epoch(fit: Any, folder: Path) -> None:
    saver, _ = fit()
    assert names(folder) == ["epoch=3-step=8.ckpt"]
    assert saver.best_model_path == str(folder / "epoch=3-step=8.ckpt")
    assert saver.best_model_score is None
    assert torch.load(saver.best_model_path, weights_only=True)["epoch"] == 3


def test_trainer_saves_without_being_asked(tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> None:
    trainer = make_trainer(max_epochs=2)
    trainer.fit(tiny(), loader(2))
    assert names(tmp_path) == ["checkpoints/epoch=1-step=4.ckpt"]


def test_trainer_told_not_to_save_does_not(tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> None:
    make_trainer(enable_checkpointing=False).fit(tiny(), loader(2))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "trainer", "expected"),
    [
        ({}, {"check_val_every_n_epoch": 2}, ["epoch=1-step=4.ckpt", "epoch=3-step=8.ckpt"]),
        (
            {},
            {"val_check_interval": 0.5, "max_epochs": 2},
            ["epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt", "epoch=1-step=3.ckpt", "epoch=1-step=4.ckpt"],
        ),
        ({"every_n_train_steps": 3}, {}, ["epoch=1-step=3.ckpt", "epoch=2-step=6.ckpt"]),
        ({"every_n_epochs": 2}, {}, ["epoch=1-step=4.ckpt", "epoch=3-step=8.ckpt"]),
        ({"every_n_epochs": 3}, {}, ["epoch=2-step=6.ckpt"]),
        ({"every_n_epochs": 0}, {}, []),
        ({}, {"max_steps": 3}, ["epoch=0-step=2.ckpt", "epoch=1-step=3.ckpt"]),
        ({}, {"fast_dev_run": 2}, []),
        ({}, {"limit_train_batches": 0}, []),
        ({}, {"limit_val_batches": 0, "max_epochs": 2}, ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt"]),
        (
            {"every_n_train_steps": 1},
            {"accumulate_grad_batches": 2, "max_epochs": 2},
            ["epoch=0-step=1.ckpt", "epoch=1-step=2.ckpt"],
        ),
        (
            {"save_on_train_epoch_end": True},
            {"val_check_interval": 0.5, "max_epochs": 2},
            ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt"],
        ),
        ({"train_time_interval": timedelta(0)}, {"max_epochs": 1}, ["epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt"]),
    ],
)  # fmt: skip
def test_moments_of_saving(options: Any, trainer: Any, expected: list[str], fit: Any, folder: Path) -> None:
    fit(save_top_k=-1, trainer=trainer, **options)
    assert names(folder) == expected


@pytest.mark.parametrize(
    ("trainer", "save_on_train_epoch_end", "hook"),
    [
        ({}, None, "train_epoch_end"),
        ({}, False, "validation_end"),
        ({}, True, "train_epoch_end"),
        ({"val_check_interval": 0.5}, None, "validation_end"),
        ({"val_check_interval": 2}, None, "validation_end"),
        ({"check_val_every_n_epoch": 2, "max_epochs": 2}, None, "validation_end"),
        ({"val_check_interval": 0.5, "limit_val_batches": 0}, None, "train_epoch_end"),
    ],
)
def test_save_happens_in_validation_or_at_the_epochs_end(
    trainer: Any, save_on_train_epoch_end: Any, hook: str, fit: Any, tiny: Any
) -> None:
    order: list[str] = []
    module = tiny(
        on_save_checkpoint=lambda self, checkpoint: order.append("save"),
        on_validation_end=lambda self: order.append("validation_end"),
        on_train_epoch_end=lambda self: order.append("train_epoch_end"),
    )
    fit(
        module=module,
        trainer={"max_epochs": 1, "num_sanity_val_steps": 0, **trainer},
        save_on_train_epoch_end=save_on_train_epoch_end,
    )
    assert order[order.index("save") - 1] == hook  # what saves runs after the module


def test_time_interval_saves_when_it_has_passed(fit: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fulgur.callbacks import checkpoint_schedule

    now = [0.0]
    monkeypatch.setattr(checkpoint_schedule, "monotonic", lambda: now[0])

    class Clock(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            now[0] += 10.0

    fit(n_train=4, train_time_interval=timedelta(seconds=25), save_top_k=-1, trainer={"callbacks": [Clock()]})
    assert names(folder) == sorted(f"epoch={(step - 1) // 4}-step={step}.ckpt" for step in (3, 6, 9, 12, 15))


def test_step_save_waits_for_the_validation_that_follows(fit: Any, folder: Path) -> None:
    saver, _ = fit(
        (3.0, 2.0), monitor="score", every_n_train_steps=2, filename="{step}-{score}", trainer={"max_epochs": 2}
    )
    assert names(folder) == ["step=4-score=2.0.ckpt"]
    assert saver.best_model_score == 2.0


def test_step_save_waits_until_there_is_something_to_monitor(fit: Any, folder: Path) -> None:
    fit(
        (3.0,),
        monitor="score",
        every_n_train_steps=1,
        filename="{step}-{score}",
        save_top_k=-1,
        trainer={"max_epochs": 1},
    )
    assert names(folder) == ["step=2-score=3.0.ckpt"]


def test_checkpoint_of_a_step_holds_the_weights_after_it(fit: Any, folder: Path, tiny: Any) -> None:
    module = tiny()
    weights = []
    module_step = type(module).training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        weights.append(self.layer.weight.detach().clone())
        return module_step(self, batch, batch_idx)

    type(module).training_step = training_step
    fit(module=module, n_train=4, every_n_train_steps=2, save_top_k=-1, trainer={"max_epochs": 1})
    assert names(folder) == ["epoch=0-step=2.ckpt", "epoch=0-step=4.ckpt"]
    saved = torch.load(folder / "epoch=0-step=2.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["layer.weight"], weights[2])


def test_nothing_is_saved_outside_of_a_fit(tiny: Any, make_trainer: Any, loader: Any, folder: Path) -> None:
    trainer = make_trainer(callbacks=ModelCheckpoint(dirpath=folder, save_last=True))
    trainer.validate(tiny(), loader(1), verbose=False)
    trainer.test(tiny(), loader(1), verbose=False)
    assert names(folder) == []


# ----------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "epoch=1-step=4.ckpt"),
        ({"filename": "x-{epoch:02d}-{score:.2f}"}, "x-epoch=01-score=1.50.ckpt"),
        ({"filename": "e{epoch}-v{score:.1f}-{nope}", "auto_insert_metric_name": False}, "e1-v1.5-0.ckpt"),
        ({"filename": "{epoch}-{nope}-{score}"}, "epoch=1-nope=0-score=1.5.ckpt"),
        ({"filename": "{epoch}-{a/b}"}, "epoch=1-a/b=2.0.ckpt"),
        ({"filename": "const"}, "const.ckpt"),
        ({"filename": "sub/{step}"}, "sub/step=4.ckpt"),
    ],
)
def test_names(options: Any, expected: str, fit: Any, folder: Path, tiny: Any) -> None:
    def on_train_epoch_end(self: Any) -> None:
        self.log("a/b", 2.0)

    saver, _ = fit(module=tiny(1.5, on_train_epoch_end=on_train_epoch_end), trainer={"max_epochs": 2}, **options)
    assert names(folder) == [expected]
    assert saver.best_model_path == str(folder / expected)


def test_constant_name_gets_versions_where_several_are_kept(fit: Any, folder: Path) -> None:
    saver, _ = fit((4.0, 3.0, 2.0, 5.0), monitor="score", save_top_k=3, filename="const")
    assert names(folder) == ["const-v1.ckpt", "const-v2.ckpt", "const.ckpt"]
    assert saver.best_model_path == str(folder / "const-v2.ckpt")


def test_constant_name_without_versions_is_overwritten(fit: Any, folder: Path) -> None:
    options = {"filename": "const", "enable_version_counter": False}
    saver, _ = fit((4.0, 3.0, 2.0), monitor="score", save_top_k=3, trainer={"max_epochs": 3}, **options)
    assert names(folder) == ["const.ckpt"]
    assert list(saver.best_k_models) == [str(folder / "const.ckpt")]


def test_second_run_in_the_same_directory_leaves_the_first_alone(fit: Any, folder: Path) -> None:
    fit(save_last=True, trainer={"max_epochs": 1})
    with pytest.warns(PossibleUserWarning, match="is not empty"):
        fit(save_last=True, trainer={"max_epochs": 1})
    assert names(folder) == ["epoch=0-step=2-v1.ckpt", "epoch=0-step=2.ckpt", "last-v1.ckpt", "last.ckpt"]


# ------------------------------------------------------------------------------------------------------- retention


def test_best_of_falling_scores_are_kept(fit: Any, folder: Path) -> None:
    saver, _ = fit((3.0, 1.0, 2.0, 5.0), monitor="score", save_top_k=2, filename="{epoch}-{score}")
    assert names(folder) == ["epoch=1-score=1.0.ckpt", "epoch=2-score=2.0.ckpt"]
    assert saver.best_model_path == str(folder / "epoch=1-score=1.0.ckpt")
    assert (saver.best_model_score, saver.kth_value, saver.current_score) == (1.0, 2.0, 5.0)
    assert saver.kth_best_model_path == str(folder / "epoch=2-score=2.0.ckpt")
    assert {Path(path).name: score.item() for path, score in saver.best_k_models.items()} == {
        "epoch=1-score=1.0.ckpt": 1.0,
        "epoch=2-score=2.0.ckpt": 2.0,
    }


def test_best_of_rising_scores_are_kept(fit: Any, folder: Path) -> None:
    saver, _ = fit((3.0, 1.0, 2.0, 5.0), monitor="score", mode="max", save_top_k=2, filename="{epoch}-{score}")
    assert names(folder) == ["epoch=0-score=3.0.ckpt", "epoch=3-score=5.0.ckpt"]
    assert saver.best_model_score == 5.0


def test_equal_score_is_not_better(fit: Any, folder: Path) -> None:
    fit((1.0,), monitor="score", save_top_k=1)
    assert names(folder) == ["epoch=0-step=2.ckpt"]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_score_that_is_no_number_ranks_last(mode: str, fit: Any, folder: Path) -> None:
    saver, _ = fit(
        (float("nan"), 1.0),
        monitor="score",
        mode=mode,
        filename="{epoch}-{score}",
        save_top_k=2,
        trainer={"max_epochs": 2},
    )
    assert names(folder) == ["epoch=0-score=nan.ckpt", "epoch=1-score=1.0.ckpt"]
    assert saver.best_model_path == str(folder / "epoch=1-score=1.0.ckpt")


def test_all_are_kept_and_ranked(fit: Any, folder: Path) -> None:
    saver, _ = fit((3.0, 1.0, 2.0), monitor="score", save_top_k=-1, trainer={"max_epochs": 3})
    assert len(names(folder)) == len(saver.best_k_models) == 3
    assert saver.best_model_path == str(folder / "epoch=1-step=4.ckpt")


def test_none_are_kept(fit: Any, folder: Path) -> None:
    saver, _ = fit(save_top_k=0)
    assert names(folder) == []
    assert saver.best_model_path == ""


def test_old_file_is_there_until_the_new_one_is(fit: Any, folder: Path, tiny: Any) -> None:
    seen: list[list[str]] = []
    module = tiny(on_save_checkpoint=lambda self, checkpoint: seen.append(names(folder)))
    fit(module=module, trainer={"max_epochs": 3})
    assert seen == [[], ["epoch=0-step=2.ckpt"], ["epoch=1-step=4.ckpt"]]


# ------------------------------------------------------------------------------------------------------------ last


def last_step(folder: Path, name: str = "last.ckpt") -> int:
    return int(torch.load(folder / name, weights_only=True)["global_step"])


def test_last_is_the_last_one_saved_not_the_last_epoch(fit: Any, folder: Path) -> None:
    saver, _ = fit((3.0, 1.0, 2.0, 5.0), monitor="score", save_last=True)
    assert names(folder) == ["epoch=1-step=4.ckpt", "last.ckpt"]
    assert saver.last_model_path == str(folder / "last.ckpt")
    assert last_step(folder) == 4


def test_last_holds_its_own_path(fit: Any, folder: Path) -> None:
    saver, _ = fit(save_last=True)
    state = torch.load(folder / "last.ckpt", weights_only=True)["callbacks"][saver.state_key]
    assert state["last_model_path"] == str(folder / "last.ckpt")


def test_last_of_every_second_epoch(fit: Any, folder: Path) -> None:
    fit(save_last=True, every_n_epochs=2, trainer={"max_epochs": 3})
    assert last_step(folder) == 4


@pytest.mark.parametrize("options", [{"save_top_k": 0}, {"every_n_epochs": 0}])
def test_last_alone_is_saved_at_the_end(options: Any, fit: Any, folder: Path) -> None:
    saves = Saves(folder)
    fit(save_last=True, trainer={"callbacks": [saves]}, **options)
    assert names(folder) == ["last.ckpt"]
    assert [found for _, found in saves.seen] == [[]]
    assert last_step(folder) == 8


def test_link_points_to_the_newest_file(fit: Any, folder: Path) -> None:
    saver, _ = fit(save_last="link", trainer={"max_epochs": 2})
    assert names(folder) == ["epoch=1-step=4.ckpt", "last.ckpt"]
    assert os.readlink(folder / "last.ckpt") == "epoch=1-step=4.ckpt"
    assert last_step(folder) == 4
    assert saver.last_model_path == str(folder / "last.ckpt")


def test_link_without_a_file_to_point_to_is_a_checkpoint(fit: Any, folder: Path) -> None:
    fit(save_last="link", save_top_k=0)
    assert names(folder) == ["last.ckpt"]
    assert not (folder / "last.ckpt").is_symlink()


def test_last_may_have_a_name_of_its_own(fit: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelCheckpoint, "CHECKPOINT_NAME_LAST", "{epoch}-last")
    fit(save_last=True, trainer={"max_epochs": 2})
    assert names(folder) == ["epoch=1-last.ckpt", "epoch=1-step=4.ckpt"]


# ----------------------------------------------------------------------------------------------- missing, broken


def test_metric_that_validation_does_not_log_is_an_error(fit: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"monitor='nope'.* Logged so far: 'score'"):
        fit(monitor="nope")


def test_metric_that_nobody_logs_is_warned_of_once_where_nothing_validates(fit: Any, folder: Path) -> None:
    with pytest.warns(PossibleUserWarning, match="Nothing is saved until then") as caught:
        fit(monitor="nope", n_val=None)
    assert len(caught) == 1
    assert names(folder) == []


def broken_step(self: Any, batch: Any, batch_idx: int) -> Any:
    if self.global_step == 3:
        raise self.error
    return self.layer(batch).mean()


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_exception_saves_on_request(error: BaseException, fit: Any, tiny: Any, folder: Path) -> None:
    module = tiny(training_step=broken_step)
    module.error = error
    with pytest.raises(type(error)):
        fit(module=module, save_on_exception=True, save_last=True)
    assert names(folder) == ["epoch=0-step=2.ckpt", "epoch=1-step=3.ckpt", "last.ckpt"]
    assert last_step(folder) == 3


def test_exception_does_not_save_unasked(fit: Any, tiny: Any, folder: Path) -> None:
    module = tiny(training_step=broken_step)
    module.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        fit(module=module)
    assert names(folder) == ["epoch=0-step=2.ckpt"]


# ---------------------------------------------------------------------------------------------------------- resume


def test_resumed_run_goes_on_ranking_and_spares_the_file_it_came_from(fit: Any, folder: Path) -> None:
    first, _ = fit((3.0, 1.0), monitor="score", filename="{epoch}-{score}", trainer={"max_epochs": 2})
    path = first.best_model_path
    saver, trainer = fit((2.0, 0.5), monitor="score", filename="{epoch}-{score}", ckpt_path=path)
    assert trainer.ckpt_path == path
    assert saver.best_model_path == str(folder / "epoch=3-score=0.5.ckpt")
    assert names(folder) == ["epoch=1-score=1.0.ckpt", "epoch=3-score=0.5.ckpt"]


def test_resumed_run_deletes_what_it_beats(fit: Any, folder: Path) -> None:
    options = {"monitor": "score", "filename": "{epoch}-{score}", "save_last": True}
    fit((3.0, 1.0), trainer={"max_epochs": 2}, **options)
    fit((2.0, 0.5), ckpt_path=folder / "last.ckpt", **options)
    assert names(folder) == ["epoch=3-score=0.5.ckpt", "last.ckpt"]


def test_resumed_run_in_another_directory_starts_a_new_ranking(fit: Any, folder: Path, tmp_path: Path) -> None:
    first, _ = fit((1.0,), monitor="score", trainer={"max_epochs": 2})
    saver, _ = fit((3.0,), monitor="score", dirpath=tmp_path / "other", ckpt_path=first.best_model_path)
    assert names(tmp_path / "other") == ["epoch=1-step=4.ckpt"] or names(tmp_path / "other") == ["epoch=2-step=6.ckpt"]
    assert saver.best_model_score == 3.0
    assert names(folder) == ["epoch=0-step=2.ckpt"]


def test_best_is_found_for_a_test_without_arguments(fit: Any, folder: Path, tiny: Any, loader: Any) -> None:
    module = tiny(3.0, 1.0, 2.0)
    saver, trainer = fit(module=module, monitor="score", trainer={"max_epochs": 3})
    best = torch.load(saver.best_model_path, weights_only=True)["state_dict"]["layer.weight"]
    assert not torch.equal(module.layer.weight, best)
    trainer.test(dataloaders=loader(1), verbose=False)
    assert trainer.ckpt_path == saver.best_model_path
    assert torch.equal(module.layer.weight, best)


def test_two_callbacks_save_side_by_side(tiny: Any, make_trainer: Any, loader: Any, folder: Path) -> None:
    savers = [
        ModelCheckpoint(dirpath=folder, monitor="score", filename="best-{epoch}"),
        ModelCheckpoint(dirpath=folder, every_n_train_steps=3, filename="step-{step}"),
    ]
    trainer = make_trainer(callbacks=savers, max_epochs=2)
    trainer.fit(tiny(1.0, 2.0), loader(2), loader(1))
    assert names(folder) == ["best-epoch=0.ckpt", "step-step=3.ckpt"]
    assert trainer.checkpoint_callback is savers[0]
    state = torch.load(folder / "step-step=3.ckpt", weights_only=True)["callbacks"]
    assert set(state) == {saver.state_key for saver in savers}


def test_loggers_are_told_of_each_save(tiny: Any, make_trainer: Any, loader: Any, folder: Path) -> None:
    from fulgur.loggers import DummyLogger

    class Uploading(DummyLogger):
        def __init__(self) -> None:
            super().__init__()
            self.saved: list[str] = []

        def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
            self.saved.append(os.path.basename(checkpoint_callback.best_model_path))

    logger = Uploading()
    make_trainer(callbacks=ModelCheckpoint(dirpath=folder), logger=logger, max_epochs=2).fit(tiny(), loader(2))
    assert logger.saved == ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt"]


def test_ranking_can_be_written_down(fit: Any, folder: Path) -> None:
    import yaml

    saver, _ = fit((3.0, 1.0), monitor="score", save_top_k=2, trainer={"max_epochs": 2})
    saver.to_yaml()
    ranked = yaml.safe_load((folder / "best_k_models.yaml").read_text())
    assert ranked == {str(folder / "epoch=0-step=2.ckpt"): 3.0, str(folder / "epoch=1-step=4.ckpt"): 1.0}


class TestDirectoryThatCannotBe:
    """Known at setup, before anything is trained."""

    @pytest.mark.parametrize("below", ["", "runs/today"])
    def test_file_in_its_place_is_an_error(
        self, below: str, tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "taken").write_text("")
        trainer = make_trainer(callbacks=ModelCheckpoint(tmp_path / "taken" / below))
        seen: list[str] = []
        module = tiny(setup=lambda self, stage: seen.append("setup"))
        with pytest.raises(MisconfigurationException, match=r"dirpath='.*/taken.*'\): '.*/taken' is a file"):
            trainer.fit(module, loader(2))
        assert seen == []

    def test_evaluation_does_not_mind(self, tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("")
        trainer = make_trainer(callbacks=ModelCheckpoint(tmp_path / "taken"))
        assert trainer.validate(tiny(), loader(1), verbose=False) == [{"score": 0.0}]

    def test_link_to_a_directory_is_one(self, fit: Any, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        folder.symlink_to(tmp_path / "real")
        fit()
        assert names(folder) == ["epoch=3-step=8.ckpt"]
