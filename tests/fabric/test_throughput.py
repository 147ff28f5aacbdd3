"""Rates of a loop, from the totals that it brings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fulgur import Fabric
from fulgur.fabric.throughput import Throughput, ThroughputMonitor, get_available_flops


def updated(n: int, **arguments: Any) -> Throughput:
    throughput = Throughput(window_size=3, **arguments)
    for step in range(n):
        throughput.update(time=0.5 * step, batches=step, samples=4 * step, lengths=40 * step, flops=100)
    return throughput


def test_totals_come_before_the_window_is_full() -> None:
    assert Throughput().compute() == {}
    assert updated(2).compute() == {"time": 0.5, "batches": 1, "samples": 4, "lengths": 40}


def test_rates_are_those_of_the_window() -> None:
    throughput = updated(5, available_flops=400.0)
    throughput.update(time=4.0, batches=5, samples=20, lengths=200, flops=100)  # a slow one
    rates = throughput.compute()
    assert rates == {
        "time": 4.0,
        "batches": 5,
        "samples": 20,
        "lengths": 200,
        "device/batches_per_sec": 0.8,
        "device/samples_per_sec": 3.2,
        "device/items_per_sec": 32.0,
        "device/flops_per_sec": 80.0,
        "device/mfu": 0.2,
    }


def test_several_processes_have_rates_of_all() -> None:
    rates = updated(3, world_size=4, separator="|").compute()
    assert (rates["samples_per_sec"], rates["device|samples_per_sec"]) == (32.0, 8.0)


def test_reset_forgets() -> None:
    throughput = updated(3)
    throughput.reset()
    throughput.update(time=0.0, batches=0, samples=0)
    assert throughput.compute() == {"time": 0.0, "batches": 0, "samples": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"available_flops": 0}, "available_flops=0"),
        ({"world_size": 0}, "world_size=0"),
        ({"window_size": 1}, "window_size=1"),
    ],
)
def test_arguments_out_of_range(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Throughput(**arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"time": 1.0}, "time=1.0 is not later than 1.0"),
        ({"batches": 1}, "batches=1 is less than 2"),
        ({"samples": 3}, "samples=3 is less than 8"),
        ({"lengths": 9}, "lengths=9 is less than 80"),
    ],
)
def test_totals_that_shrink(wrong: Any, message: str) -> None:
    throughput = updated(3)
    with pytest.raises(ValueError, match=message):
        throughput.update(**{"time": 2.0, "batches": 3, "samples": 8, "lengths": 80, **wrong})


def test_the_monitor_sends_to_the_loggers() -> None:
    sent: list[Any] = []
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.log_dict = lambda values, step: sent.append((values, step))  # type: ignore[method-assign]
    monitor = ThroughputMonitor(fabric, window_size=2)
    monitor.update(time=1.0, batches=1, samples=2)
    assert monitor.compute_and_log() == {"time": 1.0, "batches": 1, "samples": 2}
    monitor.compute_and_log(step=7)
    monitor.compute_and_log()
    assert [step for _, step in sent] == [0, 7, 8]


def test_of_a_cpu_no_peak_is_known() -> None:
    assert get_available_flops(torch.device("cpu")) is None
