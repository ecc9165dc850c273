"""Repositories as the kernel shows them: mounted by the worker's own client, without privileges."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import squids
from as_root import NOBODY
from cvmfs_mounts import Refused, as_nobody, mounted, needed, open_to_all
from cvmfs_shown import (
    NAME,
    TREE,
    WALK,
    contents,
    differences,
    expected,
    fresh,
    read_only,
    site_cache,
    until,
)
from publisher import File, Folder, Link, publish
from real_files import real, unpack
from web import Slow, served

# a port on which nobody listens
CLOSED = "http://127.0.0.1:9"
CLIENTS = ["client", *(["cvmfs2"] if shutil.which("cvmfs2") else [])]


@pytest.fixture(scope="module", autouse=True)
def device():
    needed()
    with open_to_all():
        yield


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
from cvmfs_inside import enter, unmounted
from hepscale.worker import syscalls
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

place = sys.argv[2]
enter(syscalls)
device = os.open("/dev/fuse", os.O_RDWR)
server = os.fork()
if server == 0:
    serve(device)
options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
syscalls.mount("test", place, "fuse", syscalls.MS_RDONLY, options)
os.close(device)
client = os.fork()
if client == 0:
    try:
        os.stat(place + "/name")
    except OSError as error:
        os._exit(error.errno)
end = time.monotonic() + 30
left = {server, client}
while left and time.monotonic() < end:
    for pid in [*left]:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            left.remove(pid)
            print("server" if pid == server else "client", os.waitstatus_to_exitcode(status))
    time.sleep(0.01)
# or they would stay for ever
unmounted(place, FORCE)
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
            "place = os.getcwd(); os.chdir('/'); unmounted(place); assert server.wait(30) == 0"
        )
    with mounted(site.settings(CLOSED), warm) as inside:
        server = inside.server
        assert Path(f"/proc/{server}").exists()
    end = time.monotonic() + 30
    while Path(f"/proc/{server}").exists():
        assert time.monotonic() < end, Path(f"/proc/{server}/status").read_text()
        time.sleep(0.01)


@as_nobody
def test_each_entry_of_a_repository_of_the_real_software(place):
    """As root revision 4, and the change to 5 in the same mount; as nobody what that left, offline.

    Most objects are in a site's cache; the others come through a squid, which is the second of the
    proxies, from the second of the servers, of both of which the first is dead.
    """
    web, alien, cache = place / "web", place / "alien", place / "cache"
    unpack(real("cvmfs/repo.tar"), web)
    site_cache(web, alien)
    newest = (web / ".cvmfspublished").read_bytes()
    shutil.copy(real("cvmfs/cvmfspublished.rev1"), web / ".cvmfspublished")
    settings = {
        "name": "hepscale.example.org", "keys": [real("cvmfs/repo.pub").read_text()],
        "root_hash": None, "tag": None, "blacklist": [],
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
