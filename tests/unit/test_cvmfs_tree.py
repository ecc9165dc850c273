"""The tree of a revision: what the publisher has put in is what is read."""

from __future__ import annotations

import os
import random
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from publisher import Algorithm, File, Folder, Link, publish
from shelf import Shelf

from hepscale.worker.cvmfs import ObjectError, catalog, revision
from hepscale.worker.cvmfs.cache import Cache
from hepscale.worker.cvmfs.catalog import expanded
from hepscale.worker.cvmfs.repository import Repository

NAME = "demo.example.org"
BIG = random.Random(1).randbytes(2500)
TREE = {
    "README": File(b"hello\n", mode=0o640, mtime_ns=1_700_000_001_234_567_890, uid=7, gid=8),
    "empty": b"",
    "emptydir": {},
    "tagged": File(b"x", xattrs={"user.a": b"1", "user.b\u00e9": b"\0\xff", "user.none": b""}),
    "arch": Link("v/$(ARCH)/$(OS:-linux)$"),
    "unset": Link("$(NOTHING)"),
    "plain": File(BIG, compressed=False),
    "big": File(BIG, chunk=1000),
    "bigplain": File(BIG, chunk=2500, compressed=False),
    "hard": {"a": File(b"h", group=1), "b": File(b"h", group=1), "c": File(b"h", group=2)},
    "sw": Folder(
        {
            "lib": {"deep": Folder({"f": b"deep"}, nested=True), "other": b"o"},
            ".cvmfscatalog": b"",
        },
        nested=True,
        mode=0o750,
    ),
    'pr\u00fcfung-\u03b1\u03b2\u03b3 it\'s "\u6d4b".txt': b"n",
    "latin\udce9": b"not unicode",
    ".secret": File(b"s", hidden=True),
    "swing": {"f": b"not below sw"},
}


def opened(site, folder, **settings):
    cache = Cache(str(folder / "cache"))
    variables = {"ARCH": "aarch64"}
    return Repository(
        site.settings(**settings), cache, Shelf(site.folder), variables=variables
    ).open()


@pytest.fixture(scope="module", params=list(Algorithm), ids=lambda one: one.name)
def tree(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("tree")
    return opened(publish(folder / "web", NAME, TREE, algorithm=request.param), folder)


def content(tree, path):
    entry = tree.entry(path)
    return tree.read(entry, 0, entry.size)


def walk(tree, path=""):
    for name, entry in tree.children(path).items():
        yield entry.path
        assert entry.path == f"{path}/{name}"
        if stat.S_ISDIR(entry.mode):
            yield from walk(tree, entry.path)


def paths(nodes, above=""):
    for name, node in nodes.items():
        yield f"{above}/{name}"
        below = node.entries if isinstance(node, Folder) else node
        if isinstance(below, dict):
            yield from paths(below, f"{above}/{name}")


def test_every_name_is_there_once(tree):
    assert sorted(walk(tree)) == sorted(paths(TREE))
    assert list(walk(tree)) == list(walk(tree))


def test_what_is_told_of_a_file(tree):
    entry = tree.entry("/README")
    assert (entry.name, entry.path, entry.size, entry.nlink) == ("README", "/README", 6, 1)
    assert entry.mode == stat.S_IFREG | 0o640
    assert (entry.mtime_ns, entry.uid, entry.gid) == (1_700_000_001_234_567_890, 7, 8)
    assert not any((entry.chunked, entry.hidden, entry.nested, entry.external, entry.xattrs))
    assert tree.entry("").mode == stat.S_IFDIR | 0o755
    assert tree.entry("/sw").mode == stat.S_IFDIR | 0o750
    assert tree.entry("/sw").nested
    assert tree.entry("/tagged").xattrs == {
        "user.a": b"1",
        "user.b\u00e9": b"\0\xff",
        "user.none": b"",
    }


@pytest.mark.parametrize(
    "path", ["/no", "/README/x", "/no/where", "/sw/no", "/sw/lib/deep/no", "/"]
)
def test_what_is_not_there(tree, path):
    assert tree.entry(path) is None


def test_contents(tree):
    assert content(tree, "/README") == b"hello\n"
    assert content(tree, "/sw/lib/deep/f") == b"deep"
    assert content(tree, "/swing/f") == b"not below sw"
    assert content(tree, "/latin\udce9") == b"not unicode"
    assert content(tree, "/.secret") == b"s"
    assert content(tree, "/empty") == b""
    for path in ("/plain", "/big", "/bigplain"):
        assert content(tree, path) == BIG


@pytest.mark.parametrize("path", ["/plain", "/big"])
@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, 1),
        (999, 1),
        (999, 2),
        (1000, 1000),
        (500, 1800),
        (2499, 9),
        (2500, 1),
        (9000, 1),
        (0, 0),
    ],
)
def test_parts_of_files(tree, path, offset, size):
    assert tree.read(tree.entry(path), offset, size) == BIG[offset : offset + size]


