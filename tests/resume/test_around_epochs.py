"""Around the batches of a resumed run: evaluations after it, loaders that come anew, outputs, complete runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint
from fulgur.errors import MisconfigurationException, PossibleUserWarning

N_BATCHES = 5


class Net(fl.LightningModule):
    """Dropout, and a validation and a test that draw and log."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.seen: list[Any] = []
        self.validated: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch.flatten().tolist())
        loss = self.net(batch).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append((dataloader_idx, batch.flatten().tolist()))
        self.log("val", self.net(batch + torch.rand(1)).mean())

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def shuffled(n: int = N_BATCHES, generator: torch.Generator | None = None) -> DataLoader[Any]:
    return DataLoader(torch.arange(1.0, n + 1).unsqueeze(1) / n, 1, shuffle=True, generator=generator)


def build(saves_to: Path | None = None, **settings: Any) -> fl.Trainer:
    name = {"filename": "{step}", "auto_insert_metric_name": False}
    saving = ModelCheckpoint(saves_to, save_top_k=-1, every_n_train_steps=1, **name) if saves_to else None
    defaults: dict[str, Any] = {"max_epochs": 2, "logger": False, "callbacks": [saving] if saving else []}
    defaults["enable_checkpointing"] = saving is not None
    return fl.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **(defaults | settings),
    )


def files(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem))]


def fit(module: Any, loaders: tuple[Any, ...], *, resume_from: str | None = None, **settings: Any) -> fl.Trainer:
    trainer = build(**settings)
    torch.manual_seed(0 if resume_from is None else 99)
    trainer.fit(module, *loaders, ckpt_path=resume_from)
    return trainer


