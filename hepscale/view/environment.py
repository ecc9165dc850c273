"""The environment of a run, as its events tell of it: packed, sent, and with whom it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hepscale.executor.shipping import EnvironmentReady, Packing, TaskPlaced
from hepscale.executor.task import TaskBegun, TaskEnded, TaskId, WorkerLost

if TYPE_CHECKING:
    from typing import TypeAlias

__all__ = ["EnvironmentState", "Told"]

Told: TypeAlias = "Packing | EnvironmentReady | TaskPlaced | TaskBegun | TaskEnded | WorkerLost"


@dataclass(slots=True)
class EnvironmentState:
    """Where the environment stands.

    Attributes
    ----------
    packing, packed_bytes, packing_bytes
        What is being packed; how much of its files is done, and how much there is.
    layers, layers_cached, size_bytes
        The archives that it consists of, how many of them had been packed before, their size; 0
        where the tasks run in what their workers have.
    workers
        The workers that have it: a task has begun there.
    """

    packing: str = ""
    packed_bytes: int = 0
    packing_bytes: int = 0
    layers: int = 0
    layers_cached: int = 0
    size_bytes: int = 0
    workers: set[str] = field(default_factory=set)
    _placed: dict[TaskId, str] = field(default_factory=dict, repr=False)

    @property
    def workers_sent(self) -> int:
        """Number of workers that it is on its way to."""
        return len({*self._placed.values()} - self.workers)

    def see(self, event: Told) -> None:
        """Fold one event."""
        match event:
            case Packing():
                self.packing = event.label
                self.packed_bytes, self.packing_bytes = event.done_bytes, event.total_bytes
            case EnvironmentReady():
                self.packing = ""
                self.layers, self.layers_cached = event.layers, event.layers_cached
                self.size_bytes = event.size_bytes
                # those that are under way run in what there was before
                self.workers.clear()
                self._placed.clear()
            case TaskPlaced():
                self._placed[event.task_id] = event.worker_id
            case TaskBegun():
                worker = self._placed.pop(event.task_id, None)
                if worker is not None:
                    self.workers.add(worker)
            case TaskEnded():
                self._placed.pop(event.task_id, None)
            case WorkerLost():
                self.workers.discard(event.worker_id)
