"""`LearningRateFinder` and `BatchSizeFinder` within a run, and `trainer.tune()` of 1.x."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur import Callback
from fulgur.callbacks import BatchSizeFinder, EarlyStopping, LearningRateFinder, ModelCheckpoint
from fulgur.errors import MisconfigurationException
from fulgur.loggers import CSVLogger
from fulgur.tuner import Tuner


def bits(model: Any) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def is_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Rates(Callback):
    """Rates of the optimizer, before each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


class AtEpochs(LearningRateFinder):
    def __init__(self, epochs: tuple[int, ...], **options: Any) -> None:
        super().__init__(**options)
        self.epochs = epochs

    def on_fit_start(self, *args: Any) -> None:
        return

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch in self.epochs:
            self.lr_find(trainer, pl_module)


def test_the_fit_goes_on_with_the_rate_found(make_trainer: Any, net: Any) -> None:
    finder, rates = LearningRateFinder(num_training_steps=30), Rates()
    model = net()
    trainer = make_trainer(callbacks=[rates, finder])
    trainer.fit(model)
    found = finder.optimal_lr.suggestion()
    assert rates.seen == [found] * 32
    assert model.lr == model.hparams.lr == found
    plain = net(lr=found)
    make_trainer().fit(plain)
    assert is_same(bits(model), bits(plain))
    assert (trainer.global_step, model.n_steps) == (32, 32)


def test_the_callback_finds_what_the_tuner_finds(make_trainer: Any, net: Any) -> None:
    finder = LearningRateFinder(num_training_steps=30)
    make_trainer(callbacks=[finder]).fit(net())
    assert finder.optimal_lr.results == Tuner(make_trainer()).lr_find(net(), num_training=30).results


def test_a_search_at_the_beginning_of_epochs_changes_nothing_but_the_rate(make_trainer: Any, net: Any) -> None:
    plain = net()
    make_trainer(max_epochs=3).fit(plain)
    model = net()
    trainer = make_trainer(max_epochs=3, callbacks=[AtEpochs((0, 1, 2), num_training_steps=20, update_attr=False)])
    trainer.fit(model)
    assert is_same(bits(model), bits(plain))
    assert (trainer.global_step, trainer.current_epoch, model.n_steps) == (48, 3, 48)


def test_a_search_at_the_beginning_of_an_epoch_sets_the_rate_from_there_on(make_trainer: Any, net: Any) -> None:
    finder, rates = AtEpochs((1,), num_training_steps=20), Rates()
    make_trainer(callbacks=[finder, rates]).fit(net())
    assert rates.seen == [0.1] * 16 + [finder.optimal_lr.suggestion()] * 16


def test_a_search_is_one_line_of_the_bar_and_the_run_has_its_own(make_trainer: Any, net: Any, capsys: Any) -> None:
    trainer = make_trainer(enable_progress_bar=True, callbacks=[LearningRateFinder(num_training_steps=20)])
    trainer.fit(net(lr=0.01))
    labels = [line.partition(" | ")[0] for line in capsys.readouterr().out.splitlines()]
    assert labels[0] == "Finding best initial lr: 20/20"
    make_trainer(enable_progress_bar=True).fit(net(lr=0.01))
    assert labels[1:] == [line.partition(" | ")[0] for line in capsys.readouterr().out.splitlines()]


def test_a_search_within_a_run_leaves_the_bar_alone(make_trainer: Any, net: Any, capsys: Any) -> None:
    finder = AtEpochs((1,), num_training_steps=20)
    make_trainer(enable_progress_bar=True, callbacks=[finder]).fit(net())
    assert "Finding" not in capsys.readouterr().out


def test_a_schedule_goes_on_from_the_rate_found(make_trainer: Any, net: Any) -> None:
    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 if step == 0 else 1.0)
        return [optimizer], [{"scheduler": warmup, "interval": "epoch"}]

    finder, rates = LearningRateFinder(num_training_steps=20), Rates()
    make_trainer(callbacks=[finder, rates]).fit(net({"configure_optimizers": configure_optimizers}))
    found = finder.optimal_lr.suggestion()
    assert rates.seen == [0.5 * found] * 16 + [found] * 16


