from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hepscale.env import pack
from hepscale.env.contents import Entry
from hepscale.errors import ConfigError, PackError

FORMATS = ["tar.gz", "tar.zst"]
PREFIX = "/home/me/env"
PLACEHOLDER = "/opt/placeholder" + "_placeholder" * 20
# more than one job of each compressor
LARGE = random.Random(1).randbytes(1_000_000) * 8


def entries(folder: Path) -> list[Entry]:
    """Write files of all kinds."""
    folder.mkdir(parents=True)
    (folder / "program").write_text(f"#!{PREFIX}/bin/python\nprint(1)\n")
    (folder / "program").chmod(0o750)
    (folder / "settings").write_text(f"home = {PREFIX}\n")
    (folder / "binary").write_bytes(f"\0{PREFIX}\0".encode() + bytes(400))
    (folder / "large").write_bytes(LARGE)
    return [
        Entry("share/z", data=b"made up"),
        Entry("lib/large", str(folder / "large")),
        Entry("bin/program", str(folder / "program"), treat="script", prefix=PREFIX),
        Entry("bin/link", link="program"),
        Entry("etc/settings", str(folder / "settings"), treat="text", prefix=PREFIX),
        Entry(
            "lib/binary",
            str(folder / "binary"),
            treat="binary",
            prefix=PREFIX,
            placeholder=PLACEHOLDER,
        ),
        Entry("bin/made", data=b"#!/bin/sh\n", executable=True),
        Entry("empty"),
        Entry(f"{'deep/' * 60}file", data=b"far down"),
        Entry(os.fsdecode(b"caf\xe9"), data=b"no text"),
    ]


def members(path: Path, form: str) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    data = path.read_bytes()
    content = gzip.decompress(data) if form == "tar.gz" else pack.zstd().decompress(data)
    with tarfile.open(fileobj=io.BytesIO(content), errors="surrogateescape") as archive:
        return {
            one.name: (one, archive.extractfile(one).read() if one.isfile() else b"")
            for one in archive
        }


