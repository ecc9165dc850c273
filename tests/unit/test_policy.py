"""Task sizing by simulation: thousands of chunks, slots of unequal speed, times made up.

The simulation replays what the run loop does with :mod:`hepscale.executor.policy`: it hands out a
task whenever a slot is free, and learns the pace from the frames and ends of tasks.
"""

from __future__ import annotations

import itertools
import time
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from farm import Farm, constant, even, growing, log_normal, one_slow, shrinking

from hepscale.executor import policy
from hepscale.executor.policy import Pace
from hepscale.executor.running import Running
from hepscale.executor.task import Chunk, ChunkFailure, ChunkKey, Task, TaskId
from hepscale.executor.waiting import Waiting

SLOTS = (2, 8, 64)
SIZES = ((5_000, 0.02), (5_000, 0.5), (20_000, 0.01), (20_000, 0.2))


@pytest.mark.parametrize(
    ("n", "mean_s", "first_s", "slots"),
    [
        (5_000, 0.02, 0.0, 8),
        (5_000, 0.5, 1.0, 2),
        (5_000, 0.5, 0.0, 64),
        (20_000, 0.2, 1.0, 8),
    ],
)
@pytest.mark.parametrize(
    ("costs", "speeds"),
    [
        (constant, even),
        (constant, one_slow),
        (log_normal, even),
        (log_normal, one_slow),
        (growing, even),
        (shrinking, even),
    ],
)
def test_makespan(costs, speeds, first_s, n, mean_s, slots):
    """At most 1.15 of the bound, and what nobody can know: the largest chunk came last.

    A task of the least length on the slowest slot comes on top: it shows in runs of seconds.
    """
    rng = np.random.default_rng(n + slots)
    farm = Farm(costs(n, mean_s, rng), speeds=speeds(slots), first_s=first_s)
    makespan_s = farm.run()
    unknowable_s = (farm.costs.max() + policy.LEAST_TASK_S) / min(farm.speeds)
    assert makespan_s <= 1.15 * farm.bound_s() + unknowable_s
    if makespan_s > 50 * unknowable_s:
        assert makespan_s <= 1.15 * farm.bound_s()
    firsts = {task.slot: task.chunks for task in reversed(farm.tasks)}
    assert firsts == dict.fromkeys(range(slots), 1)
    assert len(farm.tasks) / slots <= 30 + 2 * makespan_s / policy.MOST_TASK_S


@pytest.mark.parametrize("slots", [2, 8])
@pytest.mark.parametrize("costs", [growing, shrinking])
def test_costs_that_change_fivefold_on_unequal_slots(costs, slots):
    for n, mean_s in SIZES:
        farm = Farm(costs(n, mean_s, np.random.default_rng(0)), speeds=one_slow(slots))
        assert farm.run() <= 1.7 * farm.bound_s()


@pytest.mark.parametrize("n", [5_000, 20_000])
def test_entries_are_the_measure_of_chunks(n):
    """Chunks of 100 to 100,000 entries, that cost in proportion: as good as equal chunks."""
    entries = np.random.default_rng(3).integers(100, 100_000, n)
    farm = Farm(entries * 2e-6, entries, speeds=even(8))
    assert farm.run() <= 1.05 * farm.bound_s()
    blind = Farm(entries * 2e-6, speeds=even(8))
    assert blind.run() <= 1.15 * blind.bound_s()


def test_long_tasks_last_as_long_as_they_may():
    farm = Farm(constant(20_000, 0.2, None), speeds=even(2))
    farm.run()
    lasted = [task.ended_s - task.begun_s for task in farm.tasks]
    assert np.median(lasted) == pytest.approx(policy.MOST_TASK_S, rel=0.02)
    assert max(lasted) <= 1.02 * policy.MOST_TASK_S
    for task in farm.tasks[2:]:
        assert task.ended_s - task.begun_s == pytest.approx(task.aim_s, rel=0.1, abs=0.3)


@pytest.mark.parametrize("slots", SLOTS)
def test_tasks_of_unequal_chunks_are_not_far_longer_than_they_may_be(slots):
    for n, mean_s in SIZES:
        farm = Farm(log_normal(n, mean_s, np.random.default_rng(n)), speeds=even(slots))
        farm.run()
        assert max(task.ended_s - task.begun_s for task in farm.tasks) < 2 * policy.MOST_TASK_S


