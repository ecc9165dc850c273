"""Shared libraries: read from real files, found as the loader finds them, used after a move."""

from __future__ import annotations

import _ctypes
import os
import platform
import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hepscale.env import native
from hepscale.env.native import Elf, closure, read, rpath_patches

if TYPE_CHECKING:
    pass
from libraries import INTERPRETER, handmade, library, patchelf, said_rpath


def installed_libraries() -> list[str]:
    top = Path(np.__file__).parent.parent
    folders = [
        Path(_ctypes.__file__).parent,
        top / "numpy",
        top / "numpy.libs",
        top / "awkward_cpp",
    ]
    found = [str(path) for folder in folders for path in folder.rglob("*.so*")]
    return [INTERPRETER, *found]


def test_reads_what_patchelf_reads() -> None:
    files = installed_libraries()
    assert len(files) > 30
    for path in files:
        found = read(path)
        assert found is not None
        # patchelf goes by the section headers, which we do not need
        assert list(found.needed) == patchelf("--print-needed", path).split()
        assert list(found.rpath) == [part for part in said_rpath(path).split(":") if part]
        if path != INTERPRETER:
            assert found.soname == patchelf("--print-soname", path).strip()


def test_both_kinds_of_search_paths(tmp_path: Path) -> None:
    old = read(library(tmp_path / "liba.so", rpath="$ORIGIN:/opt/x"))
    new = read(library(tmp_path / "libb.so", runpath="$ORIGIN/../lib"))
    assert old is not None
    assert new is not None
    assert (old.rpath, old.runpath) == (("$ORIGIN", "/opt/x"), False)
    assert (new.rpath, new.runpath) == (("$ORIGIN/../lib",), True)
    assert (old.soname, new.soname) == ("liba.so", "libb.so")


@pytest.mark.parametrize(
    ("versions", "newest"),
    [
        ((), None),
        ([("GLIBC_2.2.5", False)], (2, 2)),
        ([("GLIBC_2.17", False), ("GLIBC_2.4", False)], (2, 17)),
        ([("GLIBC_2.9", False), ("GLIBC_2.34", True), ("GLIBC_2.10", False)], (2, 10)),
        ([("GLIBC_PRIVATE", False), ("GLIBCXX_3.4.30", False), ("GCC_3.0", False)], None),
        ([("GLIBC_2.14", False), ("GLIBC_ABI_DT_RELR", False)], (2, 36)),
    ],
)
def test_versions_of_glibc(
    tmp_path: Path, versions: list[tuple[str, bool]], newest: tuple[int, int] | None
) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(handmade(versions))
    assert read(path) == Elf(("libc.so.6",), "", (), newest)


def test_versions_of_glibc_in_a_real_file() -> None:
    found = read(INTERPRETER)
    assert found is not None
    assert found.glibc is not None
    _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    assert (2, 0) < found.glibc <= tuple(map(int, version.split(".")))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF",
        b"#!/bin/sh\n",
        b"INPUT ( libtbb.so.12 )\n" * 9,
        handmade(machine="riscv64"),
        handmade(machine={"x86_64": "aarch64", "aarch64": "x86_64"}[platform.machine()]),
        handmade(bits=1),
        handmade(order=2),
    ],
)
def test_what_is_no_library_of_this_machine(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(content)
    assert read(path) is None
    assert closure([str(path)]) == native.Native((), "", ())
    assert rpath_patches(path) == ()


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.so").mkdir()
    os.mkfifo(tmp_path / "pipe.so")
    assert read(tmp_path / "folder.so") is None
    assert read(tmp_path / "nothing.so") is None
    assert closure(str(path) for path in tmp_path.iterdir()) == native.Native((), "", ())


def test_damaged_files_are_no_libraries(tmp_path: Path) -> None:
    good = Path(library(tmp_path / "good.so", ["libx.so.1"], rpath="$ORIGIN")).read_bytes()
    path = tmp_path / "bad.so"
    dice = random.Random(20)
    none = 0
    for content in (good[:4096], handmade([("GLIBC_2.14", False)])):
        for length in range(0, len(content), 7):
            path.write_bytes(content[:length])
            none += read(path) is None
        for _ in range(400):
            damaged = bytearray(content)
            for _ in range(dice.randrange(1, 9)):
                damaged[dice.randrange(len(damaged))] = dice.choice((0, 1, 127, 255))
            path.write_bytes(damaged)
            none += read(path) is None
            rpath_patches(path)
    assert none > 600
