"""What workers take for a manager: a socket that they connect to."""

from __future__ import annotations

import shutil
import socket
from typing import TYPE_CHECKING, Self

import pytest
import support

if TYPE_CHECKING:
    from pathlib import Path


needs_worker = pytest.mark.skipif(
    shutil.which("work_queue_worker") is None,
    reason="work_queue_worker not installed; make system",
)


def workers_running() -> dict[int, str]:
    """Return the command lines of our workers, by their process."""
    return {pid: text for pid, text in support.processes().items() if "work_queue_worker" in text}


class Listener:
    """Accepts workers and holds their connections."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.settimeout(10)
        self.connections: list[socket.socket] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.socket.getsockname()[1]}"

    def accept(self) -> str:
        """Return the first line of the next worker."""
        connection, _ = self.socket.accept()
        self.connections.append(connection)
        connection.settimeout(20)
        said = b""
        while b"\n" not in said:
            said += connection.recv(1)
        return said.decode().strip()

    def close(self) -> None:
        for one in (self.socket, *self.connections):
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def password_file(folder: Path) -> Path:
    """Make a password file whose path wants quoting."""
    folder = folder / "it's a folder"
    folder.mkdir()
    path = folder / "pass word"
    path.touch(0o600)
    path.write_text("secret of this test\n")
    return path
