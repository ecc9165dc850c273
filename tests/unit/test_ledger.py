"""The ledger: whatever comes in whatever order, a chunk is counted exactly once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hepscale.executor.ledger import Ledger
from hepscale.executor.task import Chunk, ChunkKey


def chunk(start, stop):
    return Chunk(ChunkKey(f"{start}-{stop}"), None, "dy", "a.root", start, stop)


class Accounts(RuleBasedStateMachine):
    """Counts events beside the ledger: each event in one chunk, that is open, counted or gone."""

    @initialize(n=st.integers(1, 6))
    def begin(self, n):
        self.chunks = {one.key: one for one in (chunk(8 * i, 8 * i + 8) for i in range(n))}
        self.ledger = Ledger(self.chunks.values())
        self.state = dict.fromkeys(self.chunks, "open")
        self.total = 8 * n
        self.counted = Counter()

    def some(self, data):
        return data.draw(st.lists(st.sampled_from([*self.chunks, "alien"]), max_size=4))

    @rule(data=st.data())
    def accept(self, data):
        keys = self.some(data)
        fits = len(set(keys)) == len(keys) and all(self.state.get(k) == "open" for k in keys)
        assert self.ledger.accept(keys) is fits
        if fits:
            self.state.update(dict.fromkeys(keys, "counted"))
            for key in keys:
                self.counted.update(range(self.chunks[key].start, self.chunks[key].stop))

    @rule(data=st.data())
    def take_back(self, data):
        counted = [key for key, state in self.state.items() if state == "counted"]
        if counted:
            keys = data.draw(st.lists(st.sampled_from(counted), unique=True, max_size=3))
            self.ledger.take_back(keys)
            self.state.update(dict.fromkeys(keys, "open"))
            for key in keys:
                self.counted.subtract(range(self.chunks[key].start, self.chunks[key].stop))

    @rule(data=st.data())
    def give_up(self, data):
        is_open = [key for key, state in self.state.items() if state == "open"]
        if is_open:
            key = data.draw(st.sampled_from(is_open))
            self.ledger.give_up(key)
            self.state[key] = "gone"

    @rule(data=st.data())
    def split(self, data):
        large = [
            key for key, s in self.state.items() if s == "open" and self.chunks[key].entries > 1
        ]
        if large:
            key = data.draw(st.sampled_from(large))
            one = self.chunks.pop(key)
            del self.state[key]
            middle = (one.start + one.stop) // 2
            parts = [chunk(one.start, middle), chunk(middle, one.stop)]
            self.ledger.split(key, parts)
            self.chunks.update({part.key: part for part in parts})
            self.state.update({part.key: "open" for part in parts})

    @invariant()
    def adds_up(self):
        if not hasattr(self, "ledger"):
            return
        is_open = {key for key, state in self.state.items() if state == "open"}
        assert {one.key for one in self.ledger.open_chunks()} == is_open
        assert all(self.ledger.is_open(key) == (key in is_open) for key in self.chunks)
        assert self.ledger.done is (not is_open)
        assert self.ledger.counted == sum(state == "counted" for state in self.state.values())
        assert set(self.ledger.chunks) == set(self.chunks)
        assert sum(one.entries for one in self.ledger.chunks.values()) == self.total
        assert not set(self.counted.values()) - {0, 1}


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_a_frame_is_accepted_whole_or_not_at_all():
    a, b, c = chunks = [chunk(0, 1), chunk(1, 2), chunk(2, 3)]
    ledger = Ledger(chunks)
    assert ledger.accept([a.key])
    assert not ledger.accept([a.key, b.key])
    assert not ledger.accept([c.key, c.key])
    assert ledger.open_chunks() == [b, c]
    assert ledger.accept([c.key, b.key])
    assert ledger.done
    assert not ledger.accept([b.key])
    assert ledger.counted == 3


def test_what_a_split_chunk_reports_later_is_not_counted():
    whole, parts = chunk(0, 4), [chunk(0, 2), chunk(2, 4)]
    ledger = Ledger([whole])
    ledger.split(whole.key, parts)
    assert not ledger.accept([whole.key])
    assert ledger.accept([parts[1].key])
    assert ledger.open_chunks() == parts[:1]


def test_only_open_chunks_are_closed():
    one = chunk(0, 1)
    ledger = Ledger([one])
    ledger.give_up(one.key)
    assert not ledger.accept([one.key])
    for call in (lambda: ledger.give_up(one.key), lambda: ledger.take_back([one.key])):
        with pytest.raises(KeyError):
            call()
    with pytest.raises(KeyError):
        ledger.split(one.key, [])
    assert (ledger.done, ledger.counted) == (True, 0)
