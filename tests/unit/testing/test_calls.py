from __future__ import annotations

import gc
import sys

import pytest

from fulgur.data.transfer import find_batch_size
from fulgur.errors import nearest_name
from fulgur.metrics import MetricLog
from fulgur.testing import CallCount, RandomDataset, calls_per_step, count_calls


def test_counts_each_function_of_the_package_by_file_and_name() -> None:
    with count_calls() as calls:
        for _ in range(3):
            find_batch_size(None)
        nearest_name("a", [])
    assert calls.total == 4
    assert calls.by_function["errors.py:nearest_name"] == 1
    assert next(iter(calls.by_function)) == "data/transfer.py:find_batch_size"


def test_does_not_count_functions_of_others() -> None:
    with count_calls() as calls:
        len(str(CallCount))
        RandomDataset(2, 2)[0].norm()
    assert calls.total == 0


def test_counts_a_generator_each_time_it_goes_on() -> None:
    from fulgur.data.fetch import Fetch

    with count_calls() as calls:
        fetch = Fetch([1, 2, 3], n_batches=3, is_sized=True, transfer=None)
        assert list(fetch) == [1, 2, 3]
    assert (
        calls.by_function["data/fetch.py:Fetch._sized" if sys.version_info >= (3, 11) else "data/fetch.py:_sized"] == 4
    )


def test_counts_what_ran_before_an_exception() -> None:
    counts = []

    def fail() -> None:
        with count_calls() as calls:
            counts.append(calls)
            nearest_name("a", [])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert counts[0].total == 1


def test_puts_back_the_profiler_that_was_on() -> None:
    def profiler(*event: object) -> None: ...

    before = sys.getprofile()
    sys.setprofile(profiler)
    try:
        with count_calls():
            pass
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(before)


def test_counts_calls_of_another_package() -> None:
    import json

    with count_calls("json") as calls:
        json.dumps([1])
    assert calls.by_function["__init__.py:dumps"] == 1


def test_refuses_a_package_that_is_not_there() -> None:
    with pytest.raises(ModuleNotFoundError, match="package='no_such_package'"), count_calls("no_such_package"):
        pass


def test_a_step_counts_what_more_batches_add() -> None:
    def fit(n_batches: int) -> None:
        MetricLog()  # once a run
        for i_batch in range(n_batches):
            nearest_name("a", [])
            if i_batch % 4 == 0:
                find_batch_size(None)

    calls = calls_per_step(fit, n_batches=8)
    assert calls.by_function == {"errors.py:nearest_name": 1, "data/transfer.py:find_batch_size": 0.25}
    assert calls.total == 1.25


def test_a_step_is_counted_without_the_garbage_collector_and_it_is_put_back() -> None:
    seen = []
    calls_per_step(lambda n_batches: seen.append(gc.isenabled()), n_batches=1)
    assert seen == [True, False, False]
    assert gc.isenabled()


def test_prints_the_total_and_every_function() -> None:
    assert str(CallCount({"a.py:f": 2, "b.py:g": 0.5})) == "2.5 calls\n       2  a.py:f\n     0.5  b.py:g"