def test_loggers_and_other_callbacks_hear_only_of_the_run(make_trainer: Any, net: Any, tmp_path: Path) -> None:
    def fit(*finders: Any) -> tuple[list[Any], Any]:
        stopping, saving = EarlyStopping("val_loss", patience=5), ModelCheckpoint(monitor="val_loss", save_top_k=-1)
        logger = CSVLogger(tmp_path, name="with" if finders else "without")
        callbacks = [*finders, stopping, saving]
        trainer = make_trainer(logger=logger, callbacks=callbacks, enable_checkpointing=True, log_every_n_steps=1)
        trainer.fit(net(lr=0.01))
        with open(Path(logger.log_dir) / "metrics.csv") as file:
            rows = list(csv.reader(file))
        return rows, (stopping.state_dict(), len(list(Path(logger.log_dir).rglob("*.ckpt"))))

    assert fit(AtEpochs((0, 1), num_training_steps=9, update_attr=False)) == fit()


def test_an_exception_in_a_search_ends_the_fit_with_everything_as_it_was(make_trainer: Any, net: Any) -> None:
    def on_after_backward(self: Any) -> None:
        if self.trainer.tuning and self.n_steps == 20:
            raise KeyError("a step failed")

    model = net({"on_after_backward": on_after_backward})
    trainer = make_trainer(callbacks=[AtEpochs((1,), num_training_steps=20)])
    with pytest.raises(KeyError, match="a step failed"):
        trainer.fit(model)
    plain = net()
    make_trainer(max_epochs=1).fit(plain)
    assert is_same(bits(model), bits(plain))
    assert (trainer.global_step, trainer.current_epoch, model.n_steps) == (16, 1, 16)
    assert not trainer.tuning


@pytest.mark.parametrize("finder", [LearningRateFinder, BatchSizeFinder])
def test_a_resumed_fit_keeps_what_was_found_and_ends_at_the_same_bits(
    make_trainer: Any, net: Any, tmp_path: Path, finder: Any
) -> None:
    def build(**options: Any) -> Any:
        few = {"num_training_steps": 20} if finder is LearningRateFinder else {"max_trials": 3}
        return make_trainer(callbacks=[finder(**few), *options.pop("callbacks", [])], max_epochs=2, **options)

    whole = net()
    build().fit(whole)
    saving = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
    build(callbacks=[saving], enable_checkpointing=True).fit(net())
    model = net()
    trainer = build()
    trainer.fit(model, ckpt_path=tmp_path / "step=5.ckpt")
    assert (model.lr, model.batch_size) == (whole.lr, whole.batch_size) != (0.1, 4)
    assert is_same(bits(model), bits(whole))
    assert getattr(trainer.callbacks[0], "optimal_lr", None) is None


def test_the_fit_goes_on_with_the_batch_size_found(make_trainer: Any, net: Any) -> None:
    finder = BatchSizeFinder(max_trials=4)
    model = net()
    trainer = make_trainer(callbacks=[finder])
    trainer.fit(model)
    assert finder.optimal_batch_size == model.batch_size == trainer.train_dataloader.batch_size == 16
    assert trainer.num_training_batches == 4
    plain = net(batch_size=16)
    make_trainer().fit(plain)
    assert is_same(bits(model), bits(plain))


def test_a_batch_size_found_at_an_epoch_counts_from_there_on(make_trainer: Any, net: Any) -> None:
    class AtSecond(BatchSizeFinder):
        def on_fit_start(self, *args: Any) -> None:
            return

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                self.scale_batch_size(trainer, pl_module)

    model = net()
    trainer = make_trainer(callbacks=[AtSecond(max_trials=4)])
    trainer.fit(model)
    assert trainer.global_step == model.n_steps == 16 + 4
    assert trainer.val_dataloaders.batch_size == 16


def test_loaders_that_configure_optimizers_has_asked_for_are_made_anew(make_trainer: Any, net: Any) -> None:
    def configure_optimizers(self: Any) -> Any:
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)

    model = net({"configure_optimizers": configure_optimizers})
    trainer = make_trainer(callbacks=[BatchSizeFinder(max_trials=4)])
    trainer.fit(model)
    assert trainer.global_step == 8


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_evaluations_go_on_with_the_batch_size_found(make_trainer: Any, net: Any, method: str) -> None:
    finder, model = BatchSizeFinder(max_trials=4), net()
    trainer = make_trainer(callbacks=[finder])
    results = getattr(trainer, method)(model)
    assert finder.optimal_batch_size == model.batch_size == 16
    expected = getattr(make_trainer(), method)(net(batch_size=16))
    assert [len(r) for r in results] == [len(r) for r in expected]
    assert str(results) == str(expected)


