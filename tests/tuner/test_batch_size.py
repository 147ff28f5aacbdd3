"""Which batch sizes are tried, which one is found, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from fulgur import LightningDataModule
from fulgur.callbacks import BatchSizeFinder
from fulgur.errors import MisconfigurationException
from fulgur.tuner import Tuner
from fulgur.tuner.batch_size import bisect, double, is_out_of_memory


def tries(most: float) -> tuple[list[int], Callable[[int], bool]]:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= most

    return tried, fits


@pytest.mark.parametrize(
    ("most", "options", "tried", "found"),
    [
        (1000, {"max_trials": 3}, [2, 4, 8], 8),
        (1000, {"limit": 64}, [2, 4, 8, 16, 32, 64], 64),
        (1000, {"limit": 50}, [2, 4, 8, 16, 32, 50], 50),
        (40, {"limit": 50}, [2, 4, 8, 16, 32, 50], 32),
        (9, {}, [2, 4, 8, 16], 8),
        (9, {"init_val": 32}, [32, 16, 8, 16], 8),
        (1000, {"init_val": 32, "limit": 10}, [10], 10),
    ],
)
def test_power_doubles_until_it_does_not_fit(most: int, options: Any, tried: list[int], found: int) -> None:
    seen, fits = tries(most)
    assert double(fits, **({"init_val": 2, "max_trials": 25, "limit": 8192} | options)) == found
    assert seen == tried


@pytest.mark.parametrize(
    ("most", "options", "tried", "found"),
    [
        (1000, {"max_trials": 4}, [2, 4, 8, 16], 15),
        (1000, {"max_trials": 4, "margin": 0.0}, [2, 4, 8, 16], 16),
        (11, {"margin": 0.0}, [2, 4, 8, 16, 12, 10, 11], 11),
        (11, {"margin": 0.1}, [2, 4, 8, 16, 12, 10, 11], 9),
        (11, {"margin": 0.0, "max_trials": 5}, [2, 4, 8, 16, 12], 8),
        (1000, {"limit": 50, "margin": 0.0}, [2, 4, 8, 16, 32, 50], 50),
        (3, {"init_val": 16, "margin": 0.0}, [16, 8, 4, 2, 3], 3),
        (1, {"margin": 0.5}, [2, 1], 1),
    ],
)
def test_binsearch_halves_the_range_between(most: int, options: Any, tried: list[int], found: int) -> None:
    seen, fits = tries(most)
    defaults = {"init_val": 2, "max_trials": 25, "limit": 8192, "margin": 0.05}
    assert bisect(fits, **(defaults | options)) == found
    assert seen == tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA out of memory."),
        RuntimeError("HIP out of memory. Tried to allocate"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_what_torch_says_at_the_end_of_memory_is_known(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("CUDA out of memory."), Exception()])
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def limited(most: int, sizes: list[int] | None = None) -> dict[str, Any]:
    """A training step whose memory is at its end beyond `most` samples."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if sizes is not None:
            sizes.append(len(batch[0]))
        if len(batch[0]) > most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return self.layers(batch[0]).mean()

    return {"training_step": training_step}


def test_memory_decides(make_trainer: Any, net: Any) -> None:
    model, trainer = net(limited(20)), make_trainer()
    assert Tuner(trainer).scale_batch_size(model) == 16
    assert (model.batch_size, model.hparams.batch_size) == (16, 16)
    assert Tuner(trainer).scale_batch_size(model, mode="binsearch", margin=0.0) == 20


def test_the_length_of_the_dataset_is_the_most(make_trainer: Any, net: Any) -> None:
    sizes: list[int] = []
    assert Tuner(make_trainer()).scale_batch_size(net(limited(1000, sizes)), init_val=40, steps_per_trial=2) == 64
    assert sizes == [40, 24, 64, 64]


def test_max_val_is_the_most(make_trainer: Any, net: Any) -> None:
    assert Tuner(make_trainer()).scale_batch_size(net(), max_val=24) == 24


def test_each_size_gets_so_many_steps_of_the_optimizer(make_trainer: Any, net: Any) -> None:
    sizes: list[int] = []
    trainer = make_trainer(accumulate_grad_batches=2)
    Tuner(trainer).scale_batch_size(net(limited(1000, sizes)), max_trials=2, steps_per_trial=2)
    assert sizes == [2] * 4 + [4] * 4


