"""The events of a run, folded into one record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepscale.executor.shipping import EnvironmentReady, Packing, TaskPlaced
from hepscale.executor.task import (
    ChunkBegun,
    ChunkFailed,
    ChunkFailure,
    ChunkKey,
    ChunksCounted,
    ChunkSplit,
    Event,
    FrameBytes,
    Notice,
    RunEnded,
    RunStarted,
    TaskBegun,
    TaskEnded,
    TaskId,
    TaskSubmitted,
    Usage,
    WorkerJoined,
    WorkerLost,
)
from hepscale.view import text
from hepscale.view.state import RunState, advance, apply

SMALL = st.integers(0, 1_000)
TASK = st.sampled_from([TaskId("t1"), TaskId("t2"), TaskId("t3")])
WORKER = st.sampled_from(["w1", "w2"])
FAILURES = st.builds(
    ChunkFailure,
    dataset=st.sampled_from(["", "DY"]),
    file=st.sampled_from(["", "/data/a.root", "root://host//b.root"]),
    start=SMALL,
    stop=SMALL,
    kind=st.sampled_from(["exception", "memory", "wall", "died", "output", "merge"]),
    reason=st.text(max_size=30),
)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        RunStarted,
        run_id=st.just("r"),
        desc=st.text(max_size=30),
        unit=st.sampled_from(["chunk", "file", ""]),
        chunks=SMALL,
        entries=SMALL,
        engine=st.just("local"),
        time_s=st.just(0.0),
    ),
    st.builds(TaskSubmitted, TASK, chunks=SMALL),
    st.builds(Packing, st.text(max_size=9), done_bytes=SMALL, total_bytes=SMALL),
    st.builds(EnvironmentReady, layers=SMALL, layers_cached=SMALL, size_bytes=SMALL),
    st.builds(TaskPlaced, TASK, WORKER),
    st.builds(TaskBegun, TASK),
    st.builds(ChunkBegun, TASK, key=st.just(ChunkKey("k"))),
    st.builds(ChunksCounted, chunks=SMALL, entries=SMALL, nbytes=SMALL, resumed=st.booleans()),
    st.builds(ChunkFailed, FAILURES),
    st.builds(ChunkSplit, file=st.just("f"), start=SMALL, stop=SMALL),
    st.builds(Notice, st.text(max_size=30)),
    st.builds(FrameBytes, TASK, data=st.binary(max_size=20)),
    st.builds(
        TaskEnded,
        TASK,
        status=st.sampled_from(["done", "died", "memory", "cancelled", "lost"]),
        usage=st.builds(Usage, st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6)),
    ),
    st.builds(WorkerJoined, WORKER, slots=st.integers(0, 64)),
    st.builds(WorkerLost, WORKER),
    st.builds(
        RunEnded, st.sampled_from(["done", "failed", "stopped", "interrupted"]), st.just(1.0)
    ),
)
TIMES = st.floats(0, 1e6)


def started(chunks: int = 40, entries: int = 2_000_000, unit: str = "chunk") -> RunState:
    state = RunState()
    apply(state, RunStarted("r", "Processing", unit, chunks, entries, "local", 1e9), 100.0)
    return state


def failure(**given: object) -> ChunkFailure:
    values = {"dataset": "DY", "file": "/d/a.root", "start": 0, "stop": 10, "kind": "exception"}
    return ChunkFailure(**{**values, "reason": "ValueError: no", **given})  # type: ignore[arg-type]


@given(st.lists(st.tuples(EVENTS, TIMES), max_size=60))
def test_no_sequence_of_events_is_too_strange(events: list[tuple[Event, float]]) -> None:
    state = RunState()
    for event, now_s in events:
        apply(state, event, now_s)
        assert 0 <= state.chunks_done + state.chunks_failed <= state.chunks_total
        assert 0 <= state.fraction <= 1
        assert 0 <= state.slots_busy <= state.slots
        assert state.elapsed_s >= 0
        assert state.rate_per_s is None or state.rate_per_s > 0
        assert state.remaining_s is None or state.remaining_s >= 0
        if state.counts_entries:
            assert state.entries_done + state.entries_failed <= state.entries_total
    for words in (
        text.progress_text,
        text.final_text,
        text.rate_text,
        text.workers_text,
        text.environment_text,
        text.usage_text,
    ):
        assert "\n" not in words(state)


@given(st.lists(EVENTS, max_size=40), st.floats(0.01, 100), st.floats(0.01, 100))
def test_the_summary_does_not_know_the_time(
    events: list[Event], pace_s: float, other_s: float
) -> None:
    states = RunState(), RunState()
    for i, event in enumerate(events):
        apply(states[0], event, i * pace_s)
        apply(states[1], event, 1e9 + i * other_s)
    assert text.summary_text(states[0]) == text.summary_text(states[1])


def test_what_a_run_counts() -> None:
    state = started()
    apply(state, WorkerJoined("w1", 2), 100.5)
    for name in ("t1", "t2", "t3"):
        apply(state, TaskSubmitted(TaskId(name), 4), 100.5)
    apply(state, FrameBytes(TaskId("t1"), b"12345"), 101.0)
    apply(state, ChunksCounted(2, 100_000, 4_000), 101.0)
    apply(state, ChunkFailed(failure()), 101.0)
    apply(state, Notice("look"), 101.0)
    assert (state.chunks_done, state.chunks_failed, state.chunks_total) == (2, 1, 40)
    assert (state.entries_done, state.entries_failed) == (100_000, 10)
    assert (state.bytes_received, state.bytes_merged) == (5, 4_000)
    assert (state.slots, state.slots_busy, state.tasks_running) == (2, 2, 3)
    assert (state.notices, len(state.failures)) == (["look"], 1)
    assert (state.start_time_s, state.elapsed_s) == (1e9, 1.0)


def test_a_split_adds_one_chunk_and_no_events() -> None:
    state = started()
    apply(state, ChunkSplit("a.root", 0, 10), 101.0)
    assert (state.chunks_split, state.chunks_total, state.entries_total) == (1, 41, 2_000_000)


def test_workers_and_tasks_come_and_go() -> None:
    state = started()
    for _ in range(2):
        apply(state, WorkerJoined("w1", 4), 100.0)
    apply(state, WorkerJoined("w2", 4), 100.0)
    for i, status in enumerate(("done", "died", "lost", "memory", "cancelled")):
        apply(state, TaskSubmitted(TaskId(str(i)), 1), 100.0)
        apply(state, TaskEnded(TaskId(str(i)), status), 100.0)  # type: ignore[arg-type]
    apply(state, WorkerLost("w2", "evicted"), 101.0)
    apply(state, WorkerLost("w2", "evicted"), 101.0)
    assert (state.workers_joined, state.workers_lost, state.slots) == (2, 1, 4)
    assert (state.tasks_died, state.tasks_lost, state.tasks_over_memory) == (1, 1, 1)
    assert (state.tasks_running, state.tasks_retried) == (0, 3)


def test_resumed_chunks_do_not_make_it_fast() -> None:
    state = started()
    apply(state, ChunksCounted(20, 1_000_000, 1_000, resumed=True), 100.0)
    assert state.chunks_resumed == 20
    assert state.rate_per_s is None
    apply(state, ChunkBegun(TaskId("t"), ChunkKey("k")), 101.0)
    for i in range(1, 11):
        apply(state, ChunksCounted(1, 50_000, 1_000), 101.0 + i)
    assert state.rate_per_s == pytest.approx(50_000)
    assert state.remaining_s == pytest.approx(10.0)


def test_the_rate_follows_the_last_seconds_and_falls_in_a_standstill() -> None:
    state = started(chunks=10_000, entries=0)
    for i in range(1, 101):
        apply(state, ChunksCounted(10, 0, 0), 100.0 + i)
    for i in range(1, 41):
        apply(state, ChunksCounted(1, 0, 0), 200.0 + i)
    assert state.rate_per_s == pytest.approx(1.0, rel=0.1)
    advance(state, 300.0)
    assert state.rate_per_s is not None
    assert state.rate_per_s < 0.3


def test_slow_chunks_have_a_steady_rate() -> None:
    state = started(chunks=100, entries=0)
    for i in range(1, 21):
        apply(state, ChunksCounted(1, 0, 0), 100.0 + 60 * i)
    assert state.rate_per_s == pytest.approx(1 / 60, rel=0.01)


def test_many_counts_keep_few_samples() -> None:
    state = started(chunks=100_000, entries=0)
    for i in range(100_000):
        apply(state, ChunksCounted(1, 0, 0), 100.0 + i / 1_000)
    assert len(state._samples) < 100
    assert state.rate_per_s == pytest.approx(1_000, rel=0.05)


def test_the_end_stops_the_clock() -> None:
    state = started()
    apply(state, TaskSubmitted(TaskId("t"), 40), 100.0)
    apply(state, ChunksCounted(40, 2_000_000, 1), 104.0)
    apply(state, RunEnded("done", 1e9 + 4), 104.0)
    advance(state, 200.0)
    assert (state.status, state.elapsed_s, state.end_time_s) == ("done", 4.0, 1e9 + 4)
    assert (state.rate_per_s, state.remaining_s, state.tasks_running) == (500_000.0, None, 0)


def test_time_does_not_go_back() -> None:
    state = started()
    advance(state, 50.0)
    assert state.elapsed_s == 0.0


def test_an_event_of_tomorrow_changes_nothing() -> None:
    state = started()
    before = repr(state)
    apply(state, "an unknown event", 100.0)  # type: ignore[arg-type]
    assert repr(state) == before


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (0.999, "1.0"),
        (7.46, "7.5"),
        (99.96, "100"),
        (9_999, "9,999"),
        (9_999.6, "10.0 k"),
        (12_345, "12.3 k"),
        (650_123, "650 k"),
        (999_499, "999 k"),
        (999_500, "1.0 M"),
        (1_234_567, "1.2 M"),
        (2.5e9, "2.5 G"),
        (float("inf"), "?"),
        (float("nan"), "?"),
    ],
)
def test_numbers_in_words(number: float, words: str) -> None:
    assert text.count_text(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (65, "1 min 05 s"),
        (3_599.7, "1 h 00 min"),
        (7_500, "2 h 05 min"),
        (266_400, "3 d 02 h"),
        (float("inf"), "?"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert text.duration_text(seconds) == words


def test_tenths_of_seconds_for_short_runs_only() -> None:
    assert text.duration_text(5.24, tenths=True) == "5.2 s"
    assert text.duration_text(59.97, tenths=True) == "1 min 00 s"


@given(st.floats(-1e30, 1e30))
def test_any_number_is_short(number: float) -> None:
    if abs(number) < 1e18:
        assert len(text.count_text(number)) <= 8


def test_summary_of_a_good_run() -> None:
    state = started()
    apply(state, ChunksCounted(40, 2_000_000, 1, resumed=True), 101.0)
    apply(state, RunEnded("done", 0.0), 102.0)
    assert text.summary_text(state) == "Processing: 40 of 40 chunks, 2,000,000 events, 0 failed"


def test_summary_lists_failures_in_the_order_of_the_chunks_without_measured_numbers() -> None:
    state = started(chunks=40)
    apply(state, ChunkFailed(failure(start=20, stop=30, kind="memory", reason="513 MB")), 101.0)
    apply(state, ChunkFailed(failure(reason="TypeError: <A object at 0x7f3a12>")), 101.0)
    apply(state, ChunksCounted(38, 1_999_980, 1), 101.0)
    apply(state, RunEnded("failed", 0.0), 102.0)
    assert text.summary_text(state).splitlines() == [
        "Processing failed: 38 of 40 chunks, 1,999,980 events, 2 failed",
        "  DY, /d/a.root, entries 0 to 10: TypeError: <A object at 0x...>",
        "  DY, /d/a.root, entries 20 to 30: over its memory",
    ]


@pytest.mark.parametrize("depth", ["", "_/_/"])
def test_the_folder_of_a_task_is_not_told(depth: str) -> None:
    state = started()
    folder = f"/tmp/hepscale-0-s_x5/20261122-120229-2-12/work.d/{depth}"
    apply(state, ChunkFailed(failure(reason=f"OSError: in file {folder}data/a.root")), 101.0)
    assert text.failure_lines(state) == [
        "DY, a.root, entries 0 to 10: OSError: in file data/a.root"
    ]
    assert text.summary_text(state).endswith("0 to 10: OSError: in file data/a.root")


def test_words_follow_the_unit_and_the_number() -> None:
    assert text.chunks_text(started(chunks=1, unit="")) == "0 of 1 chunk"
    assert text.chunks_text(started(chunks=4, unit="file")) == "0 of 4 files"


def test_words_for_workers() -> None:
    state = started()
    assert text.workers_text(state) == "waiting for workers"
    apply(state, WorkerJoined("w1", 1), 100.0)
    assert text.workers_text(state) == "0 of 1 slot busy"
    apply(state, WorkerLost("w1"), 100.0)
    assert text.workers_text(state) == "no workers left, 1 lost"
    apply(state, WorkerJoined("w2", 2), 100.0)
    apply(state, WorkerJoined("w3", 2), 100.0)
    assert text.workers_text(state) == "0 of 4 slots busy on 2 workers, 3 joined, 1 lost"
    apply(state, RunEnded("done", 1e9), 102.0)
    assert text.final_text(state).endswith("0 failed, 1 worker lost")


def test_words_for_what_is_done_again() -> None:
    state = started()
    assert text.failed_text(state) == "0 failed"
    apply(state, ChunkSplit("a.root", 0, 10), 101.0)
    apply(state, TaskEnded(TaskId("t1"), "memory"), 101.0)
    assert text.failed_text(state) == "0 failed, 1 task repeated, 1 chunk split"


def test_an_environment_is_packed_and_sent() -> None:
    state = RunState()
    assert text.environment_text(state) == ""
    apply(state, Packing("other\npackages", 40_000_000, 200_000_000), 1.0)
    assert text.environment_text(state) == "packing other packages, 40.0 MB of 200 MB"
    assert text.progress_text(state).startswith("Run: being prepared, environment: packing other")
    apply(state, EnvironmentReady(3, 2, 210_000_000), 2.0)
    apply(state, RunStarted("r", "Processing", "chunk", 4, 0, "workqueue", 0.0), 2.0)
    assert text.environment_text(state) == "3 layers (210 MB), 2 packed before"
    tasks = [TaskId(f"t{i}") for i in range(4)]
    for worker in ("w1", "w2"):
        apply(state, WorkerJoined(worker, 2), 3.0)
    for task, worker in zip(tasks, ("w1", "w1", "w2", "w2"), strict=True):
        apply(state, TaskPlaced(task, worker), 3.0)
    assert text.environment_text(state).endswith(", being sent to 2 workers")
    apply(state, TaskBegun(tasks[0]), 4.0)
    assert text.environment_text(state).endswith(", on 1 worker, being sent to 1 worker")
    apply(state, TaskEnded(tasks[2], "lost"), 5.0)
    apply(state, TaskEnded(tasks[3], "lost"), 5.0)
    apply(state, WorkerLost("w2"), 5.0)
    assert text.environment_text(state) == "3 layers (210 MB), 2 packed before, on 1 worker"
    assert "environment: 3 layers" in text.progress_text(state)
    # a task has missed a module: another layer goes to all
    apply(state, EnvironmentReady(4, 4, 250_000_000), 6.0)
    assert text.environment_text(state) == "4 layers (250 MB), all packed before"


@given(st.text(max_size=400), st.integers(10, 100))
def test_one_line_is_one_printable_line(words: str, most: int) -> None:
    line = text.one_line(words, most)
    assert len(line) <= most
    assert line.isprintable()


def test_what_tasks_have_used() -> None:
    state = started()
    assert text.usage_text(state) == ""
    for name, usage in (("t1", Usage(2.0, 2.0, 612.4)), ("t2", Usage(2.0, 1.0, 300.0))):
        apply(state, TaskSubmitted(TaskId(name), 4), 100.0)
        apply(state, TaskEnded(TaskId(name), "done", usage=usage), 101.0)
    assert text.usage_text(state) == "a task used up to 612 MB, 0.8 cores"
    apply(state, TaskSubmitted(TaskId("t3"), 4, 800), 101.0)
    apply(state, RunEnded("done", 1e9), 102.0)
    used = "a task used up to 612 MB of 800 MB, 0.8 cores"
    assert text.final_text(state).endswith(f", {used}")
    assert used not in text.summary_text(state)
