"""The store of layers, when things go wrong: full disks, kills, damage, two at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wheels
from as_root import mounted
from support import script as started
from support import wait_for

import hepscale
from hepscale import PackError
from hepscale.env import api, environment
from hepscale.env.environment import Environment

BUILD = """\
import json, os, sys, time
import hepscale
from hepscale.env import api, environment

script, python, begun = sys.argv[1:]
told = {}

def tell(label, done, total):
    told[label] = [done, total]
    if begun and label == "packages":
        os.close(os.open(begun, os.O_CREAT))
        time.sleep(600)

plan = api.planned(hepscale.analyze(script, python=python))
made = environment.build(plan, api.store(), tell=tell)
shas = [one.sha256 for one in (*made.layers, made.code)]
print(json.dumps([sorted({*told} - {"other packages"}), made.digest, shas]))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEPSCALE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(script: Path, venv: wheels.Venv) -> tuple[Environment, list[str]]:
    told: dict[str, None] = {}
    plan = api.planned(hepscale.analyze(script, python=venv.python))
    made = environment.build(plan, api.store(), tell=lambda label, *_: told.update({label: None}))
    return made, [label for label in told if label != "other packages"]


def shas(made: Environment) -> list[str]:
    assert made.code is not None
    return [one.sha256 for one in (*made.layers, made.code)]


def files(folder: Path) -> set[str]:
    return {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}


@pytest.mark.root
@pytest.mark.parametrize("form", ["tar.gz", "tar.zst"])
def test_full_disk_while_an_archive_is_written(
    script: Path, venv: wheels.Venv, tmp_path: Path, form: str
) -> None:
    with mounted(tmp_path / "small", "size=4m") as small:
        target = small / f"env.{form}"
        (small / "mine").write_text("mine")
        with pytest.raises(PackError) as caught:
            hepscale.pack(script, target, python=venv.python)
        assert caught.value.fact == "The archive cannot be written: No space left on device."
        assert caught.value.items == (str(target),)
        assert caught.value.fix == f"df -h {small}"
        assert os.listdir(small) == ["mine"]
        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        packed = hepscale.pack(script, target, python=venv.python)
        assert packed.size_bytes == target.stat().st_size
        assert sorted(os.listdir(small)) == [f"env.{form}", "mine"]


@pytest.mark.root
def test_full_disk_leaves_an_archive_that_was_there(
    script: Path, venv: wheels.Venv, tmp_path: Path
) -> None:
    with mounted(tmp_path / "small", "size=4m") as small:
        target = small / "env.tar.zst"
        target.write_bytes(b"an older one")
        with pytest.raises(PackError):
            hepscale.pack(script, target, python=venv.python)
        assert target.read_bytes() == b"an older one"


