"""Which files an environment consists of, before any of them is packed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hepscale.env import layers, local
from hepscale.env.plan_cache import PlanCache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hepscale.env.contents import Entry
    from hepscale.env.index import Index
    from hepscale.env.interpreter import Interpreter
    from hepscale.env.local import LocalModule
    from hepscale.env.store import LayerKind

__all__ = ["Need", "Part", "Plan", "plan"]


@dataclass(frozen=True, slots=True)
class Need:
    """What an environment is to hold.

    Attributes
    ----------
    interpreter, index
        Which Python, and what is installed for it.
    imported, others
        Distributions that are imported at import time, and those that the full closure adds.
    excluded
        Distributions that the user does not want.
    standard
        Top-level modules of the standard library that the analysis imports.
    modules
        Local modules.
    """

    interpreter: Interpreter
    index: Index
    imported: tuple[str, ...]
    others: tuple[str, ...]
    excluded: tuple[str, ...]
    standard: frozenset[str]
    modules: tuple[LocalModule, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """The files of one layer, by the distribution that they belong to."""

    kind: LayerKind
    label: str
    groups: Mapping[str, Sequence[Entry]]

    @property
    def entries(self) -> list[Entry]:
        return [entry for group in self.groups.values() for entry in group]


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be packed, before anything is.

    Attributes
    ----------
    need
        What it is for.
    parts
        Interpreter, packages that are imported, packages that are not, local code.
    glibc
        The newest version that anything in it needs.
    """

    need: Need
    parts: tuple[Part, ...]
    glibc: str


@dataclass(frozen=True, slots=True)
class _Installed:
    """The parts of a plan that come from installed distributions."""

    parts: tuple[Part, ...]
    glibc: str


_cache = PlanCache()
# so that a file that was changed in the same tick of its file system's clock counts as changed
_TICK_S = 0.02


def plan(need: Need, cache: Path | None = None) -> Plan:
    """Find the files of an environment; `cache` is a folder for what was learnt of them."""
    hidden = frozenset(module.name for module in need.modules if not local.is_namespace(module))
    name, here = _name(need, hidden), need.interpreter
    found: _Installed | None = _cache.recall(name, cache)
    if found is None:
        begun_s = time.time() - _TICK_S
        found = _plan_installed(need, hidden, cache)
        files = [one.source for part in found.parts for one in part.entries if one.source]
        roots = {*here.sites, here.stdlib, here.platstdlib}
        _cache.keep(name, cache, found, files, roots, begun_s)
    code = Part("code", "local modules", {one.name: layers.code([one]) for one in need.modules})
    return Plan(need, (*found.parts, code), found.glibc)


def _name(need: Need, hidden: frozenset[str]) -> str:
    """Return what differs where another plan would be made of the same files."""
    here = need.interpreter
    told = (
        *(here.executable, here.base_executable, here.version, here.machine, here.site_below),
        *(here.sites, need.imported, need.others, _state(need)),
        # not by an import: the public names of hepscale lead to everything that env must not know
        sys.modules["hepscale"].__version__,
        *(sorted(need.standard), sorted(hidden), os.environ.get("LD_LIBRARY_PATH", "")),
    )
    return hashlib.sha256(repr(told).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _state(need: Need) -> tuple[int, ...]:
    """Return when each of the distributions was installed."""
    known = need.index.distributions
    return tuple(_mtime_ns(known[name].info) for name in (*need.imported, *need.others))


def _mtime_ns(info: str) -> int:
    for path in (f"{info}/RECORD", info):
        with contextlib.suppress(OSError):
            return os.stat(path).st_mtime_ns
    return 0


def _plan_installed(need: Need, hidden: frozenset[str], cache: Path | None) -> _Installed:
    found, index = need.interpreter, need.index
    places = layers.private(found)
    base = layers.interpreter(found, index, need.standard)
    base, _ = layers.libraries(base, cache=cache, places=places)
    taken = {entry.target for entry in base}
    parts = [Part("interpreter", "Python", {"python": base})]
    below, glibc = base, ""
    for label, names in (("packages", need.imported), ("other packages", need.others)):
        owners: dict[str, str] = {}
        entries = []
        for name in names:
            for entry in layers.packages([name], index, found, hidden):
                if entry.target not in taken:
                    owners[entry.target] = name
                    entries.append(entry)
            taken.update(owners)
        entries, native = layers.libraries(entries, below, cache, places)
        group: dict[str, list[Entry]] = {}
        for entry in entries:
            group.setdefault(owners.get(entry.target, "shared libraries"), []).append(entry)
        parts.append(Part("packages", label, group))
        below = [*below, *entries]
        glibc = native.glibc
    return _Installed(tuple(parts), glibc)
