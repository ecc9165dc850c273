"""Which files make up the layers of an environment: interpreter, packages, code."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hepscale.env import native
from hepscale.env.contents import Entry
from hepscale.env.pack import OWN_FOLDER
from hepscale.env.records import link_within
from hepscale.errors import PackError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from hepscale.env.index import Index, InstalledFile
    from hepscale.env.interpreter import Interpreter
    from hepscale.env.local import LocalModule

__all__ = [
    "code",
    "decoder",
    "has_zstd",
    "interpreter",
    "libraries",
    "optional_modules",
    "packages",
    "private",
]

# parts of the standard library that no task needs, unless the analysis imports them
_OPTIONAL = {
    "test": (
        *("test/", "lib-dynload/_test", "lib-dynload/_ctypes_test.", "lib-dynload/_xxtestfuzz."),
        "lib-dynload/xxlimited",
    ),
    "idlelib": ("idlelib/",),
    "tkinter": ("tkinter/", "turtle.py", "turtledemo/", "lib-dynload/_tkinter."),
}
_BROUGHT_BY = {"turtle": "tkinter", "turtledemo": "tkinter", "_tkinter": "tkinter"}
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_NOT_LIBRARY = frozenset({"__pycache__", "site-packages", "dist-packages"})
# what the name of a module is followed by
_ENDS = ("/", ".py", ".so", ".cpython-", ".abi3.")
_ZSTD_IN_LIBRARY = (3, 14)
# prefixes that say nothing of a machine, and that are not replaced in texts
_PUBLIC = frozenset({"/usr", "/usr/local"})


def interpreter(found: Interpreter, index: Index, imported: Collection[str]) -> list[Entry]:
    """Return the interpreter and its standard library, without the shared libraries it needs.

    Parameters
    ----------
    found
        The interpreter.
    index
        What is installed for it.
    imported
        Top-level modules that the analysis imports: tkinter and tests come along if named here.
    """
    if found.conda:
        entries = [
            entry
            for name in _conda_python(index, imported)
            for entry in _of(name, index, found)
            if _is_of_use(entry.target, imported)
        ]
    else:
        entries = [*_programs(found), *_standard_library(found, imported)]
    prefixes = find_spec("conda_pack.prefixes")
    if prefixes is None or prefixes.origin is None:
        raise PackError("conda-pack is not installed.", fix="pip install conda-pack")
    entries.append(Entry(f"{OWN_FOLDER}/prefixes.py", data=Path(prefixes.origin).read_bytes()))
    return [*entries, *decoder(found, index)]


def decoder(found: Interpreter, index: Index) -> list[Entry]:
    """Return what this interpreter needs to read zstd; empty where it has it or cannot have it."""
    owner = index.owner("backports.zstd")
    if tuple(map(int, found.version.split(".")[:2])) >= _ZSTD_IN_LIBRARY or owner is None:
        return []
    below = f"{found.site_below}/backports/"
    return [
        replace(entry, target=f"{OWN_FOLDER}/backports/{entry.target.removeprefix(below)}")
        for entry in _installed(index.files(owner), found)
        if entry.target.startswith(below) and not entry.target.endswith(".pyi")
    ]


def has_zstd(found: Interpreter, index: Index) -> bool:
    """Return whether this interpreter can read zstd on a worker."""
    numbers = tuple(map(int, found.version.split(".")[:2]))
    return numbers >= _ZSTD_IN_LIBRARY or bool(decoder(found, index))


def _programs(found: Interpreter) -> list[Entry]:
    name = f"python{'.'.join(found.version.split('.')[:2])}"
    return [
        Entry(f"bin/{name}", found.base_executable, treat="program", private=private(found)),
        Entry("bin/python3", link=name),
        Entry("bin/python", link=name),
    ]


def _standard_library(found: Interpreter, imported: Collection[str]) -> Iterator[Entry]:
    places = private(found)
    for root in dict.fromkeys((found.stdlib, found.platstdlib)):
        # where this Python looks for it below any prefix: some look in lib64
        below = "/".join(root.split("/")[-2:])
        for path in _walk(root):
            inner = os.path.relpath(path, root)
            if not _optional(inner, imported):
                yield Entry(f"{below}/{inner}", path, private=places)


def _walk(root: str) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if name not in _NOT_LIBRARY and not (folder == root and name.startswith("config-"))
        )
        for name in sorted(files):
            path = os.path.join(folder, name)
            # Debian's says that pip may not install there, which is not so where it is unpacked;
            # it also has links to settings that an administrator may have removed
            if name != "EXTERNALLY-MANAGED" and os.path.exists(path):
                yield path


def _optional(inner: str, imported: Collection[str]) -> bool:
    """Return whether a file of the standard library, by its path below it, is left out."""
    for name, parts in _OPTIONAL.items():
        if inner.startswith(parts):
            return not _is_wanted(name, imported)
    return not _TEST_FOLDERS.isdisjoint(inner.split("/")[1:-1])


def optional_modules(imported: Collection[str]) -> list[str]:
    """Return the modules of the standard library that are not packed for this analysis."""
    names = [*_OPTIONAL, *_BROUGHT_BY]
    return [one for one in names if not _is_wanted(_BROUGHT_BY.get(one, one), imported)]


def _is_wanted(name: str, imported: Collection[str]) -> bool:
    return name in {_BROUGHT_BY.get(one, one) for one in imported}


def private(found: Interpreter) -> tuple[str, ...]:
    """Return the folders of this machine that an interpreter names because it was built there."""
    prefix = found.base_prefix
    if prefix in _PUBLIC or found.conda:
        return ()
    places = [prefix]
    for path in sorted(Path(found.stdlib).glob("_sysconfigdata*.py")):
        built = re.search(r"'abs_builddir': '(/[^']+/[^']+)'", path.read_text(errors="replace"))
        places += [built[1]] if built else []
    home = os.path.expanduser("~")
    return (*places, f"{home}/") if prefix.startswith(f"{home}/") else tuple(places)


def _conda_python(index: Index, imported: Collection[str]) -> list[str]:
    """Return conda's package of Python and what that depends on, but no modules such as pip."""
    waiting, found = ["python"], list[str]()
    left_out: set[str] = set() if _is_wanted("tkinter", imported) else {"tk"}
    while waiting:
        name = waiting.pop()
        if name in index.distributions and name not in {*found, *left_out}:
            distribution = index.distributions[name]
            if name == "python" or not distribution.modules:
                found.append(name)
                waiting += distribution.requires
    return sorted(found)


