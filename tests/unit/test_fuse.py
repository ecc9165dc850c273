"""Messages of the kernel and the answers to them, over a socket in place of ``/dev/fuse``."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import threading
from typing import Any

import pytest
from fuse_kernel import Chunk, Entry, Kernel, Name, Revision
from support import wait_for

from hepscale.worker.cvmfs import ObjectError, fuse
from hepscale.worker.cvmfs.fuse import Flag, Opcode

ALL = 0xFFFFFFFF


@pytest.fixture
def start():
    with contextlib.ExitStack() as stack:

        def begin(files: dict[str, Any], *newer: Revision, ttl_s: float = 600.0) -> Kernel:
            kernel = Kernel(Revision(files, ttl_s=ttl_s), list(newer))
            stack.callback(kernel.close)
            return kernel

        yield begin


def init(minor: int = 45, flags: int = ALL, major: int = 7) -> bytes:
    return struct.pack("<IIII", major, minor, 131072, flags) + bytes(48)


def test_what_is_agreed_with_the_kernel(start):
    answer = start({}).ask(Opcode.INIT, 0, init())
    assert len(answer) == 64
    major, minor, readahead, flags = struct.unpack_from("<IIII", answer)
    assert (major, minor, readahead) == (7, 31, 131072)
    assert flags & Flag.DO_READDIRPLUS
    assert flags & Flag.NO_OPENDIR_SUPPORT
    assert flags & Flag.MAX_PAGES
    assert not flags & 1 << 30, "the answer would be a longer one"
    assert struct.unpack_from("<H", answer, 28) == (256,)


def test_what_an_old_kernel_does_not_offer_is_not_agreed(start):
    kernel = start({"/f": b"x"})
    answer = kernel.ask(Opcode.INIT, 0, init(27, Flag.ASYNC_READ | Flag.NO_OPEN_SUPPORT))
    assert struct.unpack_from("<IIII", answer) == (7, 27, 131072, 1 | 1 << 17)
    with pytest.raises(OSError, match="not implemented"):
        kernel.ask(Opcode.OPEN, 1, bytes(8))
    # such a kernel takes no for an answer for files, not for directories
    assert struct.unpack("<QII", kernel.ask(Opcode.OPENDIR, 1, bytes(8))) == (0, 1 << 1 | 1 << 3, 0)


@pytest.mark.parametrize(("major", "minor", "answer"), [(8, 0, 7), (7, 26, None)])
def test_kernels_that_are_too_new_or_too_old(start, major, minor, answer):
    kernel = start({})
    if answer is None:
        with pytest.raises(OSError, match="Protocol error"):
            kernel.ask(Opcode.INIT, 0, init(minor, ALL, major))
    else:
        asked = kernel.ask(Opcode.INIT, 0, init(minor, ALL, major))
        assert struct.unpack_from("<I", asked) == (answer,)


def test_attributes(start):
    kernel = start({"/f": b"hello"})
    node = kernel.look_up("f")
    answer = kernel.ask(Opcode.GETATTR, node, bytes(16))
    valid_s, _, _, inode, size, blocks = struct.unpack_from("<QIIQQQ", answer)
    assert len(answer) == 104
    assert valid_s > 86_400
    assert (inode, size, blocks) == (kernel.revision.entry("/f").inode, 5, 1)
    mode, nlink, uid, gid = struct.unpack_from("<IIII", answer, 16 + 60)
    assert (mode, nlink, uid, gid) == (stat.S_IFREG | 0o644, 1, 4294967295, 100)
    assert struct.unpack_from("<Q", answer, 16 + 32) == (1_700_000_000,)
    assert struct.unpack_from("<I", answer, 16 + 52) == (123_456_789,)


def test_a_name_that_is_not_there_is_remembered(start):
    answer = start({}).ask(Opcode.LOOKUP, 1, b"nope\0")
    node, _, valid_s = struct.unpack_from("<QQQ", answer)
    assert node == 0
    assert valid_s > 86_400


def test_reading_over_chunks(start):
    kernel = start({"/f": [b"a" * 100, b"b" * 100, b"c" * 10], "/empty": b""})
    node = kernel.look_up("f")
    assert kernel.read(node) == b"a" * 100 + b"b" * 100 + b"c" * 10
    assert kernel.read(node, 95, 10) == b"aaaaabbbbb"
    assert kernel.read(node, 200, 4096) == b"c" * 10
    assert kernel.read(node, 210, 4096) == b""
    assert kernel.read(kernel.look_up("empty")) == b""
    assert kernel.revision.opened == ["/f@0", "/f@100", "/f@200"], "each is opened once"


def test_who_reads_on_finds_the_next_chunk_there(start):
    parts = [b"a" * 10, b"b" * 10, b"c" * 10, b"d" * 10]
    kernel = start({"/f": parts, "/g": parts})
    node, opened = kernel.look_up("f"), kernel.revision.opened
    # neither the first part of a file nor a jump says that it will be read on
    kernel.read(kernel.look_up("g"), 0, 10)
    kernel.read(kernel.look_up("g"), 20, 10)
    kernel.read(node, 0, 10)
    assert opened == ["/g@0", "/g@20", "/f@0"]
    kernel.read(node, 10, 10)
    wait_for(lambda: set(opened[3:]) == {"/f@10", "/f@20"})


def test_offsets_beyond_four_gigabytes(start, monkeypatch):
    kernel, far = start({"/f": [b"x", b"end"]}), 5 << 30

    def open_chunk(entry: Entry, chunk: Chunk) -> int:
        descriptor = os.memfd_create("chunk", os.MFD_CLOEXEC)
        os.pwrite(descriptor, b"end", chunk.size - 3)
        return descriptor

    monkeypatch.setattr(kernel.revision, "open_chunk", open_chunk)
    monkeypatch.setattr(
        kernel.revision, "chunks", lambda _: [Chunk(0, far, None), Chunk(far, 3, None)]
    )
    assert kernel.read(kernel.look_up("f"), far - 4, 100) == b"\0endend"
    attributes = fuse.attributes(Entry("", size=far))
    assert struct.unpack_from("<QQ", attributes, 24) == (far, far // 512)


@pytest.mark.parametrize("name", ["broken", "short"])
def test_a_damaged_object_is_an_error_of_its_file_alone(start, name):
    kernel = start({f"/{name}": b"xyz", "/f": b"good"})
    with pytest.raises(OSError, match="Input/output error"):
        kernel.read(kernel.look_up(name))
    assert kernel.read(kernel.look_up("f")) == b"good"


def test_a_list_in_parts_hidden_ones_found_by_name(start):
    names = ["a", "größe", "with space", os.fsdecode(b"bad\xff")]
    hidden = Entry("", hidden=True)
    kernel = start({**{f"/{name}": b"x" for name in names}, "/hidden": hidden})
    first = kernel.list(0, 80)
    assert [name for name, _ in first] == [".", ".."]
    assert [name for name, _ in kernel.list(first[-1][1])] == names
    assert kernel.list(len(names) + 2) == []
    assert kernel.look_up("hidden")
    assert kernel.look_up(names[-1])


def test_a_list_with_attributes_counts_as_looking_up(start):
    kernel = start({"/a": b"x"})
    body = struct.pack("<QQIIQII", 0, 0, 4096, 0, 0, 0, 0)
    answer = kernel.ask(Opcode.READDIRPLUS, 1, body)
    # "." and ".." name no node
    assert [struct.unpack_from("<Q", answer, at)[0] for at in (0, 160)] == [0, 0]
    (node,) = struct.unpack_from("<Q", answer, 320)
    assert node == kernel.look_up("a")
    kernel.send(Opcode.FORGET, node, struct.pack("<Q", 1))
    assert kernel.read(node) == b"x", "told twice, forgotten once"


def test_what_the_kernel_forgets_is_forgotten(start):
    kernel = start({f"/{number}": b"x" for number in range(50)})
    nodes = [kernel.look_up(str(number)) for number in range(50)]
    one, *others = nodes
    kernel.send(Opcode.FORGET, one, struct.pack("<Q", 1))
    pairs = b"".join(struct.pack("<QQ", node, 1) for node in others)
    kernel.send(Opcode.BATCH_FORGET, 0, struct.pack("<II", len(others), 0) + pairs)
    kernel.ask(Opcode.GETATTR, 1, bytes(16))
    assert len(kernel.server._nodes) == 1
    assert kernel.look_up("0") not in nodes


def test_extended_attributes(start):
    entry = Entry("", xattrs={"user.note": b"text"}, object=Name("4b91"))
    link = Entry("", stat.S_IFLNK | 0o777, link="v1", rawlink="$(V)")
    kernel = start({"/f": entry, "/l": link})
    node = kernel.look_up("f")

    def get(name: str, size: int = 100, at: int = node) -> bytes:
        return kernel.ask(Opcode.GETXATTR, at, struct.pack("<II", size, 0) + name.encode() + b"\0")

    assert get("user.note") == b"text"
    assert get("user.note", 0) == struct.pack("<II", 4, 0)
    assert get("user.hash") == b"4b91"
    assert get("user.fqrn") == b"demo.example.org"
    assert get("user.revision") == b"1"
    assert get("user.root_hash") == b"%040x" % 1
    assert get("xfsroot.rawlink", at=kernel.look_up("l")) == b"$(V)"
    assert kernel.ask(Opcode.READLINK, kernel.look_up("l")) == b"v1"
    for name, number in (("user.note", errno.ERANGE), ("security.capability", errno.ENODATA)):
        with pytest.raises(OSError) as caught:
            get(name, 2)
        assert caught.value.errno == number
    assert kernel.ask(Opcode.LISTXATTR, node, struct.pack("<II", 100, 0)) == b"user.note\0"


def test_the_size_of_the_repository(start):
    answer = start({}).ask(Opcode.STATFS)
    assert len(answer) == 80
    assert struct.unpack_from("<QQQQQ", answer) == (2, 0, 0, 7, 0)


def test_a_file_whose_parts_are_unknown_is_an_error_of_that_file_alone(start, monkeypatch):
    kernel = start({"/odd": Entry("", size=5), "/f": b"good"})
    found = kernel.revision.chunks

    def chunks(entry: Entry) -> list[Chunk]:
        if entry.path == "/odd":
            raise ObjectError("a file without an object", entry.path)
        return found(entry)

    monkeypatch.setattr(kernel.revision, "chunks", chunks)
    with pytest.raises(OSError, match="Input/output error"):
        kernel.read(kernel.look_up("odd"))
    assert kernel.read(kernel.look_up("f")) == b"good"


def test_a_node_that_nobody_was_told_of_is_stale(start):
    with pytest.raises(OSError) as caught:
        start({}).ask(Opcode.GETATTR, 99, bytes(16))
    assert caught.value.errno == errno.ESTALE


def test_what_is_not_known_is_not_implemented(start):
    with pytest.raises(OSError, match="not implemented"):
        start({}).ask(46, 1, bytes(24))


def test_a_slow_file_holds_up_nobody(start):
    kernel = start({"/slow": b"late", "/f": b"now"})
    arrives = kernel.revision.slow["/slow"] = threading.Event()
    slow, quick = kernel.look_up("slow"), kernel.look_up("f")
    body = struct.pack("<QQIIQII", 0, 0, 100, 0, 0, 0, 0)
    waits = kernel.send(Opcode.READ, slow, body)
    assert kernel.read(quick) == b"now"
    arrives.set()
    assert kernel.receive() == (waits, 0, b"late")


def test_two_who_wait_for_one_directory(start):
    kernel = start({"/d": None, "/d/f": b"x"})
    arrives = kernel.revision.slow["/d"] = threading.Event()
    folder = kernel.look_up("d")
    both = {kernel.send(Opcode.LOOKUP, folder, b"f\0") for _ in range(2)}
    wait_for(lambda: kernel.revision.opened == ["/d", "/d"])
    arrives.set()
    assert {kernel.receive()[0] for _ in range(2)} == both
    assert kernel.look_up("f", folder)


def test_who_is_killed_while_waiting_is_let_go_and_who_got_a_signal_is_not(start):
    kernel = start({"/slow": b"late"})
    arrives = kernel.revision.slow["/slow"] = threading.Event()
    node = kernel.look_up("slow")
    body = struct.pack("<QQIIQII", 0, 0, 100, 0, 0, 0, 0)
    # no process has this number; this one lives
    killed = kernel.send(Opcode.READ, node, body, pid=1 << 30)
    alive = kernel.send(Opcode.READ, node, body, pid=os.getpid())
    for unique in (alive, killed):
        kernel.send(Opcode.INTERRUPT, 0, struct.pack("<Q", unique))
    assert kernel.receive() == (killed, -errno.EINTR, b"")
    arrives.set()
    assert kernel.receive() == (alive, 0, b"late")


def notices(kernel: Kernel, number: int) -> set[Any]:
    found: set[Any] = set()
    for _ in range(number):
        unique, code, body = kernel.receive()
        assert unique == 0
        if code == 2:
            found.add(struct.unpack_from("<Q", body)[0])
        else:
            parent, length, _ = struct.unpack_from("<QII", body)
            assert body[16 + length :] == b"\0"
            found.add((parent, body[16 : 16 + length].decode()))
    return found


def test_a_new_revision_takes_back_what_has_changed_and_nothing_else(start):
    before = {"/d": None, "/d/f": b"old", "/d/same": b"same", "/d/gone": b"x", "/e": None}
    after = {"/d": None, "/d/f": b"newer", "/d/same": b"same", "/d/new": b"y", "/e": None}
    kernel = start(before, Revision(after, 2), ttl_s=0.3)
    folder, other = kernel.look_up("d"), kernel.look_up("e")
    assert kernel.look_up("nope", other) == 0
    old = kernel.look_up("f", folder)
    same = kernel.look_up("same", folder)
    assert kernel.look_up("new", folder) == 0
    assert notices(kernel, 4) == {folder, *((folder, name) for name in ("f", "gone", "new"))}
    new = kernel.look_up("f", folder)
    assert new != old
    assert (kernel.read(old), kernel.read(new)) == (b"old", b"newer")
    assert kernel.look_up("same", folder) == same
    assert kernel.look_up("gone", folder) == 0
    assert kernel.read(kernel.look_up("new", folder)) == b"y"


def test_a_new_revision_that_cannot_be_read_yet_is_tried_again(start, monkeypatch):
    newer = Revision({"/f": b"newer"}, 2, ttl_s=0.1)
    found, tries = newer.children, []

    def children(path: str) -> dict[str, Entry]:
        tries.append(path)
        if len(tries) < 3:
            raise ObjectError("no server", path)
        return found(path)

    monkeypatch.setattr(newer, "children", children)
    monkeypatch.setattr("sys.excepthook", lambda *_: None)
    kernel = start({"/f": b"old"}, newer, ttl_s=0.1)
    assert kernel.read(kernel.look_up("f")) == b"old"
    assert notices(kernel, 2) == {1, (1, "f")}
    assert kernel.read(kernel.look_up("f")) == b"newer"


def test_who_lists_a_directory_while_it_changes_misses_nothing_that_stays(start):
    before = {f"/{name}": b"x" for name in "bcde"}
    after = {f"/{name}": b"x" for name in "abde"}
    kernel = start(before, Revision(after, 2), ttl_s=0.3)
    listed = kernel.list(0, 24 * 4 + 8 * 4)
    assert [name for name, _ in listed] == [".", "..", "b", "c"]
    assert notices(kernel, 3) == {1, (1, "a"), (1, "c")}
    assert [name for name, _ in kernel.list(listed[-1][1])] == ["d", "e", "a"]


def test_a_directory_that_is_gone_stays_as_it_was_for_who_is_in_it(start):
    kernel = start({"/d": None, "/d/e": None, "/d/e/f": b"old"}, Revision({}, 2), ttl_s=0.3)
    folder = kernel.look_up("e", kernel.look_up("d"))
    file = kernel.look_up("f", folder)
    seen = notices(kernel, 2)
    while (1, "d") not in seen or 1 not in seen:
        seen |= notices(kernel, 1)
    assert kernel.look_up("d") == 0
    assert kernel.read(file) == b"old"
    assert kernel.look_up("f", folder)
