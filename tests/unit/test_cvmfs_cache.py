"""The cache of a node: its layout, what it verifies, and what many processes do to it at once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from pathlib import Path

import as_root
import pytest
from as_root import mounted
from objects import named, serving, silent, stored
from ports import closed

from hepscale.worker.cvmfs import ObjectError, RepositoryError, opening, store
from hepscale.worker.cvmfs.cache import Cache
from hepscale.worker.cvmfs.check import check
from hepscale.worker.cvmfs.fetch import Fetcher
from hepscale.worker.cvmfs.names import Algorithm, Name

FQRN = "test.example.org"
PLAIN = b"".join(b"%d lines of text\n" % i for i in range(1000))


@pytest.fixture
def server():
    with serving({}) as one:
        yield one


@pytest.fixture
def fetcher(server):
    one = Fetcher([server.url], "DIRECT", direct_timeout_s=2, retries=0)
    yield one
    one.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


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


# -- what it is ------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("plain", [PLAIN, b""], ids=["text", "empty"])
def test_an_object_is_fetched_once(server, fetcher, folder, algorithm, compressed, plain):
    name = put(server, plain, algorithm, "P", compressed=compressed)
    cache = Cache(str(folder))
    assert not cache.has(name)
    descriptor = cache.open(name, fetcher, compressed=compressed)
    assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert not os.get_inheritable(descriptor)
    assert read(descriptor) == plain
    assert cache.has(name)
    assert (folder / name.text[:2] / name.text[2:]).read_bytes() == plain
    for again in (cache, Cache(str(folder))):
        assert read(again.open(name, None)) == plain
    assert server.asked == {name.path: 1}
    assert check(str(folder)) == (1, (), ())


@pytest.fixture(params=[0, 0o077], ids=["umask 000", "umask 077"])
def umask(request):
    old = os.umask(request.param)
    yield
    os.umask(old)


def test_the_layout_is_that_of_cvmfs(server, fetcher, folder, umask):
    cache = Cache(str(folder))
    name = put(server, PLAIN)
    os.close(cache.open(name, fetcher))
    cache.remember(FQRN, name.text, 1234, 5)
    ours = {".hepscale"}
    made = {f"{i:02x}" for i in range(256)} | {"txn", "quarantaine", f"cvmfschecksum.{FQRN}"}
    assert set(os.listdir(folder)) == made | ours
    assert (folder / f"cvmfschecksum.{FQRN}").read_text() == f"{name.text}T1234R5"
    assert left(folder) == []
    for path in [folder, *folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_an_alien_cache_is_open_to_a_group(server, fetcher, tmp_path, umask):
    alien = tmp_path / "site" / "alien"
    cache = Cache(str(tmp_path / "own"), alien=str(alien), quota_bytes=1)
    plain = fill(server, fetcher, cache)
    cache.remember(FQRN, "a" * 40, 1, 1)
    cache.keep(FQRN, "published", b"manifest")
    for path in [alien, *alien.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o770 if path.is_dir() else 0o660), path
    assert not (tmp_path / "own").exists(), "all is in the alien one"
    assert objects(alien) == {name.text for name in plain}, "its quota is not ours to keep"


def test_locks_do_not_pile_up(server, fetcher, folder):
    cache = Cache(str(folder), quota_bytes=1 << 30)
    fill(server, fetcher, cache, 40)
    assert set(os.listdir(folder / ".hepscale")) == {"digests", "lock", "size"}
    assert (folder / ".hepscale" / "lock").stat().st_size == 0


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o704])
def test_a_folder_that_is_open_to_others_is_refused(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(RepositoryError, match="not fit") as raised:
        Cache(str(folder))
    assert f"{mode:04o}" in raised.value.cause
    assert os.listdir(folder) == []


def test_a_folder_that_somebody_else_made_meanwhile(server, fetcher, folder):
    cache = Cache(str(folder))
    shutil.rmtree(folder)
    folder.mkdir(0o755)
    with pytest.raises(ObjectError, match="not fit"):
        cache.open(put(server, PLAIN), fetcher)
    assert os.listdir(folder) == []


@pytest.mark.root
@pytest.mark.parametrize("is_link", [False, True])
def test_a_folder_of_somebody_else_is_refused(tmp_path, folder, is_link):
    as_root.needed("giving a folder away")
    if is_link:
        (tmp_path / "mine").mkdir(0o700)
        folder.symlink_to(tmp_path / "mine")
    else:
        folder.mkdir(0o700)
    os.chown(folder, 65534, 65534, follow_symlinks=False)
    with pytest.raises(RepositoryError, match="not fit") as raised:
        Cache(str(folder))
    assert "65534" in raised.value.cause


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="cannot be made"):
        Cache(str(tmp_path / "file" / "cache"))
    with pytest.raises(RepositoryError, match="cannot be made"):
        Cache(str(tmp_path / "own"), alien=str(tmp_path / "file" / "cache"))


@pytest.mark.parametrize("what", ["", "[0-9a-f][0-9a-f]", "txn", ".hepscale/digests", ".hepscale"])
def test_folders_that_were_removed_are_made_again(server, fetcher, folder, what):
    """As what cleans /tmp does, of a cache in use."""
    cache = Cache(str(folder))
    for path in folder.glob(what) if what else [folder]:
        shutil.rmtree(path)
    plain = fill(server, fetcher, cache)
    assert objects(folder) == {name.text for name in plain}
    assert check(str(folder)).verified == len(plain)


# -- damage ----------------------------------------------------------------------------------------


def test_a_flipped_byte_is_found_and_the_object_fetched_again(server, fetcher, folder):
    plain = fill(server, fetcher, Cache(str(folder)))
    victim = next(iter(plain))
    flip(folder / victim.cached)
    assert check(str(folder)) == (len(plain) - 1, (victim.text,), ())
    cache = Cache(str(folder))
    for name, data in plain.items():
        assert read(cache.open(name, fetcher)) == data
    assert server.asked == {victim.path: 1}
    assert check(str(folder)) == (len(plain), (), ())


def test_a_flipped_byte_offline(server, fetcher, folder):
    plain = fill(server, fetcher, Cache(str(folder)))
    victim = next(iter(plain))
    flip(folder / victim.cached)
    cache = Cache(str(folder))
    with pytest.raises(ObjectError, match="is damaged in the cache") as raised:
        cache.open(victim, None)
    assert raised.value.filename == victim.text
    assert not cache.has(victim)
    for name in set(plain) - {victim}:
        assert read(cache.open(name, None)) == plain[name]


def test_what_changes_during_use_is_verified_again(server, fetcher, folder):
    cache = Cache(str(folder))
    name = put(server, PLAIN)
    os.close(cache.open(name, fetcher))
    path = folder / name.cached
    flip(path)
    assert read(cache.open(name, fetcher)) == PLAIN
    path.write_bytes(PLAIN[:-1])
    assert read(cache.open(name, fetcher)) == PLAIN
    assert server.asked == {name.path: 3}


def _flipped(data):
    return data[:30] + bytes([data[30] ^ 1]) + data[31:]


@pytest.mark.parametrize(
    "change",
    [
        _flipped,
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"",
        lambda data: zlib.compress(b"another"),
        lambda data: PLAIN,
    ],
    ids=["flipped", "cut", "longer", "empty", "another", "plain"],
)
def test_an_object_that_is_damaged_on_the_server(server, fetcher, folder, change):
    name = put(server, PLAIN)
    good = server.files[name.path]
    server.files[name.path] = change(good)
    cache = Cache(str(folder))
    with pytest.raises(ObjectError):
        cache.open(name, fetcher)
    assert [one.get("Cache-Control") for one in server.headers] == [None, "no-cache"]
    assert (left(folder), objects(folder)) == ([], set())
    with serving({name.path: good}) as other:
        both = Fetcher([server.url, other.url], "DIRECT")
        assert read(cache.open(name, both)) == PLAIN
        both.close()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (zlib.compress(PLAIN)[:-3], "cut short"),
        (zlib.compress(PLAIN) + b"garbage", "follows"),
        (zlib.compress(PLAIN) + zlib.compress(PLAIN), "follows"),
        (b"not zlib", "cannot be decompressed"),
        (b"", "cut short"),
    ],
)
def test_a_stream_that_is_damaged_though_its_name_is_right(server, fetcher, folder, data, why):
    name = named(data)
    server.files[name.path] = data
    with pytest.raises(ObjectError, match=why):
        Cache(str(folder)).open(name, fetcher)
    assert (left(folder), objects(folder)) == ([], set())


def test_no_server_has_it(server, fetcher, folder):
    with pytest.raises(ObjectError, match="404"):
        Cache(str(folder)).open(Name(bytes(20)), fetcher)
    with pytest.raises(ObjectError, match="is not in the cache"):
        Cache(str(folder)).open(Name(bytes(20)), None)


def test_a_line_of_digests_that_was_torn(server, fetcher, folder):
    first = put(server, PLAIN)
    os.close(Cache(str(folder)).open(first, fetcher))
    line = folder / ".hepscale" / "digests" / first.text[:2]
    whole = line.read_bytes()
    line.write_bytes(whole[: len(whole) // 2])
    # told by its name
    assert read(Cache(str(folder)).open(first, None)) == PLAIN
    assert line.read_bytes() == whole[: len(whole) // 2] + whole
    flip(folder / first.cached)
    assert check(str(folder)).damaged == (first.text,)


def test_an_object_that_was_copied_into_our_cache(server, fetcher, folder):
    Cache(str(folder))
    good, other = put(server, PLAIN), put(server, PLAIN[:-1], level=1)
    (folder / good.cached).write_bytes(PLAIN)
    (folder / other.cached).write_bytes(PLAIN[:-1])
    cache = Cache(str(folder))
    assert read(cache.open(good, None)) == PLAIN
    # nothing tells that it is good
    assert read(cache.open(other, fetcher)) == PLAIN[:-1]
    assert server.asked == {other.path: 1}


# -- a site's cache --------------------------------------------------------------------------------


def fill_as_cvmfs_does(alien, plain):
    for first in range(256):
        (alien / f"{first:02x}").mkdir()
    for name in ("txn", "quarantaine"):
        (alien / name).mkdir()
    for name, data in plain.items():
        (alien / name.cached).write_bytes(data)
    (alien / f"cvmfschecksum.{FQRN}").write_text(f"{'a' * 40}T200R7")


@pytest.mark.root
@pytest.mark.parametrize("layout", ["cvmfs", "hepscale"])
def test_a_read_only_cache_of_a_site(server, fetcher, tmp_path, layout):
    alien, own = tmp_path / "alien", tmp_path / "own"
    alien.mkdir()
    with mounted(alien, "mode=0755"):
        if layout == "cvmfs":
            plain = {put(server, b"%d" % i * 99): b"%d" % i * 99 for i in range(9)}
            fill_as_cvmfs_does(alien, plain)
        else:
            writable = Cache(str(own), alien=str(alien))
            plain = fill(server, fetcher, writable)
            writable.remember(FQRN, "a" * 40, 200, 7)
            writable.keep(FQRN, "published", b"the site's")
            victim = next(iter(plain))
            flip(alien / victim.cached)
        before = {path: path.stat().st_mtime_ns for path in alien.rglob("*")}
        subprocess.run(["mount", "-o", "remount,ro", alien], check=True)
        Cache(str(own)).remember(FQRN, "0" * 40, 100, 6)
        Cache(str(own)).keep(FQRN, "published", b"old")
        cache = Cache(str(own), alien=str(alien))
        if layout == "hepscale":
            assert cache.kept(FQRN, "published") == b"the site's"
            with pytest.raises(ObjectError, match="damaged"):
                cache.open(victim, None)
            assert read(cache.open(victim, fetcher)) == plain[victim]
            assert objects(own) == {victim.text}
            server.asked.clear()
        for name, data in plain.items():
            assert read(cache.open(name, fetcher)) == data
            assert read(cache.open(name, None)) == data
        assert server.asked.total() == 0
        missing = put(server, PLAIN)
        with pytest.raises(ObjectError, match="is not in the cache"):
            cache.open(missing, None)
        assert read(cache.open(missing, fetcher)) == PLAIN
        assert missing.text in objects(own)
        assert cache.remembered(FQRN) == ("a" * 40, 200, 7)
        cache.remember(FQRN, "b" * 40, 300, 8)
        cache.keep(FQRN, "published", b"manifest")
        again = Cache(str(own), alien=str(alien))
        assert again.remembered(FQRN) == ("b" * 40, 300, 8)
        assert again.kept(FQRN, "published") == b"manifest"
        assert {path: path.stat().st_mtime_ns for path in alien.rglob("*")} == before


def test_a_cache_that_cvmfs_filled_is_written_to(server, fetcher, tmp_path):
    alien = tmp_path / "alien"
    alien.mkdir()
    known = put(server, b"known")
    fill_as_cvmfs_does(alien, {known: b"known"})
    cache = Cache(str(tmp_path / "own"), alien=str(alien))
    assert cache.remembered(FQRN) == ("a" * 40, 200, 7)
    missing = put(server, PLAIN)
    assert read(cache.open(missing, fetcher)) == PLAIN
    assert read(cache.open(known, fetcher)) == b"known"
    assert objects(alien) == {known.text, missing.text}
    flip(alien / missing.cached)
    again = Cache(str(tmp_path / "own"), alien=str(alien))
    with pytest.raises(ObjectError, match="damaged"):
        again.open(missing, None)
    assert missing.text in objects(alien), "it is not ours to remove"
    assert read(again.open(missing, fetcher)) == PLAIN
    assert read(again.open(missing, None)) == PLAIN


def test_what_was_removed_of_a_group_keeps_what_folders_pass_on(tmp_path):
    alien = tmp_path / "alien"
    alien.mkdir()
    alien.chmod(0o2770)
    Cache(str(tmp_path / "own"), alien=str(alien))
    assert stat.S_IMODE((alien / "4b").stat().st_mode) == 0o2770


# -- offline ---------------------------------------------------------------------------------------


def test_what_is_remembered(folder):
    cache = Cache(str(folder))
    assert cache.remembered(FQRN) is None
    assert cache.kept(FQRN, "whitelist") is None
    cache.remember(FQRN, "4b" * 20 + "-rmd160", 1729244522, 5)
    cache.keep(FQRN, "whitelist", b"\0\xff")
    cache.keep(FQRN, "published", b"first")
    cache.keep(FQRN, "published", b"second")
    again = Cache(str(folder))
    assert again.remembered(FQRN) == ("4b" * 20 + "-rmd160", 1729244522, 5)
    assert again.kept(FQRN, "whitelist") == b"\0\xff"
    assert again.kept(FQRN, "published") == b"second"
    assert again.remembered("other.example.org") is None
    with pytest.raises(ValueError):
        again.keep("../../x", "whitelist", b"")


@pytest.mark.parametrize("text", ["", "garbage", "4b" * 20, "4b" * 20 + "T1", "\xff" * 53])
def test_what_is_remembered_is_garbage(folder, text):
    cache = Cache(str(folder))
    (folder / f"cvmfschecksum.{FQRN}").write_text(text, encoding="latin-1")
    assert cache.remembered(FQRN) is None


# -- quota -----------------------------------------------------------------------------------------


def set_used(path, when):
    os.utime(path, ns=(int(when * 1e9), path.stat().st_mtime_ns))


def test_what_was_not_used_for_longest_is_removed(server, fetcher, folder):
    cache = Cache(str(folder), quota_bytes=20 * 4096)
    plain = fill(server, fetcher, cache, 20)
    assert len(objects(folder)) == 20
    now = time.time()
    for age, name in enumerate(plain):
        set_used(folder / name.cached, now - 10000 - age)
    oldest = list(plain)[::-1]
    # not read, so that the kernel does not note it
    os.close(cache.open(oldest[0], None))
    held = cache.open(oldest[1], None)
    set_used(folder / oldest[1].cached, now - 50000)
    os.close(cache.open(put(server, PLAIN), fetcher))
    found = objects(folder)
    assert oldest[0].text in found
    assert not {name.text for name in oldest[1:4]} & found
    # three quarters of the quota are left, of which one object has five blocks
    assert len(found) == 10 + 1
    assert read(held) == plain[oldest[1]], "who has it open does not notice"
    lines = b"".join(path.read_bytes() for path in (folder / ".hepscale" / "digests").iterdir())
    assert len(lines.split()) == 3 * len(found)
    assert check(str(folder)).verified == len(found)
    assert read(cache.open(oldest[1], fetcher)) == plain[oldest[1]]
    assert server.asked[oldest[1].path] == 1


def test_processes_share_the_quota(server, fetcher, folder):
    caches = [Cache(str(folder), quota_bytes=20 * 4096) for _ in range(3)]
    names = [put(server, b"%d" % i * 100) for i in range(100)]
    for i, name in enumerate(names):
        os.close(caches[i % 3].open(name, fetcher))
        assert len(objects(folder)) <= 20
    assert len(objects(folder)) >= 14


def test_a_quota_that_is_given_later(server, fetcher, folder):
    fill(server, fetcher, Cache(str(folder)), 30)
    os.close(Cache(str(folder), quota_bytes=10 * 4096).open(put(server, PLAIN), fetcher))
    assert len(objects(folder)) <= 10


def test_an_object_that_is_larger_than_the_quota(server, fetcher, folder):
    cache = Cache(str(folder), quota_bytes=4096)
    kept = put(server, b"small")
    os.close(cache.open(kept, fetcher))
    with pytest.raises(ObjectError, match="larger than the quota"):
        cache.open(put(server, PLAIN), fetcher)
    assert (objects(folder), left(folder)) == ({kept.text}, [])


def test_an_object_that_is_larger_than_it_may_be(server, fetcher, folder):
    """A server could send any number of bytes before it shows that they are the wrong ones."""
    cache = Cache(str(folder))
    name = put(server, PLAIN)
    with pytest.raises(ObjectError, match="more than 100 bytes"):
        cache.open(name, fetcher, most=100)
    assert (objects(folder), left(folder)) == (set(), [])
    assert read(cache.open(name, fetcher, most=len(PLAIN))) == PLAIN


@pytest.mark.root
@pytest.mark.parametrize("part", ["object", "digest", "both"])
def test_what_somebody_else_has_put_there_is_not_believed(server, fetcher, folder, part):
    """As when what cleans /tmp has removed the folder, which is then made by another user."""
    cache = Cache(str(folder))
    name = put(server, PLAIN)
    os.close(cache.open(name, fetcher))
    other = b"something else"
    path, digest = folder / name.cached, folder / ".hepscale" / "digests" / name.cached[:2]
    path.write_bytes(other)
    told = f"\n{name.cached[3:]} {hashlib.sha256(other).hexdigest()} {len(other)}\n"
    digest.write_text(told)
    for one in {"object": [path], "digest": [digest], "both": [path, digest]}[part]:
        os.chown(one, 65534, 65534)
    with pytest.raises(ObjectError, match="damaged"):
        Cache(str(folder)).open(name, None)
    assert read(cache.open(name, fetcher)) == PLAIN


@pytest.mark.root
def test_a_full_disk(server, fetcher, folder):
    with mounted(folder, "size=2m,mode=0700"):
        cache = Cache(str(folder))
        kept = put(server, b"small")
        os.close(cache.open(kept, fetcher))
        name = put(server, random.Random(1).randbytes(4 << 20))
        with pytest.raises(ObjectError, match=r"no room.*No space left on device"):
            cache.open(name, fetcher)
        assert (objects(folder), left(folder)) == ({kept.text}, [])
        assert read(cache.open(put(server, PLAIN), fetcher)) == PLAIN
        assert server.asked[name.path] == 1


# -- many at once ----------------------------------------------------------------------------------

READERS = """
import os, random, sys
from hepscale.worker.cvmfs.cache import Cache
from hepscale.worker.cvmfs.fetch import Fetcher
from hepscale.worker.cvmfs.names import Name

