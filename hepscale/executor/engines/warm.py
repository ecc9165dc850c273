"""Forkservers of this machine that outlive a run, so that the next one finds them warm."""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepscale.env import api
from hepscale.env.local import is_installed
from hepscale.env.repositories import repository_of
from hepscale.env.store import drop_damaged
from hepscale.errors import EngineError, HepScaleError, PackError, RunDirectoryError
from hepscale.executor import interposer
from hepscale.executor.engines import mounted
from hepscale.worker import READY, UNUSABLE, VERSION, scratch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hepscale.config import Settings
    from hepscale.env.environment import Environment

__all__ = [
    "SINGLE_THREADED",
    "Forkserver",
    "from_layers",
    "give_back",
    "lease",
    "scratch_unusable",
    "served",
    "shutdown",
    "told_by_stage0",
    "unpacked",
    "worker_environ",
]

log = logging.getLogger(__name__)

# how stage0.sh and unpack.py say why they have ended, and their exit code for a damaged layer
_DAMAGED = 81
_TOLD = re.compile(r"HepScale: (.*)\n((?:  .*\n)*)Likely cause: (.*)\nNext: (.*)")

_WORKER = Path(__file__).parents[2] / "worker"
# one process a slot is the unit of parallelism: libraries must not start threads of their own
SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# variables that would lead a packed Python back to packages that were not packed
_LEAD_BACK = frozenset({"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"})


@dataclass(eq=False)
class Forkserver:
    """A running forkserver and its folder, with the number of runs that use it."""

    process: subprocess.Popen[bytes]
    folder: Path
    settings: Settings
    environment: Environment | None = None
    users: int = 0
    used: bool = False
    lost: bool = field(default=False, init=False)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return not self.lost and self.process.poll() is None

    def connect(self) -> socket.socket | None:
        """Return a new connection; None while its environment is unpacked and it starts.

        Raises
        ------
        EngineError
            If its process has ended.
        PackError
            If its environment could not be unpacked.
        """
        # in this order: what ends just now may have listened before
        alive = self.alive
        client = socket.socket(socket.AF_UNIX)
        # through a descriptor: the path of a socket may have 107 bytes only
        folder = -1
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            client.connect(f"/proc/self/fd/{folder}/s")
        except (FileNotFoundError, ConnectionRefusedError):
            client.close()
            if folder >= 0 and alive:
                return None
            raise self._refusal() from None
        finally:
            if folder >= 0:
                os.close(folder)
        return client

    def _refusal(self) -> HepScaleError:
        """Return why there is no worker: what ``stage0.sh`` has said, or its last lines."""
        said = self.said()
        told = told_by_stage0(said)
        code = self.process.poll() or 0
        if told is None and code < 0:
            return EngineError(
                f"The worker process of this machine was ended by {_signal_name(-code)}.",
                items=[line for line in said.splitlines() if line][-3:],
                cause="the machine is short of memory, or somebody has ended it",
                fix="run again; hepscale doctor shows the memory that there is",
            )
        if told is None:
            return EngineError(
                "The worker process of this machine did not start.",
                items=[line for line in said.splitlines() if line][-3:],
                cause="Python or a package that the analysis needs cannot be imported there",
                fix="hepscale doctor",
            )
        fact, items, cause, fix = told
        if code == UNUSABLE:
            return EngineError(fact, items=items, cause=cause, fix=fix)
        if self.environment is not None:
            # an archive of the user's is not ours to remove
            store = api.store(self.settings).folder
            layers = [one for one in self.environment.layers if one.path.is_relative_to(store)]
            if drop_damaged(layers):
                fix = "run again: what was damaged is packed anew"
            elif self.environment.whole and code == _DAMAGED:
                fix = "copy the archive again, or make it anew with hepscale env pack"
        return PackError(fact, items=items, cause=cause, fix=fix)

    def said(self) -> str:
        """Return what it wrote to its standard error."""
        with suppress(OSError):
            return (self.folder / "log").read_text(errors="replace")
        return ""

    def end(self) -> None:
        """End it, its tasks and its folder, and wait for that."""
        self.lost = True
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        # a process that was forked from this one may hold the other end of that pipe too
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        scratch.sweep(str(self.folder.parent))


