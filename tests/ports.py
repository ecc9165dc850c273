"""Ports of this machine on which nobody listens."""

from __future__ import annotations

import socket


def free(host: str = "127.0.0.1") -> int:
    """Return a port; an empty `host` stands for all addresses."""
    with socket.create_server((host, 0)) as found:
        port: int = found.getsockname()[1]
        return port


def closed() -> str:
    """Return an address that refuses connections."""
    return f"127.0.0.1:{free()}"
