"""Workers that are simulated, and how long chunks take on them."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

import numpy as np

from hepscale.executor import policy
from hepscale.executor.task import Chunk, ChunkKey
from hepscale.executor.waiting import Waiting


@dataclass
class Sent:
    """A task of the simulation; `aim_s` is how long it was meant to last."""

    slot: int
    begun_s: float
    ended_s: float
    chunks: int
    aim_s: float


@dataclass
class Farm:
    """Slots on which chunks cost what they are said to cost.

    Attributes
    ----------
    costs
        Seconds of each chunk on a slot of speed 1.
    entries
        Of each chunk; None: they have none.
    speeds
        Of each slot.
    overhead_s
        Starting a task costs this.
    first_s
        The first chunk of each slot costs this much more.
    opening_s
        The first chunk of each task costs this much more.
    chunk_s
        Seconds that each chunk costs its task besides the time that its frame tells.
    """

    costs: np.ndarray
    entries: np.ndarray | None = None
    speeds: tuple[float, ...] = (1.0,) * 4
    overhead_s: float = 0.02
    first_s: float = 0.0
    opening_s: float = 0.0
    chunk_s: float = 0.0
    merge_s: float = 0.002
    tasks: list[Sent] = field(default_factory=list)

    def bound_s(self) -> float:
        """Return the least makespan: all slots work all the time, and start one task each."""
        work_s = self.costs.sum() + self.chunk_s * len(self.costs)
        even_s = work_s / sum(self.speeds) + self.overhead_s + self.first_s
        return max(even_s, self.costs.max() / max(self.speeds) + self.overhead_s)

    def run(self) -> float:
        """Run all chunks and return the makespan."""
        entries = np.zeros(len(self.costs), int) if self.entries is None else self.entries
        waiting, slots = Waiting(), len(self.speeds)
        waiting.add(Chunk(ChunkKey(str(i)), i, start=0, stop=int(n)) for i, n in enumerate(entries))
        # (time, order, what): what is a slot that is free, or a frame to learn from
        order = itertools.count()
        events: list[tuple[float, int, tuple]] = [
            (0.0, next(order), ("free", slot)) for slot in range(slots)
        ]
        running: dict[int, tuple[float, int]] = {}
        now_s = 0.0
        while events:
            now_s, _, (what, *details) = heapq.heappop(events)
            if what == "frame":
                spent_s, total = details
                waiting.pace = waiting.pace.after_chunks(spent_s, total).after_merge(self.merge_s)
                continue
            slot = details[0]
            if what == "ended":
                del running[slot]
                waiting.pace = waiting.pace.after_task(details[1], 0.0)
            unit_s = waiting.pace.unit_s or 0.0
            left_s = sum(max(n * unit_s - (now_s - at), 0.0) for at, n in running.values())
            chunks = waiting.next_task(slots, left_s)
            if not chunks:
                continue
            total = sum(map(policy.weight, chunks))
            running[slot] = (now_s, total)
            aim_s = total * unit_s
            first = not any(task.slot == slot for task in self.tasks)
            ended_s, spent_s = now_s + self.overhead_s, 0.0
            frame_s, since_s, weight = 0.0, ended_s, 0
            for chunk in chunks:
                cost_s = self.costs[chunk.item] / self.speeds[slot] + self.first_s * first
                cost_s += self.opening_s * (chunk is chunks[0])
                first = False
                ended_s += cost_s + self.chunk_s
                spent_s += cost_s
                frame_s, weight = frame_s + cost_s, weight + policy.weight(chunk)
                last = chunk is chunks[-1]
                if last or ended_s - since_s >= policy.frame_interval_s(slots, waiting.pace):
                    heapq.heappush(events, (ended_s, next(order), ("frame", frame_s, weight)))
                    frame_s, since_s, weight = 0.0, ended_s, 0
            rest_s = ended_s - now_s - spent_s
            heapq.heappush(events, (ended_s, next(order), ("ended", slot, rest_s)))
            self.tasks.append(Sent(slot, now_s, ended_s, len(chunks), aim_s))
        assert sum(task.chunks for task in self.tasks) == len(self.costs)
        return max(task.ended_s for task in self.tasks)


def constant(n, mean_s, rng):
    return np.full(n, mean_s)


def log_normal(n, mean_s, rng):
    costs = rng.lognormal(0, 1, n)
    return costs * mean_s / costs.mean()


def growing(n, mean_s, rng):
    """Chunks of a second dataset, in the second half, cost five times as much."""
    costs = np.where(np.arange(n) < n / 2, 1.0, 5.0)
    return costs * mean_s / costs.mean()


def shrinking(n, mean_s, rng):
    return growing(n, mean_s, rng)[::-1]


def even(slots):
    return (1.0,) * slots


def one_slow(slots):
    return (*even(slots - 1), 1 / 3)
