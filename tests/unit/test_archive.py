"""Environments that come as one file: ours, and those of others."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from hepscale.env import archive, pack
from hepscale.env.contents import Entry
from hepscale.env.spec import Item, Spec
from hepscale.env.store import Store
from hepscale.errors import HepScaleError, InputError, PackError

SPEC = Spec("3.11.7", "2.34", "x86_64", {"python": Item("3.11.7", "a" * 64)}, {"x": Item("", "b")})
SITE = "lib/python3.11/site-packages"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def ours(path: Path, text: str = "") -> Path:
    """Write an archive as `hepscale.pack` does, with a large file behind its description."""
    text = text or json.dumps(SPEC.as_json())
    entries = [
        Entry("bin/python3", data=b"#!/bin/sh\n", executable=True),
        Entry("hepscale/environment.json", data=text.encode()),
        Entry("lib/large", data=bytes(range(256)) * 8000),
    ]
    pack.write_archive(entries, path, "tar.zst" if path.name.endswith(".zst") else "tar.gz")
    return path


def others(path: Path, *names: str) -> Path:
    """Write an archive as conda-pack does."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as out:
        for name in names:
            out.addfile(tarfile.TarInfo(name))
        out.addfile(tarfile.TarInfo("link"))
    data = content.getvalue()
    is_zstd = path.name.endswith(".zst")
    path.write_bytes(pack.zstd().compress(data) if is_zstd else gzip.compress(data))
    return path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("env.tar.gz", True),
        ("/a/b/env.tgz", True),
        ("env.tar.zst", True),
        ("env.zip", False),
        ("tar.gz", False),
        ("analysis.py", False),
        ("abcdef", False),
    ],
)
def test_names_of_archives(name: str, expected: bool) -> None:
    assert archive.is_archive(name) == expected


@pytest.mark.parametrize("name", ["env.tar.gz", "env.tgz", "env.tar.zst"])
def test_ours(tmp_path: Path, store: Store, name: str) -> None:
    path = ours(tmp_path / name)
    assert archive.spec(path) == SPEC
    made = archive.take(path, store)
    content = path.read_bytes()
    if not name.endswith(".zst"):
        assert made.digest == hashlib.sha256(content).hexdigest()
    assert (made.python, made.glibc, made.machine, made.whole) == ("3.11.7", "2.34", "x86_64", True)
    (layer,) = made.layers
    assert made.digest == layer.content == layer.sha256
    # a worker without Python reads gzip only
    with gzip.open(layer.path) as stream, tarfile.open(fileobj=stream) as unpacked:
        assert "bin/conda-unpack" in unpacked.getnames()
    assert layer.sha256 == hashlib.sha256(layer.path.read_bytes()).hexdigest()
    assert layer.size_bytes == layer.path.stat().st_size
    assert (layer.path == path) == (not name.endswith(".zst"))
    told = made.describe("9.9").splitlines()
    assert told[:3] == ["hepscale-environment 1", f"digest {made.digest}", "hepscale 9.9"]
    assert f"layer interpreter {layer.sha256} {layer.size_bytes} {layer.path.name}" in told
    assert told[-1] == "relocate conda-unpack"
    assert archive.take(path, store) == made


