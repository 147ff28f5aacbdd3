"""Disks and stores that fail."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem


class SmallDisk:
    """A directory with room for some checkpoints of the tests' network, which can be taken away and given back.

    A file system of its own where the test may mount one; elsewhere a limit on the size of every file.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.is_mounted = self._mount("-t", "tmpfs", "-o", "size=800k", "tmpfs")
        self._handler = None if self.is_mounted else signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def _mount(self, *options: str) -> bool:
        if os.geteuid() != 0:
            return False
        done = subprocess.run(["mount", *options, str(self.path)], capture_output=True, check=False)
        return done.returncode == 0

    def fill(self) -> None:
        if not self.is_mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, self._limits[1]))
            return
        with open(self.path / "filling", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(512))
            except OSError:
                pass

    def empty(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        (self.path / "filling").unlink(missing_ok=True)

    def make_read_only(self) -> None:
        if self.is_mounted:
            assert self._mount("-o", "remount,ro")
        elif os.geteuid() == 0:
            pytest.skip("root may write everywhere, and may mount nothing here")
        else:
            self.path.chmod(0o500)

    def remove(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", str(self.path)], check=True)
        else:
            self.empty()
            signal.signal(signal.SIGXFSZ, self._handler)
            self.path.chmod(0o700)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    disk.remove()


class FlakyStore(MemoryFileSystem):  # type: ignore[misc]
    """A store that fails at every second file, when all of it has arrived."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    attempts = 0

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode != "wb":
            return super()._open(path, mode, **kwargs)
        type(self).attempts += 1
        if type(self).attempts % 2 == 0:
            return super()._open(path, mode, **kwargs)
        return FailingFile(self, path)


class FailingFile(MemoryFile):  # type: ignore[misc]
    def __init__(self, filesystem: FlakyStore, path: str) -> None:
        super().__init__(filesystem, path)
        self.fs.store[path] = self  # a part of it is there

    def commit(self) -> None:
        raise ConnectionResetError("the server has gone away")

    def close(self) -> None:
        self.commit()


@pytest.fixture
def flaky_store() -> Iterator[str]:
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
    yield "flaky://runs"
    FlakyStore.store.clear()
    FlakyStore.pseudo_dirs[:] = [""]
    FlakyStore.attempts = 0


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Callable[[], None]]]:
    """URL of a directory on an S3-compatible server of this machine, and what stops the server."""
    pytest.importorskip("s3fs", reason="needs the package s3fs")
    server_module = pytest.importorskip("moto.server", reason="needs the package moto[server]")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    filesystem = fsspec.filesystem("s3")
    filesystem.mkdir(f"bucket-{port}")  # servers of one process share their contents
    with ExitStack() as running:
        running.callback(server.stop)
        yield f"s3://bucket-{port}/run", running.close
    fsspec.get_filesystem_class("s3").clear_instance_cache()
