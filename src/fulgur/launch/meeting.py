"""Where the ranks that fulgur starts meet: a store that the starter keeps, as the agent of torchrun does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fulgur.launch.environments.environment import ClusterEnvironment, find_number


def open_store(environment: ClusterEnvironment, num_nodes: int) -> Any:
    """The store, on the first machine; None on the others, which find it by its address.

    It is open before any rank starts, so that nobody can take its port in between.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    if environment.node_rank() > 0:
        return None
    given = find_number("MASTER_PORT")
    port = given if given is not None else find_number("STANDALONE_PORT") or 0
    host = environment.main_address if num_nodes > 1 else "127.0.0.1"
    return TCPStore(host, port, is_master=True, wait_for_workers=False)


def rank_variables(environment: ClusterEnvironment, store: Any, num_devices: int, num_nodes: int) -> dict[str, str]:
    """Variables of the environment that all ranks of this machine get."""
    return {
        "MASTER_ADDR": environment.main_address if num_nodes > 1 else "127.0.0.1",
        "MASTER_PORT": str(store.port if store is not None else environment.main_port),
        "NODE_RANK": str(environment.node_rank()),
        "WORLD_SIZE": str(num_devices * num_nodes),
        # what torch's own rendezvous reads: the store is there, and rank 0 must not open it
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


@contextmanager
def variables_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for the length of a ``with`` block."""
    previous = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is not None:
                os.environ[name] = value
            else:
                os.environ.pop(name, None)
