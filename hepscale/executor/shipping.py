"""What is reported of the environment of a run: that it is packed, is ready, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hepscale.executor.task import TaskId

__all__ = ["EnvironmentReady", "Packing", "TaskPlaced"]


@dataclass(frozen=True, slots=True)
class Packing:
    """A layer of the environment is being packed: so many bytes of its files are done."""

    label: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class EnvironmentReady:
    """The tasks that follow run in these layers, of which `layers_cached` had been packed before.

    ``size_bytes`` is what is sent of them to a worker that has none.
    """

    layers: int
    layers_cached: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TaskPlaced:
    """A task, and what it needs, is on its way to a worker."""

    task_id: TaskId
    worker_id: str
