"""How a batch gets to the device: hooks of module and datamodule, whatever nesting."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from tests.trainer.conftest import Bare, quiet

from fulgur import LightningDataModule
from fulgur.errors import PossibleUserWarning


class Traced(Bare):
    """Its batch is a list of words; every transfer hook adds one."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Any] = []

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [*batch, f"before {dataloader_idx}"]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return [*batch, f"to {device} {dataloader_idx}"]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [*batch, f"after {dataloader_idx}"]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches.append(batch)
        return self.layer.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batches.append(batch)

    test_step = predict_step = validation_step


class Loader:
    """A loader of one batch, which a DataLoader would collate."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __iter__(self) -> Any:
        return iter([self.batch])


def test_transfer_hooks_run_in_order_before_every_step() -> None:
    trainer = quiet(max_epochs=1)
    model = Traced()
    trainer.fit(model, Loader(["train"]), Loader(["val"]))
    trainer.test(model, Loader(["test"]), verbose=False)
    trainer.predict(model, Loader(["predict"]))
    steps = ["before 0", "to cpu 0", "after 0"]
    assert model.batches == [[stage, *steps] for stage in ("train", "val", "test", "predict")]


def test_transfer_hooks_are_told_which_loader_of_an_evaluation() -> None:
    model = Traced()
    quiet().test(model, [Loader([]), Loader([])], verbose=False)
    assert model.batches == [[f"before {i}", f"to cpu {i}", f"after {i}"] for i in (0, 1)]


def test_hooks_of_the_datamodule_take_the_place_of_the_modules_one_by_one() -> None:
    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return Loader([])

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [*batch, "after by the datamodule"]

    model = Traced()
    with pytest.warns(PossibleUserWarning, match="override on_after_batch_transfer"):
        quiet(max_epochs=1).fit(model, datamodule=Data())
    assert model.batches == [["before 0", "to cpu 0", "after by the datamodule"]]


def test_logging_in_a_transfer_hook_is_an_error_that_names_it() -> None:
    class Logs(Bare):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.log("size", 1.0)
            return batch

    with pytest.raises(Exception, match="cannot be called in on_after_batch_transfer"):
        quiet(max_epochs=1).fit(Logs(), [torch.zeros(1, 2)])


# ------------------------------------------------------------------------------------------------------ nested batches


class Point(NamedTuple):
    x: torch.Tensor
    name: str


@dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    label: int


class WithTo:
    """Anything with ``.to``."""

    def __init__(self, place: str = "host") -> None:
        self.place = place

    def to(self, device: Any) -> WithTo:
        return WithTo(str(device))


NESTED: list[Any] = [
    torch.zeros(1),
    (torch.zeros(1), torch.ones(1)),
    {"x": torch.zeros(1), "name": "a"},
    OrderedDict(x=[torch.zeros(1), {"y": torch.ones(1)}]),
    Point(torch.zeros(1), "a"),
    Sample(torch.zeros(1), 3),
    [{"points": (Point(torch.zeros(1), "a"),)}, None, 3, "text"],
]


def _devices(batch: Any) -> set[str]:
    if isinstance(batch, torch.Tensor):
        return {batch.device.type}
    if isinstance(batch, dict):
        return set().union(*map(_devices, batch.values()))
    if isinstance(batch, Sample):
        return _devices(batch.x)
    return set().union(*map(_devices, batch)) if isinstance(batch, (list, tuple)) else set()


@pytest.mark.parametrize("batch", NESTED, ids=lambda batch: type(batch).__name__)
def test_every_tensor_in_a_batch_moves_and_types_stay(batch: Any) -> None:
    # "meta" stands for a device that is not the host: tensors move there, and nothing needs to be computed.
    class Elsewhere(Bare):
        def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
            return super().transfer_batch_to_device(batch, torch.device("meta"), dataloader_idx)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.batch = batch
            return self.layer.weight.sum()

    model = Elsewhere()
    quiet(max_epochs=1).fit(model, Loader(batch))
    assert _devices(model.batch) == {"meta"}
    assert _devices(batch) == {"cpu"}
    assert type(model.batch) is type(batch)


def test_object_with_to_is_asked_to_move_itself() -> None:
    class Takes(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.place = batch["thing"].place
            return self.layer.weight.sum()

    model = Takes()
    quiet(max_epochs=1).fit(model, Loader({"thing": WithTo()}))
    assert model.place == "cpu"


def test_batch_that_is_there_already_is_handed_on_as_it_is() -> None:
    class Takes(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.batch = batch
            return self.layer.weight.sum()

    model, batch = Takes(), {"x": torch.zeros(1), "more": [torch.ones(1)]}
    quiet(max_epochs=1).fit(model, Loader(batch))
    assert model.batch is batch


def test_floating_tensors_of_a_batch_get_the_precision_before_the_hooks() -> None:
    found: list[Any] = []

    class Looks(Bare):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            found.append((batch["x"].dtype, batch["n"].dtype))
            return batch

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch["x"]).sum()

    quiet(max_epochs=1, precision="64-true").fit(Looks(), Loader({"x": torch.zeros(1, 2), "n": torch.zeros(1).long()}))
    assert found == [(torch.float64, torch.int64)]


def test_predictions_come_back_to_the_host_whatever_nesting() -> None:
    class Predicts(Bare):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return {"out": (batch + 1, Point(batch, "a")), "name": "b"}

    predictions = quiet().predict(Predicts(), [torch.zeros(1)])
    assert predictions == [{"out": (torch.ones(1), Point(torch.zeros(1), "a")), "name": "b"}]
