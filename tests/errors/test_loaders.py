"""Loaders that are missing, empty, or no loaders at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.errors.conftest import Net, Stream, loader, net, quiet, refused
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fulgur import LightningDataModule
from fulgur.errors import MisconfigurationException, PossibleUserWarning

EVALUATIONS = ["validate", "test"]
HOOKS = {"fit": "train_dataloader", "validate": "val_dataloader", "test": "test_dataloader"} | {
    "predict": "predict_dataloader"
}


class OnlyTrain(LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader()


# ------------------------------------------------------------------------------------------- none, or too many of them


@pytest.mark.parametrize("entry", list(HOOKS))
def test_no_loader(entry: str) -> None:
    trainer, module = quiet(), Net()
    argument = "train_dataloaders" if entry == "fit" else "dataloaders"
    words = f"no loader to {entry} with", f"{HOOKS[entry]} must be implemented by Net", f"{argument}=loader"
    refused(trainer, lambda: getattr(trainer, entry)(module), MisconfigurationException, *words, module=module)
    assert module.stages == []


@pytest.mark.parametrize("entry", ["validate", "test", "predict"])
def test_datamodule_without_the_loader(entry: str) -> None:
    trainer, module, words = quiet(), Net(), f"{HOOKS[entry]} must be implemented by Net or a datamodule"
    call = lambda: getattr(trainer, entry)(module, datamodule=OnlyTrain())  # noqa: E731
    refused(trainer, call, MisconfigurationException, words, module=module)
    assert module.stages == []


@pytest.mark.parametrize("entry", list(HOOKS))
def test_loaders_and_datamodule_both(entry: str) -> None:
    trainer, module = quiet(), Net()
    argument = "train_dataloaders" if entry == "fit" else "dataloaders"
    words = f"Both {argument} and a datamodule (OnlyTrain)", "Pass one"
    call = lambda: getattr(trainer, entry)(module, loader(), datamodule=OnlyTrain())  # noqa: E731
    refused(trainer, call, MisconfigurationException, *words, module=module)


def test_validation_loader_and_datamodule_both() -> None:
    trainer, module, words = quiet(), Net(), ("Both val_dataloaders and a datamodule (OnlyTrain)", "Pass one")
    call = lambda: trainer.fit(module, val_dataloaders=loader(), datamodule=OnlyTrain())  # noqa: E731
    refused(trainer, call, MisconfigurationException, *words, module=module)


@pytest.mark.parametrize(
    ("datamodule", "words"),
    [(OnlyTrain, ("class", "Pass an instance")), (loader(), ("DataLoader", "Pass loaders by their own name"))],
)
def test_datamodule_that_is_none(datamodule: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(), Net()
    words = "is no LightningDataModule", *words
    refused(trainer, lambda: trainer.fit(module, datamodule=datamodule), TypeError, *words, module=module)


# -------------------------------------------------------------------------------------------------------- not a loader


class Squares(Dataset[Any]):
    """Would go on for ever if it were iterated over."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, idx: int) -> Any:
        return torch.ones(3), idx**2


SAMPLES = ("which holds samples, not batches", "DataLoader(dataset, batch_size=32)", "batch_size=None")
NO_LOADER = [
    (3, ("gave 3 (int), which is not iterable", "Give a DataLoader")),
    (DataLoader, ("gave the class DataLoader, not an instance",)),
    (loader, ("function", "which is not iterable")),
    (Net(), ("(Net), which is not iterable",)),
    ([loader(), None], ("gave None, which is not iterable",)),
    ({"x": torch.ones(2, 3)}, ("a dict with the keys ['x']", "that is a batch")),
    (TensorDataset(torch.ones(8, 3)), ("gave a TensorDataset", *SAMPLES)),
    (Squares(), ("gave a Squares", *SAMPLES)),
    (torch.ones(8, 3), ("gave a Tensor", *SAMPLES)),
    (np.ones((8, 3)), ("gave a ndarray", *SAMPLES)),
    ("data.csv", ("gave a str", *SAMPLES)),
    (Path("data.csv"), ("(PosixPath), which is not iterable",)),
]


