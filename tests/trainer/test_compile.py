"""A module under torch.compile goes wherever a module goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import Bare, Net, numbers, quiet

from fulgur.callbacks import ModelCheckpoint

# torch's own, from inside its compiler: it hides the warning, but not from a filter that makes errors of warnings.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Steps(Bare):
    """Logs in every step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self(batch).mean() * 1e-3
        self.log("train", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", batch.mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test", batch.mean())


def compiled(model: Any) -> tuple[Any, list[Any]]:
    """The model under torch.compile, and the graphs that are made of it."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return torch.compile(model, backend=backend), graphs


def test_every_entry_point_takes_a_compiled_module_and_runs_its_steps_compiled() -> None:
    model, graphs = compiled(Net())
    trainer = quiet(max_epochs=1)
    for run, loaders in (
        (trainer.fit, (numbers(2), numbers(2))),
        (trainer.validate, (numbers(2),)),
        (trainer.test, (numbers(2),)),
        (trainer.predict, (numbers(2),)),
    ):
        graphs.clear()
        run(model, *loaders)
        assert graphs, run.__name__
    assert trainer.lightning_module is model._orig_mod


def test_compiled_module_trains_to_the_same_weights_and_logs_the_same() -> None:
    plain, other = Steps(), Steps()
    other.load_state_dict(plain.state_dict())
    model, graphs = compiled(other)
    trainers = [quiet(max_epochs=2), quiet(max_epochs=2)]
    for trainer, net in zip(trainers, (plain, model), strict=True):
        trainer.fit(net, numbers(3, batch_size=2), numbers(2))
    assert graphs
    assert torch.equal(plain.layer.weight, other.layer.weight)
    assert trainers[0].callback_metrics == trainers[1].callback_metrics
    assert set(trainers[1].callback_metrics) == {"train", "train_step", "train_epoch", "val"}


def test_steps_of_a_compiled_module_are_compiled_once() -> None:
    model, graphs = compiled(Steps())
    quiet(max_epochs=1).fit(model, numbers(2))
    n_graphs = len(graphs)
    torch._dynamo.reset()
    graphs.clear()
    quiet(max_epochs=2).fit(model, numbers(20))
    assert len(graphs) == n_graphs


def test_compiled_module_is_saved_and_loaded_without_the_names_of_the_wrapper(tmp_path: Path) -> None:
    model, _ = compiled(Net())
    trainer = quiet(max_epochs=1, callbacks=[ModelCheckpoint(tmp_path)], enable_checkpointing=None)
    trainer.fit(model, numbers(2))
    path = trainer.checkpoint_callback.best_model_path
    assert set(torch.load(path)["state_dict"]) == {"layer.weight", "layer.bias"}
    trainer.test(model, numbers(1), ckpt_path=path, verbose=False)


def test_module_passed_as_it_is_after_it_was_compiled_runs_uncompiled() -> None:
    net = Net()
    model, graphs = compiled(net)
    trainer = quiet(max_epochs=1)
    trainer.fit(model, numbers(1))
    graphs.clear()
    torch._dynamo.reset()
    trainer.test(net, numbers(1), verbose=False)
    assert graphs == []
