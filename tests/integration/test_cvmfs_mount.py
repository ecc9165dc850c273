"""Repositories as the kernel shows them: mounted by the worker's own client, without privileges."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import sandboxes
import squids
from cvmfs_mounts import NOBODY, SYSTEM_PYTHON, Mounted, Refused, Slow, mounted, open_to_all, served
from publisher import TIME, File, Folder, Link, Site, publish

NAME = "demo.example.org"
_WHY = "only root may become somebody else, who needs a Python that all may run"
# a port on which nobody listens
CLOSED = "http://127.0.0.1:9"
CLIENTS = ["client", *(["cvmfs2"] if shutil.which("cvmfs2") else [])]
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


def as_nobody(test):
    may = os.getuid() == 0 and Path(SYSTEM_PYTHON).exists()
    return pytest.mark.root(pytest.mark.skipif(not may, reason=_WHY)(test))


@pytest.fixture(scope="module", autouse=True)
def device():
    sandboxes.skip_unless_mountable()
    with open_to_all():
        yield


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


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A small repository that no test changes."""
    return publish(tmp_path_factory.mktemp("web") / NAME, NAME, TREE)


@pytest.fixture(scope="module")
def url(site):
    with served(site.folder.parent) as url:
        yield f"{url}/{NAME}"


@pytest.fixture(scope="module")
def warm(tmp_path_factory, site, url):
    """A cache that holds all of it."""
    cache = tmp_path_factory.mktemp("warm") / "cache"
    with mounted(site.settings(url), cache) as inside:
        found = inside.run(WALK)
        inside.run("open('secret/found').read()")
    del found[""]
    assert not differences(found, expected(TREE))
    return cache


