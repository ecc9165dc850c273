"""Runs in a given archive: HepScale's own in both formats, and what conda-pack has made."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import conda
import packed
import pytest
import wheels
from conda_pack import core
from packed import calculate, failing
from support import complete
from unpacking import flipped

import hepscale
from hepscale.env import api
from hepscale.env.spec import Spec
from hepscale.errors import ConfigError, InputError, PackError, PayloadError

pytestmark = pytest.mark.usefixtures("nothing_left", "fresh")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Work in a cache of its own."""
    packed.without_coffea(monkeypatch)
    yield from packed.another_cache(tmp_path / "cache", monkeypatch)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("analysis") / "analysis.py"
    path.write_text("import cloudpickle\nimport local_part\n")
    (path.parent / "local_part.py").write_text("VALUE = 5\n")
    return path


@pytest.fixture(scope="module")
def archives(script, tmp_path_factory):
    """Return archives that `hepscale.pack` has written, by their formats."""
    folder = tmp_path_factory.mktemp("archive")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEPSCALE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return {
            form: hepscale.pack(script, folder / f"env.{form}").path
            for form in ("tar.gz", "tar.zst")
        }


@pytest.fixture
def archive(archives):
    return archives["tar.gz"]


def prefix(item):
    return sys.prefix


def works(archive):
    (found,) = {*calculate(prefix, environment=archive)}
    assert [found] == [*map(str, packed.unpacked())]
    assert packed.left_over() == []
    return found


@pytest.mark.parametrize("form", ["tar.gz", "tar.zst"])
def test_archive(archives, form):
    archive = archives[form]

    def work(item):
        import cloudpickle

        # the archive holds local modules too
        return sys.prefix, cloudpickle.__version__, __import__("local_part").VALUE

    import cloudpickle

    found = {*calculate(work, environment=str(archive))}
    ((prefix, version, value),) = found
    assert (version, value) == (cloudpickle.__version__, 5)
    assert [prefix] == [*map(str, packed.unpacked())]
    assert {*calculate(work, environment=archive)} == found


def test_unpacked_archive_is_kept_like_other_environments(archive, monkeypatch):
    monkeypatch.setenv("HEPSCALE_KEEP_ENVIRONMENTS", "2")
    found = works(archive)
    packs = {*calculate(prefix)}
    hepscale.shutdown()
    # which removes what is not wanted any more
    assert {*calculate(prefix)} == packs
    assert {*map(str, packed.unpacked())} == {found, *packs}
    closures = [record["closure"] for record in packed.records().values()]
    assert sorted(closures) == ["archive", "full"]
    hepscale.shutdown()
    api.store().prune(0, packed.cache() / "unpacked")
    assert packed.unpacked() == []
    works(archive)


def test_rewritten_archive_is_another_environment(archive, script, tmp_path):
    copy = Path(shutil.copy(archive, tmp_path))
    first = works(copy)
    (script.parent / "local_part.py").write_text("VALUE = 6\n")
    try:
        hepscale.pack(script, copy)
    finally:
        (script.parent / "local_part.py").write_text("VALUE = 5\n")
    assert calculate(lambda item: __import__("local_part").VALUE, [0], environment=copy) == [6]
    assert first in map(str, packed.unpacked())


def test_finished_run_elsewhere_is_not_resumed_in_an_archive(archive, tmp_path):
    def work(item):
        with open(tmp_path / "ran", "a") as out:
            out.write(f"{item}\n")
        return item

    def ran(environment):
        assert calculate(work, environment=environment, resume=True) == [0, 1, 2]
        text = (tmp_path / "ran").read_text()
        (tmp_path / "ran").write_text("")
        return len(text.split())

    assert [ran(None), ran(None), ran(archive), ran(archive)] == [3, 0, 3, 0]


# -- archives that cannot be used ------------------------------------------------------------------


def test_archive_that_is_missing(archive):
    error = failing(prefix, environment="nowhere/env.tar.gz")
    assert isinstance(error, InputError)
    assert error.fact == "There is no such archive."
    works(archive)


