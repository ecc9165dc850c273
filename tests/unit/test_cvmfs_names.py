"""Names of objects of CVMFS, and the three ways to hash them."""

from __future__ import annotations

import hashlib

import pytest

from hepscale.worker.cvmfs import names
from hepscale.worker.cvmfs.names import Algorithm, Name, hasher

DIGITS = "4b91cc0a8a1c7a7e1b1e8cb15e3f5d1a0c3f0e55"


@pytest.mark.parametrize(
    ("ending", "algorithm"),
    [("", Algorithm.SHA1), ("-rmd160", Algorithm.RMD160), ("-shake128", Algorithm.SHAKE128)],
)
def test_a_name_is_read_and_written(ending, algorithm):
    name = Name.parse(DIGITS + ending, "C")
    assert name == Name(bytes.fromhex(DIGITS), algorithm, "C")
    assert name.text == DIGITS + ending
    assert name.path == f"data/4b/{DIGITS[2:]}{ending}C"
    assert name.cached == f"4b/{DIGITS[2:]}{ending}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        DIGITS[:-1],
        DIGITS + "0",
        DIGITS + "-",
        DIGITS + "-md5",
        DIGITS + "C",
        "g" + DIGITS[1:],
        DIGITS[:-2] + " 5",
        DIGITS[:2] + " " + DIGITS[3:],
        "\u0664" + DIGITS[1:],
        "../" + DIGITS[3:],
    ],
)
def test_what_is_no_name_is_refused(text):
    with pytest.raises(ValueError):
        Name.parse(text)


def test_numbers_are_those_of_a_catalog():
    assert [Algorithm(number).name for number in range(3)] == ["SHA1", "RMD160", "SHAKE128"]


# from the authors' papers and FIPS 202
@pytest.mark.parametrize(
    ("algorithm", "data", "digest"),
    [
        (Algorithm.SHA1, b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        (Algorithm.RMD160, b"", "9c1185a5c5e9fc54612808977ee8f548b2258d31"),
        (Algorithm.RMD160, b"abc", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"),
        (Algorithm.SHAKE128, b"", "7f9c2ba4e88f827d616045507605853ed73b8093"),
    ],
)
def test_known_digests(algorithm, data, digest):
    one = hasher(algorithm)
    one.update(data)
    assert one.digest().hex() == digest


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"", "9c1185a5c5e9fc54612808977ee8f548b2258d31"),
        (b"a", "0bdc9d2d256b3ee9daae347be6f4dc835a467ffe"),
        (b"abc", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"),
        (b"message digest", "5d0689ef49d2fae572b881b123a85ffa21595f36"),
        (bytes(range(97, 123)), "f71c27109c692c1b56bbdceb5b9d2865b3708dbc"),
        (b"1234567890" * 8, "9b752e45573d4b39f4dbd3323cab82bf63326bfb"),
    ],
)
def test_ripemd160_in_python(data, digest):
    one = names.Ripemd160()
    one.update(data)
    assert one.digest().hex() == digest
    assert one.digest().hex() == digest


def test_ripemd160_in_python_takes_pieces_of_any_length():
    whole, pieces = names.Ripemd160(), names.Ripemd160()
    data = bytes(range(256)) * 3
    whole.update(data)
    at = 0
    for length in (1, 54, 9, 64, 65, 127, 0, 200, 1000):
        pieces.update(memoryview(data)[at : at + length])
        at += length
    assert pieces.digest() == whole.digest()


def test_a_python_without_ripemd160(monkeypatch):
    def refuse(name, **_):
        raise ValueError(f"unsupported hash type {name}")

    monkeypatch.setattr(hashlib, "new", refuse)
    one = hasher(Algorithm.RMD160)
    assert isinstance(one, names.Ripemd160)
    one.update(b"abc")
    assert one.digest().hex() == "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"
