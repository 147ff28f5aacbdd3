"""What `Trainer.predict` returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fulgur import LightningModule


def step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
    return batch + 10.0 * dataloader_idx


def values(predictions: Any) -> Any:
    return [values(p) for p in predictions] if isinstance(predictions, list) else predictions.flatten().tolist()


def test_one_loader_gives_a_list_of_batches(tiny: Any, make_trainer: Any, loader: Any) -> None:
    predictions = make_trainer().predict(tiny(predict_step=step), loader(5, 2))
    assert values(predictions) == [[0.0, 1.0], [2.0, 3.0], [4.0]]


def test_several_loaders_give_a_list_of_lists(tiny: Any, make_trainer: Any, loader: Any) -> None:
    loaders = {"a": loader(3, 2), "b": loader(1)}
    for given in (loaders, list(loaders.values())):
        predictions = make_trainer().predict(tiny(predict_step=step), given)
        assert values(predictions) == [[[0.0, 1.0], [2.0]], [[10.0]]]


def test_default_step_calls_the_module(tiny: Any, make_trainer: Any, loader: Any) -> None:
    module = tiny()
    torch.nn.init.constant_(module.layer.weight, 2.0)
    assert values(make_trainer().predict(module, loader(2))) == [[0.0], [2.0]]


def test_nothing_is_returned_on_request(tiny: Any, make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer()
    assert trainer.predict(tiny(predict_step=step), loader(2), return_predictions=False) is None
    assert trainer.predict_loop.predictions == []


def test_nothing_is_returned_where_no_batch_is_asked_for(tiny: Any, make_trainer: Any, loader: Any) -> None:
    assert make_trainer(limit_predict_batches=0).predict(tiny(predict_step=step), loader(2)) is None


def test_limit_cuts_each_loader(tiny: Any, make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer(limit_predict_batches=1)
    assert values(trainer.predict(tiny(predict_step=step), [loader(3), loader(2)])) == [[[0.0]], [[10.0]]]


def test_short_last_batch_is_kept_even_where_the_loader_would_drop_it(
    tiny: Any, make_trainer: Any, loader: Any
) -> None:
    dropping = loader(5, 2, drop_last=True)
    assert values(make_trainer().predict(tiny(predict_step=step), dropping)) == [[0.0, 1.0], [2.0, 3.0], [4.0]]
    assert len(dropping) == 2


def test_predictions_of_any_nesting_are_moved_to_the_host(tiny: Any, make_trainer: Any, loader: Any) -> None:
    class Moved:
        def __init__(self) -> None:
            self.devices: list[str] = []

        def to(self, device: Any) -> Moved:
            self.devices.append(str(device))
            return self

    predictions = make_trainer().predict(
        tiny(predict_step=lambda self, batch: {"deep": [batch, (Moved(), "text", None)]}), loader(1)
    )
    assert predictions is not None
    deep = predictions[0]["deep"]
    assert deep[0].device.type == "cpu"
    assert deep[1][0].devices == ["cpu"]
    assert deep[1][1:] == ("text", None)


def test_predictions_are_made_in_eval_mode_without_gradients_and_modes_come_back(
    make_trainer: Any, loader: Any
) -> None:
    class Mixed(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.trained, self.frozen = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1).eval()

        def predict_step(self, batch: Any) -> Any:
            assert not self.trained.training
            assert torch.is_inference_mode_enabled()
            return self.trained(batch)

    module = Mixed()
    predictions = make_trainer().predict(module, loader(1))
    assert predictions is not None
    assert not predictions[0].requires_grad
    assert (module.training, module.trained.training, module.frozen.training) == (True, True, False)


def test_every_call_starts_with_no_predictions(tiny: Any, make_trainer: Any, loader: Any) -> None:
    trainer, module = make_trainer(), tiny(predict_step=step)
    first = trainer.predict(module, loader(2))
    second = trainer.predict(module, loader(2))
    assert values(first) == values(second) == [[0.0], [1.0]]


@pytest.mark.parametrize("prediction", [None, 1.5, "text"])
def test_step_may_return_anything(prediction: Any, tiny: Any, make_trainer: Any, loader: Any) -> None:
    predictions = make_trainer().predict(tiny(predict_step=lambda self, batch: prediction), loader(2))
    assert predictions == [prediction, prediction]