def test_one_sample_that_does_not_fit_is_an_error(make_trainer: Any, net: Any) -> None:
    model = net(limited(0))
    with pytest.raises(RuntimeError, match="A batch of one sample does not fit into memory: CUDA out of memory"):
        Tuner(make_trainer()).scale_batch_size(model)
    assert model.batch_size == model.hparams.batch_size == 4


def test_another_error_is_raised_as_it_is(make_trainer: Any, net: Any) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        Tuner(make_trainer()).scale_batch_size(net({"training_step": training_step}))


@pytest.mark.parametrize(
    ("method", "step"),
    [("validate", "validation_step"), ("test", "test_step"), ("predict", "predict_step")],
)
def test_evaluations_have_a_batch_size_too(make_trainer: Any, net: Any, method: str, step: str) -> None:
    sizes: list[int] = []

    def run(self: Any, batch: Any, batch_idx: int) -> Any:
        sizes.append(len(batch[0]))
        if len(batch[0]) > 10:
            raise RuntimeError("out of memory")

    model = net({step: run})
    assert Tuner(make_trainer()).scale_batch_size(model, method=method, steps_per_trial=2) == 8
    assert sizes == [2, 2, 4, 4, 8, 8, 16]
    assert model.batch_size == 8


def test_the_datamodule_may_have_the_batch_size(make_trainer: Any, net: Any) -> None:
    class Data(LightningDataModule):
        def __init__(self) -> None:
            super().__init__()
            self.size = 2

        def train_dataloader(self) -> Any:
            return DataLoader([(torch.zeros(4), torch.zeros(1))] * 48, batch_size=self.size)

    model, data = net(limited(1000)), Data()
    tuner = Tuner(make_trainer())
    assert tuner.scale_batch_size(model, datamodule=data, batch_arg_name="size") == data.size == 48
    assert tuner.scale_batch_size(model, data, batch_arg_name="size", max_trials=2) == data.size == 4


def test_fast_dev_run_looks_for_nothing(make_trainer: Any, net: Any) -> None:
    model = net()
    assert Tuner(make_trainer(fast_dev_run=True)).scale_batch_size(model) is None
    assert model.batch_size == 4


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"method": "train"}, MisconfigurationException, "method='train' is unknown"),
        ({"mode": "linear"}, ValueError, "mode='linear' is unknown"),
        ({"init_val": 0}, ValueError, "init_val=0 leaves nothing to try"),
        ({"steps_per_trial": 0}, ValueError, "steps_per_trial=0 leaves nothing to try"),
        ({"max_trials": 0}, ValueError, "max_trials=0 leaves nothing to try"),
        ({"margin": 1.0}, ValueError, r"margin=1.0 is no fraction"),
        ({"batch_arg_name": "bs"}, MisconfigurationException, "Net has no attribute or hyperparameter 'bs'"),
    ],
)
def test_arguments_out_of_range_are_errors(make_trainer: Any, net: Any, arguments: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        Tuner(make_trainer()).scale_batch_size(net(), **arguments)


def test_loaders_that_are_made_already_are_refused(make_trainer: Any, net: Any) -> None:
    model, tuner = net(), Tuner(make_trainer())
    with pytest.raises(MisconfigurationException, match=r"trainer\.fit was passed one that is made already"):
        tuner.scale_batch_size(model, train_dataloaders=model.train_dataloader())
    with pytest.raises(MisconfigurationException, match=r"trainer\.test was passed one that is made already"):
        tuner.scale_batch_size(model, method="test", dataloaders=model.val_dataloader())


def test_several_loaders_of_an_evaluation_are_refused(make_trainer: Any, net: Any) -> None:
    model = net({"val_dataloader": lambda self: [self.loader(), self.loader()]})
    with pytest.raises(MisconfigurationException, match="there are 2 loaders to validate with"):
        Tuner(make_trainer()).scale_batch_size(model, method="validate")


def test_a_trainer_with_the_callback_refuses_the_tuner(make_trainer: Any, net: Any) -> None:
    with pytest.raises(ValueError, match="The Trainer has a BatchSizeFinder"):
        Tuner(make_trainer(callbacks=[BatchSizeFinder()])).scale_batch_size(net())
