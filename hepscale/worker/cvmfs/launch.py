"""Starts the processes that serve repositories, for whoever mounts them."""

from __future__ import annotations

import json
import os
import sys

from . import RepositoryError
from .fuse import mount_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["starter"]


def starter(settings: str) -> Callable[[str, int], str]:
    """Return a function that starts the server of a repository.

    It is given the name of the repository and ``/dev/fuse``, and returns the options to mount
    with once the repository is open. It raises `RepositoryError` if that cannot be. Servers end
    with the process, or thread, that has started them, or with the last of their mounts.

    Parameters
    ----------
    settings
        A file with what workers are told of CVMFS.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def start(name: str, device: int) -> str:
        command = [sys.executable, "-I", "-S", package, "--cvmfs", settings, name, str(device)]
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(writing, 1)
                os.set_inheritable(device, True)
                os.execv(command[0], command)
            except OSError as error:
                told = {
                    "fact": "Python cannot be started.",
                    "item": command[0],
                    "cause": str(error),
                }
                os.write(1, json.dumps(told).encode())
            finally:
                os._exit(127)
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
        return mount_options(device, os.getuid(), os.getgid())

    return start
