"""What is installed is kept, and read again when anything has changed."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from site_folder import Prefix, direct_url, write

import hepscale
from hepscale.env import index

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path) -> Prefix:
    """A prefix with one of each kind."""
    here = Prefix(tmp_path / "prefix")
    for name in ("one", "two"):
        write(tmp_path / name, {f"src/{name}_tool.py": "", "pyproject.toml": ""})
    here.install(
        "pkg", {"pkg/__init__.py": ""}, entry_points="[a]\nx = pkg.x\n", requires=["numpy"]
    )
    here.install("part", {"space/part/__init__.py": "", "space/other.py": ""})
    here.install("more", {"space/more/__init__.py": "", "numpy/__init__.py": ""})
    here.install("work", {"x.pth": f"{tmp_path}/one/src"}, direct_url=direct_url(tmp_path / "one"))
    write(here.site / "egg-1.egg-info", {"PKG-INFO": "Name: egg\nVersion: 1\n"})
    here.add({"loose.py": "", "old.egg-link": f"{tmp_path}/one/src\n"})
    write(tmp_path / "one/src/old.egg-info", {"PKG-INFO": "Name: old\nVersion: 1\n"})
    write(tmp_path / "two/src/old.egg-info", {"PKG-INFO": "Name: old\nVersion: 2\n"})
    here.conda("native", ["lib/native.so"])
    # As if it had been there for long: two changes within one tick of the file system's clock
    # have the same time.
    for path in tmp_path.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return here


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "index"


def same(one: index.Index, other: index.Index) -> bool:
    modules = ["pkg.x", "space", "space.part", "space.more.x", "space.none", "loose", "one_tool"]
    modules += ["two_tool", "new", "space.new", "numpy"]
    return (
        dict(one.distributions) == dict(other.distributions)
        and [one.owners(module) for module in modules]
        == [other.owners(module) for module in modules]
        and [one.files(name) for name in one.distributions]
        == [other.files(name) for name in other.distributions]
    )


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(index, "scan", scan)


def test_what_is_kept_is_what_was_read(
    here: Prefix, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = here.load(cache=cache)
    assert same(first, here.load())
    (file,) = cache.iterdir()
    assert file.suffix == ".json"
    forbid_reading(monkeypatch)
    assert same(first, here.load(cache=cache))


def install(here: Prefix) -> None:
    here.install("new", {"new.py": ""})


def uninstall(here: Prefix) -> None:
    shutil.rmtree(here.site / "pkg")
    shutil.rmtree(here.site / "pkg-1.0.dist-info")


def install_again(here: Prefix) -> None:
    here.install("pkg", {"pkg/__init__.py": "", "new.py": ""})


def lose_a_record(here: Prefix) -> None:
    (here.site / "part-1.0.dist-info/RECORD").unlink()


def change_a_path(here: Prefix) -> None:
    (here.site / "x.pth").write_text(f"{here.root.parent}/two/src")


def change_an_egg_link(here: Prefix) -> None:
    (here.site / "old.egg-link").write_text(f"{here.root.parent}/two/src\n")


def develop_again(here: Prefix) -> None:
    info = here.root.parent / "one/src/old.egg-info"
    (info / "PKG-INFO").write_text("Name: old\nVersion: 1.1\n")


def install_an_egg_again(here: Prefix) -> None:
    (here.site / "egg-1.egg-info/PKG-INFO").write_text("Name: egg\nVersion: 1\nRequires-Dist: x\n")


def copy_a_module(here: Prefix) -> None:
    here.add({"new.py": ""})


def copy_into_a_namespace(here: Prefix) -> None:
    here.add({"space/new.py": ""})


def install_with_conda(here: Prefix) -> None:
    here.conda("new")


def update_with_conda(here: Prefix) -> None:
    here.conda("native", ["lib/native.so", "lib/more.so"])


@pytest.mark.parametrize(
    "change",
    [
        install,
        uninstall,
        install_again,
        lose_a_record,
        change_a_path,
        change_an_egg_link,
        develop_again,
        install_an_egg_again,
        copy_a_module,
        copy_into_a_namespace,
        install_with_conda,
        update_with_conda,
    ],
)
def test_every_change_is_seen(here: Prefix, cache: Path, change: Callable[[Prefix], None]) -> None:
    before = here.load(cache=cache)
    change(here)
    after = here.load(cache=cache)
    assert not same(before, after)
    assert same(after, here.load())
    assert len(list(cache.iterdir())) == 1


def test_conda_that_comes_later_is_seen(here: Prefix, cache: Path) -> None:
    shutil.rmtree(here.root / "conda-meta")
    assert "native" not in here.load(cache=cache).distributions
    here.conda("native", ["lib/native.so"])
    assert "native" in here.load(cache=cache).distributions


def test_other_version_of_hepscale_reads_anew(
    here: Prefix, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.load(cache=cache)
    forbid_reading(monkeypatch)
    monkeypatch.setattr(hepscale, "__version__", "9.9")
    with pytest.raises(AssertionError, match="read again"):
        here.load(cache=cache)


@pytest.mark.parametrize("damage", ["truncated", "empty", "bytes", "list", "found", "nested"])
def test_damaged_file_is_made_anew(
    here: Prefix, cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = here.load(cache=cache)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    changed = json.loads(whole)
    changed["found"] = [[[1, 2], 3, 4]]
    file.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "empty": b"",
            "bytes": b"\xff\0",
            "list": b"[]",
            "found": json.dumps(changed).encode(),
            "nested": b"[" * 100_000,
        }[damage]
    )
    assert same(first, here.load(cache=cache))
    assert json.loads(file.read_bytes()) == json.loads(whole)


def test_folder_that_cannot_be_written_is_no_hindrance(here: Prefix, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert same(here.load(), here.load(cache=tmp_path / "file" / "cache"))
    assert same(here.load(), here.load(cache=tmp_path / "file"))


def test_full_disk_leaves_nothing_behind(
    here: Prefix, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(index.os, "replace", replace)
    assert same(here.load(), here.load(cache=cache))
    assert list(cache.iterdir()) == []
