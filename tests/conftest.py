"""What every test gets: a folder of its own, one thread, and a check that it leaves nothing behind."""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell that starts the tests in the background has them ignore Ctrl-C, and what they start inherits that
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class TorchSettings:
    """Process-wide settings of torch that a test must put back."""

    default_dtype: torch.dtype
    num_threads: int
    deterministic: bool
    deterministic_warn_only: bool
    cudnn_benchmark: bool
    grad_enabled: bool
    anomaly_enabled: bool

    @classmethod
    def now(cls) -> TorchSettings:
        return cls(
            default_dtype=torch.get_default_dtype(),
            num_threads=torch.get_num_threads(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            deterministic_warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            cudnn_benchmark=torch.backends.cudnn.benchmark,
            grad_enabled=torch.is_grad_enabled(),
            anomaly_enabled=torch.is_anomaly_enabled(),
        )

    def restore(self) -> None:
        torch.set_default_dtype(self.default_dtype)
        torch.set_num_threads(self.num_threads)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.deterministic_warn_only)
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        torch.set_grad_enabled(self.grad_enabled)
        torch.autograd.set_detect_anomaly(self.anomaly_enabled)

    def changes_since(self, before: TorchSettings) -> list[str]:
        names = [field.name for field in fields(self)]
        pairs = [(name, getattr(before, name), getattr(self, name)) for name in names]
        return [f"torch setting {name}: {old} became {new}" for name, old, new in pairs if old != new]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs and checkpoints written to the current folder land in the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _no_seed_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting first makes monkeypatch remember the variables, so that what a test sets goes away as well."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _generators_put_back() -> Iterator[None]:
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    numpy_random = sys.modules["numpy"].random if "numpy" in sys.modules else None
    numpy_state = numpy_random.get_state() if numpy_random else None
    yield
    random.setstate(python_state)
    torch.set_rng_state(torch_state)
    if numpy_random:
        numpy_random.set_state(numpy_state)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread, a process group or a changed setting; put back what it changed."""
    settings, threads = TorchSettings.now(), set(threading.enumerate())
    yield
    problems = TorchSettings.now().changes_since(settings)
    settings.restore()
    problems += _threads_left(threads)
    problems += _process_group_left()
    if problems:
        pytest.fail("the test left behind:\n  " + "\n  ".join(problems), pytrace=False)


def _threads_left(before: set[threading.Thread]) -> list[str]:
    new = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in new:
        thread.join(timeout=1.0)
    return [f"thread {thread.name}" for thread in new if thread.is_alive()]


def _process_group_left() -> list[str]:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return []
    distributed.destroy_process_group()
    return ["a torch.distributed process group"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
