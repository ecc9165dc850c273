"""What is installed for an interpreter, and who owns which part of a shared package."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hepscale.env import conda_meta
from hepscale.env.installed import Site, installed
from hepscale.env.loose import loose
from hepscale.env.records import Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hepscale.env.installed import Found
    from hepscale.env.interpreter import Interpreter
    from hepscale.env.metadata import Watch

__all__ = ["Parts", "divide", "scan"]


@dataclass(frozen=True, slots=True)
class Parts:
    """Who owns which part of the top-level packages that are not one distribution's alone.

    Attributes
    ----------
    modules
        A distribution by dotted module; what is below a module is the same one's, unless it is
        named itself.
    spaces
        Distributions by dotted namespace package: what is below is nobody's unless it is named.
    """

    modules: Mapping[str, str]
    spaces: Mapping[str, tuple[str, ...]]


def scan(interpreter: Interpreter, watch: Watch) -> list[Found]:
    """Find what is installed, in the order of ``sys.path``; each name once.

    Parameters
    ----------
    interpreter
        Whose folders are looked at.
    watch
        Is told everything that the result depends on.
    """
    found: dict[str, Found] = {}
    roots: set[str] = set()
    for folder in interpreter.sites:
        place = Place.of(folder, interpreter.site_below)
        site = Site.open(place, watch)
        is_first = bool(place.root) and place.root not in roots
        roots.add(place.root)
        records = conda_meta.read(place, watch) if is_first else []
        modules = {top for one in found.values() for top in one.distribution.modules}
        for one in _recorded(site, interpreter, records, found):
            found.setdefault(one.distribution.name, one)
        for one in loose(site, found, modules):
            found[one.distribution.name] = one
    return list(found.values())


def _recorded(
    site: Site,
    interpreter: Interpreter,
    records: Sequence[conda_meta.CondaRecord],
    earlier: Mapping[str, Found],
) -> Iterator[Found]:
    apart = {info for one in records for info in one.infos}
    pythons, others = {}, dict(earlier)
    for one in installed(site, interpreter.path, apart):
        info = os.path.basename(one.distribution.info)
        if info in apart:
            pythons[info] = one
        else:
            others[one.distribution.name] = one
            yield one
    for one in conda_meta.join(records, pythons, others):
        site.own(one.code)
        yield one


def divide(found: Sequence[Found]) -> Parts:
    """Find who owns which part of namespace packages, and of those that several have a part of."""
    count = Counter(module for one in found for module in one.distribution.modules)
    divided = {module for module, number in count.items() if number > 1}
    for one in found:
        if one.code:
            divided.update(set(one.distribution.modules) - set(_regular(one.code)))
    modules: dict[str, str] = {}
    for one in found:
        for path in one.code:
            if path.partition("/")[0].partition(".")[0] in divided:
                modules.setdefault(_module(path), one.distribution.name)
    spaces: dict[str, dict[str, None]] = {}
    for module, name in modules.items():
        above = module.rpartition(".")[0]
        while above and above not in modules:
            spaces.setdefault(above, {})[name] = None
            above = above.rpartition(".")[0]
    named = {module: name for module, name in modules.items() if _above(module, modules) != name}
    outer = (space for space in spaces if _above(space, modules) is None)
    return Parts(named, {space: tuple(spaces[space]) for space in outer})


def _regular(code: Sequence[str]) -> Iterator[str]:
    for path in code:
        top, _, rest = path.partition("/")
        if not rest or rest.startswith("__init__."):
            yield top.partition(".")[0]


def _module(path: str) -> str:
    folder, _, file = path.rpartition("/")
    stem = file.partition(".")[0]
    return (folder if stem == "__init__" else f"{folder}/{stem}").strip("/").replace("/", ".")


def _above(module: str, modules: Mapping[str, str]) -> str | None:
    """Return the owner of what a module is in."""
    above = module.rpartition(".")[0]
    while above and above not in modules:
        above = above.rpartition(".")[0]
    return modules.get(above)