@pytest.mark.parametrize("form", FORMATS)
def test_layer(tmp_path: Path, form: str) -> None:
    target = tmp_path / "made/layer"
    told: list[int] = []
    written = pack.write_layer("own", entries(tmp_path / "files"), target, form, told.append)
    content = target.read_bytes()
    assert written.sha256 == hashlib.sha256(content).hexdigest()
    assert written.size_bytes == len(content)
    assert os.listdir(target.parent) == ["layer"]
    assert target.stat().st_mode & 0o777 == 0o644
    found = members(target, form)
    listed = [name for name in found if name != "hepscale/relocate-own.json"]
    assert listed == sorted(listed)
    assert written.files == len(found) == 11
    assert written.unpacked_bytes == sum(len(data) for _, data in found.values())
    assert told == sorted(told)
    assert len(told) == 9
    assert found["lib/large"][1] == LARGE
    assert {name: one.mode for name, (one, _) in found.items() if one.mode != 0o644} == {
        "bin/program": 0o755,
        "bin/made": 0o755,
        "bin/link": 0o777,
    }
    assert (found["bin/link"][0].type, found["bin/link"][0].linkname) == (
        tarfile.SYMTYPE,
        "program",
    )
    for one, _ in found.values():
        owner = (one.uid, one.gid, one.uname, one.gname, one.mtime)
        assert owner == (0, 0, "", "", 315_532_800)
    assert found["bin/program"][1] == b"#!/usr/bin/env python\nprint(1)\n"
    assert found["empty"][1] == b""
    relocations = json.loads(found["hepscale/relocate-own.json"][1])
    assert relocations == [list(one) for one in written.relocations]
    assert [(target, mode) for target, _, mode in relocations] == [
        ("etc/settings", "text"),
        ("lib/binary", "binary"),
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_bytes_do_not_depend_on_how_it_was_made(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pack.write_layer("own", entries(tmp_path / "one"), tmp_path / "first", form)
    again = entries(tmp_path / "two")
    random.Random(2).shuffle(again)
    for at, entry in enumerate(again):
        if entry.source:
            os.utime(entry.source, (1_000_000_000 + at, 1_000_000_000 + at))
            os.chmod(entry.source, os.stat(entry.source).st_mode | 0o066)
    for cores in (1, 3, 1000):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        second = pack.write_layer("own", again, tmp_path / "second", form)
        assert second == first
        assert (tmp_path / "second").read_bytes() == (tmp_path / "first").read_bytes()


def test_formats_hold_the_same(tmp_path: Path) -> None:
    found = []
    for form in FORMATS:
        pack.write_layer("own", entries(tmp_path / form / "files"), tmp_path / "layer", form)
        found.append(
            {n: (o.get_info(), d) for n, (o, d) in members(tmp_path / "layer", form).items()}
        )
    assert found[0] == found[1]


@pytest.mark.parametrize("form", FORMATS)
def test_tar_unpacks_it(tmp_path: Path, form: str) -> None:
    pack.write_layer("own", entries(tmp_path / "files"), tmp_path / f"layer.{form}", form)
    (tmp_path / "out").mkdir()
    if form == "tar.gz":
        subprocess.run(["tar", "-C", "out", "-xzf", f"layer.{form}"], cwd=tmp_path, check=True)
    else:
        content = pack.zstd().decompress((tmp_path / f"layer.{form}").read_bytes())
        subprocess.run(["tar", "-C", "out", "-xf", "-"], cwd=tmp_path, input=content, check=True)
    out = tmp_path / "out"
    assert (out / "lib/large").read_bytes() == LARGE
    assert (out / f"{'deep/' * 60}file").read_bytes() == b"far down"
    assert (out / os.fsdecode(b"caf\xe9")).read_bytes() == b"no text"
    assert os.readlink(out / "bin/link") == "program"
    assert os.access(out / "bin/program", os.X_OK)


def test_archive_is_one_of_conda_pack(tmp_path: Path) -> None:
    target = tmp_path / "env.tar.gz"
    written = pack.write_archive(entries(tmp_path / "files"), target, "tar.gz")
    found = members(target, "tar.gz")
    scripts = {"bin/activate", "bin/deactivate", "bin/conda-unpack", "bin/conda_unpack_progress.py"}
    assert scripts < found.keys()
    assert found["bin/conda-unpack"][0].mode == 0o755
    assert written.files == len(found)
    assert not any("relocate" in name for name in found)
    prefix = tmp_path / "new place"
    prefix.mkdir()
    subprocess.run(["tar", "-C", prefix, "-xzf", target], check=True)
    for _ in range(2):
        unpack = [sys.executable, prefix / "bin/conda-unpack"]
        subprocess.run(unpack, check=True, capture_output=True)
        assert (prefix / "etc/settings").read_text() == f"home = {prefix}\n"
    again = pack.write_archive(entries(tmp_path / "again"), tmp_path / "again.tar.gz", "tar.gz")
    assert again.sha256 == written.sha256


def test_nothing_at_all(tmp_path: Path) -> None:
    for form in FORMATS:
        written = pack.write_layer("own", [], tmp_path / "layer", form)
        assert members(tmp_path / "layer", form) == {}
        assert (written.files, written.unpacked_bytes, written.relocations) == (0, 0, ())


@pytest.mark.parametrize("form", FORMATS)
def test_memory_does_not_grow_with_the_archive(tmp_path: Path, form: str) -> None:
    path = tmp_path / "large"
    path.write_bytes(random.Random(4).randbytes(4_000_000))
    code = (
        "import os, resource, sys\n"
        "os.sched_getaffinity = lambda _: {0, 1}\n"
        "from pathlib import Path\n"
        "from hepscale.env import pack\n"
        "from hepscale.env.contents import Entry\n"
        "path, form = sys.argv[1:]\n"
        "listed = [Entry(str(at), path) for at in range(20)]\n"
        "pack.write_layer('own', listed[:1], Path(path + '.out'), form)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "pack.write_layer('own', listed, Path(path + '.out'), form)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1000)\n"
    )
    command = [sys.executable, "-c", code, str(path), form]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # of 80 MB of files; zstd looks for what it has seen in the last 128 MB
    assert int(done.stdout) < (45 if form == "tar.gz" else 160)


@pytest.mark.parametrize("form", FORMATS)
def test_file_that_cannot_be_read(tmp_path: Path, form: str) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made/layer").write_text("an older one")
    gone = Entry("m", str(tmp_path / "gone"))
    with pytest.raises(PackError) as caught:
        pack.write_layer("own", [*entries(tmp_path / "x"), gone], tmp_path / "made/layer", form)
    assert caught.value.items == (str(tmp_path / "gone"),)
    assert os.listdir(tmp_path / "made") == ["layer"]
    assert (tmp_path / "made/layer").read_text() == "an older one"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_interrupted(tmp_path: Path, form: str, error: type[BaseException]) -> None:
    def stop(_: int) -> None:
        raise error

    with pytest.raises(error):
        pack.write_layer("own", entries(tmp_path / "x"), tmp_path / "made/layer", form, stop)
    assert os.listdir(tmp_path / "made") == []


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow beyond 1 MB, as a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("form", FORMATS)
def test_no_room(tmp_path: Path, form: str, request: pytest.FixtureRequest) -> None:
    # an error of a thread that compresses is one of the whole, and says so at once
    listed = entries(tmp_path / "files")
    more = [Entry(f"zz/{at}", str(tmp_path / "files/large")) for at in range(20)]
    told: list[int] = []
    request.getfixturevalue("small_files")
    with pytest.raises(PackError) as caught:
        pack.write_layer("own", [*listed, *more], tmp_path / "made/layer", form, told.append)
    assert caught.value.fact == f"The archive cannot be written: {os.strerror(errno.EFBIG)}."
    assert caught.value.fix == f"df -h {tmp_path / 'made'}"
    assert os.listdir(tmp_path / "made") == []
    assert len(told) < len(listed) + len(more)


def test_no_room_for_the_last_bytes(tmp_path: Path, small_files: None) -> None:
    few = [Entry("x", data=random.Random(3).randbytes(1_050_000))]
    for form in FORMATS:
        with pytest.raises(PackError, match="The archive cannot be written"):
            pack.write_layer("own", few, tmp_path / "made/layer", form)
        assert os.listdir(tmp_path / "made") == []


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PackError, match="The archive cannot be written") as caught:
        pack.write_layer("own", [], tmp_path / "file/layer", "tar.gz")
    assert caught.value.items == (str(tmp_path / "file/layer"),)