def _is_of_use(target: str, imported: Collection[str]) -> bool:
    """Return whether a file of conda's Python, or of what that depends on, is packed."""
    if target.startswith("bin/idle"):
        return _is_wanted("idlelib", imported)
    inner = target.partition("/python")[2].partition("/")[2]
    return not inner.startswith("config-") and not _optional(inner, imported)


def packages(
    names: Iterable[str], index: Index, found: Interpreter, hidden: Collection[str] = ()
) -> list[Entry]:
    """Return the files of distributions.

    Parameters
    ----------
    names
        Of the distributions.
    index
        Where they are looked up.
    found
        The interpreter that they are installed for.
    hidden
        Top-level names that local modules have taken: what is installed under them stays behind.
    """
    skipped = tuple(f"{found.site_below}/{name}{end}" for name in hidden for end in _ENDS)
    entries = {
        entry.target: entry
        for name in names
        for entry in _of(name, index, found)
        if not (skipped and entry.target.startswith(skipped))
    }
    return list(entries.values())


def _of(name: str, index: Index, found: Interpreter) -> Iterator[Entry]:
    distribution = index.distributions[name]
    if distribution.kind == "conda":
        target = f"conda-meta/{os.path.basename(distribution.info)}"
        yield Entry(target, distribution.info, treat="conda-meta")
    yield from _installed(index.files(name), found)


