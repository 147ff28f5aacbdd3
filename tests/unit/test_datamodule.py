from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from fulgur.datamodule import LightningDataModule
from fulgur.errors import MisconfigurationException

HOOKS = ["train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"]


class Numbers(Dataset[int]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, idx: int) -> int:
        return idx


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class Digits(LightningDataModule):
    def __init__(self, batch_size: int = 2, folder: str = "data") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]


class WithoutSuper(LightningDataModule):
    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("hook", HOOKS)
def test_a_missing_loader_says_which_hook_to_define(hook: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"Digits has no `{hook}`, which must be implemented"):
        getattr(Digits(), hook)()


def test_hooks_do_nothing_by_default() -> None:
    datamodule = LightningDataModule("anything", goes=True)
    datamodule.prepare_data()
    datamodule.setup("fit")
    datamodule.teardown("fit")
    datamodule.on_exception(ValueError())
    datamodule.load_state_dict({})
    assert datamodule.state_dict() == {}
    assert datamodule.on_before_batch_transfer([1], 0) == [1]
    assert datamodule.on_after_batch_transfer([1], 0) == [1]


def test_a_subclass_need_not_call_the_base_constructor() -> None:
    datamodule = WithoutSuper()
    assert datamodule.trainer is None
    assert datamodule.name is None
    assert datamodule.prepare_data_per_node
    assert not datamodule.allow_zero_length_dataloader_with_multiple_devices
    assert datamodule.hparams == {}


def test_transfer_moves_the_batch() -> None:
    moved = LightningDataModule().transfer_batch_to_device({"x": torch.ones(2)}, torch.device("meta"), 0)
    assert moved["x"].device.type == "meta"


# -------------------------------------------------------------------------------------------------- from_datasets


def test_from_datasets_shuffles_only_training_data() -> None:
    datamodule = LightningDataModule.from_datasets(Numbers(4), Numbers(4), Numbers(4), Numbers(4), batch_size=2)
    kinds = [type(getattr(datamodule, hook)().sampler) for hook in HOOKS]
    assert kinds == [RandomSampler, SequentialSampler, SequentialSampler, SequentialSampler]
    assert datamodule.val_dataloader().batch_size == 2


def test_from_datasets_takes_a_stream() -> None:
    datamodule = LightningDataModule.from_datasets(train_dataset=Stream(), batch_size=3)
    assert [batch.tolist() for batch in datamodule.train_dataloader()] == [[0, 1, 2]]


def test_from_datasets_gives_collections_of_loaders_for_collections_of_datasets() -> None:
    datamodule = LightningDataModule.from_datasets(
        train_dataset={"a": Numbers(2), "b": Numbers(3)}, val_dataset=[Numbers(1), (Numbers(2),)]
    )
    train, val = datamodule.train_dataloader(), datamodule.val_dataloader()
    assert {name: len(loader) for name, loader in train.items()} == {"a": 2, "b": 3}
    assert isinstance(val[0], DataLoader)
    assert isinstance(val[1][0], DataLoader)


def test_from_datasets_takes_a_list_of_samples_as_a_dataset() -> None:
    datamodule = LightningDataModule.from_datasets(val_dataset=[1.0, 2.0, 3.0], batch_size=3)
    assert [batch.tolist() for batch in datamodule.val_dataloader()] == [[1.0, 2.0, 3.0]]


def test_from_datasets_without_a_dataset_has_no_loader() -> None:
    with pytest.raises(MisconfigurationException, match="test_dataloader"):
        LightningDataModule.from_datasets(Numbers(4)).test_dataloader()


def test_from_datasets_forwards_what_the_constructor_takes() -> None:
    datamodule = Digits.from_datasets(Numbers(4), batch_size=4, folder="elsewhere")
    assert datamodule.hparams == {"batch_size": 4, "folder": "elsewhere"}


def test_from_datasets_can_be_pickled() -> None:
    datamodule = LightningDataModule.from_datasets(val_dataset=Numbers(4), batch_size=2)
    assert len(pickle.loads(pickle.dumps(datamodule)).val_dataloader()) == 2


# ------------------------------------------------------------------------------------------------------------ str


def test_str_shows_the_size_of_each_dataset() -> None:
    datamodule = LightningDataModule.from_datasets(
        Numbers(4), [Numbers(2), Numbers(3)], predict_dataset=Stream(), batch_size=2
    )
    assert str(datamodule).splitlines() == [
        "{Train dataloader: size=4}",
        "{Validation dataloader: 1. size=2 ; 2. size=3}",
        "{Test dataloader: None}",
        "{Predict dataloader: size=NA}",
    ]


def test_str_before_setup_shows_none() -> None:
    class Late(LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(self.data)

    assert str(Late()).splitlines()[0] == "{Train dataloader: None}"


# ------------------------------------------------------------------------------------------- load_from_checkpoint


def checkpoint(**more: Any) -> dict[str, Any]:
    return {
        "datamodule_hyper_parameters": {"batch_size": 8, "folder": "saved"},
        "datamodule_hparams_name": "kwargs",
        "Digits": {"position": 5},
        **more,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(checkpoint(), tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_loading_restores_hyperparameters_and_state(path: Path) -> None:
    datamodule = Digits.load_from_checkpoint(path)
    assert datamodule.hparams == {"batch_size": 8, "folder": "saved"}
    assert datamodule.position == 5


def test_arguments_given_while_loading_win(path: Path) -> None:
    assert Digits.load_from_checkpoint(str(path), folder="here").hparams == {"batch_size": 8, "folder": "here"}


def test_a_hparams_file_replaces_the_saved_ones(path: Path, tmp_path: Path) -> None:
    (tmp_path / "h.yaml").write_text("batch_size: 3\n")
    assert Digits.load_from_checkpoint(path, hparams_file=tmp_path / "h.yaml").hparams.batch_size == 3


def test_an_open_file_can_be_loaded() -> None:
    file = io.BytesIO()
    torch.save(checkpoint(), file)
    file.seek(0)
    assert Digits.load_from_checkpoint(file).position == 5


def test_a_checkpoint_without_data_state_leaves_the_new_datamodule_as_made(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "b.ckpt")
    assert Digits.load_from_checkpoint(tmp_path / "b.ckpt").position == 0


def test_loading_on_an_instance_is_refused(path: Path) -> None:
    with pytest.raises(TypeError, match=r"Call it on the class: `Digits.load_from_checkpoint"):
        Digits().load_from_checkpoint(path)
