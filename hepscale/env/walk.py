"""Follows imports from the user's code through local modules to where they lead."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hepscale.env import imports, local
from hepscale.env.imports import Import
from hepscale.env.repositories import Mounted
from hepscale.env.units import Note, Unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hepscale.env.imports import Findings, How
    from hepscale.env.index import Index
    from hepscale.env.interpreter import Interpreter
    from hepscale.env.local import LocalModule

__all__ = ["Found", "Origin", "Walk"]

# our own computed imports are nothing that a user could do something about
_OWN = "hepscale"

Origin = Literal["standard", "installed", "local", "cvmfs", "missing"]


@dataclass(frozen=True, slots=True)
class Found:
    """One import, and where it comes from.

    Attributes
    ----------
    name
        The dotted name as it is written.
    where
        Such as "cell 3, line 2".
    how
        "sure", "guarded" (the code goes on without it) or "dynamic".
    origin
        The standard library, an installed distribution, local code, CVMFS, or nowhere.
    provider
        Name of the distribution, of the local module or of the repository.
    """

    name: str
    where: str
    how: How
    origin: Origin
    provider: str = ""


class Walk:
    """Follows imports from the code through local modules, and sorts them by where they lead."""

    def __init__(
        self, here: Interpreter, known: Index, search: Sequence[str], lookup: local.Here
    ) -> None:
        self.imports: list[Found] = []
        self.outside: list[Import] = []
        self.inside: list[Import] = []
        self.modules: dict[str, LocalModule] = {}
        self.reasons: dict[str, list[str]] = {}
        self.notes: list[Note] = []
        # where repositories are needed
        self.repositories: dict[str, list[str]] = {}
        self._here = here
        self._known = known
        self._mounted = Mounted(search)
        self._search = search
        self._lookup = lookup
        self._absent: set[str] = set()
        self._files: dict[str, dict[str, str]] = {}
        self._read: set[str] = set()
        # each with the package that it stands in
        self._waiting: deque[tuple[Import, str]] = deque()

    def add(self, units: Iterable[Unit], package: str = "") -> None:
        """Take the imports of pieces of code that belong to a package, or to none."""
        for unit in units:
            self._add(imports.examine(unit), package)

    def take(self, one: Import) -> None:
        """Take one more import."""
        self._waiting.append((one, ""))

    def take_local(self, name: str) -> bool:
        """Take a local module if there is one of this name."""
        found = name.isidentifier() and self._local(name)
        if found:
            self.take(Import(name, "asked for", "sure"))
        return found

    def follow(self) -> None:
        """Follow all imports to their ends."""
        while self._waiting:
            one, package = self._waiting.popleft()
            if one.level:
                above = package.split(".")[: -one.level + 1 or None]
                name = ".".join(filter(None, (*above, one.name)))
                if package and above and self._local(above[0]):
                    self._follow_local(replace(one, name=name, level=0))
                elif package and above and self._repository(above[0]):
                    self._follow_mounted(replace(one, name=name, level=0))
                continue
            top = one.name.partition(".")[0]
            if one.how == "dynamic" or not top:
                # a note tells of it
                continue
            if self._local(top):
                self._note(one, "local", top)
                self._follow_local(one)
                self.inside.append(one)
            elif top in self._here.stdlib_names:
                self._note(one, "standard")
            elif repository := self._repository(top):
                self._note(one, "cvmfs", repository)
                self.need(repository, f"{one.where}: import {one.name}")
                self._follow_mounted(one)
            else:
                self._note(one, "installed")
                self.outside.append(one)

    def need(self, repository: str, reason: str) -> None:
        """Note that a repository is needed."""
        reasons = self.repositories.setdefault(repository, [])
        if reason not in reasons:
            reasons.append(reason)

    def _add(self, found: Findings, package: str) -> None:
        self._waiting += [(one, package) for one in found.imports]
        if package.partition(".")[0] != _OWN:
            self.notes += found.notes
            for name, where in found.repositories:
                self.need(name, where)

    def _repository(self, top: str) -> str:
        """Return the repository of a module that no distribution has."""
        return "" if self._known.owner(top) else self._mounted.repository(top)

    def _follow_mounted(self, one: Import) -> None:
        """Read the files in a repository that an import executes: they may import what is here."""
        for path, package in self._mounted.files(one.name, one.members):
            if path not in self._read:
                self._read.add(path)
                self._add(_found_in(path, path, os.stat(path).st_mtime_ns), package)

    def _note(self, one: Import, origin: Origin, provider: str = "") -> None:
        self.imports.append(Found(one.name, one.where, one.how, origin, provider))

    def _local(self, name: str) -> bool:
        if name in self.modules:
            return True
        if name in self._absent:
            return False
        module = local.find_local(name, self._search, self._lookup)
        if module is None:
            self._absent.add(name)
            return False
        self.modules[name] = module
        self._files[name] = {below: path for below, path in module.files if below.endswith(".py")}
        return True

    def _follow_local(self, one: Import) -> None:
        """Read those files of a local package that an import executes."""
        top = one.name.partition(".")[0]
        reasons = self.reasons.setdefault(top, [])
        if one.where not in reasons:
            reasons.append(one.where)
        files = self._files[top]
        if "*" in one.members:
            inside = f"{one.name.replace('.', '/')}/"
            wanted = {below for below in files if below.startswith(inside)}
        else:
            wanted = set()
        parts = one.name.split(".")
        dotted = [".".join(parts[: at + 1]) for at in range(len(parts))]
        for name in (*dotted, *(f"{one.name}.{member}" for member in one.members)):
            stem = name.replace(".", "/")
            wanted |= {f"{stem}/__init__.py", f"{stem}.py"} & files.keys()
        for below in sorted(wanted - self._read):
            self._read.add(below)
            path = files[below]
            package = os.path.dirname(below).replace("/", ".")
            self._add(_found_in(path, below, os.stat(path).st_mtime_ns), package)


@lru_cache(maxsize=4096)
def _found_in(path: str, label: str, _mtime_ns: int) -> Findings:
    try:
        source = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise local.unreadable(path, error) from error
    return imports.examine(Unit(label, source, path))
