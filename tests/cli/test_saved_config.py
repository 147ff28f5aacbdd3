"""The configuration of a run lies beside its logs, once, and can start the run again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.samples import QUIET, CliData, CliNet, WideEncoder

import fulgur
from fulgur.cli import LightningCLI, SaveConfigCallback
from fulgur.loggers import CSVLogger
from fulgur.testing import run_ranks


def run(*words: str, **kwargs: Any) -> LightningCLI:
    kwargs.setdefault("trainer_defaults", {**QUIET, "default_root_dir": "root"})
    return LightningCLI(CliNet, CliData, args=list(words), **kwargs)


def saved(path: str = "root/config.yaml") -> Any:
    return yaml.safe_load(Path(path).read_text())


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test"])
def test_every_subcommand_saves_it(subcommand: str) -> None:
    run(subcommand, "--model.width=7")
    assert Path("root/config.yaml").read_text().startswith(f"# fulgur=={fulgur.__version__}\n")
    assert saved()["model"] == {"width": 7, "lr": 0.1, "encoder": None}


def test_it_has_every_part() -> None:
    run("fit", "--seed_everything=3")
    config = saved()
    assert list(config) == [
        *("seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler", "ckpt_path", "weights_only")
    ]
    assert config["seed_everything"] == 3
    assert config["trainer"]["max_steps"] == 2
    assert config["trainer"]["log_every_n_steps"] is None


def test_the_seed_that_was_found_is_saved() -> None:
    run("fit")
    assert saved()["seed_everything"] == 0


def test_it_lies_in_the_directory_of_the_first_logger() -> None:
    run("fit", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs")
    assert saved("logs/lightning_logs/version_0/config.yaml")["trainer"]["logger"]["class_path"].endswith("CSVLogger")


def test_it_starts_the_same_run_again() -> None:
    words = ("--model.encoder=WideEncoder", "--trainer.callbacks+=Timer", "--data.batch_size=3")
    run("fit", *words)
    again = run("fit", "--config=root/config.yaml", "--trainer.default_root_dir=again")
    assert type(again.model.encoder) is WideEncoder
    first, second = saved(), saved("again/config.yaml")
    assert second["trainer"].pop("default_root_dir") == "again"
    assert first["trainer"].pop("default_root_dir") == "root"
    assert first == second


def test_another_configuration_is_not_overwritten() -> None:
    run("fit")
    with pytest.raises(RuntimeError, match=r"root/config\.yaml holds the configuration of another run"):
        run("fit", "--model.width=7")
    assert saved()["model"]["width"] == 4


def test_the_same_configuration_is_left_as_it_is() -> None:
    run("fit")
    run("fit")
    assert [path.name for path in Path("root").glob("config*")] == ["config.yaml"]


def test_it_is_overwritten_where_that_is_asked_for() -> None:
    run("fit")
    run("fit", "--model.width=7", save_config_kwargs={"overwrite": True})
    assert saved()["model"]["width"] == 7


def test_a_run_that_goes_on_keeps_the_earlier_ones() -> None:
    defaults = {**QUIET, "default_root_dir": "root", "enable_checkpointing": True}
    for steps in (2, 4, 6):
        run("fit", "--ckpt_path=auto", f"--trainer.max_steps={steps}", trainer_defaults=defaults)
    found = [saved(f"root/config{number}.yaml")["trainer"]["max_steps"] for number in (".1", ".2", "")]
    assert found == [2, 4, 6]


def test_nothing_is_saved_in_a_fast_run_or_without_the_callback() -> None:
    run("fit", "--trainer.fast_dev_run=true")
    run("fit", save_config_callback=None)
    assert not Path("root/config.yaml").exists()


def test_it_can_have_another_name() -> None:
    run("fit", save_config_kwargs={"config_filename": "c.yaml"})
    assert Path("root/c.yaml").exists()


def test_several_files_can_be_saved() -> None:
    Path("net.yaml").write_text("width: 6\n")
    run("fit", "--model=net.yaml", save_config_kwargs={"multifile": True})
    assert saved()["model"] == "net.yaml"
    assert saved("root/net.yaml")["width"] == 6


class Elsewhere(SaveConfigCallback):
    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        Path("elsewhere.txt").write_text(f"{stage} {self.config.model.width}")


def test_it_can_be_saved_elsewhere() -> None:
    run("fit", save_config_callback=Elsewhere, save_config_kwargs={"save_to_log_dir": False})
    assert Path("elsewhere.txt").read_text() == "fit 4"
    assert not Path("root/config.yaml").exists()


def test_elsewhere_must_be_said() -> None:
    with pytest.raises(ValueError, match="Override save_config"):
        run("fit", save_config_kwargs={"save_to_log_dir": False})


def test_it_is_saved_once_for_several_calls() -> None:
    one = run("fit")
    Path("root/config.yaml").unlink()
    one.trainer.validate(one.model, datamodule=one.datamodule, verbose=False)
    assert not Path("root/config.yaml").exists()


class Counting(SaveConfigCallback):
    def _write(self, path: str, text: str) -> None:
        with Path("written.txt").open("a") as file:
            file.write("x")
        super()._write(path, text)


def train_on_ranks(width: int) -> str:
    sys.argv = ["train.py"]
    defaults = {**QUIET, "devices": 2, "strategy": "ddp", "default_root_dir": "root"}
    words = ["fit", f"--model.width={width}"]
    try:
        LightningCLI(CliNet, args=words, trainer_defaults=defaults, save_config_callback=Counting)
    except RuntimeError as error:
        return str(error)[:25]
    return "trained"


@pytest.mark.world_size(2)
def test_two_ranks_save_it_once_and_refuse_together() -> None:
    assert run_ranks(train_on_ranks, 2, 4) == ["trained"] * 2
    assert Path("written.txt").read_text() == "x"
    assert run_ranks(train_on_ranks, 2, 5) == ["root/config.yaml holds th"] * 2
    assert saved()["model"]["width"] == 4


def test_loggers_get_how_to_make_the_module_and_not_its_class() -> None:
    words = [
        "fit",
        "--model=CliNet",
        "--data=CliData",
        "--trainer.logger=CSVLogger",
        "--trainer.logger.save_dir=logs",
    ]
    one = LightningCLI(args=words, trainer_defaults=QUIET)
    assert isinstance(one.trainer.logger, CSVLogger)
    written = saved("logs/lightning_logs/version_0/hparams.yaml")
    assert written["_instantiator"] == "lightning.pytorch.cli.instantiate_module"
    assert "_class_path" not in written
    assert (written["width"], written["batch_size"]) == (4, 8)
