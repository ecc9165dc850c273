"""States of runs that views are shown."""

from __future__ import annotations

from hepscale.executor.task import (
    ChunkFailed,
    ChunkFailure,
    ChunksCounted,
    RunEnded,
    RunStarted,
    TaskId,
    TaskSubmitted,
    WorkerJoined,
)
from hepscale.view import RunState, apply

FAILURE = ChunkFailure(
    "DY", "root://host//a/b/c.root", 0, 10, "exception", "ValueError: [bold]no\x1b[2J\nreally"
)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def running(done: int = 20, failed: int = 0, unit: str = "chunk") -> RunState:
    state = RunState()
    apply(state, RunStarted("r", "Processing", unit, 40, 2_000_000, "local", 0.0), 0.0)
    apply(state, WorkerJoined("w1", 2), 0.0)
    for name in ("t1", "t2"):
        apply(state, TaskSubmitted(TaskId(name), 1), 0.0)
    for i in range(done):
        apply(state, ChunksCounted(1, 50_000, 1_000), 0.1 * (i + 1))
    for _ in range(failed):
        apply(state, ChunkFailed(FAILURE), 2.0)
    return state


def ended(state: RunState, status: str = "done") -> RunState:
    apply(state, RunEnded(status, 0.0), 4.0)  # type: ignore[arg-type]
    return state
