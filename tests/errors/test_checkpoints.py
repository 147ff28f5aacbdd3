"""Checkpoints that cannot be loaded, and what does not fit them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.errors.conftest import Net, loader, net, quiet, refused
from torch import nn
from torch.optim.lr_scheduler import StepLR

from fulgur import LightningModule
from fulgur.errors import CheckpointError, CheckpointRefusedError, MisconfigurationException, WeightsMismatchError


class Sized(Net):
    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(3, width)


class Plain(Net):
    """No hyperparameters saved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, width)


class Custom:
    """Not plain data."""


@pytest.fixture
def full(tmp_path: Path) -> str:
    """A checkpoint of a fit of two epochs."""
    trainer = quiet(max_epochs=2)
    trainer.fit(Net(), loader())
    trainer.save_checkpoint(tmp_path / "full.ckpt")
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    return str(tmp_path / "full.ckpt")


@pytest.fixture
def of_sized(tmp_path: Path) -> str:
    trainer = quiet()
    trainer.fit(Sized(2), loader())
    trainer.save_checkpoint(tmp_path / "sized.ckpt")
    return str(tmp_path / "sized.ckpt")


def written(path: str, name: str, content: Any) -> str:
    """A file beside `path`: bytes as they are, anything else as torch writes it."""
    target = Path(path).with_name(name)
    if isinstance(content, bytes):
        target.write_bytes(content)
    else:
        torch.save(content, target)
    return str(target)


def bad_files(full: str) -> list[tuple[str, type[BaseException], tuple[str, ...]]]:
    return [
        (full.replace("full", "fulll"), FileNotFoundError, ("There is no checkpoint at", "full.ckpt, weights.ckpt")),
        ("nowhere/a.ckpt", FileNotFoundError, ("'nowhere/a.ckpt'", "no checkpoints in 'nowhere' either")),
        (
            written(full, "cut.bin", Path(full).read_bytes()[:800]),
            CheckpointError,
            ("cut.bin", "cut short"),
        ),
        (written(full, "text.bin", b"hello"), CheckpointError, ("text.bin", "no checkpoint")),
        (written(full, "empty.bin", b""), CheckpointError, ("empty.bin", "no checkpoint")),
        (written(full, "tensor.bin", torch.ones(2)), CheckpointError, ("tensor.bin", "holds a Tensor, not a dict")),
        (
            written(full, "foreign.bin", {"epoch": 3, "model": {}}),
            CheckpointError,
            ("foreign.bin", "no 'state_dict'", "['epoch', 'model']", "trainer.save_checkpoint"),
        ),
        (
            written(full, "bare.bin", nn.Linear(2, 2).state_dict()),
            CheckpointError,
            ("bare.bin", "look like bare weights", "model.load_state_dict(torch.load(path))"),
        ),
        (
            written(full, "custom.bin", {"state_dict": {}, "x": Custom()}),
            CheckpointRefusedError,
            ("custom.bin", "Custom", "was not opened", "weights_only=False"),
        ),
        (str(Path(full).parent), CheckpointError, ("directory",)),
    ]


@pytest.mark.parametrize("index", range(10))
@pytest.mark.parametrize("entry", ["fit", "validate", "test", "predict"])
def test_file_that_is_no_checkpoint(full: str, entry: str, index: int) -> None:
    path, error, words = bad_files(full)[index]
    trainer, module = quiet(), Net()
    call = lambda: getattr(trainer, entry)(module, loader(), ckpt_path=path)  # noqa: E731
    refused(trainer, call, error, *words, module=module)


@pytest.mark.parametrize("index", range(2, 9))
def test_file_that_is_no_checkpoint_for_load_from_checkpoint(full: str, index: int) -> None:
    path, error, words = bad_files(full)[index]
    with pytest.raises(error) as caught:
        Net.load_from_checkpoint(path)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    with open(path, "rb") as file, pytest.raises(error) as caught:
        Net.load_from_checkpoint(file)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("entry", ["fit", "test"])
def test_path_that_is_no_path(entry: str) -> None:
    trainer, module = quiet(), Net()
    words = "ckpt_path=3 is no path", "'best' or 'last'"
    refused(trainer, lambda: getattr(trainer, entry)(module, loader(), ckpt_path=3), TypeError, *words, module=module)