def tar(**members):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return gzip.compress(content.getvalue(), mtime=0)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<html>404 Not Found</html>", "Not a gzipped file"),
        (b"", "empty file"),
        (gzip.compress(b"text", mtime=0), ""),
        (tar(some=b"thing"), "it holds no Python"),
    ],
)
def test_file_that_is_no_environment(tmp_path, content, why):
    path = tmp_path / "env.tar.gz"
    path.write_bytes(content)
    error = failing(prefix, environment=path)
    assert isinstance(error, InputError)
    assert error.fact == "This is no packed environment."
    assert error.items[0].startswith(f"{path}: {why}")
    assert "hepscale env pack" in error.fix


@pytest.mark.parametrize("form", ["tar.gz", "tar.zst"])
@pytest.mark.parametrize("damage", ["flipped", "cut short"])
def test_archive_that_is_damaged(archives, form, damage, tmp_path):
    copy = Path(shutil.copy(archives[form], tmp_path))
    good = copy.read_bytes()
    copy.write_bytes(flipped(good) if damage == "flipped" else good[:-1000])
    error = failing(prefix, environment=copy)
    complete(error)
    assert isinstance(error, InputError | PackError)
    assert str(copy) in str(error)
    assert "hepscale env pack" in error.fix
    assert packed.unpacked() == packed.left_over() == []
    # nobody has removed the user's file
    assert copy.exists()
    if form == "tar.gz":
        copy.write_bytes(good)
        works(copy)


def test_archive_whose_copy_for_workers_is_damaged(archives):
    archive = archives["tar.zst"]
    found = works(archive)
    hepscale.shutdown()
    shutil.rmtree(found)
    (path,) = (packed.cache() / "environments/layers").glob("archive-*.tar.gz")
    path.write_bytes(flipped(path.read_bytes()))
    error = failing(prefix, environment=archive)
    assert isinstance(error, PackError)
    assert error.fix == "run again: what was damaged is packed anew"
    assert works(archive) == found


def test_archive_of_another_python(tmp_path):
    told = json.dumps(Spec("3.9.18").as_json()).encode()
    path = tmp_path / "env.tar.gz"
    path.write_bytes(tar(**{"hepscale/environment.json": told}))
    error = failing(prefix, environment=path)
    assert isinstance(error, ConfigError)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert error.fact == f"The archive holds Python 3.9, and this is Python {here}."
    assert error.items == (str(path),)


def test_archive_that_lacks_what_the_analysis_needs(archive):
    import iniconfig

    def work(item):
        return iniconfig.__name__

    def work_later(item):
        import nbformat

        return nbformat.__name__

    error = failing(work, environment=archive)
    complete(error)
    assert isinstance(error, PayloadError)
    assert error.cause == f"{archive.name} was packed without iniconfig"
    assert error.fix.startswith("hepscale env pack --with iniconfig ")
    error = failing(work_later, environment=archive)
    complete(error)
    assert isinstance(error, ModuleNotFoundError)
    assert error.cause == f"{archive.name} was packed without nbformat"


# -- conda-pack ------------------------------------------------------------------------------------


def test_archive_of_conda_pack(tmp_path, tmp_path_factory):
    """What conda-pack itself makes of a conda prefix, with its records of prefixes."""
    made = tmp_path / "prefix"
    shutil.copytree(conda.shared(tmp_path_factory), made, symlinks=True)
    import cloudpickle

    folder = Path(cloudpickle.__file__).parent
    files = {f"cloudpickle/{one.name}": one.read_bytes() for one in folder.glob("*.py")}
    conda_python = wheels.Venv(made, made)
    wheels.install(conda_python, [wheels.wheel(tmp_path, "cloudpickle", files)])
    path = tmp_path / "env.tar.gz"
    core.pack(prefix=str(made), output=str(path), ignore_missing_files=True, n_threads=-1)
    shutil.rmtree(made)

    def work(item):
        conf = Path(sys.prefix, "etc/placed.conf").read_text()
        program = f"{sys.prefix}/bin/greet"
        done = subprocess.run([program], capture_output=True, text=True, check=True)
        return sys.prefix, conf, done.stdout

    ((found, conf, greeting),) = {*calculate(work, environment=path)}
    assert [found] == [*map(str, packed.unpacked())]
    assert found in conf
    assert "placeholder" not in conf
    assert greeting
    assert os.path.basename(found) in packed.records()
