"""LightningCLI: what it makes of options, files, defaults and links, and in which order it calls what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.cli.samples import QUIET, CliData, CliNet, WideEncoder
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import StepLR

import fulgur
from fulgur import LightningModule, Trainer
from fulgur.callbacks import EarlyStopping, Timer
from fulgur.cli import (
    LightningArgumentParser,
    LightningCLI,
    LRSchedulerCallable,
    OptimizerCallable,
    instantiate_class,
)
from fulgur.errors import MisconfigurationException
from fulgur.loggers import CSVLogger
from fulgur.testing import BoringModel


class BareCliNet(LightningModule):
    """Without an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("loss", loss := self.layer(batch).mean())
        return loss


def cli(*words: str, cls: Any = CliNet, data: Any = CliData, **kwargs: Any) -> Any:
    kwargs.setdefault("trainer_defaults", QUIET)
    return LightningCLI(cls, data, args=list(words), **kwargs)


def made(*words: str, cls: Any = CliNet, data: Any = CliData, **kwargs: Any) -> Any:
    return cli(*words, cls=cls, data=data, run=False, **kwargs)


def write(name: str, content: Any) -> str:
    Path(name).write_text(yaml.safe_dump(content))
    return name


# ------------------------------------------------------------------------------------------------ what is made


def test_options_reach_module_data_and_trainer() -> None:
    one = made("--model.width=7", "--data.batch_size", "3", "--trainer.max_epochs=5")
    assert (one.model.width, one.datamodule.batch_size, one.trainer.max_epochs) == (7, 3, 5)


def test_what_is_not_given_has_the_default_of_its_signature() -> None:
    one = made()
    assert (one.model.width, one.model.lr, one.datamodule.batch_size) == (4, 0.1, 8)


class Recording(LightningCLI):
    """Does everything but run."""

    def _call(self, subcommand: str) -> None:
        self.called = self._prepare_subcommand_kwargs(subcommand)


@pytest.mark.parametrize("name", ["fit", "validate", "test", "predict"])
def test_a_subcommand_gives_the_method_of_the_trainer_module_and_data(name: str) -> None:
    one = Recording(CliNet, CliData, args=[name], trainer_defaults=QUIET)
    assert one.subcommand == name
    assert (one.called["model"], one.called["datamodule"], one.called["ckpt_path"]) == (one.model, one.datamodule, None)


def test_arguments_of_the_method_are_options() -> None:
    one = Recording(CliNet, CliData, args=["validate", "--verbose=false", "--ckpt_path=best"], trainer_defaults=QUIET)
    assert (one.called["verbose"], one.called["ckpt_path"]) == (False, "best")


def test_fit_trains() -> None:
    assert cli("fit").trainer.global_step == 2


def test_predict_runs() -> None:
    assert cli("predict", "--return_predictions=false").trainer.state.finished


def test_without_run_there_are_no_subcommands() -> None:
    one = made()
    assert one.subcommand is None
    assert one.trainer.global_step == 0


def test_a_dict_stands_for_options() -> None:
    one = LightningCLI(CliNet, CliData, args={"model": {"width": 9}}, run=False, trainer_defaults=QUIET)
    assert one.model.width == 9


def test_a_namespace_stands_for_options() -> None:
    from jsonargparse import Namespace

    args = Namespace({"fit": Namespace(model=Namespace(width=9)), "subcommand": "fit"})
    assert LightningCLI(CliNet, CliData, args=args, trainer_defaults=QUIET).model.width == 9


def test_options_of_the_process_beside_args_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--trainer.max_epochs=3"])
    with pytest.warns(UserWarning, match=r"not read: \['--trainer.max_epochs=3'\]"):
        made()


def test_data_may_come_from_the_module() -> None:
    one = cli("fit", data=None)
    assert one.datamodule is None
    assert one.trainer.global_step == 2


def test_functions_stand_for_classes() -> None:
    def net(width: int = 3) -> CliNet:
        return CliNet(width=width * 2)

    def trainer(**kwargs: Any) -> Trainer:
        return Trainer(**{**QUIET, **kwargs})

    assert made("--model.width=5", cls=net).model.width == 10