folder, url, count, *names = sys.argv[1:]
children = []
for i in range(int(count)):
    children.append(os.fork())
    if not children[-1]:
        random.seed(i)
        random.shuffle(names)
        cache, fetcher = Cache(folder, quota_bytes=1 << 30), Fetcher([url], "DIRECT", retries=0)
        for name in names:
            with open(cache.open(Name.parse(name), fetcher), "rb") as stream:
                assert stream.read().startswith(b"object ")
        os._exit(0)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def run(code, *arguments, **options):
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=root, **options)


def test_fifty_processes_on_a_cold_cache(server, folder):
    names = [put(server, b"object %d " % i * 2000) for i in range(30)]

    def slow(handler, path):
        time.sleep(0.01)
        return False

    server.fault = slow
    arguments = [str(folder), server.url, "50", *(name.text for name in names)]
    with run(READERS, *arguments) as process:
        assert process.wait(100) == 0
    assert server.asked == {name.path: 1 for name in names}
    assert check(str(folder)).verified == len(names)
    assert left(folder) == []


def test_threads_of_one_process(server, fetcher, folder):
    names = [put(server, b"object %d " % i * 2000) for i in range(20)]
    cache, found = Cache(str(folder)), []

    def read_all(seed):
        order = random.Random(seed).sample(names, len(names))
        found.extend(read(cache.open(name, fetcher))[:7] for name in order)

    threads = [threading.Thread(target=read_all, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"object "] * 160
    assert server.asked == {name.path: 1 for name in names}


def test_all_who_wait_for_what_cannot_be_had_fail_soon(folder):
    """Not each after the one before it."""
    with silent() as address:
        one = Fetcher([f"http://{address}"], "DIRECT", direct_timeout_s=0.3, retries=0)
        cache, failures = Cache(str(folder)), []

        def fail():
            with pytest.raises(ObjectError) as raised:
                cache.open(Name(bytes(20)), one)
            failures.append(raised.value)

        threads = [threading.Thread(target=fail) for _ in range(10)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(failures) == 10
        assert time.monotonic() - began < 1.5


WRITER = """
import sys
from hepscale.worker.cvmfs.cache import Cache
from hepscale.worker.cvmfs.fetch import Fetcher
from hepscale.worker.cvmfs.names import Name

folder, url, name = sys.argv[1:]
Cache(folder).open(Name.parse(name), Fetcher([url], "DIRECT", direct_timeout_s=60))
"""


def test_who_is_killed_leaves_nothing(server, fetcher, folder):
    plain = random.Random(2).randbytes(1 << 20)
    name = put(server, plain)
    data, resume, half = server.files[name.path], threading.Event(), threading.Event()

    def stop(handler, path):
        handler.answer(data[: len(data) // 2], length=len(data))
        half.set()
        return resume.wait(60)

    server.fault = stop
    with run(WRITER, str(folder), server.url, name.text) as process:
        try:
            assert half.wait(60)
            (temporary,) = wait_for(lambda: [one for one in left(folder) if size(folder, one)])
            old = time.time() - 3600
            os.utime(folder / "txn" / temporary, (old, old))
            Cache(str(folder))
            assert left(folder) == [temporary], "its writer lives"
        finally:
            process.send_signal(signal.SIGKILL)
            resume.set()
    server.fault = None
    assert objects(folder) == set()
    os.utime(folder / "txn" / temporary, (old, old))
    (folder / "txn" / "of-cvmfs").touch()
    os.utime(folder / "txn" / "of-cvmfs", (old, old))
    cache = Cache(str(folder))
    assert left(folder) == ["of-cvmfs"]
    assert read(cache.open(name, fetcher)) == plain


def size(folder, name):
    return (folder / "txn" / name).stat().st_size


def wait_for(condition):
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def test_who_is_stopped_does_not_stop_all(server, fetcher, folder, monkeypatch):
    monkeypatch.setattr(store, "_PATIENCE_S", 0.2)
    cache, name = Cache(str(folder)), put(server, PLAIN)
    code = (
        "import sys; from hepscale.worker.cvmfs.names import Name;"
        "from hepscale.worker.cvmfs.store import Store;"
        "lock = Store(sys.argv[1], is_alien=False).alone(Name.parse(sys.argv[2]));"
        "lock.__enter__(); print(flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with run(code, str(folder), name.text, **pipes) as process:
        assert process.stdout.readline() == b"\n"
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert read(cache.open(name, fetcher)) == PLAIN
        assert time.monotonic() - began >= 0.2, "it was waited for"
        process.kill()


def test_a_large_object_takes_little_memory(server, fetcher, folder):
    length = 64 << 20
    name = put(server, bytes(length), level=9)
    cache = Cache(str(folder))
    tracemalloc.start()
    descriptor = cache.open(name, fetcher)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert os.fstat(descriptor).st_size == length
    os.close(descriptor)
    assert most < 4 << 20


# -- checking a folder -----------------------------------------------------------------------------


def test_a_folder_is_checked(tmp_path):
    plain = {
        stored(b"default")[0]: b"default",
        stored(b"as it is", compressed=False)[0]: b"as it is",
        stored(b"shake", Algorithm.SHAKE128)[0]: b"shake",
        stored(b"ripe", Algorithm.RMD160)[0]: b"ripe",
    }
    other = stored(PLAIN, level=1)[0]
    fill_as_cvmfs_does(tmp_path, {**plain, other: PLAIN})
    (tmp_path / "00" / "not an object").touch()
    told = []
    found = check(str(tmp_path), progress=lambda done, total: told.append((done, total)))
    assert found == (4, (), (other.text,))
    assert told == [(i, 5) for i in range(1, 6)]


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        check(str(tmp_path / "none"))
    assert check(str(tmp_path)) == (0, (), ())


def test_a_digest_is_that_of_sha256sum(server, fetcher, folder):
    name = put(server, PLAIN)
    os.close(Cache(str(folder)).open(name, fetcher))
    line = (folder / ".hepscale" / "digests" / name.text[:2]).read_text().split()
    assert line == [name.text[2:], hashlib.sha256(PLAIN).hexdigest(), str(len(PLAIN))]


def test_offline_with_a_warm_cache(server, fetcher, folder):
    plain = fill(server, fetcher, Cache(str(folder)))
    dead = Fetcher([f"http://{closed()}"], "DIRECT", retries=0)
    cache = Cache(str(folder))
    for name, data in plain.items():
        assert read(cache.open(name, dead)) == data
    with pytest.raises(ObjectError, match="refused"):
        cache.open(Name(bytes(20)), dead)


# -- where it is -----------------------------------------------------------------------------------


def test_the_cache_of_a_user_is_not_that_of_a_task(monkeypatch, tmp_path):
    """Temporary folders of workers are their own, and end with a task or a job."""
    made = []
    monkeypatch.setattr(opening, "Cache", lambda *one, **more: made.append((*one, more)))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    opening.cache({"cache": None, "alien_cache": None, "quota_mb": 5})
    opening.cache({"cache": "$SCRATCH/c", "alien_cache": "/sw/$NONE", "quota_mb": None})
    assert made == [
        (f"/tmp/hepscale-cvmfs-{os.getuid()}", {"alien": None, "quota_bytes": 5_000_000}),
        ("/scratch/me/c", {"alien": "/sw/$NONE", "quota_bytes": None}),
    ]
