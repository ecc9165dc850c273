"""Which distribution owns which module and file of an environment."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import tempfile
from dataclasses import fields, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name

from hepscale.env.installed import Found
from hepscale.env.metadata import Watch
from hepscale.env.records import (
    MACHINE_FILES,
    Distribution,
    InstalledFile,
    Place,
    added,
    conda_listed,
    linked_metadata,
    listing,
    present,
    record_listed,
    walk,
)
from hepscale.env.scan import Parts, divide, scan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from packaging.requirements import Requirement

    from hepscale.env.interpreter import Interpreter

__all__ = ["Distribution", "Index", "InstalledFile", "load"]

log = logging.getLogger(__name__)

_FORMAT = 1
_FIELDS = tuple(field.name for field in fields(Distribution))
# modules without a file: in sys.modules, on other paths, by finders, "lazy" or "extern"
_MAKES_MODULES = re.compile(rb"__path__|\bmodules\b|meta_path|(?i:lazy|lazi|extern|apipkg|alias)")
_NO_MODULES = frozenset({"setup", "conftest"})


class Index:
    """The installed distributions of an interpreter.

    Attributes
    ----------
    distributions
        By normalised name.
    """

    distributions: Mapping[str, Distribution]

    def __init__(self, interpreter: Interpreter, found: Sequence[Found], parts: Parts) -> None:
        # What an editable project holds may change at any time: it is looked up now.
        current = [_with_linked(one) if one.roots else one for one in found]
        self._found = {one.distribution.name: one for one in current}
        self.distributions = MappingProxyType(
            {name: one.distribution for name, one in sorted(self._found.items())}
        )
        self._parts = parts
        self._tops: dict[str, list[str]] = {}
        for one in sorted(current, key=lambda one: bool(one.distribution.editable)):
            for module in one.distribution.modules:
                self._tops.setdefault(module, []).append(one.distribution.name)
        self._below = interpreter.site_below
        eggs = (one.distribution.site for one in current if one.distribution.site.endswith(".egg"))
        self._modules = _Modules((*interpreter.sites, *eggs), interpreter.version)

    def owner(self, module: str) -> str | None:
        """Return the distribution that a dotted module belongs to, or None.

        Of a namespace package the first distribution that has a part of it. Where a distribution
        owns all of a top-level package, names below it are not looked up: they may be anything.
        """
        owners = self.owners(module)
        return owners[0] if owners else None

    def owners(self, module: str) -> tuple[str, ...]:
        """Return the distributions that a dotted module belongs to: several for a namespace."""
        if module in self._parts.spaces:
            return self._parts.spaces[module]
        names = tuple(self._tops.get(module.partition(".")[0], ()))
        part = module
        while part:
            if part in self._parts.modules:
                return (self._parts.modules[part],)
            if part in self._parts.spaces:
                # What an editable project has in a namespace package is not looked up.
                return tuple(name for name in names if self.distributions[name].editable)[:1]
            part = part.rpartition(".")[0]
        return names[:1]

    def has(self, wanted: Requirement) -> bool:
        """Return whether a distribution is installed in a version that was asked for."""
        found = self.distributions.get(canonicalize_name(wanted.name))
        return found is not None and wanted.specifier.contains(found.version, prereleases=True)

    def shared_parts(self) -> Iterator[tuple[str, str]]:
        """Yield distribution and dotted module of what lies in packages that several share."""
        for module, name in self._parts.modules.items():
            yield name, module

    def module_file(self, module: str) -> str | None:
        """Return the file of an installed module.

        Returns
        -------
        str or None
            ``__init__.py`` of a package; None for namespace packages, editable projects and
            modules that are not there.
        """
        return self._modules.find(module)[0] or None

    def lacks(self, module: str) -> bool:
        """Return whether a module is certainly absent, although the package that it is named in
        is there: it has no file, and the packages above it make no modules in another way.
        """
        parts = module.split(".")
        for at in range(1, len(parts)):
            file, folders = self._modules.find(".".join(parts[:at]))
            if not file.endswith("/__init__.py") or _makes_modules(file):
                return False
            if not any(self._modules.entries(folder, parts[at]) for folder in folders):
                return True
        return False

    def files(self, name: str) -> tuple[InstalledFile, ...]:
        """Return the files of a distribution that are there, sorted by target.

        Not among them: ``__pycache__``, what lies outside the prefix, what tells only of this
        machine, and the code of an editable project.

        Raises
        ------
        KeyError
            There is no such distribution.
        """
        found = {
            file.target: file
            for file in self._files(self._found[name])
            if not file.target.endswith(MACHINE_FILES)
        }
        return tuple(found[target] for target in sorted(found))

    def _files(self, found: Found) -> Iterator[InstalledFile]:
        one = found.distribution
        if one.kind == "conda":
            if one.info.endswith(".json"):
                for file in self._listed(one, conda_listed(one.info)):
                    if one.site or not file.target.startswith(f"{self._below}/"):
                        yield file
        elif one.editable:
            if one.info:
                yield from linked_metadata(one.info, self._below)
        elif found.parts:
            egg = os.path.basename(one.site).removesuffix(".egg")
            for part in found.parts:
                inner = f"{egg}.egg-info" if part == "EGG-INFO" else part
                yield from walk(f"{one.site}/{part}", f"{self._below}/{inner}")
        elif one.info:
            place = Place.of(one.site, self._below)
            yield from self._listed(one, record_listed(one.info, place))

    def _listed(self, one: Distribution, files: Iterable[InstalledFile]) -> Iterator[InstalledFile]:
        """Yield the files of a record that are there, and what lies beside them in its packages."""
        listings: dict[str, dict[str, bool]] = {}
        there = list(present(files, listings))
        alone = (name for name in one.modules if self._tops.get(name) == [one.name])
        yield from there
        yield from added(there, listings, (f"{one.site}/{name}" for name in alone), self._below)


class _Modules:
    """Finds module files as an interpreter does, without running it."""

    def __init__(self, folders: tuple[str, ...], version: str) -> None:
        self._tag = f"cpython-{''.join(version.split('.')[:2])}"
        self._found: dict[str, tuple[str, tuple[str, ...]]] = {"": ("", folders)}
        self._listings: dict[str, dict[str, list[tuple[str, bool]]]] = {}

    def find(self, module: str) -> tuple[str, tuple[str, ...]]:
        """Return the file of a module, and the folders of a package."""
        if module not in self._found:
            above, _, name = module.rpartition(".")
            self._found[module] = self._find(name, self.find(above)[1])
        return self._found[module]

    def _find(self, name: str, folders: Iterable[str]) -> tuple[str, tuple[str, ...]]:
        spaces = []
        for folder in folders:
            inner = f"{folder}/{name}"
            if (name, True) in self.entries(folder, name):
                file = self._file(inner, "__init__")
                if file:
                    return file, (inner,)
            file = self._file(folder, name)
            if file:
                return file, ()
            if (name, True) in self.entries(folder, name):
                spaces.append(inner)
        return "", tuple(spaces)

    def _file(self, folder: str, stem: str) -> str:
        names = [name for name, is_folder in self.entries(folder, stem) if not is_folder]
        for name in sorted(names, key=lambda name: (not name.endswith(".so"), name[-4:] == ".pyc")):
            middle, _, suffix = name[len(stem) + 1 :].rpartition(".")
            if suffix == "so" and (middle in {"", "abi3"} or middle.startswith(self._tag)):
                return f"{folder}/{name}"
            if suffix in {"py", "pyc"} and not middle:
                return f"{folder}/{name}"
        return ""

    def entries(self, folder: str, stem: str) -> list[tuple[str, bool]]:
        """Return names in a folder that are `stem` up to their first dot, and which are folders."""
        if folder not in self._listings:
            stems = self._listings[folder] = {}
            for name, is_folder in listing(folder).items():
                stems.setdefault(name.partition(".")[0], []).append((name, is_folder))
        return self._listings[folder].get(stem, [])


@lru_cache(maxsize=1024)
def _makes_modules(file: str) -> bool:
    try:
        with open(file, "rb") as source:
            return _MAKES_MODULES.search(source.read()) is not None
    except OSError:
        return True


def _with_linked(found: Found) -> Found:
    modules = set(found.distribution.modules)
    for root in found.roots:
        for name, is_folder in listing(root).items():
            stem, _, suffix = name.partition(".")
            is_module = (
                os.path.isfile(f"{root}/{name}/__init__.py") if is_folder else suffix == "py"
            )
            if is_module and stem.isidentifier() and stem not in _NO_MODULES:
                modules.add(stem)
    changed = replace(found.distribution, modules=tuple(sorted(modules)))
    return replace(found, distribution=changed)


def load(interpreter: Interpreter, cache: Path | None = None) -> Index:
    """Read what is installed for an interpreter.

    Parameters
    ----------
    interpreter
        Whose packages are looked for.
    cache
        A folder to keep the result in. It is read again when anything has been installed, removed
        or linked since, and is not needed: a damaged file or a folder that cannot be written is
        passed over.
    """
    file = None if cache is None else cache / f"index-{_key(interpreter)}.json"
    if file is not None:
        found = _recall(file)
        if found is not None:
            return Index(interpreter, *found)
    watch = Watch()
    scanned = scan(interpreter, watch)
    parts = divide(scanned)
    if file is not None:
        _remember(file, watch, scanned, parts)
    return Index(interpreter, scanned, parts)


def _key(interpreter: Interpreter) -> str:
    eggs = [path for path in interpreter.path if path.endswith(".egg")]
    # Not by an import: the public names of hepscale lead to everything that env must not know.
    version = sys.modules["hepscale"].__version__
    facts = [_FORMAT, version, interpreter.executable, interpreter.version]
    text = json.dumps([*facts, interpreter.sites, interpreter.site_below, eggs])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _recall(file: Path) -> tuple[list[Found], Parts] | None:
    """Return what was kept, None where it is not there, damaged or out of date."""
    try:
        kept = json.loads(file.read_bytes())
        stamps = {path: before and tuple(before) for path, before in kept["stamps"].items()}
        if not Watch(stamps).is_unchanged():
            return None
        found = [_unpacked(one) for one in kept["found"]]
        spaces = {str(space): tuple(names) for space, names in kept["spaces"].items()}
        return found, Parts(dict(kept["modules"]), spaces)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        log.info("%s is made anew: %r", file, error)
        return None


def _remember(file: Path, watch: Watch, found: Iterable[Found], parts: Parts) -> None:
    kept = {
        "stamps": watch.stamps,
        "found": [_packed(one) for one in found],
        "modules": parts.modules,
        "spaces": parts.spaces,
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as out:
            try:
                json.dump(kept, out)
                out.close()
                os.replace(out.name, file)
            except BaseException:
                os.unlink(out.name)
                raise
    except OSError as error:
        log.info("%s cannot be kept: %s", file, error)


def _packed(found: Found) -> list[Any]:
    return [[getattr(found.distribution, name) for name in _FIELDS], found.parts, found.roots]


def _unpacked(kept: list[Any]) -> Found:
    values, parts, roots = kept
    known = dict(zip(_FIELDS, values, strict=True))
    known["entry_points"] = tuple((group, module) for group, module in known["entry_points"])
    known["requires"], known["modules"] = tuple(known["requires"]), tuple(known["modules"])
    return Found(Distribution(**known), tuple(parts), tuple(roots))
