"""The frame format: whatever happens to the bytes, no wrong frame is ever read."""

from __future__ import annotations

import itertools
import os
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepscale.worker.frames import HEADER_SIZE, MAGIC, FrameReader, Kind, encode

plain = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
metas = st.dictionaries(st.text(), plain | st.lists(plain) | st.floats(allow_nan=False), max_size=4)
payloads = st.binary(max_size=80) | st.integers(0, 5_000).map(lambda n: b"ab" * n)
written = st.lists(
    st.tuples(
        st.sampled_from(Kind),
        st.integers(0, 2**32 - 1),
        metas,
        payloads,
        st.sampled_from([0, 1, 9]),
    ),
    max_size=6,
)


def content(frame):
    return frame.kind, frame.sequence, frame.meta, frame.payload


def read_in_pieces(data, cuts):
    reader, frames = FrameReader(), []
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for begin, end in itertools.pairwise(edges):
        frames += reader.feed(data[begin:end])
    return reader, frames


@settings(deadline=None)
@given(written, st.lists(st.integers(0), max_size=8))
def test_frames_come_back_from_pieces_of_any_size(items, cuts):
    raws = [encode(*item) for item in items]
    reader, frames = read_in_pieces(b"".join(raws), cuts)
    assert [content(frame) for frame in frames] == [item[:4] for item in items]
    assert [frame.raw for frame in frames] == raws
    assert (reader.pending, reader.dropped, reader.broken) == (0, 0, "")


def test_byte_by_byte():
    raws = [encode(Kind.OUTPUT, i, {"i": i}, b"x" * i) for i in range(5)]
    reader = FrameReader()
    found = [frame for byte in b"".join(raws) for frame in reader.feed(bytes([byte]))]
    assert [frame.raw for frame in found] == raws


@settings(max_examples=300, deadline=None)
@given(written.filter(bool), st.data())
def test_a_flipped_bit_never_gives_a_wrong_frame(items, data):
    raws = [encode(*item) for item in items]
    stream = bytearray(b"".join(raws))
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] ^= 1 << data.draw(st.integers(0, 7))
    reader, frames = read_in_pieces(bytes(stream), data.draw(st.lists(st.integers(0), max_size=4)))
    ends = [sum(map(len, raws[: i + 1])) for i in range(len(raws))]
    hit = next(i for i, end in enumerate(ends) if at < end)
    wanted = [item[:4] for item in items]
    found = [content(frame) for frame in frames]
    if at - (ends[hit] - len(raws[hit])) < HEADER_SIZE:
        # lengths cannot be trusted: all that follows is lost
        assert found == wanted[:hit]
        assert reader.broken
        assert not list(reader.feed(raws[0]))
    else:
        assert found == wanted[:hit] + wanted[hit + 1 :]
        assert (reader.dropped, reader.broken) == (1, "")


@settings(deadline=None)
@given(written.filter(bool), st.integers(0))
def test_a_truncated_tail_is_not_a_frame_yet(items, cut):
    raws = [encode(*item) for item in items]
    stream = b"".join(raws)
    cut = len(stream) - len(raws[-1]) + cut % len(raws[-1])
    reader = FrameReader()
    frames = list(reader.feed(stream[:cut]))
    assert [frame.raw for frame in frames] == raws[:-1]
    assert reader.pending == cut - sum(map(len, raws[:-1]))
    assert [frame.raw for frame in reader.feed(stream[cut:])] == raws[-1:]


@settings(deadline=None)
@given(st.binary(min_size=HEADER_SIZE, max_size=200))
def test_noise_is_no_frame(noise):
    reader = FrameReader()
    assert list(reader.feed(noise)) == []
    assert reader.broken or noise.startswith(MAGIC)


def test_bad_magic_is_named():
    reader = FrameReader()
    assert list(reader.feed(b"<!DOCTYPE html>" * 10)) == []
    assert "b'<!DO'" in reader.broken
    other_version = b"HSF9" + encode(Kind.HELLO, 0, {})[4:]
    reader = FrameReader()
    assert list(reader.feed(other_version)) == []
    assert "HSF9" in reader.broken
    assert reader.pending == 0


def test_a_large_payload_in_pieces():
    payload = os.urandom(20_000_000)
    raw = encode(Kind.OUTPUT, 7, {"chunks": ["a"]}, payload, 1)
    reader, frames = read_in_pieces(raw, range(0, len(raw), 1 << 20))
    assert len(frames) == 1
    assert frames[0].payload == payload
    assert reader.pending == 0


def test_compression():
    payload = bytes(100_000)
    raw, plain_raw = (encode(Kind.OUTPUT, 0, {}, payload, level) for level in (1, 0))
    assert len(raw) < 1_000 < len(payload) < len(plain_raw)
    for one in (raw, plain_raw):
        (frame,) = FrameReader().feed(one)
        assert frame.payload == payload
    # what is small is not worth it
    assert b"x" * 100 in encode(Kind.OUTPUT, 0, {}, b"x" * 100, 9)


def test_a_damaged_compressed_payload_is_not_decompressed():
    raw = bytearray(encode(Kind.OUTPUT, 0, {}, bytes(100_000), 1))
    raw[-1] ^= 0xFF
    reader = FrameReader()
    assert list(reader.feed(bytes(raw))) == []
    assert reader.dropped == 1
    with pytest.raises(zlib.error):
        zlib.decompress(raw[HEADER_SIZE + 2 :])