@pytest.fixture
def place():
    """A folder that every user may enter, unlike those of tests."""
    with tempfile.TemporaryDirectory(prefix="hepscale-cvmfs-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


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


def test_each_entry_offline_from_a_warm_cache(site, warm):
    with mounted(site.settings(CLOSED), warm) as inside:
        found = inside.run(WALK)
    del found[""]
    assert not differences(found, expected(TREE))


@as_nobody
@pytest.mark.parametrize("client", CLIENTS)
def test_each_entry_for_nobody_from_a_read_only_alien_cache(site, url, warm, place, client):
    alien = place / "alien"
    shutil.copytree(warm, alien)
    read_only(alien)
    own = place / "own"
    own.mkdir(0o700)
    os.chown(own, NOBODY, NOBODY)
    options = {"user": NOBODY, "alien_cache": str(alien), "client": client}
    # where a cache was filled by reading, ours has not asked for empty files
    servers = CLOSED if client == "client" else url
    with mounted(site.settings(servers), own, **options) as inside:
        found = inside.run(WALK)
        who = inside.run("result = [os.getuid(), os.stat('README').st_uid]")
    del found[""]
    assert not differences(found, expected(TREE))
    assert who == [NOBODY, NOBODY], "the published owner is unknown there"


def test_what_a_program_expects_of_a_file_system(site, url, warm):
    with mounted(site.settings(url), warm) as inside:
        inside.run(
            """
            import errno, mmap
            note = lambda path, name: os.getxattr(path, name, follow_symlinks=False)
            assert note("README", "user.note") == b"a note"
            assert "user.note" in os.listxattr("README")
            assert note("README", "user.fqrn") == b"demo.example.org"
            assert note("latest", "xfsroot.rawlink") == b"v1/$(ARCH:-any)"
            assert len(note("README", "user.hash")) == 40
            assert note("v1/big", "user.chunks") == b"11"
            assert set(os.listxattr(".")) >= {"user.fqrn", "user.revision", "user.root_hash"}
            assert os.stat("hard/a").st_ino == os.stat("hard/b").st_ino
            assert not {"secret"} & set(os.listdir("."))
            assert open("secret/found").read() == "by name"
            assert os.statvfs(".").f_files > 700
            assert subprocess.run(["./run.sh"], capture_output=True).stdout == b"ran\\n"
            with open("v1/big", "rb") as stream:
                held = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
                assert held[299_990:300_010] == (bytes(range(256)) * 4000)[299_990:300_010]
            assert os.listdir("many") == os.listdir("many")
            assert os.readlink("latest") == "v1/any"
            """
        )
        for action, errors in {
            "open('new', 'w')": "EROFS",
            "os.unlink('README')": "EROFS",
            "open('README', 'r+')": "EROFS",
            "open('nope')": "ENOENT",
            "os.listdir('README')": "ENOTDIR",
            "os.getxattr('README', 'user.nope')": "ENODATA",
        }.items():
            inside.run(f"""
                import errno
                try: {action}
                except OSError as error: assert error.errno == errno.{errors}, error
                else: raise AssertionError
            """)


def test_what_is_known_is_not_asked_again(site, warm):
    """The kernel keeps names, attributes, lists, links and pages: the server may even stop."""
    with mounted(site.settings(CLOSED), warm) as inside:
        code = """
            # open() would ask whether it is a terminal, which the kernel does not keep
            file = os.open("many/f0007", os.O_RDONLY)
            result = [sorted(os.listdir("many")), os.read(file, 99).decode(), os.readlink("latest"),
                      os.path.exists("nope"), os.stat("v1/any/lib.py").st_size]
            os.close(file)
        """
        before = inside.run(code)
        inside.run("os.kill(server.pid, 19)")
        assert inside.run(code) == before
        inside.run("os.kill(server.pid, 18)")
        assert inside.run("result = open('README').read()") == "hello\n"


def test_a_damaged_object_is_an_error_of_its_file_alone(tmp_path):
    site = publish(tmp_path / "web", NAME, {"a": b"good", "b": b"bad", "c": {"d": b"good"}})
    site.damage("b")
    with fresh(site, tmp_path) as inside:
        code = """
            try: open("b").read()
            except OSError as error: result = error.errno
        """
        assert inside.run(code) == 5
        assert inside.run("result = open('a').read() + open('c/d').read()") == "goodgood"
        assert inside.run("result = os.stat('b').st_size") == 3


def test_a_damaged_catalog_is_an_error_below_it_alone(tmp_path):
    tree = {"a": b"good", "n": Folder({"f": b"x"}, nested=True)}
    site = publish(tmp_path / "web", NAME, tree)
    for path in site.folder.glob("data/*/*C"):
        if path != site.path(site.last.root):
            path.write_bytes(b"nonsense")
    with fresh(site, tmp_path) as inside:
        code = """
            try: os.listdir("n")
            except OSError as error: result = error.errno
        """
        assert inside.run(code) == 5
        assert inside.run("result = open('a').read()") == "good"


def test_a_repository_that_is_refused_is_not_mounted(tmp_path):
    site = publish(tmp_path / "web", NAME, {"a": b"x"})
    site.whitelist(expires="20200101000000")
    with pytest.raises(Refused) as caught, fresh(site, tmp_path):
        pass
    assert "whitelist" in str(caught.value)


def test_a_new_revision_shows_what_changed_and_leaves_what_is_open(tmp_path):
    many = {f"f{number}": b"x" for number in range(300)}
    keep = File(content=b"keep")
    before = {
        "f": b"old", "keep": keep, "link": Link(target="f"), "many": many,
        "gone": {"sub": {"file": b"still there"}}, "chunked": File(content=b"a" * 90, chunk=40),
        "same": Folder({"s": b"s"}),
    }  # fmt: skip
    after = {
        "f": b"newer", "keep": keep, "link": Link(target="keep"), "new": b"new",
        "many": {**many, "added": b"y"}, "chunked": File(content=b"b" * 90, chunk=40),
        "same": Folder({"s": b"s"}, mode=0o700),
    }  # fmt: skip
    del after["many"]["f7"]
    site = publish(tmp_path / "web", NAME, before)
    with fresh(site, tmp_path, max_ttl_s=0.3) as inside:
        inside.run(
            """
            keep, same, order = os.stat("keep"), os.stat("same"), os.listdir("many")
            assert not os.path.lexists("new") and not os.path.lexists("many/added")
            old, chunked = open("f"), open("chunked", "rb", buffering=0)
            assert old.read() == "old" and os.readlink("link") == "f"
            assert chunked.read(10) == b"a" * 10
            listing = os.scandir("many")
            begun = [next(listing).name for _ in range(3)]
            gone = os.open("gone/sub", os.O_RDONLY)
            """
        )
        site.publish(after)
        until(inside, 2)
        inside.run(
            """
            assert open("f").read() == "newer" and old.seek(0) == 0 and old.read() == "old"
            assert os.fstat(old.fileno()).st_size == 3
            assert open("chunked").read() == "b" * 90 and chunked.read(80) == b"a" * 80
            assert open("new").read() == "new" and os.readlink("link") == "keep"
            assert not os.path.exists("gone") and os.listdir(gone) == ["file"]
            with open(os.open("file", os.O_RDONLY, dir_fd=gone)) as stream:
                assert stream.read() == "still there"
            assert os.stat("keep").st_ino == keep.st_ino
            assert os.stat("same").st_ino == same.st_ino
            assert os.stat("same").st_mode & 0o777 == 0o700
            assert os.listdir("many") == [*(one for one in order if one != "f7"), "added"]
            rest = [one.name for one in listing]
            assert not {*order, "added"} - {"f7"} - {*begun, *rest}
            assert len({*begun, *rest}) == len([*begun, *rest])
            """
        )


def test_many_threads_read_while_one_download_is_slow(tmp_path):
    tree = {"slow": b"late", **{f"f{number}": b"%d" % number for number in range(20)}}
    site = publish(tmp_path / "web", NAME, tree)
    slow = Slow(site.objects["slow"][0].path)
    with (
        served(site.folder, slow) as url,
        mounted(site.settings(url), tmp_path / "cache") as inside,
    ):
        inside.run("slow = subprocess.Popen(['cat', 'slow'], stdout=subprocess.PIPE)")
        assert slow.asked.wait(10)
        inside.run(
            """
            import threading
            found = {}
            def read(name): found[name] = open(name).read()
            threads = [threading.Thread(target=read, args=(f"f{n}",)) for n in range(20)]
            for one in threads: one.start()
            for one in threads: one.join(10)
            assert found == {f"f{n}": str(n) for n in range(20)}, found
            assert slow.poll() is None
            """
        )
        # who is killed while it waits is gone at once
        inside.run("slow.kill(); assert slow.wait(5) == -9")
        slow.go_on.set()
        assert inside.run("result = open('slow').read()") == "late"


def test_a_server_that_is_killed_leaves_an_error_and_no_hang(site, warm):
    with mounted(site.settings(CLOSED), warm) as inside:
        inside.run("os.kill(server.pid, 9); server.wait()")
        code = """
            try: os.listdir("v1")
            except OSError as error: result = error.errno
        """
        assert inside.run(code) == 107


# a server that is told of a change while it owes an answer about the same directory, and is killed
_KILLED = """
import os, sys, threading, time
sys.path.insert(0, sys.argv[1])
from cvmfs_inside import call, enter
from hepscale.worker.cvmfs import fuse

FORCE = 1

def serve(device):
    connection = fuse.Connection(device)
    request = connection.receive()
    connection.answer(request.unique, fuse.initialise(request).answer)
    while connection.receive().opcode != fuse.Opcode.LOOKUP:
        pass
    threading.Thread(target=connection.drop, args=([], [(fuse.ROOT, b"other")])).start()
    tasks = f"/proc/{os.getpid()}/task"
    while not any(") D " in open(f"{tasks}/{one}/stat").read() for one in os.listdir(tasks)):
        time.sleep(0.01)
    os.kill(os.getpid(), 9)

place = sys.argv[2].encode()
enter()
device = os.open("/dev/fuse", os.O_RDWR)
server = os.fork()
if server == 0:
    serve(device)
options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
call("mount", b"test", place, b"fuse", 1, options.encode())
os.close(device)
client = os.fork()
if client == 0:
    try:
        os.stat(place + b"/name")
    except OSError as error:
        os._exit(error.errno)
end = time.monotonic() + 10
left = {server, client}
while left and time.monotonic() < end:
    for pid in [*left]:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            left.remove(pid)
            print("server" if pid == server else "client", os.waitstatus_to_exitcode(status))
    time.sleep(0.01)
# or they would stay for ever
call("umount2", place, FORCE)
"""


def test_a_server_that_is_killed_while_it_tells_of_a_change_ends(tmp_path):
    command = [sys.executable, "-c", _KILLED, Path(__file__).parents[1], tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    told = {errno.ECONNABORTED, errno.ENOTCONN}
    said = dict(line.split() for line in done.stdout.splitlines())
    assert said.pop("server", None) == "-9", done
    assert int(said.pop("client", 0)) in told, done


def test_the_server_ends_with_the_mount_and_with_its_parent(site, warm):
    with mounted(site.settings(CLOSED), warm) as inside:
        inside.run(
            "place = os.getcwd().encode(); os.chdir('/'); call('umount2', place, 0);"
            "assert server.wait(5) == 0"
        )
    with mounted(site.settings(CLOSED), warm) as inside:
        server = inside.server
        assert Path(f"/proc/{server}").exists()
    end = time.monotonic() + 5
    while Path(f"/proc/{server}").exists():
        assert time.monotonic() < end, Path(f"/proc/{server}/status").read_text()
        time.sleep(0.01)


def data(name: str) -> Path:
    """Return a file of the repository that the real CVMFS software published."""
    given = os.environ.get("HEPSCALE_TEST_DATA")
    folder = Path(given) if given else Path(__file__).parents[3] / "shared" / "data"
    if not (folder / "cvmfs" / name).exists():
        pytest.skip(f"no {folder / 'cvmfs' / name}: set HEPSCALE_TEST_DATA to the folder")
    return folder / "cvmfs" / name


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
    for one in json.loads(data(name).read_text())["entries"]:
        keys = ["mtime_ns", "size", "sha256", "target", "nlink"]
        mode = oct(bits[one["type"]] | int(one["mode"], 8))
        found[one["path"]] = {"mode": mode, **{key: one[key] for key in keys if key in one}}
    return found


@as_nobody
def test_each_entry_of_a_repository_of_the_real_software(place):
    """As root revision 4, and the change to 5 in the same mount; as nobody what that left, offline.

    Most objects are in a site's cache; the others come through a squid, which is the second of the
    proxies, from the second of the servers, of both of which the first is dead.
    """
    web, alien, cache = place / "web", place / "alien", place / "cache"
    with tarfile.open(data("repo.tar")) as archive:
        archive.extractall(web, filter="data")
    site_cache(web, alien)
    newest = (web / ".cvmfspublished").read_bytes()
    shutil.copy(data("cvmfspublished.rev1"), web / ".cvmfspublished")
    settings = {
        "name": "hepscale.example.org", "keys": [data("repo.pub").read_text()], "root_hash": None,
        "tag": None, "blacklist": [],
    }  # fmt: skip
    options = {"alien_cache": str(alien), "max_ttl_s": 1.0}
    with (
        served(web) as url,
        squids.running(place) as squid,
        mounted(
            {**settings, "servers": [CLOSED, url]},
            cache,
            proxies=f"{CLOSED};http://{squid}",
            **options,
        ) as inside,
    ):
        assert not differences(inside.run(WALK), contents("contents-rev1.json"))
        (web / "new").write_bytes(newest)
        (web / "new").replace(web / ".cvmfspublished")
        until(inside, 5)
        assert not differences(inside.run(WALK), contents("contents.json"))
    read_only(alien)
    with mounted({**settings, "servers": [CLOSED]}, None, user=NOBODY, **options) as inside:
        assert not differences(inside.run(WALK), contents("contents.json"))
