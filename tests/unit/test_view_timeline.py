"""What the slots did over time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepscale.executor.task import (
    Event,
    RunEnded,
    RunStarted,
    TaskBegun,
    TaskClock,
    TaskEnded,
    TaskId,
    TaskSubmitted,
    Usage,
    WorkerJoined,
    WorkerLost,
)
from hepscale.view.timeline import KINDS, Timeline

START = RunStarted("r", "Processing", "chunk", 9, 0, "local", 0.0)
SECONDS = st.floats(0, 1e4)
TASK = st.sampled_from([TaskId("t1"), TaskId("t2"), TaskId("t3")])
WORKER = st.sampled_from(["w1", "w2"])
EVENTS = st.one_of(
    st.builds(TaskSubmitted, TASK, st.just(1)),
    st.builds(TaskBegun, TASK),
    st.builds(TaskClock, TASK, SECONDS, SECONDS, SECONDS, SECONDS),
    st.builds(TaskEnded, TASK, st.sampled_from(["done", "died", "cancelled", "lost"])),
    st.builds(WorkerJoined, WORKER, st.integers(1, 1000)),
    st.builds(WorkerLost, WORKER),
)
STEPS = st.lists(st.tuples(st.floats(0, 1e5), EVENTS), max_size=40)


def folded(*events: tuple[float, Event]) -> Timeline:
    made = Timeline()
    for now_s, event in events:
        made.see(event, now_s)
    return made


def seconds(timeline: Timeline) -> dict[str, float]:
    return {kind: round(one, 6) for kind, one in timeline.share().totals_s.items() if one > 1e-9}


@given(STEPS, st.booleans())
def test_totals_add_up_to_the_time_of_the_slots(steps, ended):
    made, now_s, slots_s = Timeline(), 100.0, 0.0
    made.see(START, now_s)
    workers: dict[str, int] = {}
    for wait_s, event in steps:
        slots_s += sum(workers.values()) * (now_s + wait_s - now_s)
        now_s += wait_s
        made.see(event, now_s)
        if isinstance(event, WorkerJoined):
            workers[event.worker_id] = event.slots
        elif isinstance(event, WorkerLost):
            workers.pop(event.worker_id, None)
    if ended:
        made.see(RunEnded("done", 0.0), now_s)
    share = made.share()
    assert sum(share.totals_s.values()) == pytest.approx(slots_s, rel=1e-6, abs=1e-6)
    assert all(one >= 0 for row in share.kinds.values() for one in row)
    assert len({len(row) for row in share.kinds.values()}) == 1
    assert len(share.kinds["waiting"]) <= 400
    assert sum(share.percent.values()) == pytest.approx(100 if slots_s else 0)
    assert share == made.share()


def test_a_task_says_what_took_how_long():
    made = folded(
        (0, START),
        (0, WorkerJoined("w", 2)),
        (1, TaskSubmitted(TaskId("t"), 3)),
        (3, TaskBegun(TaskId("t"))),
        (12, TaskClock(TaskId("t"), 9, load_s=1, merge_s=2, stream_s=0.5)),
        (14, TaskEnded(TaskId("t"), "done", usage=Usage(memory_mb=300))),
        (15, RunEnded("done", 0)),
    )
    assert seconds(made) == {
        "processing": 5.5,
        "merging": 2,
        "streaming": 0.5,
        "import": 1,
        "environment": 2,
        "waiting": 1 + 3 + 15,
    }
    assert (made.tasks, made.tasks_memory_mb, made.slots_most) == (1, 300, 2)
    assert repr(made).startswith("Timeline: processing 18 %, merging 7 %, streaming 2 %, import 3")


def test_frames_that_come_late_hide_nothing():
    made = folded(
        (0, START),
        (0, WorkerJoined("w", 1)),
        (0, TaskSubmitted(TaskId("t"), 3)),
        (10, TaskBegun(TaskId("t"))),
        (10, TaskClock(TaskId("t"), 9)),
        (10, TaskEnded(TaskId("t"), "done")),
    )
    assert seconds(made) == {"environment": 1, "processing": 9}


def test_tasks_that_end_early_and_those_that_have_not_ended():
    made = folded(
        (0, START),
        (0, WorkerJoined("w", 3)),
        *((0, TaskSubmitted(TaskId(name), 1)) for name in "abc"),
        (1, TaskBegun(TaskId("a"))),
        (1, TaskBegun(TaskId("b"))),
        (5, TaskEnded(TaskId("a"), "died")),
    )
    assert seconds(made) == {"environment": 1 + 1 + 5, "lost": 4, "processing": 4}
    made.advance(6)
    assert seconds(made) == {"environment": 1 + 1 + 6, "lost": 4, "processing": 5, "waiting": 1}


def test_the_time_of_slots_that_are_gone_is_not_counted():
    made = folded(
        (0, START),
        (0, WorkerJoined("w", 2)),
        *((0, TaskSubmitted(TaskId(name), 1)) for name in "ab"),
        (4, WorkerLost("w")),
        (8, RunEnded("interrupted", 0)),
    )
    assert sum(seconds(made).values()) == 8
    made.see(WorkerJoined("x", 50), 9)
    made.advance(100)
    assert sum(seconds(made).values()) == 8
    assert made.share().span_s == 8


def test_before_a_run_begins_there_is_nothing():
    made = folded((0, WorkerJoined("w", 1)), (5, TaskSubmitted(TaskId("t"), 1)))
    assert seconds(made) == {}
    assert repr(made) == "Timeline: nothing yet"
    assert made._repr_png_() is None


def test_the_picture():
    def drawn(*events: tuple[float, Event]) -> bytes:
        picture = folded((0, START), (0, WorkerJoined("w", 1)), *events)._repr_png_()
        assert picture is not None
        assert picture.startswith(b"\x89PNG")
        return picture

    idle = drawn((7, RunEnded("done", 0)))
    assert idle == drawn((7, RunEnded("done", 0)))
    assert idle != drawn((0, TaskSubmitted(TaskId("t"), 1)), (7, RunEnded("done", 0)))


def test_kinds_are_those_of_the_picture():
    from hepscale.view.timeline_picture import COLOURS

    assert tuple(COLOURS) == KINDS