def test_a_subclass_of_the_trainer_has_its_own_options() -> None:
    class Own(Trainer):
        def __init__(self, *args: Any, extra: int = 1, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.extra = extra

    one = made("--trainer.extra=4", "--trainer.max_epochs=3", trainer_class=Own)
    assert (type(one.trainer), one.trainer.extra, one.trainer.max_epochs) == (Own, 4, 3)


# ----------------------------------------------------------------------------------------------- subclasses


def test_without_a_class_the_option_names_it() -> None:
    one = LightningCLI(args=["--model=tests.cli.samples.CliNet", "--model.width=3"], run=False, trainer_defaults=QUIET)
    assert (type(one.model), one.model.width, one.datamodule) == (CliNet, 3, None)


def test_the_data_can_be_named_too() -> None:
    words = ["--model=CliNet", "--data=CliData", "--data.batch_size=3"]
    one = LightningCLI(args=words, run=False, trainer_defaults=QUIET)
    assert (type(one.datamodule), one.datamodule.batch_size) == (CliData, 3)


def test_subclass_mode_takes_subclasses_only() -> None:
    one = made("--model=CliNet", "--model.width=3", cls=BoringModel, subclass_mode_model=True)
    assert type(one.model) is CliNet
    with pytest.raises(SystemExit):
        made("--model=BareCliNet", cls=BoringModel, subclass_mode_model=True)


def test_an_argument_that_is_an_object_is_named_by_its_class() -> None:
    one = made("--model.encoder=WideEncoder", "--model.encoder.depth=3")
    assert (type(one.model.encoder), one.model.encoder.width, one.model.encoder.depth) == (WideEncoder, 20, 3)


# ---------------------------------------------------------------------------------------------- what counts


def test_trainer_defaults_win_over_signatures_and_lose_to_options() -> None:
    assert made().trainer.max_steps == 2
    assert made("--trainer.max_steps=5").trainer.max_steps == 5


def test_a_later_file_or_option_wins() -> None:
    first = write("a.yaml", {"model": {"width": 1, "lr": 1.0}})
    second = write("b.yaml", {"model": {"width": 2}})
    assert made(f"--config={first}", "-c", second).model.hparams["width"] == 2
    assert made(f"--config={first}", f"--config={second}").model.lr == 1.0
    assert made(f"--config={second}", "--model.width=3").model.width == 3
    assert made("--model.width=3", f"--config={second}").model.width == 2


def test_default_files_lose_to_the_environment_and_that_to_options(monkeypatch: pytest.MonkeyPatch) -> None:
    write("default.yaml", {"model": {"width": 11, "lr": 0.5}})
    kwargs: dict[str, Any] = {"parser_kwargs": {"default_config_files": ["default.yaml"], "default_env": True}}
    assert made(**kwargs).model.width == 11
    monkeypatch.setenv("PL_MODEL__WIDTH", "12")
    assert (made(**kwargs).model.width, made(**kwargs).model.lr) == (12, 0.5)
    assert made("--model.width=13", **kwargs).model.width == 13


def test_the_environment_counts_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_MODEL__WIDTH", "12")
    assert made().model.width == 4


def test_the_environment_names_subcommands_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_FIT__MODEL__WIDTH", "12")
    assert cli("fit", parser_kwargs={"default_env": True}).model.width == 12
    monkeypatch.setenv("PL_CONFIG", write("a.yaml", {"model": {"lr": 0.25}}))
    assert made(parser_kwargs={"default_env": True}).model.lr == 0.25


def test_a_file_before_the_subcommand_has_sections(tmp_path: Path) -> None:
    file = write("all.yaml", {"fit": {"model": {"width": 6}}, "test": {"model": {"width": 7}}})
    widths = [Recording(CliNet, CliData, args=[f"--config={file}", name]).model.width for name in ("fit", "test")]
    assert widths == [6, 7]


def test_parsers_of_subcommands_have_arguments_of_their_own() -> None:
    write("fit.yaml", {"model": {"width": 21}})
    kwargs: dict[str, Any] = {"parser_kwargs": {"fit": {"default_config_files": ["fit.yaml"]}}}
    widths = [Recording(CliNet, CliData, args=[name], **kwargs).model.width for name in ("fit", "test")]
    assert widths == [21, 4]


def test_a_part_can_be_a_file_of_its_own() -> None:
    assert made(f"--model={write('net.yaml', {'width': 8})}").model.width == 8


def test_print_config_prints_what_would_be_used_and_exits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli("fit", "--model.width=5", "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert exit_.value.code == 0
    assert printed["model"]["width"] == 5
    assert printed["trainer"]["max_steps"] == 2


def test_what_is_printed_can_be_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli("fit", "--model.encoder=WideEncoder", "--trainer.callbacks+=Timer", "--print_config")
    Path("printed.yaml").write_text(capsys.readouterr().out)
    one = cli("fit", "--config=printed.yaml")
    assert type(one.model.encoder) is WideEncoder
    assert Timer in map(type, one.trainer.callbacks)


# ---------------------------------------------------------------------------------------------- the Trainer


def test_callbacks_are_appended() -> None:
    one = made(
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=loss",
        "--trainer.callbacks+=Timer",
        "--trainer.callbacks.interval=epoch",
    )
    found = [c for c in one.trainer.callbacks if type(c) in (EarlyStopping, Timer)]
    assert [type(c) for c in found] == [EarlyStopping, Timer]
    assert found[0].monitor == "loss"


def test_callbacks_of_options_defaults_and_classes_add_up() -> None:
    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(EarlyStopping, "stopping")
            parser.set_defaults({"stopping.monitor": "loss", "stopping.patience": 7})

    defaults = {**QUIET, "callbacks": Timer()}
    words = ["--trainer.callbacks+=LearningRateMonitor", "--stopping.patience=9", "--trainer.logger=CSVLogger"]
    words.append("--trainer.logger.save_dir=.")
    one = Own(CliNet, CliData, args=words, run=False, trainer_defaults=defaults)
    names = [type(c).__name__ for c in one.trainer.callbacks]
    assert names[:4] == ["LearningRateMonitor", "EarlyStopping", "Timer", "SaveConfigCallback"]
    assert one.trainer.callbacks[1].patience == 9


def test_a_logger_is_named_by_its_class() -> None:
    one = made("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", "--trainer.logger.name=n")
    assert type(one.trainer.logger) is CSVLogger
    assert one.trainer.logger.root_dir == "logs/n"


def test_an_object_can_be_a_default_of_the_trainer() -> None:
    logger = CSVLogger("own")
    defaults = {**QUIET, "logger": logger}
    assert made(trainer_defaults=defaults).trainer.logger is logger
    assert made("--trainer.logger=false", trainer_defaults=defaults).trainer.logger is None


def test_several_loggers() -> None:
    item = {"class_path": "fulgur.loggers.CSVLogger", "init_args": {"save_dir": "a"}}
    assert len(made(f"--trainer.logger={json.dumps([item, item])}").trainer.loggers) == 2


def test_strategy_and_plugins_can_be_objects() -> None:
    one = made("--trainer.strategy=SingleDeviceStrategy", "--trainer.plugins+=AsyncCheckpointIO")
    assert type(one.trainer.strategy).__name__ == "SingleDeviceStrategy"
    assert type(one.trainer.strategy.checkpoint_io).__name__ == "AsyncCheckpointIO"


def test_arguments_of_1x_are_taken() -> None:
    assert made(f"--config={write('a.yaml', {'trainer': {'weights_summary': None, 'gpus': 0}})}").trainer is not None


@pytest.mark.parametrize(("given", "seed"), [("3", 3), ("true", 0), ("false", None)])
def test_the_seed(given: str, seed: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    one = made(f"--seed_everything={given}")
    assert os.environ.get("PL_GLOBAL_SEED") == (None if seed is None else str(seed))
    assert one.config["seed_everything"] == (False if seed is None else seed)


def test_a_seed_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert made().config["seed_everything"] == 17


def test_seeded_before_the_module_is_made() -> None:
    weights = [made("--seed_everything=5").model.layer.weight for _ in range(2)]
    assert torch.equal(*weights)


# ----------------------------------------------------------------------------------------------- the order


def test_hooks_run_around_objects_and_run() -> None:
    calls: list[str] = []

    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            calls.append("add_arguments_to_parser")

        def before_instantiate_classes(self) -> None:
            calls.append("before_instantiate_classes")

        def instantiate_classes(self) -> None:
            calls.append("instantiate_classes")
            super().instantiate_classes()

        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            calls.append("instantiate_trainer")
            return super().instantiate_trainer(**kwargs)

        def after_instantiate_classes(self) -> None:
            calls.append("after_instantiate_classes")

        def before_fit(self) -> None:
            calls.append(f"before_fit {self.trainer.global_step}")

        def after_fit(self) -> None:
            calls.append(f"after_fit {self.trainer.global_step}")

        def before_test(self) -> None:
            calls.append("before_test")

    Own(CliNet, CliData, args=["fit"], trainer_defaults=QUIET)
    assert calls == [
        *["add_arguments_to_parser"] * 4,
        "before_instantiate_classes",
        "instantiate_classes",
        "instantiate_trainer",
        "after_instantiate_classes",
        "before_fit 0",
        "after_fit 2",
    ]


def test_a_method_of_the_cli_runs_in_place_of_the_trainers() -> None:
    class Own(LightningCLI):
        def fit(self, model: LightningModule, **kwargs: Any) -> None:
            self.seen = (model, sorted(kwargs))

    one = Own(CliNet, CliData, args=["fit"], trainer_defaults=QUIET)
    assert one.seen == (one.model, ["ckpt_path", "datamodule", "weights_only"])
    assert one.trainer.global_step == 0


def test_further_subcommands() -> None:
    class Own(Trainer):
        def twice(self, model: LightningModule, times: int = 2) -> None:
            self.seen = times

    class OwnCLI(LightningCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {**LightningCLI.subcommands(), "twice": {"model"}}

        def _call(self, subcommand: str) -> None:
            self.datamodule = None
            super()._call(subcommand)

    one = OwnCLI(CliNet, CliData, trainer_class=Own, args=["twice", "--times=5"], trainer_defaults=QUIET)
    assert one.trainer.seen == 5  # type: ignore[attr-defined]


def test_the_trainer_can_be_made_with_other_arguments() -> None:
    class Own(LightningCLI):
        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            return super().instantiate_trainer(max_epochs=9, **kwargs)

    assert (
        Own(CliNet, CliData, args=["--trainer.max_epochs=3"], run=False, trainer_defaults=QUIET).trainer.max_epochs == 9
    )


# ------------------------------------------------------------------------------------------------- links


def test_a_link_on_parse_copies_and_computes() -> None:
    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.link_arguments("data.batch_size", "model.width")
            parser.link_arguments("data.batch_size", "model.lr", compute_fn=lambda size: size / 10)

    one = Own(CliNet, CliData, args=["--data.batch_size=5"], run=False, trainer_defaults=QUIET)
    assert (one.model.width, one.model.lr) == (5, 0.5)


def test_a_link_on_instantiate_takes_from_the_object() -> None:
    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.link_arguments("data.batch_size", "model.width", apply_on="instantiate")

    one = Own(CliNet, CliData, args=["--data.batch_size=5"], run=False, trainer_defaults=QUIET)
    assert (one.model.width, one.model.hparams["width"]) == (5, 5)


def test_the_target_of_a_link_cannot_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.link_arguments("data.batch_size", "model.width")

    with pytest.raises(SystemExit, match="2"):
        Own(CliNet, CliData, args=["--model.width=5"], run=False, trainer_defaults=QUIET)
    assert 'Linked "model.width" must be given via "data.batch_size"' in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- optimizers


def optimizers(one: Any) -> Any:
    return one.model.configure_optimizers()


def test_an_optimizer_of_the_command_line() -> None:
    found = optimizers(made("--optimizer=SGD", "--optimizer.lr=0.25", cls=BareCliNet))
    assert (type(found), found.defaults["lr"]) == (SGD, 0.25)


def test_an_optimizer_with_a_scheduler() -> None:
    words = ("--optimizer=Adam", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=3")
    [[optimizer], [scheduler]] = optimizers(made(*words, cls=BareCliNet))
    assert (type(optimizer), type(scheduler), scheduler.step_size) == (Adam, StepLR, 3)


def test_a_plateau_scheduler_says_what_it_watches() -> None:
    words = ("--optimizer=SGD", "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=loss")
    one = cli("fit", *words, cls=BareCliNet)
    found = optimizers(one)
    assert type(found["lr_scheduler"]["scheduler"]) is fulgur.ReduceLROnPlateau
    assert found["lr_scheduler"]["monitor"] == "loss"
    assert one.trainer.lr_scheduler_configs[0].monitor == "loss"


def test_a_module_without_an_optimizer_trains_with_that_of_the_command_line() -> None:
    assert type(cli("fit", "--optimizer=Adam", cls=BareCliNet).trainer.optimizers[0]) is Adam


def test_an_optimizer_that_replaces_the_modules_own_is_told_of() -> None:
    with pytest.warns(UserWarning, match="configure_optimizers of CliNet is replaced"):
        assert type(optimizers(made("--optimizer=Adam"))) is Adam


def test_without_the_option_the_module_keeps_its_own() -> None:
    [[optimizer], _] = optimizers(made())
    assert type(optimizer) is SGD


def test_a_scheduler_needs_an_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        made("--lr_scheduler=StepLR", "--lr_scheduler.step_size=3", cls=BareCliNet)
    assert exit_.value.code == 2
    assert "Give --optimizer too" in capsys.readouterr().err


def test_without_auto_configure_there_are_no_options_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        made("--optimizer=Adam", auto_configure_optimizers=False)
    assert "There is no option --optimizer" in capsys.readouterr().err


def test_a_class_of_optimizer_has_its_options_at_once() -> None:
    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_optimizer_args(Adam)
            parser.add_lr_scheduler_args(StepLR)
            parser.set_defaults({"lr_scheduler.step_size": 4})

    [[optimizer], [scheduler]] = optimizers(
        Own(BareCliNet, CliData, args=["--optimizer.lr=0.5"], run=False, trainer_defaults=QUIET)
    )
    assert (type(optimizer), optimizer.defaults["lr"], scheduler.step_size) == (Adam, 0.5, 4)


def test_two_automatic_optimizers_are_refused() -> None:
    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_optimizer_args(Adam, nested_key="first")
            parser.add_optimizer_args(SGD, nested_key="second")
            parser.set_defaults({"second.lr": 0.1})

    with pytest.raises(MisconfigurationException, match="'AUTOMATIC': first, second"):
        Own(BareCliNet, CliData, args=[], run=False, trainer_defaults=QUIET)


class Two(LightningModule):
    def __init__(self, first: dict[str, Any], second: dict[str, Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.first, self.second = first, second

    def configure_optimizers(self) -> Any:
        return [instantiate_class(self.parameters(), init) for init in (self.first, self.second)]


def test_optimizers_can_go_to_arguments_of_the_module() -> None:
    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_optimizer_args(Adam, nested_key="one", link_to="model.first")
            parser.add_optimizer_args((Optimizer,), nested_key="other", link_to="model.second")

    words = ["--one.lr=0.5", "--other=SGD", "--other.lr=0.25"]
    first, second = optimizers(Own(Two, args=words, run=False, trainer_defaults=QUIET))
    assert (type(first), first.defaults["lr"]) == (Adam, 0.5)
    assert (type(second), second.defaults["lr"]) == (SGD, 0.25)


class Called(BareCliNet):
    def __init__(
        self,
        optimizer: OptimizerCallable = Adam,
        scheduler: LRSchedulerCallable = lambda optimizer: StepLR(optimizer, step_size=1),
    ) -> None:
        super().__init__()
        self.optimizer, self.scheduler = optimizer, scheduler

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        return [optimizer], [self.scheduler(optimizer)]


def test_an_argument_can_be_what_makes_the_optimizer() -> None:
    words = ("--model.optimizer=SGD", "--model.optimizer.lr=0.5", "--model.scheduler=StepLR")
    one = made(*words, "--model.scheduler.step_size=7", cls=Called)
    [[optimizer], [scheduler]] = optimizers(one)
    assert (type(optimizer), optimizer.defaults["lr"], scheduler.step_size) == (SGD, 0.5, 7)
    [[optimizer], [scheduler]] = optimizers(made(cls=Called))
    assert (type(optimizer), scheduler.step_size) == (Adam, 1)


def test_configure_optimizers_can_be_overridden() -> None:
    class Own(LightningCLI):
        @staticmethod
        def configure_optimizers(lightning_module: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_scheduler, "interval": "step"}}

    words = ["--optimizer=SGD", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]
    found = optimizers(Own(BareCliNet, CliData, args=words, run=False, trainer_defaults=QUIET))
    assert found["lr_scheduler"]["interval"] == "step"


# --------------------------------------------------------------------------------------- arguments of 1.x


def test_arguments_of_older_versions() -> None:
    one = made(save_config_overwrite=True, save_config_filename="c.yaml", env_parse=True, description="It trains.")
    assert one.save_config_kwargs == {"overwrite": True, "config_filename": "c.yaml"}
    assert "It trains." in one.parser.format_help()


def test_an_unknown_argument_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="Did you mean 'trainer_class'"):
        made(trainer_clas=Trainer)


def test_only_classes_of_the_framework_are_taken() -> None:
    with pytest.raises(MisconfigurationException, match="add_lightning_class_args got"):
        LightningArgumentParser().add_lightning_class_args(dict, "x")


def test_help_has_the_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli("fit", "--help")
    printed = capsys.readouterr().out
    assert "How wide it is. (type: int, default: 4)" in printed
    assert "--trainer.max_epochs" in printed
