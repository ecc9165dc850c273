"""What a mounted repository shows, and what it has to show."""

from __future__ import annotations

import contextlib
import hashlib
import json
import stat
import zlib
from pathlib import Path
from typing import Any

from cvmfs_mounts import Mounted, mounted
from publisher import TIME, File, Folder, Link, Site
from real_files import real
from web import served

NAME = "demo.example.org"
WALK = """
import hashlib, stat

def look(path):
    status = os.lstat(path or ".")
    one = {"mode": oct(status.st_mode), "mtime_ns": status.st_mtime_ns}
    if not stat.S_ISDIR(status.st_mode):
        one |= {"size": status.st_size, "nlink": status.st_nlink}
    if stat.S_ISLNK(status.st_mode):
        one["target"] = os.readlink(path)
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as stream:
            one["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
    return one

result = {"": look("")}
for folder, folders, files in os.walk("."):
    for name in [*folders, *files]:
        path = os.path.relpath(os.path.join(folder, name), ".")
        result[path] = look(path)
"""

TREE = {
    "README": File(content=b"hello\n", xattrs={"user.note": b"a note"}),
    "empty": b"",
    "emptydir": Folder(),
    "run.sh": File(content=b"#!/bin/sh\necho ran\n", mode=0o755),
    "latest": Link(target="v1/$(ARCH:-any)"),
    "dangling": Link(target="nowhere"),
    "plain": File(content=b"as it is", compressed=False, mtime_ns=TIME * 10**9 + 123_456_789),
    "größe": Folder({"ä \"b\" 'c'": b"not ASCII"}),
    "hard": Folder({"a": File(content=b"one", group=1), "b": File(content=b"one", group=1)}),
    "v1": Folder(
        {
            "any": Folder({"lib.py": b"value = 1\n"}),
            "big": File(content=bytes(range(256)) * 4000, chunk=100_000),
            "deep": Folder({"er": Folder({"file": b"x"})}, nested=True),
        },
        nested=True,
    ),
    "many": Folder({f"f{number:04}": b"%d" % number for number in range(700)}, nested=True),
    "secret": Folder({"found": b"by name"}, hidden=True),
}


def expected(entries, above=""):
    """Return what WALK has to find of a published tree."""
    found = {}
    for name, given in entries.items():
        path, node = f"{above}{name}", File(content=given) if isinstance(given, bytes) else given
        kind = {File: 0o100644, Link: 0o120777, Folder: 0o040755}[type(node)]
        mode = stat.S_IFMT(kind) | (node.mode or stat.S_IMODE(kind))
        found[path] = {"mode": oct(mode), "mtime_ns": node.mtime_ns}
        if node.hidden:
            del found[path]
        elif isinstance(node, Folder):
            found |= expected(node.entries, f"{path}/")
        elif isinstance(node, Link):
            target = node.target.replace("$(ARCH:-any)", "any")
            found[path] |= {"target": target, "size": len(target), "nlink": 1}
        else:
            content = node.content
            digest = hashlib.sha256(content).hexdigest()
            links = 2 if node.group else 1
            found[path] |= {"sha256": digest, "size": len(content), "nlink": links}
    return found


def differences(found, wanted):
    """Return what is not as it should be, of each entry; [] if it is all the same."""
    return [
        (path, found.get(path), wanted.get(path))
        for path in sorted({*found, *wanted})
        if found.get(path) != wanted.get(path)
    ][:5]


def read_only(folder: Path) -> None:
    """Let everybody read a folder, and nobody but root write to it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


@contextlib.contextmanager
def fresh(site: Site, tmp_path: Path, **settings: Any):
    """Mount what `site` publishes, with an empty cache."""
    with (
        served(site.folder) as url,
        mounted(site.settings(url), tmp_path / "cache", **settings) as inside,
    ):
        yield inside


def until(inside: Mounted, revision: int) -> None:
    """Wait for a revision."""
    inside.run(
        """
        import time
        end = time.monotonic() + 10
        while os.getxattr(".", "user.revision") != wanted:
            assert time.monotonic() < end, os.getxattr(".", "user.revision")
            time.sleep(0.01)
        time.sleep(0.05)
        """.replace("wanted", repr(b"%d" % revision))
    )


def site_cache(web: Path, folder: Path) -> None:
    """Make an alien cache that lacks a part of a repository; its objects are not compressed."""
    for path in web.glob("data/*/*"):
        if path.parent.name >= "20" and path.name[-1] != "P":
            content = path.read_bytes()
            with contextlib.suppress(zlib.error):
                content = zlib.decompress(content)
            there = folder / path.parent.name / path.name.rstrip("CHMXP")
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(content)


def contents(name: str) -> dict[str, Any]:
    """Return what WALK has to find, by what the real client has shown."""
    bits = {"dir": stat.S_IFDIR, "file": stat.S_IFREG, "symlink": stat.S_IFLNK}
    found = {}
    for one in json.loads(real(f"cvmfs/{name}").read_text())["entries"]:
        keys = ["mtime_ns", "size", "sha256", "target", "nlink"]
        mode = oct(bits[one["type"]] | int(one["mode"], 8))
        found[one["path"]] = {"mode": mode, **{key: one[key] for key in keys if key in one}}
    return found
