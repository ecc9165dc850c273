"""What tasks are given, by what those before them have used."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepscale.executor.allocation import (
    LEAST_MEASURED,
    MOST_MEASURED,
    STEP_MB,
    Allocation,
    given_mb,
)
from hepscale.executor.task import TaskEnded, TaskId, Usage, WorkerJoined

SIZE = st.integers(1, 100_000)
LIMIT = st.none() | SIZE


def after(*peaks_mb: float, limit_mb: int | None = None, status: str = "done") -> Allocation:
    known = Allocation(limit_mb)
    for peak_mb in peaks_mb:
        known = known.after_task(
            TaskEnded(TaskId("t"), status, usage=Usage(1.0, 1.0, peak_mb))  # type: ignore[arg-type]
        )
    return known


def workers(*sizes: tuple[int, int]) -> list[WorkerJoined]:
    return [
        WorkerJoined(str(n), slots, memory_mb=memory_mb)
        for n, (slots, memory_mb) in enumerate(sizes)
    ]


def test_nothing_is_known_of_a_few_tasks() -> None:
    assert after(*[600] * (LEAST_MEASURED - 1)).learnt_mb is None
    assert after(*[600] * LEAST_MEASURED).learnt_mb == 750


def test_what_was_not_measured_tells_nothing() -> None:
    assert after(*[0.0] * 50) == after()
    assert after(*[600.0] * 50, status="cancelled") == after()
    # one that was stopped for its memory has used it
    assert after(*[600.0] * 50, status="memory").learnt_mb == 750


def test_one_task_of_twenty_may_be_larger() -> None:
    assert after(*[600] * 19, 3000).learnt_mb == 750
    assert after(*[600] * 18, 3000, 3000).learnt_mb == 3750
    # of less than twenty none
    assert after(*[600] * 18, 3000).learnt_mb == 3750


def test_the_last_tasks_count() -> None:
    assert after(*[3000] * 500, *[600] * MOST_MEASURED).learnt_mb == 750


@given(st.lists(st.floats(0.1, 1e5), min_size=LEAST_MEASURED, max_size=MOST_MEASURED), LIMIT)
def test_nearly_all_tasks_fit(peaks_mb: list[float], limit_mb: int | None) -> None:
    learnt_mb = after(*peaks_mb, limit_mb=limit_mb).learnt_mb
    assert learnt_mb is not None
    assert learnt_mb > 0
    free = after(*peaks_mb).learnt_mb
    assert free is not None
    assert learnt_mb == min(free, limit_mb or free)
    assert free % STEP_MB == 0
    assert sum(peak_mb > free for peak_mb in peaks_mb) <= len(peaks_mb) // 20


@pytest.mark.parametrize(
    ("learnt", "limit_mb", "sizes", "slots"),
    [
        # 750 MB each
        (True, None, [(2, 1000)], 1),
        (True, None, [(2, 1500)], 2),
        (True, None, [(8, 4000), (4, 8000)], 9),
        # the small one can run none
        (True, None, [(4, 500), (4, 1000)], 1),
        # nobody has that much, so those that have most take one each
        (True, None, [(4, 500), (4, 500), (4, 400)], 2),
        (True, 300, [(4, 1000)], 3),
        # what is placed by its cores only
        (True, None, [(4, 0), (4, 1000)], 5),
        (True, None, [(4, 0)], 4),
        # until more is known: the limit, else the cores
        (False, 600, [(4, 1000)], 1),
        (False, None, [(4, 1000)], 4),
        (True, None, [], 0),
    ],
)
def test_slots(learnt: bool, limit_mb: int | None, sizes: list, slots: int) -> None:
    known = after(*[600] * (LEAST_MEASURED if learnt else 0), limit_mb=limit_mb)
    assert known.slots(workers(*sizes)) == slots


@given(st.lists(st.tuples(st.integers(1, 64), SIZE), min_size=1), SIZE, LIMIT)
def test_there_is_room_for_all_slots(
    sizes: list[tuple[int, int]], peak_mb: int, limit_mb: int | None
) -> None:
    known = after(*[peak_mb] * LEAST_MEASURED, limit_mb=limit_mb)
    assert known.learnt_mb is not None
    most_mb = max(memory_mb for _, memory_mb in sizes)
    each_mb = given_mb(known.learnt_mb, limit_mb, most_mb, 1)
    slots = known.slots(workers(*sizes))
    assert 1 <= slots <= sum(cores for cores, _ in sizes)
    # no more than fit, and one more would not
    room = [min(cores, memory_mb // each_mb) for cores, memory_mb in sizes]
    assert slots == sum(room)


@given(SIZE, LIMIT, st.just(0) | SIZE, st.integers(1, 1000))
def test_no_more_than_there_is(
    wanted_mb: int, limit_mb: int | None, most_mb: int, attempt: int
) -> None:
    given = given_mb(wanted_mb, limit_mb, most_mb, attempt)
    assert given >= 1
    assert given <= (most_mb or given)
    assert given <= (limit_mb or given)
    assert attempt > 1 or given <= wanted_mb


def test_each_attempt_is_given_more() -> None:
    asked = [given_mb(500, None, 3000, attempt) for attempt in range(1, 6)]
    assert asked == [500, 1000, 2000, 3000, 3000]
    assert given_mb(500, 700, 3000, 2) == 700
    assert all(a <= b for a, b in itertools.pairwise(asked))