@pytest.mark.parametrize("slots", SLOTS)
def test_slots_end_together(slots):
    farm = Farm(constant(20_000, 0.05, None), speeds=even(slots))
    makespan_s = farm.run()
    ends = {task.slot: task.ended_s for task in farm.tasks}
    assert max(ends.values()) - min(ends.values()) < 0.02 * makespan_s + 0.1
    begun = {task.slot: task.begun_s for task in farm.tasks}
    longest_last_s = max(ends[slot] - begun[slot] for slot in ends)
    assert longest_last_s <= policy.LEAST_TASK_S * 1.2


def test_two_unequal_slots_end_together():
    farm = Farm(constant(20_000, 0.05, None), speeds=one_slow(2))
    makespan_s = farm.run()
    ends = {task.slot: task.ended_s for task in farm.tasks}
    assert abs(ends[0] - ends[1]) < 0.02 * makespan_s


@pytest.mark.parametrize("n", [2_000, 20_000])
def test_chunks_that_cost_nothing_make_few_tasks(n):
    farm = Farm(constant(n, 1e-6, None), speeds=even(2), chunk_s=5e-5)
    farm.run()
    assert len(farm.tasks) <= 12 + 2 * n / policy.MOST_CHUNKS
    assert max(task.chunks for task in farm.tasks) <= policy.MOST_CHUNKS


def test_tasks_that_are_slow_to_start_are_long():
    costly, cheap = (
        Farm(constant(5_000, 0.05, None), speeds=even(4), overhead_s=overhead_s)
        for overhead_s in (2.0, 0.01)
    )
    assert costly.run() <= 1.3 * costly.bound_s()
    cheap.run()
    assert len(costly.tasks) < len(cheap.tasks) / 2


def test_one_cold_start_does_not_make_long_tasks():
    pace = policy.Pace().after_task(5.0, 0.0).after_task(0.02, 0.0)
    assert pace.overhead_s < 0.05
    assert pace.after_task(0.1, 0.0).overhead_s > pace.overhead_s


def test_a_hundred_thousand_chunks_are_planned_quickly():
    waiting, slots, lengths = Waiting(), 16, []
    chunks = [Chunk(ChunkKey(str(i)), None, stop=50_000) for i in range(100_000)]
    begun = time.process_time()
    waiting.add(chunks)
    while taken := waiting.next_task(slots, 10.0):
        lengths.append(len(taken))
        waiting.pace = waiting.pace.after_chunks(0.5 * len(taken), 50_000 * len(taken))
    assert time.process_time() - begun < 2
    assert sum(lengths) == 100_000
    assert len(lengths) > 500


def test_only_as_many_chunks_are_looked_at_as_are_taken():
    seen = itertools.count()
    pace = policy.Pace().after_chunks(20.0, 20)
    length = policy.task_length((1 + 0 * next(seen) for _ in range(100_000)), 100_000, 0, 2, pace)
    assert length < next(seen) <= length + 2


def test_nothing_waits_nothing_is_taken():
    assert policy.task_length([], 0, 0, 2, policy.Pace()) == 0
    assert policy.task_length([], 0, 0, 2, policy.Pace().after_chunks(1, 1)) == 0
    assert Waiting().next_task(4, 0) == []


def test_chunks_come_back_in_their_order_and_lonely_ones_first():
    waiting = Waiting()
    chunks = [Chunk(ChunkKey(str(i)), i) for i in range(6)]
    waiting.add(chunks[2:4])
    waiting.put_back(chunks[:2])
    waiting.put_alone(chunks[4:])
    waiting.pace = policy.Pace().after_chunks(1e-3, 1)
    waiting.isolate(chunks[:1])
    assert waiting.wants_isolation(chunks[:2])
    assert not waiting.wants_isolation(chunks[1:])
    taken = [waiting.next_task(1, 0) for _ in range(4)]
    assert taken == [[chunks[4]], [chunks[5]], chunks[:4], []]


def test_merging_keeps_its_share_of_the_time():
    for slots in (1, 10, 1000):
        for merge_s in (1e-5, 0.001, 0.01):
            interval_s = policy.frame_interval_s(slots, policy.Pace().after_merge(merge_s))
            assert policy.LEAST_FRAME_S <= interval_s <= policy.MOST_FRAME_S
            if interval_s < policy.MOST_FRAME_S:
                assert slots / interval_s * merge_s <= policy.MERGE_SHARE * 1.0001
    assert policy.frame_interval_s(2, policy.Pace()) == policy.LEAST_FRAME_S