_lock = threading.Lock()
_pool: dict[tuple[object, ...], Forkserver] = {}


def lease(
    settings: Settings,
    preload: tuple[str, ...],
    environment: Environment | None = None,
    within: tuple[str, ...] = (),
) -> Forkserver:
    """Return a forkserver; give it back.

    Parameters
    ----------
    settings
        Where its folder goes, where environments are unpacked, and how long it stays warm.
    preload
        Modules that it imports before its first task.
    environment
        What it runs in; None: the interpreter and packages of this process.
    within
        The command that it is started with: ``("chroot", "/folder")``, say.

    Raises
    ------
    RunDirectoryError
        If the scratch folder cannot be written.
    EngineError
        If no process can be started.
    """
    told = served(settings, preload, environment, interposer.told(settings))
    # packages that were installed or updated meanwhile want a fresh interpreter
    state: object = tuple(map(_mtime_ns, told["sys_path"] or ()))
    if environment is not None:
        state = environment.digest
    place = (str(settings.scratch_dir), str(settings.cache_dir))
    key = (os.getpid(), sys.executable, state, place, within, json.dumps(told))
    prefix = unpacked(settings, environment)
    with _lock:
        server = _pool.get(key)
        # somebody may have removed the files that it has not imported yet
        lost = server is not None and server.used and prefix and not (prefix / READY).exists()
        if server is None or not server.alive or lost:
            for old_key, old in list(_pool.items()):
                if not old.users:
                    del _pool[old_key]
                    if old_key[0] == os.getpid():
                        old.end()
            server = _pool[key] = _start(settings, told, environment, within)
        server.users += 1
        return server


def give_back(server: Forkserver) -> None:
    """Say that a run does not use `server` any more; it stays warm until it was idle for long."""
    with _lock:
        server.users -= 1
        server.used = True
        if not server.alive:
            for key in [key for key, value in _pool.items() if value is server]:
                del _pool[key]
        if not server.users and server not in _pool.values():
            server.end()


def shutdown(*, idle_only: bool = False) -> None:
    """End the warm workers of this process at once; with `idle_only` those that no run uses."""
    with _lock:
        for key, server in list(_pool.items()):
            # after a fork of this process they belong to its parent
            if key[0] == os.getpid() and not (idle_only and server.users):
                del _pool[key]
                server.end()


atexit.register(shutdown)