def test_fit_does_not_look_for_a_size_in_its_validations(make_trainer: Any, net: Any) -> None:
    looks: list[str] = []

    class Counting(BatchSizeFinder):
        def scale_batch_size(self, trainer: Any, pl_module: Any) -> None:
            looks.append(trainer.state.fn)

    make_trainer(callbacks=[Counting()]).fit(net())
    assert looks == ["fit"]


@pytest.mark.parametrize("finder", [LearningRateFinder, BatchSizeFinder])
def test_fast_dev_run_looks_for_nothing(make_trainer: Any, net: Any, finder: Any) -> None:
    model = net()
    make_trainer(callbacks=[finder()], fast_dev_run=True).fit(model)
    assert (model.lr, model.batch_size) == (0.1, 4)


@pytest.mark.parametrize(
    ("kind", "arguments", "text"),
    [
        (LearningRateFinder, {"mode": "cosine"}, "mode='cosine' is unknown"),
        (LearningRateFinder, {"num_training_steps": 0}, "num_training=0 leaves no step"),
        (BatchSizeFinder, {"mode": "linear"}, "mode='linear' is unknown"),
        (BatchSizeFinder, {"init_val": 0}, "init_val=0 leaves nothing"),
    ],
)
def test_arguments_out_of_range_are_errors_at_once(kind: Any, arguments: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        kind(**arguments)


def test_loaders_that_are_made_already_are_refused(make_trainer: Any, net: Any) -> None:
    model = net()
    with pytest.raises(MisconfigurationException, match=r"trainer\.fit was passed one that is made already"):
        make_trainer(callbacks=[BatchSizeFinder()]).fit(model, model.train_dataloader())


def test_a_model_without_the_attribute_is_refused(make_trainer: Any, net: Any) -> None:
    with pytest.raises(MisconfigurationException, match="Net has no attribute or hyperparameter 'rate' for"):
        make_trainer(callbacks=[LearningRateFinder(attr_name="rate")]).fit(net())
    with pytest.raises(MisconfigurationException, match="Net has no attribute or hyperparameter 'size' to"):
        make_trainer(callbacks=[BatchSizeFinder(batch_arg_name="size")]).fit(net())


# ----------------------------------------------------------------------------------------------- trainer.tune() of 1.x


@pytest.mark.parametrize(("mode", "size"), [(True, 16), ("power", 16), ("binsearch", 15)])
def test_tune_looks_for_what_the_arguments_ask_for(make_trainer: Any, net: Any, mode: Any, size: int) -> None:
    model = net()
    trainer = make_trainer(auto_lr_find=True, auto_scale_batch_size=mode)
    options = {"scale_batch_size_kwargs": {"max_trials": 4}, "lr_find_kwargs": {"num_training": 20}}
    results = trainer.tune(model, **options)
    assert results["scale_batch_size"] == model.batch_size == size
    assert model.lr == results["lr_find"].suggestion() != 0.1


def test_tune_takes_the_name_of_the_attribute(make_trainer: Any, net: Any) -> None:
    model = net()
    model.rate = 0.5
    trainer = make_trainer(auto_lr_find="rate")
    results = trainer.tune(model, lr_find_kwargs={"num_training": 20})
    assert list(results) == ["lr_find"]
    assert (model.rate, model.lr) == (results["lr_find"].suggestion(), 0.1)


def test_tune_takes_loaders(make_trainer: Any, net: Any) -> None:
    model = net()
    finder = make_trainer(auto_lr_find=True).tune(
        model, train_dataloader=model.loader(), lr_find_kwargs={"num_training": 5, "update_attr": False}
    )["lr_find"]
    assert len(finder.results["lr"]) == 5


def test_fit_alone_does_not_tune(make_trainer: Any, net: Any) -> None:
    model = net()
    make_trainer(auto_lr_find=True, auto_scale_batch_size=True).fit(model)
    assert (model.lr, model.batch_size) == (0.1, 4)


def test_the_trainer_has_a_tuner(make_trainer: Any, net: Any) -> None:
    model, trainer = net(), make_trainer()
    assert trainer.tuner.scale_batch_size(model, max_trials=2) == 4
    assert trainer.tuner.lr_find(model, num_training=20).suggestion() == model.lr
