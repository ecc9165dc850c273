"""A node's cache of objects, and what is in it."""

from __future__ import annotations

import os
import stat

from objects import stored

FQRN = "test.example.org"
PLAIN = b"".join(b"%d lines of text\n" % i for i in range(1000))


def put(server, plain, *options, **more):
    """Store an object on a server; return its name."""
    name, data = stored(plain, *options, **more)
    server.files[name.path] = data
    return name


def read(descriptor):
    with open(descriptor, "rb") as stream:
        return stream.read()


def fill(server, fetcher, cache, count=5):
    """Fetch some objects; return their contents by their names."""
    plain = {put(server, b"%d" % i * 500): b"%d" % i * 500 for i in range(count)}
    for name in plain:
        os.close(cache.open(name, fetcher))
    server.asked.clear()
    return plain


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    mode = stat.S_IMODE(path.stat().st_mode)
    path.write_bytes(data)
    path.chmod(mode)


def left(folder):
    return sorted(os.listdir(folder / "txn"))


def objects(folder):
    return {one.parent.name + one.name for one in folder.glob("[0-9a-f][0-9a-f]/*")}


def fill_as_cvmfs_does(alien, plain):
    for first in range(256):
        (alien / f"{first:02x}").mkdir()
    for name in ("txn", "quarantaine"):
        (alien / name).mkdir()
    for name, data in plain.items():
        (alien / name.cached).write_bytes(data)
    (alien / f"cvmfschecksum.{FQRN}").write_text(f"{'a' * 40}T200R7")
