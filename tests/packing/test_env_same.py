"""The same environment gives the same bytes, and what has not changed is not packed again."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import wheels

import hepscale
from hepscale.env import api, environment
from hepscale.env.environment import Environment, Packed
from hepscale.env.store import Layer

FORMATS = ["tar.gz", "tar.zst"]


@dataclass(frozen=True)
class Made:
    """A venv, an analysis, and what was packed of them."""

    venv: wheels.Venv
    script: Path
    environment: Environment
    packed: dict[str, Packed]


def build(script: Path, venv: wheels.Venv) -> tuple[Environment, list[str]]:
    """Return an environment from the store, and what of it was packed for that."""
    told: dict[str, None] = {}
    plan = api.planned(hepscale.analyze(script, python=venv.python))
    made = environment.build(plan, api.store(), tell=lambda label, *_: told.update({label: None}))
    return made, [label for label in told if label != "other packages"]


def pack_all(folder: Path, venv: wheels.Venv, script: Path) -> Made:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEPSCALE_CACHE_DIR", str(folder / "cache"))
        packed = {
            form: hepscale.pack(script, folder / f"env.{form}", python=venv.python)
            for form in FORMATS
        }
        return Made(venv, script, build(script, venv)[0], packed)


@pytest.fixture(scope="module")
def first(venv: wheels.Venv, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("first")
    return pack_all(folder, venv, wheels.analysis(folder / "own"))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Pack another installation of the same: elsewhere, at another time, with one thread."""
    # a path with a blank: installers write another kind of script there
    folder = tmp_path_factory.mktemp("second") / "another folder"
    folder.mkdir()
    venv, script = wheels.make(folder), wheels.analysis(folder / "of somebody/else")
    paths = [*venv.prefix.rglob("*"), *script.parent.rglob("*"), *venv.project.rglob("*")]
    for at, path in enumerate(sorted(paths)):
        if not path.is_symlink():
            os.utime(path, (1_000_000_000 + at, 1_000_000_000 + at))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        return pack_all(folder, venv, script)


@pytest.fixture
def copied(first: Made, tmp_path: Path) -> wheels.Venv:
    """Copy the first venv, as it may not be changed."""
    shutil.copytree(first.venv.prefix, tmp_path / "copied", symlinks=True)
    return wheels.Venv(tmp_path / "copied", first.venv.project)


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPSCALE_CACHE_DIR", str(tmp_path / "cache"))


def facts(layer: Layer | None) -> tuple[object, ...]:
    assert layer is not None
    return layer.kind, layer.content, layer.sha256, layer.path.read_bytes()


@pytest.mark.parametrize("form", FORMATS)
def test_archives_are_the_same(first: Made, second: Made, form: str) -> None:
    one, other = first.packed[form], second.packed[form]
    assert one.path != other.path
    assert one.path.read_bytes() == other.path.read_bytes()
    assert (one.sha256, one.spec) == (other.sha256, other.spec)


def test_layers_are_the_same(first: Made, second: Made) -> None:
    one, other = first.environment, second.environment
    assert one.digest == other.digest
    assert one.describe("1") == other.describe("1")
    kinds = [layer.path.name.split("-")[0] for layer in one.layers]
    assert kinds[:2] == ["interpreter", "packages"]
    assert list(map(facts, one.layers)) == list(map(facts, other.layers))
    assert facts(one.code) == facts(other.code)


@pytest.mark.usefixtures("no_cache")
def test_moved_venv_gives_the_same(first: Made, copied: wheels.Venv, tmp_path: Path) -> None:
    packed = hepscale.pack(first.script, tmp_path / "env.tar.zst", python=copied.python)
    assert packed.sha256 == first.packed["tar.zst"].sha256


def test_unchanged_archive_is_not_written_again(
    first: Made, copied: wheels.Venv, tmp_path: Path
) -> None:
    def pack(name: str = "env.tar.zst") -> Packed:
        return hepscale.pack(first.script, tmp_path / name, python=copied.python)

    path = tmp_path / "env.tar.zst"
    assert not pack().unchanged
    before = path.stat()
    again = pack()
    assert again.unchanged
    assert path.stat() == before
    assert again.sha256 == first.packed["tar.zst"].sha256
    # under another name, and where somebody has cut the file
    assert not pack("other.tar.zst").unchanged
    with path.open("r+b") as stream:
        stream.truncate(before.st_size - 1)
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert not pack().unchanged
    assert path.stat().st_size == before.st_size
    path.rename(tmp_path / "moved.tar.zst")
    assert sorted(os.listdir(tmp_path)) == ["copied", "moved.tar.zst", "other.tar.zst"]
    assert pack("other.tar.zst").unchanged


@pytest.mark.parametrize("file", ["shade/__init__.py", "bin/lamp", "share", "new content"])
def test_edit_of_an_installed_file_is_noticed(
    first: Made, copied: wheels.Venv, file: str, tmp_path: Path
) -> None:
    before, _ = build(first.script, copied)
    path = {
        "bin/lamp": copied.prefix / "bin/lamp",
        "share": copied.prefix / "share/lamp/settings.ini",
    }.get(file, copied.site / "shade/__init__.py")
    seen = path.stat()
    path.write_text(path.read_text() + f"# {file}\n")
    if file == "new content":
        # as from an archive, with the time that it had there: another size tells
        os.utime(path, ns=(seen.st_mtime_ns, seen.st_mtime_ns))
    after, packed = build(first.script, copied)
    assert packed == ["packages"]
    assert before.digest != after.digest
    assert before.layers[0] == after.layers[0]
    assert before.code == after.code
    path.write_text(path.read_text().removesuffix(f"# {file}\n"))
    assert build(first.script, copied) == (before, [])


@pytest.mark.usefixtures("no_cache")
def test_edit_of_a_local_module_makes_a_code_layer_and_nothing_else(
    first: Made, copied: wheels.Venv, tmp_path: Path
) -> None:
    script = wheels.analysis(tmp_path / "own")
    before, packed = build(script, copied)
    assert packed == ["Python", "packages", "local modules"]
    times = [layer.path.stat().st_ino for layer in before.layers]
    assert build(script, copied) == (before, [])
    (script.parent / "helper.py").write_text("HELP = 'no'\n")
    after, packed = build(script, copied)
    assert packed == ["local modules"]
    assert after.digest == before.digest
    assert after.layers == before.layers
    assert [layer.path.stat().st_ino for layer in after.layers] == times
    assert before.code is not None
    assert after.code is not None
    assert after.code.sha256 != before.code.sha256
    assert after.code.size_bytes < 100_000


def test_analysis_itself_is_in_no_layer(first: Made, copied: wheels.Venv, tmp_path: Path) -> None:
    script = wheels.analysis(tmp_path / "own")
    before, _ = build(script, copied)
    script.write_text(script.read_text() + "print('more')\n")
    assert build(script, copied) == (before, [])
