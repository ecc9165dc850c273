"""Repositories that the real CVMFS software has published: read, and refused where they must be."""

from __future__ import annotations

import hashlib
import json
import stat

import pytest
import real_files
from as_root import NOBODY
from shelf import Shelf

from hepscale.worker.cvmfs import RepositoryError
from hepscale.worker.cvmfs.cache import Cache
from hepscale.worker.cvmfs.repository import Repository

NAME = "hepscale.example.org"
KINDS = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK}
# what the kernel shows of a number that it has no user for


@pytest.fixture(scope="module")
def data():
    """Return the folder of the real repositories; skip where there is none."""
    return real_files.real("cvmfs/repo.tar").parent


class Real:
    """A published repository, a cache, and the setting that its key is."""

    def __init__(self, archive, key, folder) -> None:
        real_files.unpack(archive, folder / "web")
        self.web, self.key = folder / "web", key.read_text()
        self.shelf = Shelf(self.web)
        self.cache = folder / "cache"

    def repository(self, name=NAME, *, cache=None, variables=(), **settings):
        settings = {"name": name, "keys": [self.key], **settings}
        return Repository(
            settings, Cache(str(cache or self.cache)), self.shelf, variables=dict(variables)
        )


@pytest.fixture(scope="module")
def real(data, tmp_path_factory):
    return Real(data / "repo.tar", data / "repo.pub", tmp_path_factory.mktemp("real"))


def walk(revision, path=""):
    for entry in revision.children(path).values():
        if entry.hidden:
            continue
        yield entry
        if stat.S_ISDIR(entry.mode):
            yield from walk(revision, entry.path)


def compare(revision, told):
    """Compare all entries of a revision with what the real client has shown."""
    seen = {entry.path.removeprefix("/"): entry for entry in [revision.entry(""), *walk(revision)]}
    wanted = {one["path"]: one for one in told["entries"]}
    assert sorted(seen) == sorted(wanted)
    for path, want in wanted.items():
        entry = seen[path]
        got = {
            "path": path,
            "mode": f"{stat.S_IMODE(entry.mode):04o}",
            "uid": NOBODY if entry.uid == 0xFFFFFFFF else entry.uid,
            "gid": NOBODY if entry.gid == 0xFFFFFFFF else entry.gid,
            "mtime_ns": entry.mtime_ns,
            "type": next(kind for kind, mode in KINDS.items() if stat.S_IFMT(entry.mode) == mode),
        }
        if not stat.S_ISDIR(entry.mode):
            got |= {"nlink": entry.nlink, "size": entry.size}
        if stat.S_ISLNK(entry.mode):
            got |= {"target": entry.link, "rawlink": entry.rawlink}
        if stat.S_ISREG(entry.mode):
            got["sha256"] = hashlib.sha256(revision.read(entry, 0, entry.size)).hexdigest()
        if entry.xattrs:
            got["xattrs"] = {key: value.decode() for key, value in entry.xattrs.items()}
        if group := want.get("same_inode_as"):
            got["same_inode_as"] = [one for one in group if seen[one].inode == entry.inode]
        assert got == want


def test_every_entry(data, real):
    told = json.loads((data / "contents.json").read_text())
    revision = real.repository().open()
    assert (revision.number, revision.root.text) == (told["revision"], told["root_hash"])
    assert (revision.time, revision.ttl_s, revision.notice) == (1795303634, 240, "")
    compare(revision, told)


def test_every_entry_of_the_revision_before(data, real, tmp_path):
    told = json.loads((data / "contents-rev1.json").read_text())
    by_tag = real.repository(tag="first", cache=tmp_path).open()
    assert by_tag.number == told["revision"]
    # objects of both revisions are there already
    revision = real.repository(root_hash=told["root_hash"]).open()
    compare(revision, told)
    assert revision.root == by_tag.root


def test_the_manifest_of_the_revision_before(data, real, tmp_path):
    before = {".cvmfspublished": (data / "cvmfspublished.rev1").read_bytes()}
    real.shelf.changed = before
    try:
        opened = real.repository(cache=tmp_path)
        assert opened.open().number == 4
        real.shelf.changed = {}
        revision = opened.refresh(now=True)
        assert (revision.number, bool(revision.entry("/links/new_rel"))) == (5, True)
        real.shelf.changed = before
        assert opened.refresh(now=True) is None
        assert real.repository(cache=tmp_path).open().number == 5
    finally:
        real.shelf.changed = {}


@pytest.mark.parametrize("name", ["shake128", "rmd160"])
def test_other_algorithms(data, name, tmp_path):
    real = Real(data / "extra" / f"{name}.tar", data / "extra" / f"{name}.pub", tmp_path)
    told = json.loads((data / "extra" / f"{name}-contents.json").read_text())
    revision = real.repository(f"{name}.example.org").open()
    assert (revision.number, revision.root.text) == (told["revision"], told["root_hash"])
    compare(revision, told)
    if name == "rmd160":
        assert list(revision.children("/.cvmfs/snapshots")) == [
            "generic-2026-11-21T23:47:50Z", "t1", "t2",
        ]  # fmt: skip
        at = "/.cvmfs/snapshots/t2/d/nested/f"
        assert revision.read(revision.entry(at), 0, 99) == revision.read(
            revision.entry("/d/nested/f"), 0, 99
        )
        assert revision.entry("/.cvmfs/snapshots/t1/README").size != 0


def test_variants(real):
    revision = real.repository(variables={"HEPSCALE_ARCH": "aarch64"}).open()
    links = {entry.name: entry.link for entry in revision.children("/arch").values() if entry.link}
    assert links == {
        "current": "aarch64", "default": "aarch64", "mixed": "../arch/aarch64/lib.txt",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("file", "fact"),
    [
        (
            "cvmfspublished.line-changed",
            "The manifest of {} does not fit the hash it carries.",
        ),
        ("cvmfspublished.signature-changed", "The signature of the manifest of {} is wrong."),
        ("cvmfswhitelist.wlexp", "The whitelist of {} has run out."),
        ("cvmfswhitelist.wlname", "The whitelist is not that of {}."),
        ("cvmfswhitelist.wlfp", "The certificate that signs {} is not on its whitelist."),
        ("other.pub", "The whitelist of {} was not signed with a master key that is given."),
        ("cvmfswhitelist.wlcomment", None),
    ],
)
def test_what_the_real_client_refuses(data, real, tmp_path, file, fact):
    repository = real.repository(cache=tmp_path / "cache")
    content = (data / "negative" / file).read_bytes()
    place, _, _ = file.partition(".")
    if place == "other":
        repository = real.repository(cache=tmp_path / "cache", keys=[content.decode()])
    real.shelf.changed = {f".{place}": content}
    try:
        if fact is None:
            assert repository.open().notice == ""
            return
        with pytest.raises(RepositoryError) as raised:
            repository.open()
        assert raised.value.fact == fact.format(NAME)
    finally:
        real.shelf.changed = {}
