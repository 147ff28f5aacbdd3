"""What attributes of a Trainer and a module say before, in and after a run."""

from __future__ import annotations

from typing import Any

import pytest
from tests.compat.test_surface import Batches, at, at_every_hook, quiet


def test_counts_and_loaders_before_in_and_after_a_run() -> None:
    def read(trainer: Any) -> tuple[Any, ...]:
        return (
            trainer.num_training_batches,
            trainer.num_val_batches,
            trainer.num_sanity_val_batches,
            trainer.num_test_batches,
            trainer.train_dataloader is None,
            trainer.val_dataloaders is None,
            trainer.max_epochs,
            str(trainer.state.status),
        )

    seen: list[Any] = []
    trainer = quiet(at("on_train_epoch_start", lambda t: seen.append(read(t))), num_sanity_val_steps=2)
    inf = float("inf")
    assert read(trainer) == (inf, [], [], [], True, True, None, "initializing")
    trainer.fit_loop.max_epochs = 1
    trainer.fit(Batches())
    assert seen == [(3, [3], [2], [], False, False, 1, "running")]
    assert read(trainer) == (3, [3], [2], [], False, False, 1, "finished")


def test_flags_tell_what_runs() -> None:
    names = ("training", "sanity_checking", "validating", "testing", "predicting", "evaluating", "running_sanity_check")
    seen: dict[str, set[str]] = {}

    def note(hook: str, trainer: Any, module: Any) -> None:
        seen.setdefault(hook, set()).add(" ".join(name for name in names if getattr(trainer, name)))

    trainer = quiet(at_every_hook(note), max_epochs=1, num_sanity_val_steps=1)
    trainer.fit(Batches())
    assert seen["setup"] == seen["on_train_batch_end"] == seen["teardown"] == {"training"}
    sanity, validation = "sanity_checking evaluating running_sanity_check", "validating evaluating"
    assert seen["on_sanity_check_start"] == {sanity}
    assert seen["on_validation_batch_end"] == {sanity, validation}
    for entry, flags in (("validate", validation), ("test", "testing evaluating"), ("predict", "predicting")):
        seen.clear()
        getattr(trainer, entry)(Batches())
        assert set.union(*seen.values()) == {flags}


def test_metrics_are_forgotten_when_a_run_starts() -> None:
    class Logging(Batches):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("a", 1.0, prog_bar=True)
            return self.step(batch)

    seen: list[Any] = []
    trainer = quiet(at("on_train_start", lambda t: seen.append(dict(t.callback_metrics))), max_epochs=1)
    trainer.fit(Logging())
    assert trainer.progress_bar_metrics == {"a": 1.0}
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Logging())
    assert seen == [{}, {}]


def test_a_module_before_a_run_answers_without_a_trainer() -> None:
    model = Batches()
    values = (model.current_epoch, model.global_step, model.global_rank, model.local_rank, model.logger, model.loggers)
    assert values == (0, 0, 0, 0, None, [])
    assert model.device.type == "cpu"
    assert (model.on_gpu, model.automatic_optimization, model.strict_loading, model.fabric) == (False, True, True, None)
    with pytest.raises(RuntimeError, match="Trainer"):
        model.trainer  # noqa: B018


def test_what_a_program_of_1x_shows_beside_the_bar() -> None:
    class Showing(Batches):
        def get_progress_bar_dict(self) -> Any:
            items = super().get_progress_bar_dict()
            assert items.pop("v_num") == 0
            return {**items, "mine": 1}

    from fulgur.callbacks import ProgressBar
    from fulgur.loggers import CSVLogger

    trainer = quiet(max_epochs=1, logger=CSVLogger("."))
    model = Showing()
    trainer.fit(model)
    assert ProgressBar().get_metrics(trainer, model) == {"mine": 1}


def test_a_module_summarizes_itself_as_in_1x() -> None:
    model = Batches()
    assert model.summarize("top").total_parameters == model.summarize(max_depth=-1).total_parameters == 66


def test_a_loop_of_predictions_holds_them() -> None:
    trainer = quiet()
    returned = trainer.predict(Batches())
    assert trainer.predict_loop.predictions == returned
    assert [len(batch) for batch in returned] == [1, 1, 1]