def test_chunks_are_in_order_and_whole(tree):
    entry = tree.entry("/big")
    assert entry.object is None
    assert [(one.offset, one.size) for one in tree.chunks(entry)] == [
        (0, 1000), (1000, 1000), (2000, 500),
    ]  # fmt: skip
    assert {one.object.suffix for one in tree.chunks(entry)} == {"P"}
    [whole] = tree.chunks(tree.entry("/README"))
    assert (whole.offset, whole.size, whole.object) == (0, 6, tree.entry("/README").object)
    assert tree.chunks(tree.entry("/empty")) == tree.chunks(tree.entry("/sw")) == ()


def test_links_with_variants(tree):
    link = tree.entry("/arch")
    assert (link.link, link.rawlink) == ("v/aarch64/linux$", "v/$(ARCH)/$(OS:-linux)$")
    assert (link.size, stat.S_ISLNK(link.mode)) == (len(link.link), True)
    assert (tree.entry("/unset").link, tree.entry("/unset").size) == ("", 0)


@pytest.mark.parametrize(
    ("raw", "target"),
    [
        ("$(A)/$(A:-b)", "1/1"),
        ("$(B:-)x$(B:-c:-d)", "xc:-d"),
        ("$(A", "$(A"),
        ("$A$", "$A$"),
        ("$()", ""),
        ("($(A))", "(1)"),
    ],
)
def test_variants(raw, target):
    assert expanded(raw, {"A": "1"}) == target


def test_hard_links_are_one_file(tree):
    a, b, c = (tree.entry(f"/hard/{name}") for name in "abc")
    assert a.inode == b.inode != c.inode
    assert (a.nlink, b.nlink, c.nlink) == (2, 2, 1)


def test_inodes_are_those_of_every_mount(tree, tmp_path):
    inodes = {path: tree.entry(path).inode for path in ["", *walk(tree)]}
    assert all(1 < inode < 1 << 63 for inode in inodes.values())
    # a hard link is the one that is there twice
    assert len(set(inodes.values())) == len(inodes) - 1
    other = publish(tmp_path / "other", NAME, TREE)
    again = opened(other, tmp_path / "again")
    assert inodes == {path: again.entry(path).inode for path in ["", *walk(again)]}


def test_hidden_entries_are_marked(tree):
    assert [one.name for one in tree.children("").values() if one.hidden] == [".secret"]


def test_numbers_of_the_whole(tree):
    assert (tree.number, tree.time, tree.ttl_s) == (1, 1_700_003_600, 240)
    assert tree.counters["self_regular"] + tree.counters["subtree_regular"] == sum(
        stat.S_ISREG(tree.entry(path).mode) for path in walk(tree)
    )


def test_a_bound_revision(tmp_path):
    old = {"f": b"old", "sub": Folder({"g": b"nested old", "d": {"h": b"h"}}, nested=True)}
    site = publish(tmp_path / "web", NAME, old)
    first = site.last
    snapshots = {"snapshots": {"one": Folder(bind=first)}}
    new = {"f": b"new", ".cvmfs": Folder(snapshots, nested=True, hidden=True)}
    site.publish(new)
    site.publish({**new, "all": {"two": Folder(bind=site.last)}})
    tree = opened(site, tmp_path)
    assert tree.number == 3
    assert (tree.entry("/.cvmfs").hidden, tree.entry("/.cvmfs").nested) == (True, True)
    one = "/.cvmfs/snapshots/one"
    assert list(walk(tree, one)) == [
        f"{one}/{part}" for part in ("f", "sub", "sub/d", "sub/d/h", "sub/g")
    ]
    assert content(tree, f"{one}/f") == b"old"
    assert content(tree, f"{one}/sub/g") == b"nested old"
    # a revision in a revision
    assert content(tree, f"/all/two{one}/sub/d/h") == b"h"
    assert content(tree, "/all/two/f") == content(tree, "/f") == b"new"
    inodes = [tree.entry(path).inode for path in walk(tree)]
    assert len(set(inodes)) == len(inodes)


@pytest.mark.parametrize("schema", [0, 1, 3, 6])
def test_catalogs_of_old(tmp_path, schema):
    site = publish(tmp_path / "web", NAME, TREE, schema=schema, ttl_s=None)
    tree = opened(site, tmp_path)
    assert sorted(walk(tree)) == sorted(paths(TREE))
    assert tree.entry("/README").mtime_ns == 1_700_000_001_000_000_000
    assert bool(tree.entry("/tagged").xattrs) == (schema >= 2)
    assert tree.ttl_s == 240
    assert content(tree, "/big") == BIG


