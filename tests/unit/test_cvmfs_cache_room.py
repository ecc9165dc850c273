"""The cache of a site, which nodes only read, and what a node keeps of its own."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
import time

import pytest
from as_root import NOBODY, mounted
from caches import FQRN, PLAIN, fill, fill_as_cvmfs_does, flip, left, objects, put, read

from hepscale.worker.cvmfs import ObjectError
from hepscale.worker.cvmfs.cache import Cache
from hepscale.worker.cvmfs.check import check

# -- a site's cache --------------------------------------------------------------------------------


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
        os.chown(one, NOBODY, NOBODY)
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
