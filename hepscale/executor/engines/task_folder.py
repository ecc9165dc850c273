"""The folder of a task on this machine: what its process reads, and what it has printed."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hepscale.executor.task import Task

__all__ = ["output_tail", "write"]

_TAIL_BYTES = 4096


def write(folder: Path, task: Task) -> None:
    """Make the folder of `task`, with links to its inputs under their relative names.

    Raises
    ------
    OSError
        It cannot be written.
    """
    folder.mkdir(mode=0o700)
    depth = max((_steps_up(one.name) for one in task.inputs), default=0)
    cwd = folder.joinpath("work.d", *["_"] * depth)
    cwd.mkdir(parents=True)
    # folders before what lies in them: through a link that would be made in the user's own folder
    for one in sorted(task.inputs, key=lambda one: one.name.count("/")):
        link = Path(os.path.normpath(cwd / one.name))
        if not link.parent.resolve().is_relative_to(folder.resolve()):
            # below a folder of the user's that is linked already: nothing is made in there
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        # a name like a/../b needs the folder a
        (cwd / one.name).parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(link):
            link.symlink_to(one.source)
    (folder / "work").write_bytes(task.work)
    spec = {
        "task": task.id,
        "attempt": task.attempt,
        "payload": str(task.payload),
        "code": str(task.code) if task.code else None,
        "cwd": str(cwd),
        "isolate": task.isolate,
        "frame_interval_s": task.frame_interval_s,
        "compression": task.compression,
    }
    (folder / "task.json").write_text(json.dumps(spec))


def output_tail(folder: Path) -> str:
    """Return the last of what a task printed."""
    texts = []
    for name in ("stdout", "stderr"):
        with suppress(OSError), open(folder / name, "rb") as stream:
            stream.seek(max(os.fstat(stream.fileno()).st_size - _TAIL_BYTES, 0))
            texts.append(stream.read().decode(errors="replace"))
    return "".join(texts)


def _steps_up(name: str) -> int:
    """Return how many folders a relative name climbs up."""
    parts = Path(os.path.normpath(name)).parts
    return sum(part == os.pardir for part in parts)