def test_the_pace_follows_what_was_last():
    pace = policy.Pace()
    assert pace.unit_s is None
    pace = pace.after_chunks(2.0, 4)
    assert pace.unit_s == pytest.approx(0.5)
    for _ in range(100):
        pace = pace.after_chunks(2.0, 1)
    assert pace.unit_s == pytest.approx(2.0, rel=0.02)
    assert pace.learnt_s == pytest.approx(202)
    assert pace.after_chunks(0.0, 1).unit_s == pytest.approx(pace.unit_s, rel=0.06)


def test_attempts():
    assert [policy.may_try_again(attempts, 2) for attempts in (1, 2, 3)] == [True, True, False]
    assert not policy.may_try_again(1, 0)


def failure(file="a.root", where="ana.py:3 in process", kind="exception", **more):
    return ChunkFailure("dy", file, 0, 10, kind, more.pop("reason", "boom"), where=where, **more)


def test_what_makes_failures_equal():
    assert policy.signature(failure("a.root", reason="x=1")) == policy.signature(
        failure("b.root", reason="x=2")
    )
    assert policy.signature(failure()) != policy.signature(failure(where="ana.py:4 in process"))
    assert policy.signature(failure()) != policy.signature(failure(kind="memory"))
    # without a line of the user's the type of exception counts, and then the reason
    one, other = (
        failure(where="", reason=text, exceptions=(Exception(), OSError(text))) for text in "ab"
    )
    assert policy.signature(one) == policy.signature(other)
    assert policy.signature(failure(where="", reason="a")) != policy.signature(
        failure(where="", reason="b")
    )


def test_when_a_run_stops_early():
    files = [failure(f"{name}.root") for name in "abcd"]
    assert policy.stop_early(files, 100)
    assert not policy.stop_early(files[:3], 100)
    assert not policy.stop_early([], 100)
    mixed = [*files[:3], failure("d.root", where="elsewhere:1")]
    assert not policy.stop_early(mixed, 100)
    assert policy.stop_early([*mixed, *files], 100)
    assert not policy.stop_early([*files, mixed[-1]], 100)


def test_one_bad_file_does_not_stop_the_others():
    same = [failure("bad.root")] * 10
    assert not policy.stop_early(same, 2)
    assert policy.stop_early(same, 1)
    assert policy.stop_early([*same, failure("other.root")], 2)


def test_frames_that_are_dear_come_less_often_and_make_tasks_longer() -> None:
    cheap = policy.Pace().after_chunks(1000.0, 1_000_000)
    dear = cheap.after_task(0.01, 0.5)
    assert policy.frame_interval_s(2, dear) == pytest.approx(0.5 / policy.STREAM_SHARE)
    assert policy.frame_interval_s(2, cheap) == policy.LEAST_FRAME_S
    # 4 s of work for two slots: a share is 2 s, too short for a dear frame to be a twentieth
    lengths = [policy.task_length(repeat(1), 4_000, 0.0, 2, pace) for pace in (cheap, dear)]
    assert [length * 0.001 for length in lengths] == pytest.approx([0.8, 2.0], rel=0.01)


def test_what_is_worth_sharing():
    quick, slow = Pace(overhead_s=0.05), Pace(overhead_s=2.0)
    assert [policy.is_worth_sharing(left_s, quick) for left_s in (4.9, 5.1)] == [False, True]
    assert [policy.is_worth_sharing(left_s, slow) for left_s in (39.0, 41.0)] == [False, True]


def test_the_later_half_of_a_task_is_shared_once():
    keys = [ChunkKey(f"k{number}") for number in range(9)]
    chunks = tuple(Chunk(key, None, stop=10) for key in keys)
    one = Running(Task(TaskId("t"), 1, chunks, b"", Path("payload")))
    for key in keys[:2]:
        del one.owed[key]
    one.current = keys[2]
    is_open = {*keys[:7]}.__contains__
    before_s = one.left_s(1.0)
    assert [chunk.key for chunk in one.share(is_open)] == keys[5:7]
    assert before_s - one.left_s(1.0) == pytest.approx(20, abs=0.1)
    assert [chunk.key for chunk in one.share(is_open)] == keys[4:5]
    assert one.share(is_open) == []
    assert one.left_s(1.0) == 0


def test_slow_tasks():
    assert not policy.is_slow(4.9, 0.1)
    assert policy.is_slow(5.1, 0.1)
    assert not policy.is_slow(19.0, 10.0)
    assert policy.is_slow(21.0, 10.0)