def test_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    with pytest.raises(PackError, match="The archive cannot be written"):
        pack.write_layer("own", [], tmp_path / "layer", "tar.gz")
    assert os.listdir(tmp_path) == ["layer"]


def test_format_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no format 'zip'") as caught:
        pack.write_layer("own", [], tmp_path / "layer", "zip")
    assert "tar.gz, tar.zst" in caught.value.cause
    assert os.listdir(tmp_path) == []


def test_gzip_of_a_stream(tmp_path: Path) -> None:
    pack.write_gzip(io.BytesIO(LARGE), tmp_path / "x.tar.gz")
    assert gzip.decompress((tmp_path / "x.tar.gz").read_bytes()) == LARGE
    first = (tmp_path / "x.tar.gz").read_bytes()
    pack.write_gzip(io.BytesIO(LARGE), tmp_path / "x.tar.gz")
    assert (tmp_path / "x.tar.gz").read_bytes() == first


def test_gzip_of_a_stream_that_is_cut_short(tmp_path: Path, small_files: None) -> None:
    with pytest.raises(PackError, match="The archive cannot be written"):
        pack.write_gzip(io.BytesIO(LARGE), tmp_path / "x.tar.gz")
    assert os.listdir(tmp_path) == []


def test_archives_have_the_mode_that_a_umask_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        pack.write_layer("own", [], tmp_path / "layer", "tar.gz")
    finally:
        os.umask(before)
    # workers of other users read the layers: nothing in them is a secret
    assert (tmp_path / "layer").stat().st_mode & 0o777 == 0o644
