"""Ports on which ranks meet."""

from __future__ import annotations

import socket


def find_free_port() -> int:
    """A port of this machine that nobody listens on at the moment. Another process may take it before it is used."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
