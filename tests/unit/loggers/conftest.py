"""What tests of loggers to services share: no network, small runs, and a callback as `ModelCheckpoint` looks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fulgur import Trainer
from fulgur.testing import BoringModel


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that talks to anyone beyond this machine: what it starts is sent through a proxy that counts."""
    callers: list[Any] = []
    server = socket.create_server(("127.0.0.1", 0))

    def count() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            callers.append(connection.recv(200))
            connection.close()

    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            callers.append(address)
            raise ConnectionRefusedError("no network in tests")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
    threading.Thread(target=count, daemon=True).start()
    yield
    server.close()
    assert callers == []


class Logging(BoringModel):
    """Logs its batch's index and has a hyperparameter."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("loss", float(batch_idx))
        return self.layer(batch).sum()


@pytest.fixture
def fit(tmp_path: Path) -> Any:
    """Trains three batches with a logger."""

    def run(logger: Any, module: Any = None, **kwargs: Any) -> Trainer:
        options = {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 0, "log_every_n_steps": 1}
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
        trainer = Trainer(logger=logger, accelerator="cpu", **(options | quiet | kwargs))
        trainer.fit(module or Logging(), ckpt_path=None)
        return trainer

    return run


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    """A callback that has saved two files: the first is the best, the second the latest."""
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    torch.save({"at": 1}, best)
    torch.save({"at": 2}, last)
    scores = {str(best): torch.tensor(0.5), str(last): torch.tensor(0.75)}
    return SimpleNamespace(
        best_model_path=str(best),
        best_k_models=scores,
        last_model_path="",
        monitor="loss",
        mode="min",
        save_top_k=2,
    )
