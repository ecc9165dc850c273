"""Starts the processes that serve repositories, for whoever mounts them."""

from __future__ import annotations

import json
import os
import sys

from . import RepositoryError
from .fuse import mount_options

__all__ = ["Launcher"]

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Launcher:
    """Starts servers of repositories, which end with this process or with their mount.

    Parameters
    ----------
    settings
        A file with what workers are told of CVMFS.

    Attributes
    ----------
    pids
        Of those that were started.
    """

    def __init__(self, settings: str) -> None:
        self.pids: set[int] = set()
        self._settings = settings

    def __call__(self, name: str, device: int) -> str:
        """Start the server of a repository; return the options to mount it with.

        Parameters
        ----------
        name
            Of the repository.
        device
            A descriptor of ``/dev/fuse``.

        Raises
        ------
        RepositoryError
            If the repository cannot be opened.
        """
        command = [sys.executable, "-I", "-S", _PACKAGE]
        command += ["--cvmfs", self._settings, name, str(device)]
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _become(command, writing, device)
        os.close(writing)
        with open(reading, encoding="utf-8") as stream:
            said = json.loads(stream.readline() or "{}")
        if not said.get("ok"):
            os.waitpid(pid, 0)
            raise RepositoryError(
                said.get("fact", "What serves a repository has ended before it was open."),
                said.get("item", name),
                said.get("cause", "it was killed, by a limit of memory or of processes perhaps"),
                said.get("fix", f"{sys.executable} --version"),
            )
        self.pids.add(pid)
        return mount_options(device, os.getuid(), os.getgid())


def _become(command: list[str], output: int, device: int) -> None:
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.set_inheritable(device, True)
        os.execv(command[0], command)
    except OSError as error:
        told = {"fact": "Python cannot be started.", "item": command[0], "cause": str(error)}
        os.write(1, json.dumps(told).encode())
    finally:
        os._exit(127)