@pytest.mark.parametrize(("checkpointing", "why"), [(False, "no ModelCheckpoint callback"), (True, "saved yet")])
@pytest.mark.parametrize("entry", ["fit", "validate", "test", "predict"])
def test_best_without_a_checkpoint(entry: str, checkpointing: bool, why: str) -> None:
    trainer, module = quiet(enable_checkpointing=checkpointing), Net()
    words = f"trainer.{entry}(ckpt_path='best')", "no checkpoint has been saved", why, "Pass a path"
    call = lambda: getattr(trainer, entry)(module, loader(), ckpt_path="best")  # noqa: E731
    refused(trainer, call, ValueError, *words, module=module)


@pytest.mark.parametrize("entry", ["fit", "test"])
def test_last_without_a_checkpoint_is_told(entry: str) -> None:
    trainer, module = quiet(), Net()
    with pytest.warns(UserWarning, match="no last checkpoint was found; nothing is loaded"):
        getattr(trainer, entry)(module, loader(), ckpt_path="last")


# ------------------------------------------------------------------------------------------------------ resuming


def sgd(module: Any) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.01)


def scheduled(module: Any) -> Any:
    optimizer = sgd(module)
    return [optimizer], [StepLR(optimizer, 1)]


def in_groups(module: Any) -> Any:
    return torch.optim.SGD([{"params": [parameter]} for parameter in module.parameters()], lr=0.01)


def two(module: Any) -> Any:
    return [sgd(module), sgd(module)]


