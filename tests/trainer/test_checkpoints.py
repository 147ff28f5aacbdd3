"""What a run puts into a checkpoint, and what comes back from one."""

from __future__ import annotations

import argparse
import enum
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import Bare, Net, numbers, quiet
from torch import nn

from fulgur import Callback, LightningDataModule, LightningModule, Trainer
from fulgur.callbacks import EarlyStopping, ModelCheckpoint
from fulgur.checkpoint.io import AsyncCheckpointIO, CheckpointIO
from fulgur.errors import CheckpointRefusedError, MisconfigurationException, PossibleUserWarning


class Full(Net):
    """Momentum and a schedule, so that there is state to save."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class Counts(Callback):
    """Keeps state: the batches it has seen."""

    def __init__(self) -> None:
        self.n_batches = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.n_batches += 1

    def state_dict(self) -> dict[str, Any]:
        return {"n_batches": self.n_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.n_batches = state_dict["n_batches"]


def saved(tmp_path: Path, model: LightningModule, **kwargs: Any) -> tuple[Trainer, str]:
    """One epoch of two batches, and the file of its end."""
    callbacks = [ModelCheckpoint(tmp_path, save_top_k=-1), *kwargs.pop("callbacks", [])]
    trainer = quiet(**{"max_epochs": 1, "callbacks": callbacks, "enable_checkpointing": None, **kwargs})
    trainer.fit(model, numbers(2))
    return trainer, trainer.checkpoint_callback.best_model_path


def test_checkpoint_holds_everything_of_the_run(tmp_path: Path) -> None:
    model = Full()
    trainer, path = saved(tmp_path, model, callbacks=[Counts(), EarlyStopping("never", strict=False, patience=9)])
    file = torch.load(path, weights_only=True)
    assert (file["epoch"], file["global_step"]) == (0, 2)
    assert file["pytorch-lightning_version"]
    assert torch.equal(file["state_dict"]["layer.weight"], model.layer.weight)
    momentum = trainer.optimizers[0].state[model.layer.weight]["momentum_buffer"]
    assert torch.equal(file["optimizer_states"][0]["state"][0]["momentum_buffer"], momentum)
    assert file["lr_schedulers"][0]["last_epoch"] == 1
    assert file["callbacks"]["Counts"] == {"n_batches": 2}
    assert "EarlyStopping{'monitor': 'never', 'mode': 'min'}" in file["callbacks"]
    assert "hyper_parameters" not in file


def test_weights_only_checkpoint_leaves_out_what_only_training_needs(tmp_path: Path) -> None:
    trainer, _ = saved(tmp_path, Full())
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    file = torch.load(tmp_path / "weights.ckpt")
    assert not {"optimizer_states", "lr_schedulers", "callbacks"} & set(file)
    with pytest.raises(KeyError, match="save_weights_only"):
        quiet(max_epochs=2).fit(Full(), numbers(2), ckpt_path=tmp_path / "weights.ckpt")
    trainer.test(Full(), numbers(1), ckpt_path=tmp_path / "weights.ckpt", verbose=False)


def test_resumed_run_ends_like_one_that_was_never_stopped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = Full()
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    uninterrupted = quiet(max_epochs=3, callbacks=[Counts()])
    uninterrupted.fit(whole, numbers(2))

    first, resumed = Full(), Full()
    first.load_state_dict(start)
    _, path = saved(tmp_path, first)
    counts = Counts()
    trainer = quiet(max_epochs=3, callbacks=[counts])
    trainer.fit(resumed, numbers(2), ckpt_path=path)
    assert (trainer.global_step, trainer.current_epoch, len(resumed.seen["train"])) == (6, 3, 4)
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.0625]


def test_resume_gives_callbacks_their_state(tmp_path: Path) -> None:
    _, path = saved(tmp_path, Full(), callbacks=[Counts()])
    counts = Counts()
    quiet(max_epochs=2, callbacks=[counts]).fit(Full(), numbers(2), ckpt_path=path)
    assert counts.n_batches == 4


def test_resume_at_the_limit_trains_nothing(tmp_path: Path) -> None:
    _, path = saved(tmp_path, Full())
    model, trainer = Full(), quiet(max_epochs=1)
    trainer.fit(model, numbers(2), ckpt_path=path)
    assert (model.seen["train"], trainer.global_step, trainer.current_epoch) == ([], 2, 1)


def test_resume_beyond_the_limit_is_an_error(tmp_path: Path) -> None:
    _, path = saved(tmp_path, Full(), max_epochs=3)
    with pytest.raises(MisconfigurationException, match="saved after 3 epochs, and max_epochs=2"):
        quiet(max_epochs=2).fit(Full(), numbers(2), ckpt_path=path)


def test_resume_with_another_number_of_optimizers_is_an_error(tmp_path: Path) -> None:
    _, path = saved(tmp_path, Full())
    with pytest.raises(MisconfigurationException, match="holds 1 lr_schedulers and configure_optimizers returned 0"):
        quiet(max_epochs=2).fit(Net(), numbers(2), ckpt_path=path)


def test_hooks_may_add_to_a_checkpoint_and_read_it_back(tmp_path: Path) -> None:
    read: list[Any] = []

    class Extra(Full):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = {"a": [1, 2]}

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            read.append(checkpoint["mine"])

    _, path = saved(tmp_path, Extra())
    quiet(max_epochs=2).fit(Extra(), numbers(2), ckpt_path=path)
    assert read == [{"a": [1, 2]}]


def test_strict_loading_of_the_module_decides_whether_keys_must_match(tmp_path: Path) -> None:
    class Lax(Full):
        def __init__(self, strict: bool) -> None:
            super().__init__()
            self.extra = nn.Linear(1, 1)
            self.strict_loading = strict

    _, path = saved(tmp_path, Full())
    quiet().test(Lax(False), numbers(1), ckpt_path=path, verbose=False)
    with pytest.raises(RuntimeError, match=r"extra\.weight"):
        quiet().test(Lax(True), numbers(1), ckpt_path=path, verbose=False)


def test_file_that_could_run_code_is_refused_unless_trusted(tmp_path: Path) -> None:
    _, path = saved(tmp_path, Full())
    content = torch.load(path, weights_only=True)
    torch.save(content | {"mine": nn.Linear(1, 1)}, path)
    trainer = quiet()
    with pytest.raises(CheckpointRefusedError, match="Linear"):
        trainer.test(Full(), numbers(1), ckpt_path=path)
    trainer.test(Full(), numbers(1), ckpt_path=path, weights_only=False, verbose=False)


def test_what_a_hook_adds_comes_back_as_it_was(tmp_path: Path) -> None:
    class Adding(Full):
        found: Any = None

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = argparse.Namespace(a=1)

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.found = checkpoint["mine"]

    _, path = saved(tmp_path, Adding())
    module = Adding()
    quiet().test(module, numbers(1), ckpt_path=path, verbose=False)
    assert module.found == argparse.Namespace(a=1)


# ------------------------------------------------------------------------------------------------------ hyperparameters


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Options:
    width: int = 3
    root: Path = Path("/data")


class Tuned(Bare):
    def __init__(self, width: int, lr: float = 0.1, **rest: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.hidden = nn.Linear(width, width)


HPARAMS: list[Any] = [
    3,
    "text",
    None,
    (1, (2.5, "x")),
    [1, {"a": (2,)}],
    {1, 2},
    {"nested": {"path": Path("/data/a")}},
    Path("/data"),
    argparse.Namespace(a=1, b=[2]),
    Colour.RED,
    Options(4, Path("/x")),
    torch.float16,
    torch.device("cpu"),
    torch.tensor([1.0, 2.0]),
    1 + 2j,
]


@pytest.mark.parametrize("value", HPARAMS, ids=lambda value: type(value).__name__)
def test_hyperparameters_come_back_as_they_were_without_trusting_the_file(tmp_path: Path, value: Any) -> None:
    _, path = saved(tmp_path, Tuned(5, value=value))
    loaded = Tuned.load_from_checkpoint(path, weights_only=True)
    assert (loaded.hparams.width, loaded.hparams.lr) == (5, 0.1)
    found = loaded.hparams["value"]
    assert type(found) is type(value)
    assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


def test_loaded_module_has_the_weights_and_no_trainer(tmp_path: Path) -> None:
    model = Tuned(4, lr=0.3)
    _, path = saved(tmp_path, model)
    loaded = Tuned.load_from_checkpoint(path)
    assert torch.equal(loaded.layer.weight, model.layer.weight)
    assert (loaded.hparams, loaded.training, loaded.global_step) == ({"width": 4, "lr": 0.3}, True, 0)


def test_arguments_override_saved_hyperparameters(tmp_path: Path) -> None:
    _, path = saved(tmp_path, Tuned(4))
    assert Tuned.load_from_checkpoint(path, lr=0.7).hparams.lr == 0.7
    with pytest.raises(RuntimeError, match="size mismatch"):
        Tuned.load_from_checkpoint(path, width=9)


def test_changed_hyperparameters_are_those_saved(tmp_path: Path) -> None:
    model = Tuned(4)
    model.hparams.lr = 0.9
    _, path = saved(tmp_path, model)
    assert Tuned.load_from_checkpoint(path).hparams.lr == 0.9


@pytest.mark.parametrize(
    ("name", "content"), [("h.yaml", "width: 4\nlr: 0.9\n"), ("h.csv", "key,value\nwidth,4\nlr,0.9")]
)
def test_file_of_hyperparameters_replaces_saved_ones(tmp_path: Path, name: str, content: str) -> None:
    _, path = saved(tmp_path, Tuned(4))
    (tmp_path / name).write_text(content)
    assert Tuned.load_from_checkpoint(path, hparams_file=str(tmp_path / name)).hparams.lr == 0.9


def test_file_of_hyperparameters_with_another_extension_is_an_error(tmp_path: Path) -> None:
    _, path = saved(tmp_path, Tuned(4))
    with pytest.raises(ValueError, match=r"h\.json"):
        Tuned.load_from_checkpoint(path, hparams_file=str(tmp_path / "h.json"))


def test_hyperparameters_saved_as_one_argument_come_back_as_that_argument(tmp_path: Path) -> None:
    class OneArgument(Bare):
        def __init__(self, options: Any) -> None:
            super().__init__()
            self.save_hyperparameters(options)
            self.width = options["width"] if isinstance(options, dict) else options.width

    _, path = saved(tmp_path / "dict", OneArgument({"width": 7}))
    assert OneArgument.load_from_checkpoint(path).width == 7
    _, path = saved(tmp_path / "namespace", OneArgument(argparse.Namespace(width=8)))
    assert OneArgument.load_from_checkpoint(path).width == 8


def test_required_argument_that_nobody_saved_is_an_error(tmp_path: Path) -> None:
    class Unsaved(Bare):
        def __init__(self, width: int) -> None:
            super().__init__()

    _, path = saved(tmp_path, Unsaved(3))
    with pytest.raises(TypeError, match="width"):
        Unsaved.load_from_checkpoint(path)
    Unsaved.load_from_checkpoint(path, width=3)


def test_strict_says_whether_keys_must_match(tmp_path: Path) -> None:
    class More(Tuned):
        def __init__(self, width: int, **rest: Any) -> None:
            super().__init__(width)
            self.extra = nn.Linear(1, 1)

    _, path = saved(tmp_path, Tuned(4))
    with pytest.raises(RuntimeError, match=r"extra\.weight"):
        More.load_from_checkpoint(path)
    with pytest.warns(PossibleUserWarning, match="strict=False"):
        More.load_from_checkpoint(path, strict=False)


def test_file_object_can_be_loaded(tmp_path: Path) -> None:
    _, path = saved(tmp_path, Tuned(4))
    assert Tuned.load_from_checkpoint(io.BytesIO(Path(path).read_bytes())).hparams.width == 4


def test_load_from_checkpoint_on_an_instance_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Tuned\.load_from_checkpoint"):
        Tuned(3).load_from_checkpoint("a.ckpt")


def test_layers_made_late_are_there_to_be_loaded(tmp_path: Path) -> None:
    class Late(Bare):
        def configure_model(self) -> None:
            self.late = nn.Linear(2, 2)

    model = Late()
    _, path = saved(tmp_path, model)
    assert torch.equal(Late.load_from_checkpoint(path).late.weight, model.late.weight)


def test_hyperparameters_without_a_plain_form_are_named_before_training_and_left_out(tmp_path: Path) -> None:
    class Odd(Bare):
        def __init__(self, activation: Callable[..., Any] | None = None, width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()

        def on_fit_start(self) -> None:
            order.append("fit")

    order: list[str] = []
    with pytest.warns(PossibleUserWarning, match=r"Odd.*\['activation'\]") as warned:
        _, path = saved(tmp_path, Odd(torch.relu))
    assert len(warned) == 1
    assert torch.load(path, weights_only=True)["hyper_parameters"] == {"width": 3}
    assert Odd.load_from_checkpoint(path).hparams == {"activation": None, "width": 3}


def test_refused_hyperparameters_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    class Odd(Bare):
        def __init__(self, activation: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.n_steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("no step before the warning")

    with pytest.raises(PossibleUserWarning, match="activation"):
        saved(tmp_path, Odd(torch.relu))


def test_no_word_of_hyperparameters_before_something_is_saved(tmp_path: Path) -> None:
    class Odd(Bare):
        def __init__(self, activation: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    trainer = quiet(max_epochs=1)
    trainer.fit(Odd(torch.relu), numbers(1))
    with pytest.warns(PossibleUserWarning, match="activation"):
        trainer.save_checkpoint(tmp_path / "a.ckpt")


# ----------------------------------------------------------------------------------------------------------- datamodule


class Data(LightningDataModule):
    def __init__(self, root: Path = Path("/data"), size: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.position = 0

    def train_dataloader(self) -> Any:
        self.position += 1
        return numbers(self.hparams.size)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "where": Path("/x")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]
        assert state_dict["where"] == Path("/x")


def with_data(tmp_path: Path, data: Data) -> str:
    trainer = quiet(max_epochs=1, callbacks=[ModelCheckpoint(tmp_path)], enable_checkpointing=None)
    trainer.fit(Full(), datamodule=data)
    return str(trainer.checkpoint_callback.best_model_path)


def test_datamodule_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    path = with_data(tmp_path, Data(Path("/here"), size=3))
    loaded = Data.load_from_checkpoint(path, size=5)
    assert (loaded.hparams.root, loaded.hparams.size, loaded.position) == (Path("/here"), 5, 1)


def test_resume_gives_the_datamodule_its_state(tmp_path: Path) -> None:
    path, data = with_data(tmp_path, Data()), Data()
    quiet(max_epochs=2).fit(Full(), datamodule=data, ckpt_path=path)
    assert data.position == 2


# ------------------------------------------------------------------------------------------------------ other writers


def test_checkpoint_of_another_writer_of_this_layout_resumes(tmp_path: Path) -> None:
    _, path = saved(tmp_path, Full())
    file = torch.load(path)
    del file["fulgur"]
    torch.save(file, path)
    model, trainer = Full(), quiet(max_epochs=2)
    trainer.fit(model, numbers(2), ckpt_path=path)
    assert (trainer.global_step, trainer.current_epoch, len(model.seen["train"])) == (4, 2, 2)


def test_nothing_is_left_beside_a_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path / "files", Full())
    assert os.listdir(tmp_path / "files") == ["epoch=0-step=2.ckpt"]


class Recording(CheckpointIO):
    """Keeps what it is given beside the checkpoint."""

    def __init__(self) -> None:
        self.given: list[tuple[str, Any]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.given.append((str(path), storage_options))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        raise NotImplementedError

    def remove_checkpoint(self, path: Any) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("is_async", [False, True])
def test_storage_options_reach_the_plugin(is_async: bool) -> None:
    recording = Recording()
    trainer = quiet(plugins=[AsyncCheckpointIO(recording) if is_async else recording])
    trainer.fit(Net(), numbers(2))
    trainer.save_checkpoint("anywhere/a.ckpt", storage_options={"tier": "cold"})
    trainer.strategy.save_checkpoint({"x": 1}, "anywhere/b.ckpt", storage_options={"tier": "warm"})
    trainer.strategy.checkpoint_io.teardown()
    assert recording.given == [("anywhere/a.ckpt", {"tier": "cold"}), ("anywhere/b.ckpt", {"tier": "warm"})]
