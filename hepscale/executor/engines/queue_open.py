"""Which libraries are here: opens a queue with the best binding, and tells its protocol."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hepscale.config import load_settings
from hepscale.errors import EngineError
from hepscale.executor.engines.queue import Queue, QueueOptions
from hepscale.executor.engines.queue_cffi import CffiQueue
from hepscale.executor.engines.queue_log import PROTOCOLS

if TYPE_CHECKING:
    from hepscale.config import Settings

__all__ = ["library_protocol", "open_queue"]

_PATIENCE_S = 20.0


def open_queue(options: QueueOptions, settings: Settings, engine: str = "workqueue") -> Queue:
    """Open a queue.

    Parameters
    ----------
    options
        How it listens.
    settings
        Where the compiled binding is kept.
    engine
        "workqueue": of ``ndcctools`` where this is installed, else of the C library; "taskvine".

    Raises
    ------
    EngineError
        If none is installed, or if the port is taken.
    """
    installed = importlib.util.find_spec("ndcctools") is not None
    if engine == "taskvine":
        if not installed:
            raise EngineError(
                "TaskVine is not installed here.",
                cause="ndcctools is not in this environment, and not to be had by pip",
                fix="conda install -c conda-forge ndcctools",
            )
        from hepscale.executor.engines.queue_taskvine import TaskVineQueue

        return TaskVineQueue(options)
    if installed:
        from hepscale.executor.engines.queue_ndcctools import NdcctoolsQueue

        return NdcctoolsQueue(options)
    return CffiQueue(options, settings)


def library_protocol(settings: Settings, engine: str = "workqueue") -> int:
    """Return the protocol that queues of an engine speak in this process; about 0.5 s.

    The library tells it only when it refuses a worker, on the standard error of the process:
    hence in a process of its own.

    Raises
    ------
    EngineError
        If its library cannot be used.
    """
    # what is missing is better said by this process
    with tempfile.TemporaryDirectory() as folder:
        open_queue(QueueOptions(Path(folder), ssl=False), settings, engine).close()
    said = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import _provoke; _provoke({engine!r})"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    found = PROTOCOLS.search(said.stderr)
    if found is None:
        raise EngineError(
            f"The protocol of the library of {engine} could not be found out.",
            items=said.stderr.splitlines()[-1:],
            fix="hepscale doctor",
        )
    return int(found[3])


def _provoke(engine: str) -> None:
    """Be a worker of a protocol that no queue speaks."""
    with tempfile.TemporaryDirectory() as folder:
        queue = open_queue(QueueOptions(Path(folder), ssl=False), load_settings(), engine)
        with socket.create_connection(("127.0.0.1", queue.port)) as worker:
            worker.sendall(f"{engine} 0 probe linux any 0.0.0\n".encode())
            worker.settimeout(0.01)
            while True:
                queue.wait(0.1)
                try:
                    if not worker.recv(1):
                        break
                except TimeoutError:
                    continue
        queue.close()