def step_of_two(module: Any, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
    return module.loss(batch)


SAME = "load only the weights with load_from_checkpoint"


@pytest.mark.parametrize(
    ("configure", "words"),
    [
        (two, ("holds 1 optimizers", "configure_optimizers returned 2", SAME)),
        (lambda module: [], ("holds 1 optimizers", "configure_optimizers returned 0", SAME)),
        (scheduled, ("holds 0 lr_schedulers", "configure_optimizers returned 1", SAME)),
        (in_groups, ("optimizers in the checkpoint does not fit SGD", "parameter groups", SAME)),
        (lambda module: torch.optim.Adam(module.parameters()), ("does not fit Adam: it has no", "'betas'", SAME)),
    ],
)
def test_resume_with_other_optimizers(full: str, configure: Any, words: tuple[str, ...]) -> None:
    members: dict[str, Any] = {"configure_optimizers": configure}
    if configure is two:
        members["training_step"] = step_of_two
    trainer, module = quiet(max_epochs=3), net(**members)
    call = lambda: trainer.fit(module, loader(), ckpt_path=full)  # noqa: E731
    refused(trainer, call, MisconfigurationException, *words, module=module)


def test_resume_with_other_shapes(full: str) -> None:
    trainer, module = quiet(max_epochs=3), Plain(2)
    words = "Plain", "size mismatch for layer.weight", repr(full), "[1, 3] in the file", "[2, 3] in the module"
    call = lambda: trainer.fit(module, loader(), ckpt_path=full)  # noqa: E731
    refused(trainer, call, WeightsMismatchError, *words, module=module)
    assert issubclass(WeightsMismatchError, RuntimeError)  # what torch raises


def test_resume_into_another_width_names_the_hyperparameter(of_sized: str) -> None:
    trainer, module = quiet(max_epochs=3), Sized(5)
    words = repr(of_sized), "[2, 3] in the file and [5, 3]", "saved with width=2, and this module has width=5"
    call = lambda: trainer.fit(module, loader(), ckpt_path=of_sized)  # noqa: E731
    message = refused(trainer, call, WeightsMismatchError, *words, module=module)
    assert "depth" not in message


def test_resume_into_other_layers_names_them_on_both_sides(full: str) -> None:
    class Other(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.layer = self.layer, nn.Identity()

        def loss(self, batch: Any) -> Any:
            return self.head(batch[0]).square().mean()

    trainer, module = quiet(max_epochs=3), Other()
    words = "not in the file: head.weight, head.bias", "not in the module: layer.weight, layer.bias", "strict_loading"
    call = lambda: trainer.fit(module, loader(), ckpt_path=full)  # noqa: E731
    refused(trainer, call, WeightsMismatchError, *words, module=module)


def test_error_of_an_own_load_state_dict_is_left_as_it_is(full: str) -> None:
    def load_state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("mine")

    module = net(load_state_dict=load_state_dict)
    with pytest.raises(RuntimeError, match=r"^mine$"):
        quiet(max_epochs=3).fit(module, loader(), ckpt_path=full)


def test_resume_from_weights_only(full: str) -> None:
    trainer, module, path = quiet(max_epochs=3), Net(), full.replace("full", "weights")
    words = "no optimizer states", "save_weights_only=True", "load_from_checkpoint"
    refused(trainer, lambda: trainer.fit(module, loader(), ckpt_path=path), KeyError, *words, module=module)
    assert quiet().test(Net(), loader(), ckpt_path=path, verbose=False)


def test_resume_beyond_max_epochs(full: str) -> None:
    trainer, module = quiet(max_epochs=1), Net()
    words = "full.ckpt", "saved after 2 epochs", "max_epochs=1", "raise it"
    call = lambda: trainer.fit(module, loader(), ckpt_path=full)  # noqa: E731
    refused(trainer, call, MisconfigurationException, *words, module=module)


def test_resume_at_max_epochs_trains_nothing(full: str) -> None:
    module = Net()
    quiet(max_epochs=2).fit(module, loader(), ckpt_path=full)
    assert module.n_steps == 0


def test_resume_takes_an_optimizer_of_the_same_kind(full: str) -> None:
    trainer, module = quiet(max_epochs=3), Net()
    trainer.fit(module, loader(), ckpt_path=full)
    assert (module.n_steps, trainer.global_step) == (4, 12)


# ------------------------------------------------------------------------------------------------ load_from_checkpoint


def test_missing_argument_names_it_and_how_to_pass_it(tmp_path: Path) -> None:
    trainer = quiet()
    trainer.fit(Plain(2), loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    words = r"Plain.__init__ needs \['width'\].*Plain.load_from_checkpoint\(path, width=...\).*save_hyperparameters"
    with pytest.raises(TypeError, match=words):
        Plain.load_from_checkpoint(tmp_path / "a.ckpt")
    assert Plain.load_from_checkpoint(tmp_path / "a.ckpt", width=2).layer.out_features == 2


def test_other_shape_by_an_override(of_sized: str) -> None:
    with pytest.raises(RuntimeError, match=r"size mismatch for layer\.weight.*saved with width=2.* has width=3"):
        Sized.load_from_checkpoint(of_sized, width=3)


def test_on_an_instance_and_on_the_base_class(of_sized: str) -> None:
    with pytest.raises(TypeError, match=r"Call it on the class: `Sized.load_from_checkpoint"):
        Sized(2).load_from_checkpoint(of_sized)
    with pytest.raises(TypeError, match="call it on your LightningModule"):
        LightningModule.load_from_checkpoint(of_sized)


def test_hparams_file_of_another_kind(of_sized: str) -> None:
    with pytest.raises(ValueError, match=r"hparams_file='x.json' ends in '.json'. Use a .yaml, .yml or .csv"):
        Sized.load_from_checkpoint(of_sized, hparams_file="x.json")
    with pytest.raises(FileNotFoundError, match=r"x\.yaml"):
        Sized.load_from_checkpoint(of_sized, hparams_file="x.yaml")


def test_strict_that_contradicts_the_module(of_sized: str) -> None:
    class Loose(Sized):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.strict_loading = False

    with pytest.raises(ValueError, match=r"strict=True contradicts strict_loading=False of Loose. Leave out one"):
        Loose.load_from_checkpoint(of_sized, strict=True)


# ------------------------------------------------------------------------------------------------------------ saving


def test_save_without_a_model() -> None:
    with pytest.raises(AttributeError, match=r"before a model was attached. Call it during or after fit"):
        quiet().save_checkpoint("a.ckpt")


def test_save_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    trainer = quiet()
    trainer.fit(Net(), loader())
    with pytest.raises(CheckpointError, match=r"file/a.ckpt' could not be written.*Earlier checkpoints are untouched"):
        trainer.save_checkpoint(tmp_path / "file" / "a.ckpt")


def test_hyperparameter_without_a_plain_form_is_told_before_training() -> None:
    class Odd(Net):
        def __init__(self, function: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters()

    with pytest.warns(UserWarning, match=r"Hyperparameters of Odd that are no plain data .*\['function'\].*ignore="):
        quiet(enable_checkpointing=True).fit(Odd(copy.copy(lambda: None)), loader())