def assert_same(module: Any, trainer: fl.Trainer, other: Any, other_trainer: fl.Trainer) -> None:
    torch.testing.assert_close(module.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert module.seen == other.seen[len(other.seen) - len(module.seen) :]
    assert trainer.callback_metrics == other_trainer.callback_metrics
    assert trainer.fit_loop.progress == other_trainer.fit_loop.progress


# -------------------------------------------------------------------------------------- an evaluation after fit


@pytest.mark.parametrize("limit", [{"max_steps": 7}, {"max_epochs": 1}])
@pytest.mark.parametrize("passes_model", [True, False])
def test_file_saved_after_evaluations_that_followed_fit_goes_on_with_it(
    tmp_path: Path, limit: dict[str, int], passes_model: bool
) -> None:
    whole = Net()
    whole_trainer = fit(whole, (shuffled(),), max_epochs=3)
    module = Net()
    trainer = fit(module, (shuffled(),), **({"max_epochs": 3} | limit))
    for evaluate in (trainer.validate, trainer.test):
        evaluate(module if passes_model else None, shuffled(3), verbose=False)
    trainer.save_checkpoint(tmp_path / "evaluated.ckpt")

    resumed = Net()
    resumed_trainer = fit(resumed, (shuffled(),), max_epochs=3, resume_from=str(tmp_path / "evaluated.ckpt"))
    assert_same(resumed, resumed_trainer, whole, whole_trainer)


def test_file_saved_after_the_evaluation_of_another_model_holds_no_running_epoch(tmp_path: Path) -> None:
    trainer = fit(Net(), (shuffled(),), max_steps=3)
    trainer.validate(Net(), shuffled(3), verbose=False)
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    assert "running" not in torch.load(tmp_path / "other.ckpt", weights_only=True)["fulgur"]


# ---------------------------------------------------------------------------------------- loaders that come anew


class Reloading(Net):
    """Notes at which epochs it is asked for loaders."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, list[int]] = {"train": [], "val": []}

    def train_dataloader(self) -> Any:
        self.asked["train"].append(self.current_epoch)
        return shuffled(2)

    def val_dataloader(self) -> Any:
        self.asked["val"].append(self.current_epoch)
        return shuffled(2)


@pytest.mark.parametrize(("every", "epochs"), [(2, [2, 4]), (3, [3])])
def test_resumed_run_asks_for_loaders_at_the_epochs_of_the_whole_one(
    tmp_path: Path, every: int, epochs: list[int]
) -> None:
    settings = {"max_epochs": 6, "reload_dataloaders_every_n_epochs": every, "num_sanity_val_steps": 0}
    whole = Reloading()
    fit(whole, (), saves_to=tmp_path, **settings)
    assert whole.asked == {"train": [0, *epochs], "val": [0, *epochs]}
    for step, file in enumerate(files(tmp_path)[:11], start=1):
        resumed = Reloading()
        fit(resumed, (), resume_from=file, **settings)
        at = (step - 1) // 2  # a file of an epoch's last batch goes on in that epoch
        assert resumed.asked["train"] == [at, *(epoch for epoch in epochs if epoch > at)], step
        assert resumed.asked["val"] == [at, *(epoch for epoch in epochs if epoch > at)], step
        assert resumed.seen == whole.seen[step:]


def test_validation_loaders_that_draw_from_generators_of_their_own_go_on_with_them(tmp_path: Path) -> None:
    def loaders() -> tuple[Any, ...]:
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
        return shuffled(4, generators[0]), [shuffled(3, generators[1]), shuffled(2, generators[2])]

    settings = {"val_check_interval": 2, "max_epochs": 3}
    whole = Net()
    whole_trainer = fit(whole, loaders(), saves_to=tmp_path, **settings)
    for file in files(tmp_path):
        resumed = Net()
        trainer = fit(resumed, loaders(), resume_from=file, **settings)
        assert resumed.validated == whole.validated[len(whole.validated) - len(resumed.validated) :]
        assert_same(resumed, trainer, whole, whole_trainer)


def test_generators_of_validation_wait_for_the_loader_where_it_comes_later(tmp_path: Path) -> None:
    def loaders() -> tuple[Any, ...]:
        return shuffled(4), shuffled(5, torch.Generator().manual_seed(1))

    settings = {"check_val_every_n_epoch": 2, "max_epochs": 6, "num_sanity_val_steps": 0}
    whole = Net()
    fit(whole, loaders(), saves_to=tmp_path, **settings)
    resumed = Net()
    fit(resumed, loaders(), resume_from=files(tmp_path)[9], **settings)  # within epoch 2, which does not validate
    assert resumed.validated == whole.validated[5:]


def test_generators_of_validation_shared_with_training_go_on(tmp_path: Path) -> None:
    def loaders() -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(1)
        return shuffled(4, generator), shuffled(3, generator)

    settings = {"val_check_interval": 2, "max_epochs": 3}
    whole = Net()
    fit(whole, loaders(), saves_to=tmp_path, **settings)
    for file in files(tmp_path)[1::4]:
        resumed = Net()
        fit(resumed, loaders(), resume_from=file, **settings)
        assert resumed.seen == whole.seen[len(whole.seen) - len(resumed.seen) :], file
        assert resumed.validated == whole.validated[len(whole.validated) - len(resumed.validated) :], file


def test_file_saved_within_a_validation_begins_it_anew_with_its_draws(tmp_path: Path) -> None:
    class Saving(fl.Callback):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if not trainer.sanity_checking:
                trainer.save_checkpoint(tmp_path / f"{len(pl_module.validated)}.ckpt")

    def loaders() -> tuple[Any, ...]:
        return shuffled(4), shuffled(3, torch.Generator().manual_seed(1))

    whole = Net()
    # A ModelCheckpoint, as one that saves wants it, keeps what a validation begins with.
    callbacks = [Saving(), ModelCheckpoint(tmp_path / "other")]
    torch.manual_seed(0)
    whole_trainer = build(callbacks=callbacks, enable_checkpointing=True)
    whole_trainer.fit(whole, *loaders())
    for file in files(tmp_path):
        resumed = Net()
        trainer = fit(resumed, loaders(), resume_from=file)
        begun = (int(Path(file).stem) - 1) // 3 * 3
        assert resumed.validated == whole.validated[begun:]
        assert_same(resumed, trainer, whole, whole_trainer)


# ------------------------------------------------------------------------------------------ outputs of an epoch


class Outputs(Net):
    """Reads what the steps of an epoch returned, as 1.x gave it."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "batch": batch, "idx": (batch_idx, "x")}

    def training_epoch_end(self, outputs: Any) -> None:
        self.epochs.append([(float(o["loss"]), float(o["batch"]), o["idx"]) for o in outputs])


def test_outputs_of_an_epoch_are_all_there_after_a_resume(tmp_path: Path) -> None:
    whole = Outputs()
    fit(whole, (shuffled(),), saves_to=tmp_path)
    assert [len(outputs) for outputs in whole.epochs] == [5, 5]
    for step, file in enumerate(files(tmp_path), start=1):
        resumed = Outputs()
        fit(resumed, (shuffled(),), resume_from=file)
        assert resumed.epochs == whole.epochs[(step - 1) // 5 :]


def test_outputs_of_an_epoch_that_a_limit_cut_are_all_there(tmp_path: Path) -> None:
    whole = Outputs()
    fit(whole, (shuffled(),))
    fit(Outputs(), (shuffled(),), max_steps=7).save_checkpoint(tmp_path / "cut.ckpt")
    resumed = Outputs()
    fit(resumed, (shuffled(),), resume_from=str(tmp_path / "cut.ckpt"))
    assert resumed.epochs == whole.epochs[1:]


class Turns(Outputs):
    """Two optimizers that take turns of one and two batches."""

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]
        return super().training_step(batch, batch_idx)

    def training_epoch_end(self, outputs: Any) -> None:
        self.epochs.append([[o["idx"][0] for o in of_optimizer] for of_optimizer in outputs])

    def configure_optimizers(self) -> Any:
        return [
            {"optimizer": torch.optim.SGD(self.net[0].parameters(), lr=0.1), "frequency": 1},
            {"optimizer": torch.optim.SGD(self.net[2].parameters(), lr=0.1), "frequency": 2},
        ]


def test_outputs_belong_to_the_optimizers_whose_turn_it_was(tmp_path: Path) -> None:
    whole = Turns()
    fit(whole, (shuffled(),), saves_to=tmp_path)
    assert whole.epochs == [[[0, 3], [1, 2, 4]]] * 2
    resumed = Turns()
    fit(resumed, (shuffled(),), resume_from=files(tmp_path)[1])
    assert resumed.epochs == whole.epochs


class Unplain:
    """Nothing that a checkpoint can hold."""


def test_outputs_that_no_file_can_hold_are_named_and_those_after_the_resume_stay_in_their_turns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Refused(Turns):
        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
            return super().training_step(batch, batch_idx, optimizer_idx) | {"more": Unplain()}

    fit(Refused(), (shuffled(),), saves_to=tmp_path)
    resumed = Refused()
    with caplog.at_level(logging.INFO, logger="fulgur"):
        fit(resumed, (shuffled(),), resume_from=files(tmp_path)[1])
    assert resumed.epochs == [[[3], [2, 4]], [[0, 3], [1, 2, 4]]]
    lines = [record.getMessage() for record in caplog.records if "outputs of training_step" in record.getMessage()]
    assert len(lines) == 1
    assert "without those of its first 2 batches" in lines[0]
    assert "Unplain" in lines[0]


# ------------------------------------------------------------------------------------------------- complete runs


def test_run_that_was_cut_counts_its_epochs_when_there_is_nothing_left_to_do(tmp_path: Path) -> None:
    first = fit(Net(), (shuffled(),), max_steps=7, max_epochs=-1)
    first.save_checkpoint(tmp_path / "7.ckpt")
    again = fit(Net(), (shuffled(),), max_steps=7, max_epochs=-1, resume_from=str(tmp_path / "7.ckpt"))
    assert (again.current_epoch, again.global_step) == (first.current_epoch, first.global_step) == (2, 7)
    assert again.fit_loop.progress == first.fit_loop.progress


@pytest.mark.parametrize("max_steps", [5, 7])
def test_run_killed_between_its_last_step_and_its_end_comes_to_that_end(tmp_path: Path, max_steps: int) -> None:
    loaders = shuffled(), shuffled(3)
    settings = {"max_steps": max_steps, "max_epochs": -1, "val_check_interval": 1}
    whole = Outputs()
    whole_trainer = fit(whole, loaders, saves_to=tmp_path, **settings)
    resumed = Outputs()
    trainer = fit(resumed, loaders, resume_from=files(tmp_path)[-1], **settings)
    assert resumed.seen == []
    assert resumed.epochs == whole.epochs[-1:]
    assert resumed.validated == whole.validated[-3:]
    assert_same(resumed, trainer, whole, whole_trainer)


@pytest.mark.parametrize(
    ("limit", "way"), [({"max_epochs": 2}, "Raise max_epochs=2"), ({"max_steps": 7}, "Raise max_steps=7")]
)
def test_complete_run_says_that_nothing_is_left_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, limit: dict[str, int], way: str
) -> None:
    def run() -> None:
        trainer = build(callbacks=[ModelCheckpoint(tmp_path)], enable_checkpointing=True, **limit)
        trainer.fit(Net(), shuffled(), ckpt_path="auto")

    def build(**settings: Any) -> fl.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return fl.Trainer(accelerator="cpu", **quiet, **settings)

    run()
    assert "nothing is left to do" not in caplog.text
    with caplog.at_level(logging.INFO, logger="fulgur"):
        run()
    lines = [record.getMessage() for record in caplog.records if "nothing is left to do" in record.getMessage()]
    assert len(lines) == 1
    assert way in lines[0]