def served(
    settings: Settings,
    preload: tuple[str, ...],
    environment: Environment | None,
    inside: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a forkserver is told wherever it is; `inside`: what `interposer.told` returns."""
    return {
        "idle_s": settings.idle_s,
        "preload": preload,
        # a packed interpreter knows where its packages are
        "sys_path": None if environment else _installed_path() or None,
        "more_path": mounted.path() if environment else (),
        "known": environment.absent if environment else (),
        "libraries": mounted.variables().get("LD_LIBRARY_PATH", ()),
        **inside,
    }


def _installed_path() -> list[str]:
    """Return the folders of ``sys.path`` in which packages are installed."""
    return [entry for entry in sys.path if entry and is_installed(str(Path(entry) / "x"))]


def told_by_stage0(said: str) -> tuple[str, list[str], str, str] | None:
    """Return fact, items, cause and fix that ``stage0.sh`` has told among other things, if any."""
    told = _TOLD.search(said)
    if told is None:
        return None
    fact, items, cause, fix = told.groups()
    return fact, [*map(str.strip, items.splitlines())], cause, fix


def unpacked(settings: Settings, environment: Environment | None) -> Path | None:
    """Return the folder that workers of this machine unpack an environment into."""
    return settings.cache_dir / "unpacked" / environment.digest if environment else None


def worker_environ(prefix: Path | None = None) -> dict[str, str]:
    """Return the variables for workers and tasks: ours as they are now, one thread a process.

    Parameters
    ----------
    prefix
        Of the environment that they run in, where it is another one: what names ours names it,
        and what would lead Python back to ours is left out.
    """
    environ = {**SINGLE_THREADED, **os.environ}
    if prefix is None:
        return environ
    # one in a repository is packed in part only
    is_whole = sys.prefix not in {"/usr", "/usr/local"} and not repository_of(sys.prefix)
    ours = sys.prefix if is_whole else str(prefix)
    # not a folder beside it whose name only begins like this one's
    named = re.compile(rf"(?<![^:=,;\s]){re.escape(ours)}(?=[/:=,;\s]|$)")
    kept = {
        name: named.sub(lambda _: str(prefix), value)
        for name, value in environ.items()
        if name not in _LEAD_BACK
    }
    path = [str(prefix / "bin"), *kept.get("PATH", os.defpath).split(os.pathsep)]
    return {
        **kept,
        "PATH": os.pathsep.join(dict.fromkeys(path)),
        "CONDA_PREFIX": str(prefix),
        # what the user has installed for himself is packed too, if it is needed
        "PYTHONNOUSERSITE": "1",
    }


def from_layers(
    environment: Environment, settings: Settings, about: Path, arguments: list[str]
) -> list[str]:
    """Return the command that runs the worker in an environment, unpacking it before if need be.

    Parameters
    ----------
    environment
        What it runs in.
    settings
        Where it is unpacked.
    about
        File to write the description of the environment to.
    arguments
        Of the worker.
    """
    about.write_text(environment.describe(VERSION))
    layers = environment.layers[0].path.parent
    store = settings.cache_dir / "unpacked"
    stage0 = _WORKER / "stage0.sh"
    return ["sh", *map(str, (stage0, about, layers, store, _WORKER)), *arguments]


def scratch_unusable(folder: Path, error: OSError) -> RunDirectoryError:
    """Return the error for a scratch folder in which nothing can be made."""
    return RunDirectoryError(
        "The scratch folder cannot be used.",
        items=[f"{folder}: {error.strerror}"],
        cause="it is missing, read-only or full",
        fix="export HEPSCALE_SCRATCH_DIR=<a folder on a local disk>",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _mtime_ns(entry: str) -> int:
    try:
        return Path(entry).stat().st_mtime_ns
    except OSError:
        return 0


def _start(
    settings: Settings,
    told: dict[str, Any],
    environment: Environment | None,
    within: tuple[str, ...],
) -> Forkserver:
    parent = str(settings.scratch_dir)
    for removed in scratch.sweep(parent):
        log.info("removed %s, which an earlier run left behind", removed)
    prefix = unpacked(settings, environment)
    try:
        folder, lock = scratch.make(parent)
    except OSError as error:
        raise scratch_unusable(settings.scratch_dir, error) from None
    try:
        settings_path = Path(folder) / "settings.json"
        here = {"dir": folder, "manager_pid": os.getpid()}
        settings_path.write_text(json.dumps({**told, **here}))
        command = [sys.executable, "-I", str(_WORKER), str(settings_path)]
        if environment is not None:
            about = Path(folder) / "environment"
            command = from_layers(environment, settings, about, [str(settings_path)])
        with open(Path(folder) / "log", "wb") as log_file:
            process = subprocess.Popen(
                [*within, *command],
                stdin=subprocess.PIPE,
                stdout=log_file,
                stderr=log_file,
                cwd=folder,
                env=worker_environ(prefix),
                pass_fds=(lock,),
                start_new_session=True,
            )
    except OSError as error:
        raise EngineError(
            "A worker process cannot be started on this machine.",
            items=[str(error)],
            cause="too many processes, too little memory, or a full disk",
            fix="hepscale doctor",
        ) from None
    finally:
        # the forkserver holds the lock from here on
        os.close(lock)
    return Forkserver(process, Path(folder), settings, environment)