def test_archive_is_read_once(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ours(tmp_path / "env.tar.gz")
    made = archive.take(path, store)
    with monkeypatch.context() as patch:
        patch.setattr(archive, "spec", lambda _: pytest.fail("it was read again"))
        assert archive.take(path, store) == made
    changed = ours(path, json.dumps({**SPEC.as_json(), "python": "3.13.0"}))
    assert archive.take(changed, store).python == "3.13.0"


def test_relative_path(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = archive.take(ours(tmp_path / "env.tar.gz"), store)
    monkeypatch.chdir(tmp_path)
    assert archive.take(Path("env.tar.gz"), store) == made


@pytest.mark.parametrize("name", ["env.tar.gz", "env.tar.zst"])
@pytest.mark.parametrize("dot", ["", "./"])
def test_conda_packs(tmp_path: Path, store: Store, name: str, dot: str) -> None:
    names = [
        "conda-meta/python-3.12.1-hab00c5b_1_cpython.json",
        "conda-meta/xorg-libx11-1.8.9-h8ee46fc_0.json",
        "conda-meta/history",
        f"{SITE}/numpy-2.0.0.dist-info/METADATA",
        f"{SITE}/My_Package-1.0rc1.dist-info/METADATA",
        f"{SITE}/old-0.1.egg-info/PKG-INFO",
        f"{SITE}/numpy/numpy-9.dist-info.py",
    ]
    path = others(tmp_path / name, *(f"{dot}{one}" for one in names))
    found = archive.take(path, store)
    assert (found.python, found.glibc, found.machine) == ("3.12.1", "", "")
    assert archive.spec(path).distributions == {
        "python": Item("3.12.1"),
        "xorg-libx11": Item("1.8.9"),
        "numpy": Item("2.0.0"),
        "my-package": Item("1.0rc1"),
        "old": Item("0.1"),
    }
    assert "glibc -" in found.describe("1").splitlines()
    assert "machine -" in found.describe("1").splitlines()


def refused(path: Path, store: Store, kind: type[HepScaleError] = InputError) -> HepScaleError:
    with pytest.raises(kind) as caught:
        archive.take(path, store)
    assert type(caught.value) is kind
    assert str(path) in caught.value.items[0]
    assert caught.value.cause
    assert caught.value.fix
    assert list((store.folder / "layers").glob("*")) == []
    return caught.value


@pytest.mark.parametrize("name", ["env.tar.gz", "env.tar.zst"])
def test_no_environments(tmp_path: Path, store: Store, name: str) -> None:
    path = tmp_path / name
    assert refused(path, store).fact == "There is no such archive."
    path.mkdir()
    assert refused(path, store).fact == "There is no such archive."
    path.rmdir()
    for content in (
        b"",
        b"text",
        b"\x1f\x8b\x08\0\0\0\0\0\0\xff",
        b"\x28\xb5\x2f\xfd",
        bytes(5000),
    ):
        path.write_bytes(content)
        assert refused(path, store).fact == "This is no packed environment."
    others(path, "bin/x", "etc/python")
    assert refused(path, store).items == (f"{path}: it holds no Python",)
    other = ours(tmp_path / "other.tar.gz" if name.endswith("zst") else tmp_path / "other.tar.zst")
    other.rename(path)
    assert refused(path, store).fact == "This is no packed environment."


@pytest.mark.parametrize("name", ["env.tar.gz", "env.tar.zst"])
def test_damaged_archives(tmp_path: Path, store: Store, name: str) -> None:
    names = (f"{SITE}/package_{at:04}-{at}.dist-info/METADATA" for at in range(2000))
    path = others(tmp_path / name, "conda-meta/python-3.12.1-0.json", *names)
    content = path.read_bytes()
    path.write_bytes(content[:30] + b"\xff" * 500 + content[530:])
    refused(path, store)
    for end in (5, 100, len(content) // 2):
        path.write_bytes(content[:end])
        refused(path, store)
    path.write_bytes(content)
    assert archive.take(path, store).python == "3.12.1"


def test_zstd_that_is_cut_behind_its_description(tmp_path: Path, store: Store) -> None:
    path = ours(tmp_path / "env.tar.zst")
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    assert archive.spec(path) == SPEC
    refused(path, store)
    path.write_bytes(content)
    assert archive.take(path, store).python == "3.11.7"


def test_gzip_that_is_cut_behind_its_description(tmp_path: Path, store: Store) -> None:
    path = ours(tmp_path / "env.tar.gz")
    archive.verify(path)
    content = path.read_bytes()
    for damaged in (content[:-30], content[:-10] + b"\xff" * 10):
        path.write_bytes(damaged)
        assert archive.take(path, store).python == "3.11.7"
        with pytest.raises(InputError) as caught:
            archive.verify(path)
        assert caught.value.fact == "The archive is damaged."
        assert caught.value.fix.endswith(f"hepscale env pack analysis.ipynb -o {path}")


@pytest.mark.parametrize("text", ["[]", '{"format": 1}', '{"format": 7}'])
def test_description_that_is_damaged_or_newer(tmp_path: Path, store: Store, text: str) -> None:
    path = ours(tmp_path / "env.tar.gz", text)
    with pytest.raises(PackError):
        archive.take(path, store)


def test_description_that_is_no_json(tmp_path: Path, store: Store) -> None:
    refused(ours(tmp_path / "env.tar.gz", "{"), store)
