"""The cache of a node: its layout, what it verifies, and what many processes do to it at once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import zlib

import as_root
import pytest
from as_root import NOBODY
from caches import FQRN, PLAIN, fill, fill_as_cvmfs_does, flip, left, objects, put, read
from objects import named, serving, stored
from ports import closed

from hepscale.worker.cvmfs import ObjectError, RepositoryError, opening
from hepscale.worker.cvmfs.cache import Cache
from hepscale.worker.cvmfs.check import check
from hepscale.worker.cvmfs.fetch import Fetcher
from hepscale.worker.cvmfs.names import Algorithm, Name

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
    os.chown(folder, NOBODY, NOBODY, follow_symlinks=False)
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
