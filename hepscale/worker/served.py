"""Starts the forkserver of a Work Queue worker, for the first task that finds none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

from . import UNUSABLE, proc
from .remote import Refused, connect, paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

__all__ = ["start"]

_START_S = 600.0


def start(folder: str, settings: dict[str, Any], package: str, worker: int) -> socket.socket:
    """Start a forkserver and return a connection to it.

    Parameters
    ----------
    folder
        Its own, made anew.
    settings
        What it is told, besides what is given here.
    package
        The folder of this package.
    worker
        The process with which it ends.

    Raises
    ------
    Refused
        It does not start.
    OSError
        There is no room for its files.
    """
    since = proc.since(worker)
    if os.getppid() != worker:
        # it was killed while its environment was unpacked: nobody would end what is started now
        raise Refused("the worker has gone")
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder, 0o700)
    # the task's own copy goes with its folder
    kept = os.path.join(folder, "worker")
    shutil.copytree(package, kept)
    told = {**settings, "dir": folder, "manager_pid": worker, "since": since}
    path = os.path.join(folder, "settings.json")
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(told, stream)
    with open(os.path.join(folder, "log"), "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-I", kept, path],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, **_libraries(settings["libraries"])},
            start_new_session=True,
        )
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        found = connect(folder)
        if found is not None:
            return found
        if server.poll() is not None:
            break
        time.sleep(0.01)
    with open(os.path.join(folder, "log"), encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    if server.returncode == UNUSABLE:
        # in the words of `stage0.sh`
        raise Refused(text[text.rindex("HepScale: ") :].strip())
    said = text.strip().splitlines()[-3:]
    raise Refused("\n".join(["the forkserver of this worker does not start", *said]))


def _libraries(folders: list[str]) -> dict[str, str]:
    """Return the variable by which a program finds libraries, if those of `folders` are needed."""
    name = "LD_LIBRARY_PATH"
    return {name: paths(*folders, os.environ.get(name, ""))} if folders else {}
