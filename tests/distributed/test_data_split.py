"""What each rank sees in training and evaluation, and what comes of it, against one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, WeightedRandomSampler

import fulgur as fl
from fulgur.errors import MisconfigurationException
from fulgur.testing import run_ranks


class Points(Dataset[Any]):
    """Samples that say which they are; augmented ones draw their noise as transforms do."""

    def __init__(self, n: int, *, is_augmented: bool = False) -> None:
        self.n, self.is_augmented = n, is_augmented

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        noise = torch.rand((), dtype=torch.float64) if self.is_augmented else torch.zeros((), dtype=torch.float64)
        return torch.tensor([float(index), float(noise)], dtype=torch.float64)


class Line(fl.LightningModule):
    """Notes what it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1).double()
        self.seen: list[list[int]] = []
        self.drawn: list[list[float]] = []
        self.validated: list[list[int]] = []
        self.ends: list[int] = []

    def loss(self, batch: Any) -> Any:
        return (self.layer(batch / 10) - 1).pow(2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch[:, 0].long().tolist())
        self.drawn.append(batch[:, 1].tolist())
        loss = self.loss(batch)
        self.log("loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.validated.append(batch[:, 0].long().tolist())
        self.log("v", batch[:, 0].mean())
        return len(batch)

    def validation_epoch_end(self, outputs: list[int]) -> None:
        self.ends.append(sum(outputs))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return {"id": batch[:, 0].long(), "double": (batch[:, 0] * 2, [f"{int(i)}" for i in batch[:, 0]])}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def build_trainer(n_ranks: int, **settings: Any) -> fl.Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    arguments: dict[str, Any] = {"max_epochs": 2, "num_sanity_val_steps": 0} | off | settings
    strategy = arguments.pop("strategy", "ddp" if n_ranks > 1 else "auto")
    return fl.Trainer(accelerator="cpu", devices=n_ranks, strategy=strategy, **arguments)


def result(module: Line, trainer: fl.Trainer) -> dict[str, Any]:
    return {
        "weight": module.layer.weight.detach().flatten().tolist(),
        "seen": module.seen,
        "drawn": module.drawn,
        "validated": module.validated,
        "ends": module.ends,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "steps": trainer.global_step,
    }


def merged(by_rank: list[dict[str, Any]], key: str) -> list[list[Any]]:
    """By step, what all ranks have seen."""
    return [sorted(i for own in step for i in own) for step in zip(*(r[key] for r in by_rank), strict=True)]


# ----------------------------------------------------------------------------------------------- training, evaluation


def fit(n_ranks: int, n: int, global_batch: int, kind: str) -> dict[str, Any]:
    torch.manual_seed(5)
    data = Points(n)
    size = global_batch // n_ranks
    generator = torch.Generator().manual_seed(3)
    loaders: dict[str, Any] = {
        "shuffled": lambda: DataLoader(data, batch_size=size, shuffle=True),
        "drop_last": lambda: DataLoader(data, batch_size=size, shuffle=True, drop_last=True),
        "own_generator": lambda: DataLoader(data, batch_size=size, shuffle=True, generator=generator),
        "weighted": lambda: DataLoader(data, batch_size=size, sampler=WeightedRandomSampler([1.0] * n, n)),
        "lazy": lambda: DataLoader(data, batch_size=size, sampler=Lazy(n)),
        "in_order": lambda: DataLoader(data, batch_size=size),
    }
    trainer, module = build_trainer(n_ranks), Line()
    trainer.fit(module, loaders[kind](), DataLoader(data, batch_size=3))
    estimated = trainer.estimated_stepping_batches
    return result(module, trainer) | {"estimated": estimated, "n_batches": trainer.num_training_batches}


class Lazy:
    """A sampler that draws from the global generator for every index."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.n):
            yield int(torch.randint(self.n, ()))

    def __len__(self) -> int:
        return self.n


@pytest.mark.world_size(2)
@pytest.mark.parametrize("kind", ["shuffled", "drop_last", "own_generator", "weighted", "lazy", "in_order"])
def test_two_ranks_train_as_one(kind: str) -> None:
    one, two = fit(1, 21, 8, kind), run_ranks(fit, 2, 2, 21, 8, kind)
    assert [own["weight"] for own in two] == [pytest.approx(one["weight"], abs=1e-12)] * 2
    assert merged(two, "seen") == [sorted(step) for step in one["seen"]]
    for own in two:
        assert own["metrics"] == pytest.approx(one["metrics"], abs=1e-12)
        assert (own["estimated"], own["n_batches"], own["steps"]) == (one["estimated"], one["n_batches"], one["steps"])


@pytest.mark.world_size(4)
def test_four_ranks_train_and_validate_as_one_where_samples_are_fewer_than_ranks() -> None:
    for n in (1, 3, 9):
        one, four = fit(1, n, 8, "shuffled"), run_ranks(fit, 4, 4, n, 8, "shuffled")
        assert [own["weight"] for own in four] == [pytest.approx(one["weight"], abs=1e-12)] * 4
        assert [own["metrics"] for own in four] == [pytest.approx(one["metrics"], abs=1e-12)] * 4
        validated = sorted(i for own in four for batch in own["validated"] for i in batch)
        if n >= 4:
            assert validated == sorted([*range(n)] * 2)
        assert sum(sum(own["ends"]) for own in four) == 2 * n


def fit_augmented(n_ranks: int, n_workers: int) -> dict[str, Any]:
    torch.manual_seed(5)
    loader = DataLoader(Points(12, is_augmented=True), batch_size=8 // n_ranks, shuffle=True, num_workers=n_workers)
    trainer, module = build_trainer(n_ranks, limit_val_batches=0), Line()
    before = torch.get_rng_state()
    trainer.fit(module, loader)
    seen, drawn = module.seen, module.drawn
    pairs = [dict(zip(ids, values, strict=True)) for ids, values in zip(seen, drawn, strict=True)]
    return {"pairs": pairs, "has_moved": not torch.equal(before, torch.get_rng_state())}


@pytest.mark.world_size(4)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_augmentation_is_the_same_on_any_number_of_ranks_and_workers() -> None:
    def by_step(ranks: list[dict[str, Any]]) -> list[dict[int, float]]:
        return [
            {i: v for own in step for i, v in own.items()} for step in zip(*(r["pairs"] for r in ranks), strict=True)
        ]

    one = by_step([fit_augmented(1, 2)])
    assert len({v for step in one for v in step.values()}) == 24  # two epochs, different in each
    assert by_step(run_ranks(fit_augmented, 2, 2, 1)) == one
    assert by_step(run_ranks(fit_augmented, 2, 2, 0)) == one
    assert by_step(run_ranks(fit_augmented, 4, 4, 0)) == one


# ----------------------------------------------------------------------------------------- loaders that are not split


def fit_own(n_ranks: int, kind: str, uneven: str) -> dict[str, Any]:
    import os

    rank = int(os.environ["RANK"])
    settings: dict[str, Any] = {"uneven_loaders": uneven, "max_epochs": 1, "limit_val_batches": 0}
    first, length = {"7_and_11": ((0, 7), (7, 11)), "0_and_3": ((0, 0), (0, 3))}[kind.removesuffix("_unsized")][rank]
    data = [torch.tensor([[float(first + i), 0.0]], dtype=torch.float64) for i in range(length)]
    loader: Any = Unsized(data) if kind.endswith("unsized") else Sized(data)
    trainer, module = build_trainer(n_ranks, use_distributed_sampler=False, **settings), Line()
    trainer.fit(module, loader)
    return result(module, trainer)


class Unsized:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Sized(Unsized):
    def __len__(self) -> int:
        return len(self.batches)


def uneven_by_hand(lengths: tuple[tuple[int, int], ...]) -> list[float]:
    """Weights after the mean over the ranks that have a batch, step by step."""
    module = Line()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(max(length for _, length in lengths)):
        ids = [first + step for first, length in lengths if step < length]
        optimizer.zero_grad()
        batches = [torch.tensor([[float(i), 0.0]], dtype=torch.float64) for i in ids]
        torch.stack([module.loss(batch) for batch in batches]).mean().backward()
        optimizer.step()
    return module.layer.weight.detach().flatten().tolist()


@pytest.mark.world_size(2)
@pytest.mark.parametrize("kind", ["7_and_11", "0_and_3", "7_and_11_unsized", "0_and_3_unsized"])
def test_short_ranks_join_until_the_longest_ends(kind: str) -> None:
    lengths = {"7_and_11": ((0, 7), (7, 11)), "0_and_3": ((0, 0), (0, 3))}[kind.removesuffix("_unsized")]
    expected, by_rank = uneven_by_hand(lengths), run_ranks(fit_own, 2, 2, kind, "join")
    for own in by_rank:
        assert own["weight"] == pytest.approx(expected, abs=1e-12)
        assert own["steps"] == max(length for _, length in lengths)
    module = Line()
    assert module.seen == []
    losses = [own["metrics"]["loss"] for own in by_rank]
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)


@pytest.mark.world_size(2)
def test_uneven_loaders_are_an_error_that_names_the_lengths_if_asked_for() -> None:
    with pytest.raises(MisconfigurationException, match=r"have 7, 11 batches, by rank.*uneven_loaders='join'"):
        run_ranks(fit_own, 2, 2, "7_and_11", "error")


def fit_distributed_sampler(n_ranks: int) -> dict[str, Any]:
    import os

    data = Points(8)
    sampler: Any = DistributedSampler(data, num_replicas=2, rank=int(os.environ["RANK"]), shuffle=True)
    trainer, module = build_trainer(n_ranks), Line()
    trainer.fit(module, DataLoader(data, batch_size=2, sampler=sampler))
    expected = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected += [list(sampler)[i : i + 2] for i in (0, 2)]
    return {"seen": module.seen, "expected": expected}


@pytest.mark.world_size(2)
def test_a_distributed_sampler_of_the_user_stays_and_is_told_the_epoch() -> None:
    for own in run_ranks(fit_distributed_sampler, 2, 2):
        assert own["seen"] == own["expected"]


# ------------------------------------------------------------------------------------------------------ streams


class Stream(IterableDataset[Any]):
    """Numbers in an order drawn from the global generator; by rank and worker if asked."""

    def __init__(self, n: int, *, is_shuffled: bool = False, is_split: bool = False) -> None:
        self.n, self.is_shuffled, self.is_split = n, is_shuffled, is_split

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(self.n).tolist() if self.is_shuffled else list(range(self.n))
        rank = torch.distributed.get_rank() if self.is_split else 0
        for index in order[rank :: 2 if self.is_split else 1]:
            yield torch.tensor([float(index), 0.0], dtype=torch.float64)


def fit_stream(n_ranks: int, global_batch: int, settings: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(5)
    trainer, module = build_trainer(n_ranks, **settings), Line()
    loader = DataLoader(Stream(22, **options), batch_size=global_batch // n_ranks)
    trainer.fit(module, loader, DataLoader(Stream(7), batch_size=2) if not options.get("is_split") else None)
    return result(module, trainer)


@pytest.mark.world_size(2)
def test_a_stream_is_dealt_out_batch_by_batch() -> None:
    for options in ({}, {"is_shuffled": True}):
        one, two = fit_stream(1, 8, {}, options), run_ranks(fit_stream, 2, 2, 8, {}, options)
        assert merged(two, "seen") == [sorted(step) for step in one["seen"]]
        for own in two:
            assert own["weight"] == pytest.approx(one["weight"], abs=1e-12)
            assert own["metrics"] == pytest.approx(one["metrics"], abs=1e-12)


@pytest.mark.world_size(2)
def test_a_stream_that_splits_itself_is_refused_unless_it_is_said() -> None:
    with pytest.raises(MisconfigurationException, match="use_distributed_sampler=False"):
        run_ranks(fit_stream, 2, 2, 8, {}, {"is_split": True})
    first, second = run_ranks(fit_stream, 2, 2, 8, {"use_distributed_sampler": False}, {"is_split": True})
    assert sorted(i for own in (first, second) for batch in own["seen"] for i in batch) == sorted([*range(22)] * 2)


# ------------------------------------------------------------------------------------------------------ several loaders


def fit_combined(n_ranks: int, mode: str) -> dict[str, Any]:
    class Two(Line):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            present = [b for b in (batch["a"], batch["b"]) if b is not None]
            self.seen.append([int(i) for b in present for i in b[:, 0]])
            return sum(self.loss(b) for b in present)

    torch.manual_seed(5)
    size = 4 // n_ranks
    loaders = {"a": DataLoader(Points(16), batch_size=size), "b": DataLoader(Points(8), batch_size=size)}
    trainer, module = build_trainer(n_ranks, limit_val_batches=0), Two()
    trainer.fit(module, _combined(loaders, mode))
    return result(module, trainer)


def _combined(loaders: Any, mode: str) -> Any:
    from fulgur.data.combine import CombinedLoader

    return CombinedLoader(loaders, mode)  # type: ignore[arg-type]


@pytest.mark.world_size(2)
@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
def test_combined_loaders_are_split_in_step(mode: str) -> None:
    one, two = fit_combined(1, mode), run_ranks(fit_combined, 2, 2, mode)
    assert merged(two, "seen") == [sorted(step) for step in one["seen"]]
    for own in two:
        assert own["weight"] == pytest.approx(one["weight"], abs=1e-12)


# ------------------------------------------------------------------------------------------------------ prediction


def predict(n_ranks: int, kind: str, returns: Any) -> Any:
    data: Any = Points(11)
    torch.manual_seed(2)
    loader = DataLoader(data, batch_size=3, shuffle=kind == "shuffled")
    return build_trainer(n_ranks).predict(Line(), loader, return_predictions=returns)


@pytest.mark.world_size(2)
@pytest.mark.parametrize("kind", ["in_order", "shuffled"])
def test_predictions_come_in_the_order_of_the_dataset_on_request(kind: str) -> None:
    for by_process in (*run_ranks(predict, 2, 2, kind, "ordered"), predict(1, kind, "ordered")):
        assert [batch["id"].tolist() for batch in by_process] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
        assert [batch["double"][1] for batch in by_process][3] == ["9", "10"]
        assert by_process[1]["double"][0].tolist() == [6, 8, 10]


@pytest.mark.world_size(2)
def test_each_rank_predicts_its_own_batches_once() -> None:
    first, second = run_ranks(predict, 2, 2, "in_order", None)
    assert [batch["id"].tolist() for batch in first] == [[0, 1, 2], [6, 7, 8]]
    assert [batch["id"].tolist() for batch in second] == [[3, 4, 5], [9, 10]]


class Writer(fl.callbacks.BasePredictionWriter):
    def __init__(self) -> None:
        super().__init__("batch_and_epoch")
        self.batches: list[Any] = []
        self.epoch: Any = None

    def write_on_batch_end(
        self, trainer: Any, module: Any, prediction: Any, indices: Any, batch: Any, *args: Any
    ) -> None:
        self.batches.append((list(indices), prediction["id"].tolist()))

    def write_on_epoch_end(self, trainer: Any, module: Any, predictions: Any, batch_indices: Any) -> None:
        self.epoch = (batch_indices, [prediction["id"].tolist() for prediction in predictions])


def write_predictions(n_ranks: int) -> Any:
    writer = Writer()
    torch.manual_seed(2)
    loader = DataLoader(Points(11), batch_size=3, shuffle=True)
    build_trainer(n_ranks, callbacks=[writer]).predict(Line(), loader, return_predictions=False)
    return writer.batches, writer.epoch


@pytest.mark.world_size(2)
def test_writers_get_the_indices_of_their_batches() -> None:
    by_rank = run_ranks(write_predictions, 2, 2)
    for batches, (indices, ids) in by_rank:
        assert batches == [(own, own) for own in ids]
        assert indices == [ids]
    assert sorted(i for batches, _ in by_rank for own, _ in batches for i in own) == list(range(11))
