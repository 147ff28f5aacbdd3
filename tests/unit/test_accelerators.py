"""Which devices the arguments name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fulgur.accelerators import (
    Accelerator,
    CPUAccelerator,
    CUDAAccelerator,
    MPSAccelerator,
    build_accelerator,
    find_usable_cuda_devices,
)
from fulgur.errors import MisconfigurationException


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(("devices", "count"), [(1, 1), (2, 2), ("3", 3)])
def test_cpu_takes_a_number_of_processes(devices: Any, count: int) -> None:
    assert CPUAccelerator.parse_devices(devices) == count
    assert CPUAccelerator.get_parallel_devices(count) == [torch.device("cpu")] * count


@pytest.mark.parametrize("kind", [CPUAccelerator, CUDAAccelerator, MPSAccelerator])
@pytest.mark.parametrize("devices", [0, "0", [], ""])
def test_no_device_is_an_error(kind: type[Accelerator], devices: Any) -> None:
    with pytest.raises(MisconfigurationException, match="leaves no device to run on"):
        kind.parse_devices(devices)


@pytest.mark.parametrize("devices", [-1, "-1", [1], 1.0, None, True, "two", 0.0])
def test_cpu_refuses_what_is_no_count(devices: Any) -> None:
    with pytest.raises(TypeError, match="which takes a number of processes"):
        CPUAccelerator.parse_devices(devices)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("devices", "indices"),
    [
        (2, [0, 1]),
        ("2", [0, 1]),
        (-1, [0, 1, 2, 3]),
        ("-1", [0, 1, 2, 3]),
        ("1,3", [1, 3]),
        ("2,", [2]),
        ([3, 0], [3, 0]),
        ((1,), [1]),
    ],
)
def test_cuda_takes_counts_and_indices(devices: Any, indices: list[int]) -> None:
    assert CUDAAccelerator.parse_devices(devices) == indices


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(("devices", "named"), [(5, "GPU 4"), ([0, 7], "GPU 7"), ("4,5", "GPU 4, 5"), ([-1], "GPU -1")])
def test_absent_gpu_is_an_error_that_names_it(devices: Any, named: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"{named}; this machine has 0, 1, 2, 3"):
        CUDAAccelerator.parse_devices(devices)


@pytest.mark.usefixtures("four_gpus")
def test_gpu_named_twice_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match="names a GPU twice"):
        CUDAAccelerator.parse_devices([1, 1])


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("devices", [1.0, None, -2, "a,b", ["0"], True])
def test_cuda_refuses_other_types(devices: Any) -> None:
    with pytest.raises(TypeError, match="names no GPUs"):
        CUDAAccelerator.parse_devices(devices)


def test_mps_has_one_device() -> None:
    assert MPSAccelerator.parse_devices(1) == [0]
    with pytest.raises(MisconfigurationException, match="GPU 1; this machine has 0"):
        MPSAccelerator.parse_devices(2)


@pytest.mark.usefixtures("no_gpu")
def test_auto_falls_back_to_the_cpu() -> None:
    assert isinstance(build_accelerator("auto"), CPUAccelerator)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["gpu", "cuda", "mps"])
def test_absent_accelerator_is_an_error_that_tells_the_way_out(name: str) -> None:
    with pytest.raises(MisconfigurationException, match=rf"accelerator='{name}'.*Use accelerator='cpu'"):
        build_accelerator(name)


@pytest.mark.usefixtures("no_gpu", "four_gpus")
@pytest.mark.parametrize("name", ["auto", "gpu", "cuda"])
def test_gpu_is_found_by_every_name(name: str) -> None:
    assert isinstance(build_accelerator(name), CUDAAccelerator)


@pytest.mark.parametrize("name", ["CPU", "hpu", None, 1, []])
def test_unknown_name_is_an_error(name: Any) -> None:
    with pytest.raises(ValueError, match="is unknown"):
        build_accelerator(name)


def test_misspelt_name_is_told_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'cuda'"):
        build_accelerator("cudaa")


def test_tpu_is_a_missing_module() -> None:
    with pytest.raises(ModuleNotFoundError, match="torch_xla"):
        build_accelerator("tpu")


def test_instance_is_taken_as_it_is() -> None:
    accelerator = CPUAccelerator()
    assert build_accelerator(accelerator) is accelerator


@pytest.mark.usefixtures("no_gpu")
def test_finding_more_gpus_than_there_are_is_an_error() -> None:
    assert find_usable_cuda_devices() == []
    with pytest.raises(ValueError, match="num_devices=1 GPUs were asked for; this machine has 0"):
        find_usable_cuda_devices(1)


def test_cuda_setup_refuses_another_device() -> None:
    with pytest.raises(MisconfigurationException, match="device=cpu is not a CUDA device"):
        CUDAAccelerator().setup_device(torch.device("cpu"))


@pytest.mark.gpu
def test_free_gpu_is_found() -> None:
    assert find_usable_cuda_devices(1) == [0]