def test_a_damaged_object_is_that_of_one_file(tmp_path):
    site = publish(tmp_path / "web", NAME, TREE)
    site.damage("README")
    site.damage("big")
    tree = opened(site, tmp_path)
    for path in ("/README", "/big"):
        with pytest.raises(ObjectError):
            content(tree, path)
    big = tree.entry("/big")
    assert tree.read(big, 2000, 500) == BIG[2000:]
    assert content(tree, "/plain") == BIG


def test_a_damaged_catalog_is_that_of_one_directory(tmp_path):
    site = publish(tmp_path / "web", NAME, TREE)
    tree = opened(site, tmp_path)
    lib = tree._catalog("/sw").mounts["/sw/lib/deep"]
    site.damage(lib.root)
    with pytest.raises(ObjectError):
        tree.children("/sw/lib/deep")
    assert tree.entry("/sw/lib/deep").nested
    assert content(tree, "/sw/lib/other") == b"o"


def test_what_is_no_catalog(tmp_path):
    site = publish(tmp_path / "web", NAME, {"d": Folder({}, nested=True)})
    tree = opened(site, tmp_path)
    mount = catalog.Mount(site.store(b"no SQLite" * 100, "C"))
    tree._top_catalog.mounts["/d"] = mount
    with pytest.raises(ObjectError, match="catalog cannot be read"):
        tree.children("/d")


def test_a_file_on_other_servers(tmp_path):
    site = publish(tmp_path / "web", NAME, {"f": File(b"x", external=True)})
    tree = opened(site, tmp_path)
    assert tree.entry("/f").external
    with pytest.raises(ObjectError, match="outside the repository"):
        content(tree, "/f")


def test_chunks_that_are_not_the_file(tmp_path):
    site = publish(tmp_path / "web", NAME, {"f": File(BIG, chunk=1000)})
    tree = opened(site, tmp_path)
    entry = tree.entry("/f")._replace(size=2501)
    with pytest.raises(ObjectError, match="do not make up the file"):
        tree.read(entry, 0, 10)


def test_an_object_that_is_shorter_than_the_file(tmp_path):
    tree = opened(publish(tmp_path / "web", NAME, {"f": b"12345"}), tmp_path)
    entry = tree.entry("/f")._replace(size=6)
    assert tree.read(entry, 0, 5) == b"12345"
    with pytest.raises(ObjectError, match="too short"):
        tree.read(entry, 0, 6)


def test_a_directory_is_looked_up_once(tmp_path, monkeypatch):
    site = publish(tmp_path / "web", NAME, TREE)
    tree = opened(site, tmp_path)
    asked = []
    real = catalog.Catalog._asked
    monkeypatch.setattr(catalog.Catalog, "_asked", lambda *all: asked.append(all) or real(*all))
    for _ in range(3):
        list(walk(tree))
        tree.entry("/sw/lib/deep/f")
        tree.entry("/sw/lib/deep/no")
        tree.read(tree.entry("/big"), 0, 2500)
    folders = [path for path in walk(tree) if stat.S_ISDIR(tree.entry(path).mode)]
    # the top, and the chunks of one file
    assert len(asked) == len(folders) + 2


def test_what_is_remembered_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(revision, "_MOST_ENTRIES", 20)
    monkeypatch.setattr(revision, "_MOST_CATALOGS", 2)
    many = {f"d{n}": Folder({f"f{m}": b"" for m in range(9)}, nested=True) for n in range(9)}
    site = publish(tmp_path / "web", NAME, many)
    tree = opened(site, tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert len(list(walk(tree))) == 90
    assert len(tree._directories._kept) == 2
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_catalog_whose_file_is_gone(tmp_path):
    """Cleaning may remove it between being opened and being read."""
    site = publish(tmp_path / "web", NAME, TREE)
    tree = opened(site, tmp_path)
    cache = tree._cache
    descriptor = cache.open(tree.root, None)
    os.unlink(os.readlink(f"/proc/self/fd/{descriptor}"))
    again = catalog.Catalog(descriptor, tree.root, "", "", {})
    assert list(again.children("")) == list(tree.children(""))


def test_many_threads_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(revision, "_MOST_CATALOGS", 1)
    monkeypatch.setattr(revision, "_MOST_ENTRIES", 4)
    many = {
        f"d{n}": Folder({f"f{m}": f"{n} {m}".encode() for m in range(5)}, nested=True)
        for n in range(8)
    }
    site = publish(tmp_path / "web", NAME, many)
    tree = opened(site, tmp_path)
    wanted = [(n, m) for n in range(8) for m in range(5)] * 5
    random.Random(2).shuffle(wanted)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: content(tree, f"/d{one[0]}/f{one[1]}"), wanted))
    assert found == [f"{n} {m}".encode() for n, m in wanted]
