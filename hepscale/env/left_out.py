"""Which modules of this machine an environment does not have, for a worker to watch for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hepscale.env import layers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hepscale.env.environment import Closure
    from hepscale.env.index import Index
    from hepscale.env.plan import Need

__all__ = ["left_out", "local_names"]


def left_out(need: Need, closure: Closure) -> tuple[str, ...]:
    """Return the modules that are installed here and not packed; not those unwanted.

    Top-level names; of a package that several distributions share, the dotted names of the parts
    that stay behind; the parts of the standard library that are packed on demand.
    """
    known = need.index.distributions
    packed = {*need.imported, *(need.others if closure == "full" else ())}
    behind = known.keys() - packed - {*need.excluded}
    local = {module.name for module in need.modules}
    library = need.interpreter.stdlib_names
    there = {module for name in packed for module in known[name].modules}
    tops = {module for name in behind for module in known[name].modules} - local - library
    shared = tops & there
    parts = {
        part
        for name, part in need.index.shared_parts()
        if name in behind and part.partition(".")[0] in shared
    }
    inner = {one for part in parts for one in _without(part, packed, need.index)}
    optional = {
        name
        for name in layers.optional_modules(need.standard)
        if name not in local and _is_file(need.interpreter.stdlib, name)
    }
    return tuple(sorted((tops - there) | inner | optional))


def _without(part: str, packed: set[str], index: Index) -> Iterator[str]:
    """Yield a part and the packages around it, up to the first that something packed has."""
    while part and packed.isdisjoint(index.owners(part)):
        yield part
        part = part.rpartition(".")[0]


def _is_file(stdlib: str, name: str) -> bool:
    return any(os.path.exists(f"{stdlib}/{name}{end}") for end in (".py", "/__init__.py"))


def local_names(folder: str) -> set[str]:
    """Return the modules and packages that a folder of local code holds."""
    found = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, _, suffix = entry.name.partition(".")
                is_module = (
                    suffix in {"py", "so"}
                    or suffix.endswith(".so")
                    or (not suffix and os.path.isfile(f"{entry.path}/__init__.py"))
                )
                if is_module and stem.isidentifier():
                    found.add(stem)
    except OSError:
        # it was removed, or is no folder: nothing can be imported from there
        pass
    return found
