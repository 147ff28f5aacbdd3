"""Hyperparameters that a command line keeps make the module again; explicit options win over them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.cli.samples import QUIET, Anything, CliData, CliNet, Encoder, Needy, WideEncoder

from fulgur.cli import LightningCLI, instantiate_module
from fulgur.errors import CheckpointRefusedError, PossibleUserWarning
from fulgur.testing import BoringModel

SAVING = {**QUIET, "enable_checkpointing": True, "default_root_dir": "."}
CKPT = "checkpoints/epoch=0-step=2.ckpt"


def run(*words: str, cls: Any = CliNet, **kwargs: Any) -> LightningCLI:
    return LightningCLI(cls, CliData, args=list(words), trainer_defaults=SAVING, save_config_callback=None, **kwargs)


class Recording(LightningCLI):
    """Does everything but run."""

    def _call(self, subcommand: str) -> None:
        pass


def record(*words: str, cls: Any = CliNet, args: Any = None, **kwargs: Any) -> Any:
    kwargs.setdefault("trainer_defaults", SAVING)
    return Recording(cls, CliData, args=args or list(words), save_config_callback=None, **kwargs).model


# ------------------------------------------------------------------------------------------------ what is kept


def test_parsed_arguments_are_kept_in_plain_form() -> None:
    model = run("fit", "--model.encoder=WideEncoder", "--model.encoder.depth=3").model
    spec = {"class_path": "tests.cli.samples.WideEncoder", "init_args": {"width": 20, "depth": 3}}
    assert dict(model.hparams) == {
        "width": 4,
        "lr": 0.1,
        "encoder": spec,
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
    assert torch.load(CKPT, weights_only=True)["hyper_parameters"] == dict(model.hparams)


def test_where_any_subclass_is_taken_the_class_is_kept_too() -> None:
    model = LightningCLI(args=["--model=CliNet"], run=False, trainer_defaults=QUIET).model
    assert model.hparams["_class_path"] == "tests.cli.samples.CliNet"


def test_it_can_be_switched_off() -> None:
    words = ("--model.encoder=WideEncoder", "--trainer.enable_checkpointing=false")
    with pytest.warns(PossibleUserWarning, match="'encoder' is a WideEncoder"):
        model = run("fit", *words, load_from_checkpoint_support=False).model
    assert sorted(model.hparams) == ["encoder", "lr", "width"]
    assert type(model.hparams["encoder"]) is WideEncoder


def test_a_module_made_by_hand_keeps_no_marks() -> None:
    run("fit")
    assert dict(CliNet(width=2).hparams) == {"width": 2, "lr": 0.1, "encoder": None}


# ---------------------------------------------------------------------------------------------- made again


def test_the_module_comes_back_with_its_objects() -> None:
    run("fit", "--model.encoder=WideEncoder", "--model.encoder.depth=3", "--model.width=9")
    model: Any = CliNet.load_from_checkpoint(CKPT)
    assert (model.width, type(model.encoder), model.encoder.depth) == (9, WideEncoder, 3)


def test_a_module_that_has_come_back_keeps_the_same_hyperparameters() -> None:
    first = run("fit", "--model.encoder=WideEncoder").model
    assert dict(CliNet.load_from_checkpoint(CKPT).hparams) == dict(first.hparams)


def test_arguments_of_load_from_checkpoint_win() -> None:
    run("fit", "--model.encoder=WideEncoder")
    own = Encoder(5)
    with pytest.warns(PossibleUserWarning, match="'encoder' is a Encoder"):
        model = CliNet.load_from_checkpoint(CKPT, encoder=own, width=1)
    assert model.encoder is own
    assert (model.width, model.lr) == (1, 0.1)


def test_the_datamodule_comes_back() -> None:
    run("fit", "--data.batch_size=3")
    assert CliData.load_from_checkpoint(CKPT).batch_size == 3


def test_a_base_class_makes_the_class_that_is_named() -> None:
    words = ["fit", "--model=CliNet", "--model.width=6"]
    LightningCLI(args=words, trainer_defaults=SAVING, save_config_callback=None)
    model: Any = BoringModel.load_from_checkpoint(CKPT)
    assert (type(model), model.width) == (CliNet, 6)


def changed(**hparams: Any) -> str:
    """A checkpoint that says other hyperparameters than it was written with."""
    run("fit")
    checkpoint = torch.load(CKPT, weights_only=True)
    checkpoint["hyper_parameters"].update(hparams)
    torch.save(checkpoint, "changed.ckpt")
    return "changed.ckpt"


def test_only_what_is_known_makes_the_object() -> None:
    with pytest.raises(ValueError, match=r"ask for 'os\.system' to make the object"):
        CliNet.load_from_checkpoint(changed(_instantiator="os.system"))


def test_a_file_imports_no_module() -> None:
    assert "this" not in sys.modules
    path = changed(encoder={"class_path": "this.Encoder"})
    with pytest.raises(CheckpointRefusedError, match=r"name this\.Encoder, and the program has not imported this"):
        CliNet.load_from_checkpoint(path)
    with pytest.raises(CheckpointRefusedError, match="import it before"):
        record("validate", f"--ckpt_path={path}")
    assert "this" not in sys.modules


def test_a_file_makes_no_object_where_any_value_would_do() -> None:
    run("fit", cls=Anything)
    checkpoint = torch.load(CKPT, weights_only=True)
    spec = {"class_path": "tests.cli.samples.Encoder", "init_args": {}}
    checkpoint["hyper_parameters"]["thing"] = spec
    torch.save(checkpoint, "changed.ckpt")
    thing = Anything.load_from_checkpoint("changed.ckpt").thing
    assert (type(thing), thing["class_path"]) == (dict, spec["class_path"])


def test_a_file_makes_no_object_of_another_class_than_the_signature_says() -> None:
    path = changed(encoder={"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}})
    with pytest.raises(ValueError, match="do not fit its signature"):
        CliNet.load_from_checkpoint(path)


def test_instantiate_module() -> None:
    spec = {"class_path": "tests.cli.samples.WideEncoder", "init_args": {"depth": 2}}
    model = instantiate_module(CliNet, {"width": 3, "encoder": spec, "_instantiator": "x"})
    assert (model.width, model.encoder.depth) == (3, 2)


# ----------------------------------------------------------------------------------------- options and files


@pytest.fixture
def ckpt() -> str:
    run("fit", "--model.width=9", "--model.lr=0.5")
    return f"--ckpt_path={CKPT}"


def test_hyperparameters_of_the_checkpoint_are_used(ckpt: str) -> None:
    model = record("validate", ckpt)
    assert (model.width, model.lr) == (9, 0.5)


def test_explicit_options_win_over_the_checkpoint(ckpt: str) -> None:
    model = record("validate", "--model.width=2", ckpt)
    assert (model.width, model.lr) == (2, 0.5)


def test_the_checkpoint_wins_over_files(ckpt: str) -> None:
    Path("a.yaml").write_text(yaml.safe_dump({"model": {"width": 3}}))
    assert record("validate", "--config=a.yaml", ckpt).width == 9
    assert record("validate", "--model.width=2", ckpt, "--config=a.yaml").width == 2
    assert record("validate", "--config", "a.yaml", ckpt, "--model.width", "2").width == 2


def test_a_dict_is_explicit_too(ckpt: str) -> None:
    path = ckpt.partition("=")[2]
    model = record(args={"subcommand": "fit", "fit": {"model": {"width": 2}, "ckpt_path": path}})
    assert (model.width, model.lr) == (2, 0.5)


def test_a_fit_that_goes_on_trains_with_the_hyperparameters_of_the_checkpoint(ckpt: str) -> None:
    one = run("fit", ckpt, "--trainer.max_steps=4")
    assert (one.model.width, one.trainer.global_step) == (9, 4)


def test_hyperparameters_that_the_module_does_not_take_are_left_out() -> None:
    assert record("validate", f"--ckpt_path={changed(gone=1, width=7)}").width == 7


def test_the_class_of_the_checkpoint_is_used_where_any_is_taken() -> None:
    kwargs: dict[str, Any] = {"trainer_defaults": SAVING, "save_config_callback": None}
    LightningCLI(args=["fit", "--model=CliNet", "--model.width=6"], **kwargs)
    words = ["validate", "--model=CliNet", f"--ckpt_path={CKPT}"]
    assert Recording(args=words, **kwargs).model.width == 6
    assert Recording(args=[*words, "--model.width=2"], **kwargs).model.width == 2


def test_best_is_no_file() -> None:
    assert record("validate", "--ckpt_path=best").width == 4


def test_what_the_checkpoint_holds_need_not_be_given() -> None:
    run("fit", "--model.width=9", cls=Needy)
    assert record("validate", "--ckpt_path", CKPT, cls=Needy).width == 9


def test_a_file_may_name_the_checkpoint(ckpt: str) -> None:
    Path("a.yaml").write_text(yaml.safe_dump({"ckpt_path": CKPT}))
    assert record("validate", "--config=a.yaml").width == 9


def test_options_may_import_what_the_checkpoint_names() -> None:
    Path("late_encoder.py").write_text("from tests.cli.samples import Encoder\nclass Late(Encoder): ...\n")
    sys.path.insert(0, ".")
    try:
        run("fit", "--model.encoder=late_encoder.Late", "--model.encoder.width=5")
        del sys.modules["late_encoder"]
        model = record("validate", "--model.encoder=late_encoder.Late", f"--ckpt_path={CKPT}")
        assert type(model.encoder).__module__ == "late_encoder"
    finally:
        sys.path.remove(".")
        sys.modules.pop("late_encoder", None)
