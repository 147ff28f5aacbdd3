from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from fulgur import Trainer
from fulgur.testing import (
    BoringDataModule,
    BoringModel,
    DemoModel,
    ManualOptimBoringModel,
    RandomDataset,
    RandomIterableDataset,
)


def small_trainer() -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=2,
        limit_test_batches=2,
        limit_predict_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_a_boring_model_goes_through_every_entry_point_without_data() -> None:
    model, trainer = BoringModel(), small_trainer()
    trainer.fit(model)
    assert trainer.global_step == 2
    assert trainer.validate(model) == [{}]
    assert trainer.test(model) == [{}]
    predictions = trainer.predict(model)
    assert predictions is not None
    assert [tuple(p.shape) for p in predictions] == [(1, 2), (1, 2)]


def test_a_boring_model_trains_on_the_mean_of_its_output() -> None:
    model, batch = BoringModel(), torch.ones(1, 32)
    loss = model.training_step(batch, 0)["loss"]
    assert torch.equal(loss, model(batch).mean())
    assert torch.equal(model.validation_step(batch, 0)["x"], loss)
    assert torch.equal(model.test_step(batch, 0)["y"], loss)


def test_a_boring_model_lowers_its_rate_each_epoch() -> None:
    model, trainer = BoringModel(), small_trainer()
    trainer.fit(model)
    optimizer = trainer.optimizers[0]
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize("model_class", [ManualOptimBoringModel, DemoModel])
def test_other_models_fit(model_class: Any) -> None:
    model, trainer = model_class(), small_trainer()
    before = [p.clone() for p in model.parameters()]
    trainer.fit(model, DataLoader(RandomDataset(32, 64)))
    assert trainer.global_step == 2
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_demo_model_takes_its_hyperparameters() -> None:
    model = DemoModel(out_dim=3, learning_rate=0.5)
    assert model.l1.out_features == 3
    assert model.configure_optimizers().param_groups[0]["lr"] == 0.5


def test_a_boring_datamodule_serves_every_stage() -> None:
    model, datamodule, trainer = BoringModel(), BoringDataModule(), small_trainer()
    trainer.fit(model, datamodule=datamodule)
    trainer.test(model, datamodule=datamodule)
    predictions = trainer.predict(model, datamodule=datamodule)
    assert predictions is not None
    assert len(predictions) == 2
    parts = (datamodule.random_train, datamodule.random_val, datamodule.random_test, datamodule.random_predict)
    assert [len(part) for part in parts] == [64] * 4  # type: ignore[arg-type]


def test_a_random_dataset_gives_the_same_row_twice() -> None:
    data = RandomDataset(size=3, length=2)
    assert len(data) == 2
    assert data[1].shape == (3,)
    assert torch.equal(data[1], data[1])


def test_a_random_stream_has_rows_and_no_length() -> None:
    data = RandomIterableDataset(size=3, count=4)
    assert [tuple(row.shape) for row in data] == [(3,)] * 4
    with pytest.raises(TypeError):
        len(data)  # type: ignore[arg-type]
