"""Which worker program there is, and which protocol it speaks."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hepscale.errors import EngineError

__all__ = ["PROGRAMS", "WorkerVersion", "check_protocol", "find_worker", "worker_version"]

# the programs of workers, by their engines
PROGRAMS = {"workqueue": "work_queue_worker", "taskvine": "vine_worker"}
_HANDSHAKE_S = 20.0
_INSTALL = {
    "work_queue_worker": "apt-get install coop-computing-tools, "
    "or conda install -c conda-forge ndcctools",
    "vine_worker": "conda install -c conda-forge ndcctools",
}


@dataclass(frozen=True, slots=True)
class WorkerVersion:
    """What a worker program says of itself.

    Attributes
    ----------
    path
        Where it is.
    release
        Its version as it prints it; builds of Debian print that of an older release.
    protocol
        Version of the protocol that it speaks to its manager, who has to speak the same.
    """

    path: Path
    release: str
    protocol: int


def find_worker(program: str = PROGRAMS["workqueue"]) -> Path:
    """Return where a worker program is.

    Parameters
    ----------
    program
        One of `PROGRAMS`.

    Raises
    ------
    EngineError
        If it is not on PATH.
    """
    found = shutil.which(program)
    if found is None:
        raise EngineError(
            f"{program} was not found on PATH.",
            cause="it is not installed, or its environment is not activated",
            fix=_INSTALL[program],
        )
    return Path(found).absolute()


def worker_version(path: Path | None = None) -> WorkerVersion:
    """Return the version of a worker program; it takes some 20 ms.

    The protocol is not in what it prints: it is started with a socket of this machine as its
    manager, to whom it introduces itself.

    Parameters
    ----------
    path
        The program; None: that on PATH.

    Raises
    ------
    EngineError
        If there is none, or it does not run.
    """
    path = path or find_worker()
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=_HANDSHAKE_S, check=False
        ).stdout
        # on a busy machine it may not come to speak in time
        hello = _introduction(path) or _introduction(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _does_not_run(path, str(error)) from None
    release = re.search(r"version (\S+)", said)
    protocol = re.match(rb"(?:workqueue|taskvine) (\d+) ", hello)
    if release is None or protocol is None:
        raise _does_not_run(path, (hello.decode(errors="replace") or said).strip())
    return WorkerVersion(path, release[1], int(protocol[1]))


def check_protocol(worker: WorkerVersion, manager_protocol: int) -> None:
    """Check that a worker can talk to the manager; Work Queue itself would wait for ever.

    Raises
    ------
    EngineError
        If the two speak different protocols.
    """
    if worker.protocol != manager_protocol:
        raise EngineError(
            f"The worker speaks protocol {worker.protocol}, the manager {manager_protocol}.",
            items=[f"{worker.path}, version {worker.release}"],
            cause="worker and manager's library come from different installations of cctools",
            fix=f"install both from one place ({_install(worker.path)}) and put that first on PATH",
        )


def _introduction(path: Path) -> bytes:
    """Return the first line that a worker sends to its manager, or what it wrote instead."""
    with (
        tempfile.TemporaryDirectory(prefix="hepscale-", dir=_plain_tmp()) as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
        subprocess.Popen(
            [path, "--cores", "1", "127.0.0.1", _port(listener)],
            # its folder goes there
            env={**os.environ, "CCTOOLS_TEMP": folder, "_CONDOR_SCRATCH_DIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # TaskVine's has a process of its own for transfers, which would outlive it
            start_new_session=True,
        ) as process,
    ):
        try:
            listener.settimeout(0.1)
            for _ in range(int(_HANDSHAKE_S / 0.1)):
                with suppress(TimeoutError):
                    connection, _ = listener.accept()
                    with connection, connection.makefile("rb") as stream:
                        connection.settimeout(_HANDSHAKE_S)
                        return stream.readline()
                if process.poll() is not None:
                    break
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        return process.stdout.read()


def _plain_tmp() -> str:
    """Return the folder for temporary files, if the worker can use one of this name."""
    tmp = tempfile.gettempdir()
    return tmp if re.fullmatch(r"[\w./-]+", tmp) else "/tmp"  # noqa: S108


def _port(listener: socket.socket) -> str:
    return str(listener.getsockname()[1])


def _install(path: Path) -> str:
    return _INSTALL.get(path.name, _INSTALL[PROGRAMS["workqueue"]])


def _does_not_run(path: Path, said: str) -> EngineError:
    return EngineError(
        f"{path.name} does not run on this machine.",
        items=[str(path), *said.splitlines()[-3:]],
        cause="it is damaged, or made for another system",
        fix=_install(path),
    )