@pytest.mark.parametrize(("given", "words"), NO_LOADER)
@pytest.mark.parametrize("entry", list(HOOKS))
def test_what_is_no_loader(entry: str, given: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(), Net()
    argument = "train_dataloaders" if entry == "fit" else "dataloaders"
    call = lambda: getattr(trainer, entry)(module, given)  # noqa: E731
    refused(trainer, call, TypeError, f"trainer.{entry}({argument}=...)", *words, module=module)


@pytest.mark.parametrize("n_sanity", [0, 2])
def test_what_is_no_validation_loader_is_told_before_training(n_sanity: int) -> None:
    trainer, module = quiet(num_sanity_val_steps=n_sanity), Net()
    words = "trainer.fit(val_dataloaders=...)", "gave a TensorDataset", *SAMPLES
    call = lambda: trainer.fit(module, loader(), TensorDataset(torch.ones(8, 3)))  # noqa: E731
    refused(trainer, call, TypeError, *words, module=module)


@pytest.mark.parametrize("hook", ["train_dataloader", "val_dataloader"])
def test_return_forgotten_in_a_loader_hook(hook: str) -> None:
    trainer, module = quiet(), net(**{hook: lambda self: None})
    words = f"Net.{hook}() gave None", "Is a `return` missing?"
    train = None if hook == "train_dataloader" else loader()
    refused(trainer, lambda: trainer.fit(module, train), TypeError, *words, module=module)


def test_iterables_that_yield_batches_are_loaders() -> None:
    class Batches:
        def __iter__(self) -> Iterator[Any]:
            return iter([[torch.ones(2, 3)]] * 3)

    for source in ([[torch.ones(2, 3)]] * 3, Batches(), iter([[torch.ones(2, 3)]] * 3), ([torch.ones(2, 3)],) * 3):
        trainer, module = quiet(), Net()
        trainer.fit(module, source)
        assert module.n_steps == 3


# ------------------------------------------------------------------------------------------------------------- empty

EMPTY = [
    (lambda: loader(0), ("gave an empty loader: it has length 0", "how its dataset is filled")),
    (
        lambda: loader(3, batch_size=4, drop_last=True),
        ("its dataset has 3 samples", "batch_size=4", "drop_last=True", "Lower batch_size or set drop_last=False"),
    ),
]


@pytest.mark.parametrize(("build", "words"), [*EMPTY, (list, ("gave an empty loader",))])
def test_empty_training_loader(build: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(), Net()
    words = "trainer.fit(train_dataloaders=...)", *words
    refused(trainer, lambda: trainer.fit(module, build()), MisconfigurationException, *words, module=module)


@pytest.mark.parametrize(("build", "words"), EMPTY)
@pytest.mark.parametrize("entry", EVALUATIONS)
def test_empty_evaluation_loader(entry: str, build: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(), Net()
    words = f"trainer.{entry}(dataloaders=...)", *words
    call = lambda: getattr(trainer, entry)(module, build())  # noqa: E731
    refused(trainer, call, MisconfigurationException, *words, module=module)


@pytest.mark.parametrize("n_sanity", [0, 2])
def test_empty_validation_loader_is_told_before_training(n_sanity: int) -> None:
    trainer, module = quiet(num_sanity_val_steps=n_sanity), Net()
    words = "trainer.fit(val_dataloaders=...) gave an empty loader", "limit_val_batches=0"
    call = lambda: trainer.fit(module, loader(), loader(0))  # noqa: E731
    refused(trainer, call, MisconfigurationException, *words, module=module)


def test_empty_loader_among_several_is_told_by_its_place() -> None:
    def validation_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    trainer, module = quiet(), net(validation_step=validation_step)
    words = "empty loader (number 1)", "its dataset has 3 samples"
    call = lambda: trainer.validate(module, [loader(), loader(3, 4, drop_last=True)])  # noqa: E731
    refused(trainer, call, MisconfigurationException, *words, module=module)


@pytest.mark.parametrize("source", [lambda: DataLoader(Stream(0), 2), lambda: iter([])])
def test_loader_without_length_that_yields_nothing(source: Any) -> None:
    trainer, module = quiet(), Net()
    words = "The training loader gave no batch", "sampler"
    refused(trainer, lambda: trainer.fit(module, source()), MisconfigurationException, *words, module=module)
    for entry, stage in (("validate", "validation"), ("test", "test")):
        module, words = Net(), (f"The {stage} loader 0 gave no batch", "iterated over only once")
        call = lambda entry=entry, module=module: getattr(trainer, entry)(module, source())  # noqa: E731
        refused(trainer, call, MisconfigurationException, *words, module=module)


def test_nothing_to_predict_for_is_an_empty_list() -> None:
    assert quiet().predict(Net(), loader(0)) == []


def test_generator_in_a_second_epoch() -> None:
    trainer, module = quiet(max_epochs=2), Net()
    words = "no batch in epoch 1, after 3", "iterated over only once", "__iter__ starts anew", "max_epochs=1"
    call = lambda: trainer.fit(module, iter([[torch.ones(2, 3)]] * 3))  # noqa: E731
    refused(trainer, call, MisconfigurationException, *words, module=module, steps=3)


def test_loader_that_gives_only_none() -> None:
    trainer, module = quiet(), Net()
    call = lambda: trainer.fit(module, [None, None])  # noqa: E731
    with pytest.warns(PossibleUserWarning, match="None instead of a batch.*collate_fn"):
        refused(trainer, call, MisconfigurationException, "gave no batch", module=module)


@pytest.mark.parametrize("entry", list(HOOKS))
def test_limit_of_zero_skips_on_purpose(entry: str) -> None:
    name = {"fit": "train", "validate": "val"}.get(entry, entry)
    trainer, module = quiet(**{f"limit_{name}_batches": 0}), Net()
    assert not getattr(trainer, entry)(module, loader(0))
    assert module.n_steps == 0


# --------------------------------------------------------------------------------------------------- limits, intervals


@pytest.mark.parametrize("entry", list(HOOKS))
def test_fraction_that_leaves_nothing(entry: str) -> None:
    name = {"fit": "train", "validate": "val"}.get(entry, entry)
    trainer, module = quiet(**{f"limit_{name}_batches": 0.1}), Net()
    words = f"limit_{name}_batches=0.1 of 4 batches", "Use at least 0.25"
    call = lambda: getattr(trainer, entry)(module, loader())  # noqa: E731
    with pytest.raises(MisconfigurationException) as caught:
        call()
    assert all(word in str(caught.value) for word in words)
    assert (module.n_steps, module.torn_down) == (0, module.stages)


@pytest.mark.parametrize(
    "arguments", [{"limit_val_batches": 0.1}, {"limit_val_batches": 0.1, "num_sanity_val_steps": 0}]
)
def test_fraction_of_validation_that_leaves_nothing_is_told_before_training(arguments: Any) -> None:
    trainer, module = quiet(**arguments), Net()
    words = "limit_val_batches=0.1 of 4 batches", "Use at least 0.25"
    call = lambda: trainer.fit(module, loader(), loader())  # noqa: E731
    refused(trainer, call, MisconfigurationException, *words, module=module)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"limit_train_batches": 0.5}, ("limit_train_batches=0.5 is a fraction", "no length", "an int for a count")),
        ({"val_check_interval": 0.5}, ("val_check_interval=0.5 is a fraction", "no length", "Use an int")),
    ],
)
def test_fraction_of_a_loader_without_length(arguments: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(**arguments), Net()
    call = lambda: trainer.fit(module, DataLoader(Stream(6), 2), loader())  # noqa: E731
    refused(trainer, call, MisconfigurationException, *words, module=module, refits=False)


def test_validation_interval_beyond_the_epoch() -> None:
    trainer, module = quiet(val_check_interval=5), Net()
    words = "val_check_interval=5", "4 training batches", "check_val_every_n_epoch=None"
    call = lambda: trainer.fit(module, loader(), loader())  # noqa: E731
    refused(trainer, call, ValueError, *words, module=module, refits=False)
