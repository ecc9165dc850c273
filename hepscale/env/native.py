"""Shared libraries that a pack needs and glibc does not give.

A library that something packed asks for (ELF ``NEEDED``), that is not packed and that glibc does
not give, is put into the pack's ``lib`` folder. It is found there through the interpreter's
``DT_RPATH`` (:func:`set_rpath`), except by files with a ``DT_RUNPATH``: these are listed in
:attr:`Native.relink`, and :func:`rpath_patches` says which of their bytes to change.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import shutil
import stat
import subprocess
from collections import deque
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from hepscale.env.elf import Elf, read, rpath_patches, set_rpath

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["Elf", "Native", "closure", "read", "rpath_patches", "set_rpath"]

_log = logging.getLogger(__name__)

_ORIGIN = re.compile(r"\$(?:ORIGIN\b|\{ORIGIN\})")

# What is built from glibc's sources. Every worker that can start our interpreter has them, and a
# copy would fail there: they use one another's private symbols (GLIBC_PRIVATE), so they have to be
# of the same build as the loader, which is the worker's own.
_GLIBC = frozenset(
    {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libmvec.so.1"}
    | {"libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libresolv.so.2"}
    | {"libanl.so.1", "libnsl.so.1", "libthread_db.so.1", "libBrokenLocale.so.1"}
    | {"libnss_compat.so.2", "libnss_db.so.2", "libnss_dns.so.2", "libnss_files.so.2"}
    | {"libnss_hesiod.so.2", "libc_malloc_debug.so.0", "libSegFault.so", "libcidn.so.1"}
)
# These belong to the kernel module of the machine that they run on.
_DRIVER = re.compile(r"lib(cuda|nvidia-[\w-]+|nvcuvid|nvoptix)\.so(\.\d+)*")
_INTERPRETER = re.compile(r"python[\d.]*t?")
_NOTHING = Elf((), "", (), None)
_Where = Literal["own", "packed", "outside", "named", "nowhere"]
_CACHE_VERSION = 1
_MOST_CACHED = 20_000


@dataclass(frozen=True, slots=True)
class Native:
    """What a pack needs besides its files.

    Attributes
    ----------
    libraries
        Pairs of the name that a library is asked for by and its absolute real path, sorted; to be
        copied to ``lib/NAME``. Where two names have one path, one has to be a link to the other:
        a process would load two copies.
    glibc
        The newest version of glibc that anything needs, such as "2.34", or "".
    missing
        Libraries that are asked for and found nowhere. Not an error: many wheels have plugins for
        things that few machines have.
    relink
        Absolute paths, of files packed and of `libraries`, that :func:`rpath_patches` is for.
    """

    libraries: tuple[tuple[str, str], ...]
    glibc: str
    missing: tuple[str, ...]
    relink: tuple[str, ...] = ()


def closure(files: Iterable[str], cache: Path | None = None) -> Native:
    """Find the libraries that files which are packed need besides themselves and glibc.

    A library is looked for where the file that asks for it looks itself, beside the interpreter
    that is packed (``bin/../lib``), in ``LD_LIBRARY_PATH``, and where the loader of this machine
    looks. One that is found nowhere counts as packed if a packed file has its name: packages load
    such files themselves before they are asked for.

    Parameters
    ----------
    files
        Absolute paths of everything that is packed, the interpreter included. Only those whose
        name may be one of an ELF file are opened.
    cache
        A folder, for what the files say: kept until they change. It need not exist.
    """
    known = _Known(cache)
    packed = {path: known.read(path) for path in sorted(set(files)) if _may_be_elf(path)}
    search = _Search({path: elf for path, elf in packed.items() if elf}, known)
    waiting = deque(search.packed.items())
    libraries: dict[str, str] = {}
    missing: set[str] = set()
    relink: set[str] = set()
    newest: tuple[int, int] = (0, 0)
    while waiting:
        path, elf = waiting.popleft()
        newest = max(newest, elf.glibc or (0, 0))
        is_hidden = _is_tied(elf)
        for name in elf.needed:
            if name in _GLIBC or _DRIVER.fullmatch(name):
                continue
            found, where = search.find(name, path, elf)
            is_hidden |= elf.runpath and where in {"packed", "outside"}
            if where == "nowhere":
                _log.debug("%s asks for %s, which is nowhere", path, name)
                missing.add(name)
            elif where == "outside" and name not in libraries:
                libraries[name] = os.path.realpath(found)
                waiting.append((found, known.read(found) or _NOTHING))
        if is_hidden and not _INTERPRETER.fullmatch(os.path.basename(path)):
            relink.add(os.path.realpath(path) if path not in packed else path)
    known.save()
    return Native(
        libraries=tuple(sorted(libraries.items())),
        glibc=".".join(map(str, newest)) if any(newest) else "",
        missing=tuple(sorted(missing)),
        relink=tuple(sorted(relink)),
    )


def _may_be_elf(path: str) -> bool:
    """Return whether the name may be one of an ELF file: of a library or a program."""
    folder, _, name = path.rpartition("/")
    if "." not in name:
        return not folder.endswith((".dist-info", ".egg-info"))
    return ".so" in name or folder.endswith(("/bin", "/sbin", "/libexec"))


def _is_tied(elf: Elf) -> bool:
    """Return whether it looks in a folder of this machine, which the worker has too, or not."""
    return any(folder.startswith("/") and os.path.isdir(folder) for folder in elf.rpath)


class _Known:
    """What files say, read once and kept in a cache."""

    def __init__(self, cache: Path | None) -> None:
        self.file = cache / "native.json" if cache else None
        self.before: dict[str, Any] = {}
        self.now: dict[str, Any] = {}
        self.elves: dict[str, Elf | None] = {}
        if self.file:
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                version, machine, before = json.loads(self.file.read_bytes())
                if (version, machine) == (_CACHE_VERSION, platform.machine()):
                    self.before = dict(before)

    def read(self, path: str) -> Elf | None:
        if path not in self.elves:
            self.elves[path] = self._read(path)
        return self.elves[path]

    def _read(self, path: str) -> Elf | None:
        try:
            status = os.stat(path)
        except OSError:
            return None
        state = [status.st_mtime_ns, status.st_size]
        said = self.before.get(path)
        if said is None or said[:2] != state:
            elf = read(path) if stat.S_ISREG(status.st_mode) else None
            said = [*state, astuple(elf) if elf else None]
        self.now[path] = said
        return _elf(said[2]) if said[2] else None

    def save(self) -> None:
        """Keep what was read."""
        if self.file is None or all(self.before.get(path) == self.now[path] for path in self.now):
            return
        kept = self.before | self.now
        kept = kept if len(kept) <= _MOST_CACHED else self.now
        content = [_CACHE_VERSION, platform.machine(), kept]
        begun = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            begun.write_text(json.dumps(content))
            begun.replace(self.file)
        except OSError as error:
            _log.debug("%s cannot be written: %s", self.file, error)
            with contextlib.suppress(OSError):
                begun.unlink()


def _elf(said: list[Any]) -> Elf:
    needed, soname, rpath, glibc, runpath = said
    return Elf(tuple(needed), soname, tuple(rpath), tuple(glibc) if glibc else None, runpath)


class _Search:
    """Where libraries are found, on this machine and in the pack."""

    def __init__(self, packed: Mapping[str, Elf], known: _Known) -> None:
        self.packed = packed
        self.known = known
        self.names = {elf.soname for elf in packed.values()}
        self.inodes: dict[tuple[int, int], set[str]] = {}
        folders: list[str] = []
        for path, elf in packed.items():
            name = os.path.basename(path)
            self.names.add(name)
            self.inodes.setdefault(_inode(path), set()).add(name)
            if _INTERPRETER.fullmatch(name):
                folders += [*_expanded(path, elf), f"{os.path.dirname(path)}/../lib"]
        # a relative folder is another one in every process
        given = os.environ.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":")
        self.first = folders + [folder for folder in given if folder.startswith("/")]
        triplet = f"{platform.machine()}-linux-gnu"
        tops = ("/lib", "/usr/lib")
        self.last = [f"{top}/{triplet}" for top in tops] + ["/lib64", "/usr/lib64", *tops]

    def find(self, name: str, path: str, elf: Elf) -> tuple[str, _Where]:
        """Find the library that the file `path` asks for as `name`."""
        if "/" not in name:
            found = self._in(name, _expanded(path, elf))
            if found:
                return found, "own" if self._is_packed(found, name) else "outside"
            found = self._in(name, self.first) or self._cached(name) or self._in(name, self.last)
            if found:
                return found, "packed" if self._is_packed(found, name) else "outside"
        return "", "named" if name in self.names else "nowhere"

    def _in(self, name: str, folders: Iterable[str]) -> str:
        for folder in folders:
            path = os.path.join(folder, name)
            if self.known.read(path):
                return path
        return ""

    def _cached(self, name: str) -> str:
        return next((path for path in _loader_cache().get(name, ()) if self.known.read(path)), "")

    def _is_packed(self, found: str, name: str) -> bool:
        return name in self.inodes.get(_inode(found), ())


def _expanded(path: str, elf: Elf) -> list[str]:
    folders = [_ORIGIN.sub(lambda _: os.path.dirname(path), folder) for folder in elf.rpath]
    return [folder for folder in folders if folder.startswith("/") and "$" not in folder]


def _inode(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _loader_cache() -> Mapping[str, tuple[str, ...]]:
    """Return the libraries that the loader of this machine knows of, in its order."""
    try:
        changed = os.stat("/etc/ld.so.cache").st_mtime_ns
    except OSError:
        return {}
    return _loader_cache_of(changed)


@lru_cache(maxsize=1)
def _loader_cache_of(_changed: int) -> Mapping[str, tuple[str, ...]]:
    places = f"{os.environ.get('PATH', os.defpath)}:/sbin:/usr/sbin"
    program = shutil.which("ldconfig", path=places)
    found: dict[str, tuple[str, ...]] = {}
    if program:
        told = subprocess.run([program, "-p"], capture_output=True, check=False).stdout
        for line in os.fsdecode(told).splitlines():
            name, arrow, path = line.strip().partition(" => ")
            # hwcap: for the processor of this machine, which a worker need not have
            if arrow and "hwcap" not in name:
                name = name.partition(" ")[0]
                found[name] = (*found.get(name, ()), path)
    return found
