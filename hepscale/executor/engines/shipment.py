"""What a worker of Work Queue or TaskVine is sent for a task, and what it runs."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hepscale.executor import interposer
from hepscale.executor.engines import mounted, task_folder, warm
from hepscale.executor.engines.queue import QueueFile, apart
from hepscale.worker import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from hepscale.config import Settings
    from hepscale.env.environment import Environment
    from hepscale.executor.engines.manager import Manager
    from hepscale.executor.task import InputFile, Task

__all__ = ["Shipment", "command"]


class Shipment:
    """Writes what the tasks of a run are sent.

    Parameters
    ----------
    manager
        Whose folder it is written to.
    preload
        Modules that a forkserver imports before its first task.
    settings
        How long a forkserver stays without one, and what its tasks run inside.
    credentials
        Files that prove who the user is, by the variables that name them.
    """

    def __init__(
        self,
        manager: Manager,
        preload: tuple[str, ...],
        settings: Settings,
        credentials: Mapping[str, Path],
    ) -> None:
        self._manager = manager
        self._preload = preload
        self._settings = settings
        self._inside = interposer.told(settings)
        self._mounted = mounted.variables()
        # by environment: each task is told of one
        self._servers: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
        self._credentials = credentials

    def pack(self, task: Task, folder: Path, memory_mb: int | None) -> tuple[QueueFile, ...]:
        """Write the files of a task into its folder; return all that the worker needs.

        Raises
        ------
        OSError
            There is no room for them, or an input is gone.
        """
        (folder / "work").write_bytes(task.work)
        # they may be renewed, and removed, while the run goes on
        proofs = {name: path for name, path in self._credentials.items() if path.is_file()}
        (folder / "told").write_text(json.dumps(self._told(task, memory_mb, proofs)))
        return (
            QueueFile(self._manager.package, "hepscale", cache=True),
            QueueFile(task.payload, "payload", cache=True),
            QueueFile(folder / "work", "work"),
            QueueFile(folder / "told", "hepscale-task.json"),
            *(QueueFile(path, f"credentials/{name}") for name, path in proofs.items()),
            *([QueueFile(task.code, "code", cache=True)] if task.code is not None else ()),
            *(
                QueueFile(self._versioned(one), f"inputs/{at}", cache=True)
                for at, one in enumerate(task.inputs)
            ),
            *(self._layers(task.environment) if task.environment is not None else ()),
        )

    def _told(
        self, task: Task, memory_mb: int | None, proofs: Mapping[str, Path]
    ) -> dict[str, Any]:
        python = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return {
            "spec": task_folder.spec(task, payload="payload", code="code" if task.code else None),
            "inputs": [(one.name, f"inputs/{at}") for at, one in enumerate(task.inputs)],
            "memory_mb": memory_mb,
            "mounted": self._mounted,
            "environ": {
                **warm.SINGLE_THREADED,
                "PYTHONNOUSERSITE": "1",
                **{one: f"{{here}}/credentials/{one}" for one in proofs},
            },
            "versions": {"hepscale": VERSION, "python": python},
            "server": self._server(task.environment),
        }

    def _server(self, environment: Environment | None) -> dict[str, Any]:
        """Return what a worker is told of the forkserver that its tasks share."""
        of = environment.digest if environment else sys.executable
        key = (of, environment.absent if environment else ())
        if key not in self._servers:
            served = warm.served(self._settings, self._preload, environment, self._inside)
            name = hashlib.sha256(json.dumps([served, of]).encode()).hexdigest()[:16]
            name = f"{name}-{self._manager.queue.port}"
            self._servers[key] = {"name": name, "settings": served}
        return self._servers[key]

    def _layers(self, environment: Environment) -> Iterator[QueueFile]:
        about = self._manager.folder / f"environment-{environment.digest}"
        if not about.exists():
            about.write_text(environment.describe(VERSION))
        yield QueueFile(about, "environment", cache=True)
        for one in environment.layers:
            yield QueueFile(one.path, f"layers/{one.path.name}", cache=True, shared=True)

    def _versioned(self, one: InputFile) -> Path:
        """Return a name for an input that changes with it: a worker keeps it by its name."""
        source = one.source.absolute()
        found = source.stat()
        state = f"{source}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ino}"
        name = hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        link = self._manager.folder / f"input-{name}"
        with suppress(FileExistsError):
            link.symlink_to(source)
        return link


def command(environment: Environment | None) -> str:
    """Return what a worker runs in the task's folder, by its shell."""
    if environment is None:
        # the file and not the folder, for which Python would import more
        run = f"{shlex.quote(sys.executable)} -I -S hepscale/__main__.py --task $PPID"
    else:
        store = '"${PWD%/*}/hepscale/unpacked"'
        run = f"sh hepscale/stage0.sh environment layers {store} hepscale --task $PPID"
    return apart(run)