@pytest.mark.root
@pytest.mark.parametrize("size", ["100k", "4m"])
def test_full_disk_of_the_store(
    script: Path, venv: wheels.Venv, cache: Path, size: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with mounted(cache, f"size={size}") as small:
        with pytest.raises(PackError) as caught:
            build(script, venv)
        assert "No space left on device" in caught.value.fact
        assert str(cache) in caught.value.items[0]
        assert caught.value.fix
        left = files(small)
        assert not [one for one in left if "layers" in one or "/." in one], left
        if size == "4m":
            subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
            made, _ = build(script, venv)
            assert build(script, venv) == (made, [])
    assert capfd.readouterr().err == ""


def test_killed_while_it_packs(
    script: Path, venv: wheels.Venv, cache: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    with started(tmp_path / "build.py", BUILD, script, venv.python, begun) as process:
        wait_for(begun.exists)
        process.kill()
    layers = cache / "environments/layers"
    (leftover,) = layers.glob(".packages-*")
    assert len(list(layers.glob("interpreter-*.tar.gz"))) == 1
    assert not (cache / "environments/environments").exists()
    made, packed = build(script, venv)
    # the interpreter was whole
    assert packed == ["packages", "local modules"]
    assert build(script, venv) == (made, [])
    # somebody may be writing it
    api.store().prune(1)
    assert leftover.exists()
    os.utime(leftover, (time.time() - 3600, time.time() - 3600))
    api.store().prune(1)
    assert not leftover.exists()
    assert build(script, venv) == (made, [])


def test_two_at_once_pack_each_layer_once(
    script: Path, venv: wheels.Venv, cache: Path, tmp_path: Path
) -> None:
    with (
        started(tmp_path / "one.py", BUILD, script, venv.python, "") as one,
        started(tmp_path / "two.py", BUILD, script, venv.python, "") as two,
    ):
        told, other = one.finish(), two.finish()
    assert told[1:] == other[1:]
    assert sorted(told[0] + other[0]) == ["Python", "local modules", "packages"]
    made, packed = build(script, venv)
    assert packed == []
    assert [made.digest, shas(made)] == told[1:]
    names = {one.name.partition("-")[0] for one in (cache / "environments/layers").iterdir()}
    assert names == {"interpreter", "packages", "code"}
    assert len(list((cache / "environments/layers").iterdir())) == 2 * len(shas(made))


@pytest.mark.parametrize("damage", ["truncated", "gone", "no description", "bad description"])
def test_damaged_layer_is_made_again(script: Path, venv: wheels.Venv, damage: str) -> None:
    before, _ = build(script, venv)
    path = before.layers[1].path
    about = path.parent / f"{path.name.partition('.')[0]}.json"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "gone":
        path.unlink()
    elif damage == "no description":
        about.unlink()
    else:
        about.write_text("[1, 2")
    after, packed = build(script, venv)
    assert packed == ["packages"]
    assert after == before
    assert path.read_bytes() == content


def test_damaged_memory_is_passed_over(script: Path, venv: wheels.Venv) -> None:
    before, _ = build(script, venv)
    seen = api.store().folder / "seen"
    for path in seen.iterdir():
        path.write_text('{"value":')
    assert build(script, venv) == (before, [])
    assert sum(path.read_text().endswith("}") for path in seen.iterdir()) == 4


def test_file_that_goes_away_while_it_is_packed(venv: wheels.Venv, tmp_path: Path) -> None:
    script = wheels.analysis(tmp_path / "own")
    plan = api.planned(hepscale.analyze(script, python=venv.python))
    (script.parent / "helper.py").unlink()
    with pytest.raises(PackError) as caught:
        environment.build(plan, api.store())
    assert caught.value.items == (str(script.parent / "helper.py"),)
    assert (
        caught.value.fact
        == "A file that is to be packed cannot be read: No such file or directory."
    )
    assert caught.value.fix


@contextlib.contextmanager
def used(folder: Path) -> Iterator[None]:
    """Hold an unpacked environment as a worker does."""
    with (folder / ".hepscale-ready").open("rb") as mark:
        fcntl.flock(mark, fcntl.LOCK_SH)
        yield


def test_prune_keeps_what_was_used_last(
    script: Path, venv: wheels.Venv, cache: Path, tmp_path: Path
) -> None:
    made, _ = build(script, venv)
    other = tmp_path / "other.py"
    other.write_text("import shade\n")
    newer, _ = build(other, venv)
    old = time.time() - 3600
    store = api.store()
    for path in store.folder.glob("layers/*"):
        os.utime(path, (old, old))
    unpacked = cache / "unpacked"
    for name in (made.digest, newer.digest, "0" * 64):
        (unpacked / name / "bin").mkdir(parents=True)
        (unpacked / name / ".hepscale-ready").touch()
    with used(unpacked / made.digest):
        done = store.prune(1, unpacked)
        assert done.environments == 1
        assert done.size_bytes > newer.layers[1].size_bytes
        assert sorted(os.listdir(unpacked)) == sorted([made.digest, newer.digest])
    assert [digest for digest, *_ in store.environments()] == [newer.digest]
    kept = {one.path.name for one in newer.layers}
    assert {path.name for path in store.folder.glob("layers/*.tar.*")} == kept
    assert build(other, venv) == (newer, [])
    store.prune(0, unpacked)
    assert os.listdir(unpacked) == []
    # what was made or asked for a moment ago stays: it may be about to be sent
    assert {path.name for path in store.folder.glob("layers/*.tar.*")} == kept
    assert store.environments() == []


def test_edit_while_it_is_packed(venv: wheels.Venv, cache: Path, tmp_path: Path) -> None:
    script = wheels.analysis(tmp_path / "own")
    helper = script.parent / "helper.py"
    before, _ = build(script, venv)
    original = helper.read_text()
    helper.write_text("HELP = 'edited'\n")
    plan = api.planned(hepscale.analyze(script, python=venv.python))
    edits = iter(["HELP = 'edited again'\n"])

    def edit(label: str, *_: int) -> None:
        for text in edits:
            helper.write_text(text)

    made = environment.build(plan, api.store(), tell=edit)
    # a layer holds what its name says
    assert build(script, venv) == (made, [])
    helper.write_text("HELP = 'edited'\n")
    after, packed = build(script, venv)
    assert packed == ["local modules"]
    assert after.code is not None
    with tarfile.open(after.code.path) as archive:
        assert archive.extractfile("helper.py").read() == b"HELP = 'edited'\n"
    helper.write_text(original)
    assert build(script, venv) == (before, [])


def test_file_that_never_stays_the_same(venv: wheels.Venv, tmp_path: Path) -> None:
    layers = api.store().folder / "layers"
    before = set(layers.glob("code-*.tar.*"))
    script = wheels.analysis(tmp_path / "own")
    log = script.parent / "tool/data/n.txt"
    log.write_text("begun\n")
    plan = api.planned(hepscale.analyze(script, python=venv.python))

    def grow(label: str, *_: int) -> None:
        with log.open("a") as stream:
            stream.write("more\n")

    with pytest.raises(PackError, match="local modules change while they are packed") as caught:
        environment.build(plan, api.store(), tell=grow)
    assert caught.value.fix
    assert set(layers.glob("code-*.tar.*")) == before
