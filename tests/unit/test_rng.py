"""Seeding, capture and restore of the generators."""

from __future__ import annotations

import io
import os
import random

import numpy as np
import pytest
import torch

from fulgur.rng import (
    MAX_SEED,
    capture_rng,
    isolate_rng,
    reset_seed,
    restore_rng,
    seed_everything,
    seed_worker,
    should_seed_workers,
)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_same_seed_repeats_all_generators() -> None:
    seed_everything(3, verbose=False)
    first = draw()
    seed_everything(3, verbose=False)
    assert draw() == first


def test_different_seeds_differ_in_every_generator() -> None:
    seed_everything(3, verbose=False)
    first = draw()
    seed_everything(4, verbose=False)
    assert all(a != b for a, b in zip(first, draw(), strict=True))


def test_returns_and_exports_the_seed() -> None:
    assert seed_everything(11, workers=True, verbose=False) == 11
    assert os.environ["PL_GLOBAL_SEED"] == "11"
    assert should_seed_workers()


def test_without_a_seed_takes_zero() -> None:
    assert seed_everything(verbose=False) == 0
    assert not should_seed_workers()


def test_without_a_seed_takes_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "21")
    assert seed_everything(verbose=False) == 21


def test_broken_seed_in_the_environment_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "many")
    with pytest.raises(ValueError, match="PL_GLOBAL_SEED in the environment='many'"):
        seed_everything(verbose=False)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seed_out_of_range_is_an_error(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed={seed} is out of range"):
        seed_everything(seed, verbose=False)


def test_fractional_seed_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"seed=1\.5 is not a whole number"):
        seed_everything(1.5, verbose=False)  # type: ignore[arg-type]


def test_numpy_integers_are_seeds() -> None:
    assert seed_everything(np.int64(5), verbose=False) == 5  # type: ignore[arg-type]


def test_reset_seed_repeats_the_last_seed() -> None:
    seed_everything(5, verbose=False)
    first = draw()
    reset_seed()
    assert draw() == first


def test_restore_brings_every_generator_back() -> None:
    random.gauss(0, 1)  # leaves a second value in Python's generator
    np.random.randn()
    state = capture_rng()
    first = draw(), random.gauss(0, 1), np.random.randn()
    restore_rng(state)
    assert (draw(), random.gauss(0, 1), np.random.randn()) == first


@pytest.mark.parametrize("n_draws", [0, 1, 2, 3])
def test_numpy_state_is_taken_anew_where_it_has_moved_in_any_part(n_draws: int) -> None:
    np.random.seed(1)
    np.random.randn()  # keeps a second number for later, which leaves the words alone when it is drawn
    capture_rng()
    for _ in range(n_draws):
        np.random.randn()
        capture_rng()
    state = capture_rng()
    first = np.random.randn(3).tolist()
    restore_rng(state)
    assert np.random.randn(3).tolist() == first


def test_python_state_is_the_one_of_the_moment() -> None:
    random.seed(1)
    for draw_once in (random.random, lambda: random.gauss(0, 1), lambda: random.gauss(0, 1), lambda: random.seed(2)):
        for _ in range(2):
            assert capture_rng()["python"] == random.getstate()
        draw_once()
    assert capture_rng()["python"] == random.getstate()
    with isolate_rng():
        random.random()
        assert capture_rng()["python"] == random.getstate()
    assert capture_rng()["python"] == random.getstate()


def test_python_state_where_its_words_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulgur.rng._python_address", 0)
    before = capture_rng()["python"]
    random.random()
    assert before != capture_rng()["python"] == random.getstate()


def test_numpy_state_is_taken_anew_after_a_restore() -> None:
    np.random.seed(1)
    np.random.randn()
    with isolate_rng():
        np.random.randn()
        capture_rng()
    state = capture_rng()
    first = np.random.randn(3).tolist()
    restore_rng(state)
    assert np.random.randn(3).tolist() == first


def test_numpy_state_of_another_kind_of_generator() -> None:
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    try:
        state = capture_rng()
        first = np.random.rand(3).tolist()
        restore_rng(state)
        assert np.random.rand(3).tolist() == first
    finally:
        np.random.set_bit_generator(before)


def test_captured_state_survives_a_file_of_plain_data() -> None:
    state = capture_rng()
    first = draw()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    restore_rng(torch.load(file, weights_only=True))
    assert draw() == first


def test_captured_state_does_not_move_with_the_generators() -> None:
    state = capture_rng()
    before = state["torch"].clone()
    draw()
    assert torch.equal(state["torch"], before)


def test_isolate_leaves_generators_alone_after_an_error() -> None:
    state = capture_rng()
    expected = draw()
    restore_rng(state)

    def fail() -> None:
        seed_everything(1, verbose=False)
        draw()
        raise KeyError

    with pytest.raises(KeyError), isolate_rng():
        fail()
    assert draw() == expected


def test_workers_of_one_loader_and_of_several_ranks_differ() -> None:
    def numbers(worker_id: int, rank: int) -> tuple[float, float, float]:
        torch.manual_seed(100 + worker_id)  # what DataLoader does: base seed plus index
        seed_worker(worker_id, rank)
        return draw()

    drawn = [numbers(worker_id, rank) for worker_id in (0, 1) for rank in (0, 1)]
    assert len({value for values in drawn for value in values}) == 12
    assert numbers(1, 0) == drawn[2]


@pytest.mark.gpu
def test_restore_brings_cuda_generators_back() -> None:
    torch.rand(1, device="cuda")
    state = capture_rng()
    first = torch.rand(3, device="cuda")
    restore_rng(state)
    assert torch.equal(torch.rand(3, device="cuda"), first)
