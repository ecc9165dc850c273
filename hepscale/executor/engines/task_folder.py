"""What a task's process reads, as an engine writes it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hepscale.worker import layout

if TYPE_CHECKING:
    from pathlib import Path

    from hepscale.executor.task import Task

__all__ = ["spec", "write"]


def spec(task: Task, **places: str | None) -> dict[str, Any]:
    """Return the settings of a task; `places` are the paths of payload, code and folder there."""
    return {
        "task": task.id,
        "attempt": task.attempt,
        "isolate": task.isolate,
        "frame_interval_s": task.frame_interval_s,
        "compression": task.compression,
        "reads": task.reads,
        **places,
    }


def write(folder: Path, task: Task) -> None:
    """Make the folder of `task` on this machine, with links to its inputs.

    Raises
    ------
    OSError
        It cannot be written.
    """
    folder.mkdir(mode=0o700)
    cwd = layout.lay_out(str(folder), [(one.name, str(one.source)) for one in task.inputs])
    (folder / "work").write_bytes(task.work)
    code = str(task.code) if task.code else None
    told = spec(task, payload=str(task.payload), code=code, cwd=cwd)
    told["reads"] = [*told["reads"], *(str(one.source) for one in task.inputs)]
    (folder / "task.json").write_text(json.dumps(told))
