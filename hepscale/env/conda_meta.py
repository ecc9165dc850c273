"""What conda has installed, joined with the Python metadata that its packages carry."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hepscale.env.installed import CODE, Found, top_level
from hepscale.env.metadata import canonical, load_json
from hepscale.env.records import Distribution, conda_listed, listing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hepscale.env.metadata import Watch
    from hepscale.env.records import Place

__all__ = ["CondaRecord", "join", "read"]

# It looks for the packages and is not one of them, though all depend on it.
_PYTHON = frozenset({"python", "python_abi"})


@dataclass(frozen=True, slots=True)
class CondaRecord:
    """One file of ``conda-meta``.

    Attributes
    ----------
    name, version
        Conda's, which may differ from Python's.
    info
        The file.
    place
        The site folder of the prefix.
    depends
        Names of packages.
    infos
        Names of the ``.dist-info`` and ``.egg-info`` that it has put there.
    code
        Its module files, relative to the site folder.
    size_bytes, outside_bytes
        Of all its files, and of those outside the site folder.
    """

    name: str
    version: str
    info: str
    place: Place
    depends: tuple[str, ...]
    infos: frozenset[str]
    code: tuple[str, ...]
    size_bytes: int
    outside_bytes: int


def read(place: Place, watch: Watch) -> list[CondaRecord]:
    """Read ``conda-meta`` of the prefix that a site folder belongs to, if it has one."""
    folder = f"{place.root}/conda-meta"
    watch.see(folder)
    found = []
    for name in sorted(listing(folder)) if watch.stamps[folder] else ():
        if name.endswith(".json"):
            info = f"{folder}/{name}"
            watch.see(info)
            found.append(_read(info, place))
    return [one for one in found if one.name]


def _read(info: str, place: Place) -> CondaRecord:
    found = load_json(info)
    below = f"{place.site[len(place.root) + 1 :]}/"
    inside, infos, total, outside = [], set(), 0, 0
    for file in conda_listed(info):
        total += file.size_bytes
        if not file.target.startswith(below):
            outside += file.size_bytes
            continue
        path = file.target[len(below) :]
        top, _, rest = path.partition("/")
        if top.endswith((".dist-info", ".egg-info")) and rest in {"", "METADATA", "PKG-INFO"}:
            infos.add(top)
        elif path.endswith(CODE):
            inside.append(path)
    depends = found.get("depends")
    return CondaRecord(
        str(found.get("name") or ""),
        str(found.get("version") or ""),
        info,
        place,
        tuple(_named(str(one)) for one in depends) if isinstance(depends, list) else (),
        frozenset(infos),
        tuple(inside),
        total,
        outside,
    )


def _named(dependency: str) -> str:
    """Return the name in a text like ``conda-forge::numpy >=1.26``."""
    return re.split(r"[\s<>=!~\[]", dependency.rpartition("::")[2].strip(), maxsplit=1)[0]


def join(
    records: Sequence[CondaRecord], pythons: Mapping[str, Found], others: Mapping[str, Found]
) -> Iterator[Found]:
    """Yield conda's packages as distributions, those that are Python's under Python's name.

    Parameters
    ----------
    records
        All records of a prefix.
    pythons
        What the site folder holds of their metadata, by the name of the ``.dist-info``. A record
        with none of its own left was overwritten by an installer that knows nothing of conda: what
        it lists in the site folder is not its own any more.
    others
        Other distributions, by name, whose names cannot be used again.
    """
    live = {
        one.info: [pythons[info] for info in sorted(one.infos & set(pythons))] for one in records
    }
    names = {one.distribution.name for one in pythons.values()} | set(others)
    keys: dict[str, str] = {}
    for one in records:
        own = [found.distribution.name for found in live[one.info]]
        name = _key(one.name)
        keys[one.name] = (name if name in own else own[0]) if own else _free(name, names)
    native = {one.name for one in records if not one.code} - _PYTHON
    for one in records:
        wanted = native if live[one.info] else keys.keys() - _PYTHON
        depends = tuple(keys[name] for name in one.depends if name in wanted)
        yield from _joined(one, keys[one.name], depends, live[one.info])


def _key(name: str) -> str:
    """Return conda's name as Python would have it, where none begins with a line: _libgcc_mutex."""
    return canonical(name).strip("-")


def _free(name: str, names: set[str]) -> str:
    return f"conda-{name}" if name in names else name


def _joined(
    one: CondaRecord, name: str, depends: tuple[str, ...], live: Sequence[Found]
) -> Iterator[Found]:
    gone = bool(one.infos) and not live
    code = () if gone else one.code
    size_bytes = one.outside_bytes if gone else one.size_bytes
    if not live and not size_bytes and name != _key(one.name):
        # It stands for another package of the same name, and has nothing of its own.
        return
    main = Distribution(
        name,
        one.version,
        "conda",
        one.info,
        "" if gone else one.place.site,
        depends,
        top_level(code),
        (),
        "",
        size_bytes,
    )
    for found in live:
        python = found.distribution
        if python.name == name:
            main = replace(
                main,
                version=python.version,
                requires=(*python.requires, *depends),
                entry_points=python.entry_points,
            )
        else:
            requires = (name, *python.requires)
            yield Found(replace(python, kind="conda", requires=requires, size_bytes=0))
    yield Found(main, code=code)
