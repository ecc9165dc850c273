"""What every engine is: it moves files, places tasks and reports, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from hepscale.executor.task import EngineEvent, Task, TaskId

__all__ = ["Engine"]


@runtime_checkable
class Engine(Protocol):
    """Who runs tasks.

    An engine does not retry, does not merge and does not know coffea. Each submitted task is
    reported as ended exactly once, after all of its frame bytes; no event is reported after
    `close`.
    """

    name: str

    def start(self) -> None:
        """Begin to bring up workers; returns at once, workers are reported as they join.

        Raises
        ------
        EngineError
            If workers cannot be started here.
        """
        ...

    def submit(self, task: Task) -> None:
        """Queue `task`; it is placed when a slot is free."""
        ...

    def poll(self, timeout_s: float) -> list[EngineEvent]:
        """Return what has happened since the last call, waiting at most `timeout_s` seconds.

        Raises
        ------
        EngineError
            If workers went away and cannot be replaced.
        """
        ...

    def cancel(self, task_id: TaskId) -> None:
        """End a task and all of its processes; it is reported as ended. Unknown ids are ignored."""
        ...

    def close(self) -> None:
        """End what still runs and release everything; may be called twice."""
        ...