class OneCycle(Net):
    def __init__(self, total_steps: int) -> None:
        super().__init__()
        self.total_steps = total_steps

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=self.total_steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_schedule_of_a_number_of_steps_is_told_to_be_too_short_before_training_and_where_it_ends(
    tmp_path: Path,
) -> None:
    file = str(tmp_path / "end.ckpt")
    fit(OneCycle(10), (shuffled(),)).save_checkpoint(file)
    module = OneCycle(15)
    with (
        pytest.warns(PossibleUserWarning, match=r"OneCycleLR was made for total_steps=10"),
        pytest.raises(MisconfigurationException, match=r"total_steps=10.*higher max_epochs.*load_from_checkpoint"),
    ):
        fit(module, (shuffled(),), max_epochs=3, resume_from=file)
    assert len(module.seen) == 1


def test_schedule_that_is_long_enough_is_resumed_without_a_word(tmp_path: Path) -> None:
    fit(OneCycle(10), (shuffled(),), max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    assert fit(OneCycle(10), (shuffled(),), resume_from=str(tmp_path / "half.ckpt")).global_step == 10


# ------------------------------------------------------------------------------------------------- axis and windows


@pytest.mark.parametrize("at", [2, 5])
def test_axis_stays_where_the_batch_after_a_resume_is_refused(tmp_path: Path, at: int) -> None:
    class Refusing(Net):
        refused = -1

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:  # type: ignore[override]
            return -1 if self.global_step == self.refused else None

        def on_train_epoch_end(self) -> None:
            self.seen.append(self.trainer.log_step)

    fit(Refusing(), (shuffled(),), saves_to=tmp_path)
    resumed = Refusing()
    resumed.refused = at
    fit(resumed, (shuffled(),), resume_from=files(tmp_path)[at - 1], max_epochs=1 if at == 2 else 2)
    assert resumed.seen[-1] == at - 1


def test_change_of_accumulation_within_an_epoch_takes_effect_with_the_next_and_a_resumed_one_keeps_its_own(
    tmp_path: Path,
) -> None:
    class Changing(Net):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.current_epoch == 0 and batch_idx == 2:
                self.trainer.accumulate_grad_batches = 3
            self.trainer.save_checkpoint(tmp_path / f"{self.trainer.fit_loop.progress.batches_total}.ckpt")

    whole = Changing()
    whole_trainer = fit(whole, (shuffled(6),), accumulate_grad_batches=2)
    assert whole_trainer.global_step == 3 + 2
    for file in files(tmp_path)[3:6]:
        resumed = Net()
        trainer = fit(resumed, (shuffled(6),), accumulate_grad_batches=3, resume_from=file)
        assert_same(resumed, trainer, whole, whole_trainer)