def _installed(files: Sequence[InstalledFile], found: Interpreter) -> Iterator[Entry]:
    # a package may hold copies of others, with their records
    records = [one for one in files if one.target.endswith(".dist-info/RECORD")]
    record = min(records, key=lambda one: one.target.count("/"), default=None)
    installed_ns = 0
    if record is not None:
        with contextlib.suppress(OSError):
            installed_ns = Path(record.source).stat().st_mtime_ns
    for file in files:
        if file is record:
            yield Entry(file.target, file.source, treat="record")
        elif file.prefix_mode in {"text", "binary"}:
            mode = "text" if file.prefix_mode == "text" else "binary"
            if file.target.startswith("bin/") and mode == "text":
                mode = "script"
            yield _treated(file, mode, found)
        elif link := link_within(file.source, _prefix_of(file, found)):
            yield Entry(file.target, file.source, link=link)
        elif not file.sha256 or not file.target.startswith(f"{found.site_below}/"):
            # nobody knows what it was, or programs and settings, which may hold the prefix
            yield _treated(file, "script", found)
        else:
            yield Entry(file.target, file.source, file.sha256, file.size_bytes, installed_ns)


def _treated(file: InstalledFile, treat: str, found: Interpreter) -> Entry:
    prefix = _prefix_of(file, found)
    names = _names(prefix, found.stdlib) if file.placeholder else ()
    if len(names) > 1:
        # who packs it says if it cannot be read
        with contextlib.suppress(OSError):
            data = Path(file.source).read_bytes()
            prefix = next((one for one in names if os.fsencode(one) in data), prefix)
    return Entry(
        file.target,
        file.source,
        treat=treat,  # type: ignore[arg-type]
        prefix="" if prefix in _PUBLIC and not file.placeholder else prefix,
        placeholder=file.placeholder,
    )


def _prefix_of(file: InstalledFile, found: Interpreter) -> str:
    prefixes = (found.prefix, found.base_prefix)
    return next((one for one in prefixes if file.source.startswith(f"{one}/")), found.prefix)


@lru_cache(maxsize=8)
def _names(prefix: str, stdlib: str) -> tuple[str, ...]:
    """Return what conda may have called a prefix: it was moved since, or its path has links."""
    names = [prefix, os.path.realpath(prefix)]
    for path in sorted(Path(stdlib).glob("_sysconfigdata*.py")):
        filled_in = re.search(r"'prefix': '(/[^']+)'", path.read_text(errors="replace"))
        names += [filled_in[1]] if filled_in else []
    return tuple(dict.fromkeys(names))


def libraries(
    entries: Sequence[Entry],
    beside: Sequence[Entry] = (),
    cache: Path | None = None,
    places: tuple[str, ...] = (),
) -> tuple[list[Entry], native.Native]:
    """Add the shared libraries that these files need and that neither they nor glibc give.

    Parameters
    ----------
    entries
        The files of a layer.
    beside
        The files of the layers below it, with their libraries.
    cache
        Where to keep what was read.
    places
        Folders of this machine that the libraries must not name.

    Returns
    -------
    tuple
        The files with those libraries, all made to look for libraries in ``lib/``; and what was
        found out.
    """
    files = [entry.source for entry in (*beside, *entries) if entry.source]
    needed = native.closure(files, cache)
    present = {entry.target for entry in (*beside, *entries)}
    names: dict[str, str] = {}
    added = []
    for soname, path in needed.libraries:
        target = f"lib/{soname}"
        if target in present:
            continue
        # under two names a process would load it twice
        first = names.setdefault(path, soname)
        link = first if first != soname else ""
        added.append(Entry(target, link=link) if link else Entry(target, path, private=places))
    relink = frozenset(needed.relink)
    return [
        replace(entry, relink=True) if entry.source in relink and not entry.link else entry
        for entry in (*entries, *added)
    ], needed


def code(modules: Iterable[LocalModule], below: str = "") -> list[Entry]:
    """Return the files of local modules, in the folder `below` (of the layer, or of the pack)."""
    return [
        Entry(os.path.join(below, name), source)
        for module in modules
        for name, source in module.files
    ]
