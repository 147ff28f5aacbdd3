"""Two machines train together, a cut between them ends the job, and a restart goes on from there.

The machines are network namespaces with an address each, joined by a pair of virtual devices.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fulgur.testing import run_ranks

PROGRAM = Path(__file__).with_name("restarted_run.py")
TORCHRUN = Path(sys.executable).with_name("torchrun")
TIMEOUT_S = 5.0
"""Of a collective."""
LIMIT_S = 40.0
"""For everything to be gone: the timeout, what torchrun on the machine without the store takes, and a slow computer."""


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@dataclass
class Hosts:
    """Two namespaces."""

    names: tuple[str, str]
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    @classmethod
    def build(cls) -> Hosts:
        mark = os.getpid() % 100000
        hosts = cls((f"fulgur-{mark}-0", f"fulgur-{mark}-1"))
        devices = [f"fg{mark}-{i}" for i in range(2)]
        for name in hosts.names:
            if (done := _ip("netns", "add", name)).returncode:
                hosts.remove()
                pytest.skip(f"network namespaces are not permitted here: {done.stderr.strip()}")
        commands = [
            f"link add {devices[0]} netns {hosts.names[0]} type veth peer name {devices[1]} netns {hosts.names[1]}"
        ]
        for i, name in enumerate(hosts.names):
            commands += [
                f"-n {name} link set lo up",
                f"-n {name} addr add 10.231.7.{i + 1}/24 dev {devices[i]}",
                f"-n {name} link set {devices[i]} name eth0",
                f"-n {name} link set eth0 up",
            ]
        for command in commands:
            if (done := _ip(*command.split())).returncode:
                hosts.remove()
                pytest.skip(f"virtual network devices are not permitted here: {done.stderr.strip()}")
        for name in hosts.names:
            # torchrun itself waits for its store as long as TCP does, which is a quarter of an hour by default
            _ip("netns", "exec", name, "sh", "-c", "echo 5 > /proc/sys/net/ipv4/tcp_retries2")
        return hosts

    def start(self, port: int, folder: Path, *failures: str) -> list[subprocess.Popen[str]]:
        """torchrun on both."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
        started = []
        for i, name in enumerate(self.names):
            command = [
                *("ip", "netns", "exec", name, TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"),
                *(f"--rdzv-endpoint=10.231.7.1:{port}", "--rdzv-id=job", f"--local-addr=10.231.7.{i + 1}"),
                *(f"--rdzv-conf=is_host={int(i == 0)}", PROGRAM, folder, str(TIMEOUT_S), *failures),
            ]
            with open(folder / f"{port}-{i}.err", "w") as errors:
                started.append(
                    subprocess.Popen(map(str, command), env=environment, stderr=errors, text=True)  # type: ignore[arg-type]
                )
        self.running += started
        return started

    def set_link(self, state: str) -> None:
        assert _ip("-n", self.names[0], "link", "set", "eth0", state).returncode == 0

    def pids(self) -> list[str]:
        """Whatever runs on either."""
        return [pid for name in self.names for pid in _ip("netns", "pids", name).stdout.split()]

    def remove(self) -> None:
        for pid in self.pids():
            os.kill(int(pid), 9)
        for process in self.running:
            process.wait()
        for name in self.names:
            _ip("netns", "del", name)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("needs the program ip, of the package iproute2")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs to be root, to make network namespaces")
    built = Hosts.build()
    yield built
    built.remove()


def _train(folder: str) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("restarted_run", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result: dict[str, Any] = module.train(folder)
    return result


def _wait_for(path: Path, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} did not come"
        time.sleep(0.05)


def _seen(folder: Path, rank: int) -> dict[int, Any]:
    lines = [json.loads(line) for line in (folder / f"seen-{rank}").read_text().splitlines()]
    return {step: batch for _, step, batch in lines}


@pytest.mark.timeout(300)
def test_cut_between_hosts_ends_the_job_and_a_restart_ends_with_the_bits_of_two_local_ranks(
    hosts: Hosts, tmp_path: Path
) -> None:
    folder, local = tmp_path / "hosts", tmp_path / "local"
    folder.mkdir()
    local.mkdir()
    # together, until the cut
    agents = hosts.start(29500, folder, "pause 0 9")
    _wait_for(folder / "paused", 120)
    hosts.set_link("down")
    cut_at = time.monotonic()
    codes = [agent.wait(LIMIT_S) for agent in agents]
    assert time.monotonic() - cut_at < LIMIT_S
    assert codes == [1, 1]
    for i in range(2):
        assert "Timed out waiting 5000ms" in (folder / f"29500-{i}.err").read_text()
    assert hosts.pids() == []
    assert sorted((folder / "prepared").read_text().splitlines()) == ["node 0 rank 0", "node 1 rank 1"]
    # and again
    hosts.set_link("up")
    for i, agent in enumerate(hosts.start(29501, folder)):
        assert agent.wait(120) == 0, (folder / f"29501-{i}.err").read_text()
    expected = json.loads(json.dumps(run_ranks(_train, 2, str(local))))
    assert [json.loads((folder / f"result-{rank}").read_text()) for rank in range(2)] == expected
    assert [_seen(folder, rank) for rank in range(2)] == [_seen(local, rank) for rank in range(2)]
    assert "going on from" in (folder / "29501-0.err").read_text()
    assert hosts.pids() == []
