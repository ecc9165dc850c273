"""Local code: what an analysis imports that no package manager has installed.

Modules beside a notebook, folders on ``PYTHONPATH`` and editable installs are found without being
imported, and followed through their imports.
"""

from __future__ import annotations

import dis
import importlib.util
import os
import sys
import sysconfig
import warnings
from collections import deque
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Literal

from hepscale.env import repositories
from hepscale.errors import PayloadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from importlib.machinery import ModuleSpec

__all__ = [
    "Here",
    "LocalModule",
    "closure",
    "find_local",
    "imported",
    "is_installed",
    "is_namespace",
    "unreadable",
]

Here = Literal["before", "after", "never"]

_MOST_BYTES = 100_000_000
_SKIPPED_FOLDERS = frozenset(
    {".git", ".hg", ".svn", ".ipynb_checkpoints", ".venv", "venv", "node_modules", "__pycache__"}
    | {".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".tox", ".nox", ".pixi"}
)
_SKIPPED_SUFFIXES = (".pyc", ".pyo")
# keys and passwords, by their usual names: they stay where they are
_PRIVATE_FOLDERS = frozenset({".ssh", ".globus", ".gnupg", ".aws", ".config", ".docker"})
_PRIVATE_FILES = (
    ".git", ".env", ".envrc", ".env.*", ".netrc", ".pgpass", ".pypirc", ".git-credentials",
    ".htpasswd", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*", "id_ecdsa*",
    "x509up_*", "*.keytab", "krb5cc_*",
)  # fmt: skip
_IMPORTERS = frozenset({"import_module", "__import__"})
_IMPORT_NAME = dis.opmap["IMPORT_NAME"]


@dataclass(frozen=True, slots=True)
class LocalModule:
    """A top-level module or package whose code is local.

    Attributes
    ----------
    name
        The name that it is imported by.
    files
        Pairs of the path below the snapshot's root (with ``/``) and the absolute source path,
        sorted.
    """

    name: str
    files: tuple[tuple[str, str], ...]


def is_installed(path: str) -> bool:
    """Return whether the file or folder `path` belongs to the environment.

    True for the standard library, anything in a ``site-packages`` or ``dist-packages`` folder,
    built-in and frozen modules and everything under ``/cvmfs``. A package folder that is only
    linked into ``site-packages`` is local.
    """
    if path in {"built-in", "frozen"} or path.startswith("<"):
        return True
    given = Path(path).absolute()
    # Only folders are resolved: some installers fill site-packages with links to single files.
    real = given.resolve() if given.is_dir() else given.parent.resolve() / given.name
    if any(place.is_relative_to(repositories.TOP) for place in (given, real)):
        return True
    if not {"site-packages", "dist-packages"}.isdisjoint(real.parts):
        return True
    return any(real.is_relative_to(folder) for folder in _standard_library())


@lru_cache(maxsize=1)
def _standard_library() -> frozenset[Path]:
    folders = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    return frozenset(Path(folder).resolve() for folder in folders)


def find_local(
    name: str, search: Sequence[str] | None = None, here: Here = "after"
) -> LocalModule | None:
    """Find the local code of a top-level module, without importing it.

    Parameters
    ----------
    name
        The module's name; of a dotted name only the first part counts.
    search
        Folders to look in, in this order; None: what this process imports under that name.
    here
        Whether what this process imports counts "before" these folders, "after" them or "never".

    Returns
    -------
    LocalModule or None
        None where the module is installed, built in, ``__main__``, made in memory or not there.

    Raises
    ------
    PayloadError
        A folder cannot be listed, or the module's files exceed 100 MB.
    """
    name = name.partition(".")[0]
    if not name or name in {"__main__", "__mp_main__"}:
        return None
    origin, folders = _locate(name) if search is None else _locate_in(name, search, here)
    if origin and (is_installed(origin) or not Path(origin).is_file()):
        return None
    files: dict[str, str] = {}
    if origin and folders:
        files.update(_tree(Path(origin).absolute().parent, name))
    elif origin:
        suffix = Path(origin).name.partition(".")[2]
        files[f"{name}.{suffix}"] = str(Path(origin).absolute())
    else:
        for folder in folders:
            if Path(folder).is_dir() and not is_installed(folder):
                found = _tree(Path(folder).absolute(), name)
                files = {below: path for below, path in found if below.endswith(".py")} | files
    _refuse_large(name, files)
    return LocalModule(name, tuple(sorted(files.items()))) if files else None


def _locate(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the file of a module ("" for a namespace package) and a package's folders."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if module is not None and spec is None:
        file = getattr(module, "__file__", None)
        if isinstance(file, str):
            return file, tuple(getattr(module, "__path__", ()))
    if spec is None:
        spec = _find_spec(name, in_memory=module is not None)
    if spec is None:
        return "", ()
    try:
        folders = tuple(spec.submodule_search_locations or ())
    except (KeyError, ImportError):
        # A namespace package computes its folders anew, which fails while sys.path is in flux.
        folders = ()
    origin = spec.origin if isinstance(spec.origin, str) and spec.has_location else ""
    return origin, folders


def _locate_in(name: str, search: Sequence[str], here: Here) -> tuple[str, tuple[str, ...]]:
    if here == "before" and any(known := _locate(name)):
        return known
    try:
        spec = PathFinder.find_spec(name, [*search])
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None:
        return _locate(name) if here == "after" else ("", ())
    origin = spec.origin if isinstance(spec.origin, str) and spec.has_location else ""
    return origin, tuple(spec.submodule_search_locations or ())


def _find_spec(name: str, *, in_memory: bool) -> ModuleSpec | None:
    try:
        if in_memory:
            return PathFinder.find_spec(name)
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _tree(
    folder: Path, prefix: str, above: frozenset[Path] = frozenset()
) -> Iterator[tuple[str, str]]:
    """Yield the files of a folder, through links, but never round a loop of them."""
    real = folder.resolve()
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            path, below = folder / entry.name, f"{prefix}/{entry.name}"
            if entry.is_dir():
                skipped = _SKIPPED_FOLDERS | _PRIVATE_FOLDERS
                if entry.name not in skipped and not _is_environment(path):
                    yield from _tree(path, below, above | {real})
            elif entry.is_file() and not _stays_behind(entry.name):
                yield below, str(path)
    except OSError as error:
        raise unreadable(str(folder), error) from error


def _stays_behind(name: str) -> bool:
    return name.endswith(_SKIPPED_SUFFIXES) or any(fnmatchcase(name, one) for one in _PRIVATE_FILES)


def _is_environment(folder: Path) -> bool:
    return (folder / "pyvenv.cfg").exists() or (folder / "conda-meta").exists()


def _refuse_large(name: str, files: dict[str, str]) -> None:
    sizes: dict[str, int] = {}
    for path in files.values():
        try:
            sizes[path] = Path(path).stat().st_size
        except OSError as error:
            raise unreadable(path, error) from error
    total = sum(sizes.values())
    if total > _MOST_BYTES:
        largest = sorted(sizes, key=lambda path: (-sizes[path], path))
        raise PayloadError(
            f"The local module {name} holds {total / 1e6:.0f} MB in {len(files)} files, which is "
            f"more than the {_MOST_BYTES / 1e6:.0f} MB that are sent to workers as code.",
            items=[f"{sizes[path] / 1e6:.1f} MB  {path}" for path in largest],
            cause="data or outputs lie in the package's folder, which is sent whole",
            fix="move the largest files out of it and open them by a path or URL that workers see",
        )


def closure(names: Iterable[str], codes: Iterable[CodeType] = ()) -> tuple[LocalModule, ...]:
    """Find all local modules that are reachable through imports.

    Imports anywhere in the sources count, guarded ones and those inside functions too, and so do
    ``importlib.import_module("x")`` and ``__import__("x")``. A source file that does not compile
    is taken along, its imports are not followed.

    Parameters
    ----------
    names
        Names of modules to begin with; those that are not local are passed over.
    codes
        Code objects to begin with: the functions that are pickled by value.

    Returns
    -------
    tuple of LocalModule
        Sorted by name.

    Raises
    ------
    PayloadError
        A local file cannot be read, or a module's files exceed 100 MB.
    """
    waiting = deque(name.partition(".")[0] for name in names)
    for code in codes:
        waiting.extend(imported(code))
    seen: set[str] = set()
    found: list[LocalModule] = []
    while waiting:
        name = waiting.popleft()
        if name in seen:
            continue
        seen.add(name)
        module = find_local(name)
        if module is None:
            continue
        found.append(module)
        for _, path in module.files:
            if path.endswith(".py"):
                waiting.extend(_imported_by_file(path))
    return tuple(sorted(found, key=lambda module: module.name))


def _imported_by_file(path: str) -> frozenset[str]:
    try:
        status = Path(path).stat()
        return _imported_by_version(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise unreadable(path, error) from error


@lru_cache(maxsize=4096)
def _imported_by_version(path: str, _mtime_ns: int, _size: int) -> frozenset[str]:
    source = Path(path).read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    return frozenset(imported(code))


def imported(code: CodeType) -> Iterator[str]:
    """Yield the top-level names that a code object and the ones nested in it import."""
    waiting = [code]
    while waiting:
        code = waiting.pop()
        waiting.extend(const for const in code.co_consts if isinstance(const, CodeType))
        if _IMPORT_NAME in code.co_code[::2] or not _IMPORTERS.isdisjoint(code.co_names):
            yield from _imported_here(code)


def _imported_here(code: CodeType) -> Iterator[str]:
    skipped = {"CACHE", "EXTENDED_ARG", "PUSH_NULL"}
    steps = [step for step in dis.get_instructions(code) if step.opname not in skipped]
    for before, step in enumerate(steps, start=-2):
        if step.opname == "IMPORT_NAME":
            # The level of a relative import is pushed first, then the names, then it is imported.
            if steps[before].argval == 0:
                yield step.argval.partition(".")[0]
        elif step.argval in _IMPORTERS and before + 3 < len(steps):
            given = steps[before + 3].argval
            if steps[before + 3].opname == "LOAD_CONST" and isinstance(given, str):
                yield given.partition(".")[0]


def is_namespace(module: LocalModule) -> bool:
    """Return whether a local package leaves room for installed ones of the same name."""
    tops = (f"{module.name}/__init__.", f"{module.name}.")
    return not any(below.startswith(tops) for below, _ in module.files)


def unreadable(path: str, error: OSError) -> PayloadError:
    """Return the error for a local file that cannot be read."""
    return PayloadError(
        f"A local module cannot be read: {error.strerror or error}.",
        items=[path],
        cause="the file's permissions, or it was moved while the run began",
        fix=f"ls -l {path}, then run again",
    )
