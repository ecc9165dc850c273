"""Repositories of CVMFS that code needs: what lies below ``/cvmfs`` is named and not packed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec

    from hepscale.env.analysis import Analysis

__all__ = ["Mounted", "UsedRepository", "mentioned", "repositories", "repository_of"]

TOP = "/cvmfs"


@dataclass(frozen=True, slots=True)
class UsedRepository:
    """A repository that is needed.

    Attributes
    ----------
    name
        As below ``/cvmfs``.
    reasons
        Where it is imported from or named: "cell 3, line 2: import yaml", "cell 4, line 1".
    """

    name: str
    reasons: tuple[str, ...]


def repositories(found: Analysis) -> tuple[str, ...]:
    """Return the names of the repositories that a task needs, sorted."""
    return tuple(one.name for one in found.repositories)


def mentioned(text: str) -> tuple[str, ...]:
    """Return the repositories whose paths a text holds, each once."""
    if TOP not in text:
        return ()
    return tuple(dict.fromkeys(_pattern(TOP).findall(text)))


def repository_of(path: str) -> str:
    """Return the repository that a file or folder lies in, also by links; "" if in none."""
    for one in (path, os.path.realpath(path)):
        found = _pattern(TOP).match(one)
        if found:
            return found[1]
    return ""


@lru_cache(maxsize=4)
def _pattern(top: str) -> re.Pattern[str]:
    # not in "http://server/cvmfs/..." nor in "/backup/cvmfs/..."
    return re.compile(rf"(?<![\w.-]){re.escape(top)}/([A-Za-z0-9][\w-]*(?:\.[\w-]+)+)")


class Mounted:
    """Finds modules in folders of repositories.

    Parameters
    ----------
    search
        All folders in which modules are looked for.
    """

    def __init__(self, search: Sequence[str]) -> None:
        self._search = [*search]
        self._any = any(map(repository_of, search))
        self._specs: dict[str, ModuleSpec | None] = {}

    def repository(self, name: str) -> str:
        """Return the repository that a top-level module is imported from, or ""."""
        if not self._any:
            return ""
        if name not in self._specs:
            self._specs[name] = PathFinder.find_spec(name, self._search)
        spec = self._specs[name]
        if spec is None:
            return ""
        folders = spec.submodule_search_locations or ()
        places = [spec.origin] if spec.origin and spec.has_location else [*folders]
        return next(filter(None, map(repository_of, places)), "")

    def files(self, name: str, members: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield the source files that an import of a module executes, with their packages."""
        top, *below = name.split(".")
        spec = self._specs.get(top)
        if spec is None:
            return
        if spec.origin and spec.has_location and not spec.submodule_search_locations:
            yield from [(spec.origin, "")] if spec.origin.endswith(".py") else []
            return
        for folder in spec.submodule_search_locations or ():
            parts = [".".join(below[:length]) for length in range(len(below) + 1)]
            parts += [".".join([*below, member]) for member in members]
            for part in dict.fromkeys(parts):
                stem = os.path.join(folder, *filter(None, part.split(".")))
                package = f"{top}.{part}".rstrip(".")
                for path, inside in (
                    (os.path.join(stem, "__init__.py"), package),
                    (f"{stem}.py", package.rpartition(".")[0]),
                ):
                    if os.path.isfile(path):
                        yield path, inside
