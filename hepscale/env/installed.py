"""What installers have recorded in a folder that an interpreter looks for packages in."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hepscale.env import metadata
from hepscale.env.metadata import canonical
from hepscale.env.records import Distribution, Place, linked_metadata, listing, record, walk

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from hepscale.env.metadata import Watch

__all__ = ["CODE", "Found", "Site", "installed", "project_of", "top_level"]

log = logging.getLogger(__name__)

CODE = (".py", ".so", ".pyc")
_INFO = (".dist-info", ".egg-info")
# What setuptools and hatch call the files that lead to a project.
_LINKING = ("__editable__", "_editable_impl_")


@dataclass(frozen=True, slots=True)
class Found:
    """A distribution and what has to be known to find its files.

    Attributes
    ----------
    distribution
        The distribution.
    parts
        Its files and folders in the site folder, where no record lists them.
    roots
        Folders outside the site folder that it puts on ``sys.path``.
    code
        Its module files, relative to the site folder.
    """

    distribution: Distribution
    parts: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    code: tuple[str, ...] = ()


@dataclass(slots=True)
class Site:
    """A folder of installed packages, and what has been found of it so far.

    Attributes
    ----------
    place
        The folder.
    watch
        Is told everything that the result depends on.
    names
        What is in it, and whether that is a folder.
    code
        Module files that belong to a distribution.
    owned
        Entries of the folder that belong, wholly or in part, to a distribution.
    linked
        Folders outside that a distribution puts on ``sys.path``.
    """

    place: Place
    watch: Watch
    names: dict[str, bool]
    code: set[str] = field(default_factory=set)
    owned: set[str] = field(default_factory=set)
    linked: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, place: Place, watch: Watch) -> Site:
        """List the folder."""
        watch.see(place.site)
        found = sorted(listing(place.site).items())
        # What begins with ~ is what pip could not remove.
        names = {name: is_folder for name, is_folder in found if not name.startswith(("~", "."))}
        names.pop("__pycache__", None)
        for name in names:
            if name.endswith((".pth", ".egg-link")):
                watch.see(f"{place.site}/{name}")
        return cls(place, watch, names)

    def own(self, code: Iterable[str], entries: Iterable[str] = ()) -> None:
        """Note what belongs to a distribution."""
        known = set(code)
        self.code |= known
        self.owned.update(path.partition("/")[0] for path in known)
        self.owned.update(entries)

    def outside(self, folders: Iterable[str]) -> list[str]:
        """Return those folders that are not in this one."""
        inner = f"{self.place.site}/"
        return [folder for folder in folders if not f"{folder}/".startswith(inner)]


def installed(site: Site, path: Collection[str], apart: Collection[str] = ()) -> Iterator[Found]:
    """Yield what installers have recorded in a site folder.

    Parameters
    ----------
    site
        The folder.
    path
        ``sys.path``: an egg counts if it is there.
    apart
        Names of ``.dist-info`` and ``.egg-info`` folders whose files somebody else knows: of
        these the metadata alone are read.
    """
    infos: dict[str, str] = {}
    for name in site.names:
        if name.endswith(_INFO):
            known = canonical(metadata.metadata(f"{site.place.site}/{name}")[0])
            infos[known] = _newer(site, infos[known], name) if known in infos else name
    for name in sorted(infos.values()):
        info = f"{site.place.site}/{name}"
        if name in apart:
            yield _found(info, site.place.site)
            continue
        site.watch.see(f"{info}/RECORD")
        found = _recorded(site, info)
        if found is not None:
            site.own(found.code, found.parts)
            yield found
    for name, is_folder in site.names.items():
        entry = f"{site.place.site}/{name}"
        if name.endswith(".egg") and is_folder and entry in path:
            yield _egg(site, entry)
        elif name.endswith(".egg-link"):
            yield from _egg_link(site, entry)


def _newer(site: Site, one: str, other: str) -> str:
    def age(name: str) -> tuple[bool, int]:
        info = f"{site.place.site}/{name}"
        found = metadata.stamp(f"{info}/RECORD") or metadata.stamp(info)
        return name.endswith(".dist-info"), found[0] if found else 0

    log.info("in %s, %s and %s are of one distribution", site.place.site, one, other)
    return max(one, other, key=age)


def _found(
    info: str, site: str, code: Iterable[str] = (), size_bytes: int = 0, parts: Iterable[str] = ()
) -> Found:
    name, version, requires = metadata.metadata(info)
    distribution = Distribution(
        canonical(name),
        version,
        "wheel" if info.endswith(".dist-info") else "egg",
        info,
        site,
        requires,
        top_level(code),
        metadata.entry_points(info),
        "",
        size_bytes,
    )
    return Found(distribution, tuple(parts), code=tuple(code))


def top_level(code: Iterable[str]) -> tuple[str, ...]:
    """Return the top-level modules that module files belong to, sorted."""
    tops = {path.partition("/")[0].partition(".")[0] for path in code}
    return tuple(sorted(top for top in tops if top.isidentifier()))


def _recorded(site: Site, info: str) -> Found | None:
    rows = record(info)
    if rows is None:
        return _unlisted(site, info)
    code, links, size_bytes = [], [], 0
    for path, _, size in rows:
        if "__pycache__/" in path:
            continue
        if size.isdecimal():
            size_bytes += int(size)
        if path.startswith((".", "/")):
            continue
        if path.endswith(CODE):
            code.append(path)
        if "/" not in path and (path.endswith(".pth") or path.startswith(_LINKING)):
            links.append(path)
    if not size_bytes:
        stamps = (metadata.stamp(f"{site.place.site}/{path}") for path, _, _ in rows)
        size_bytes = sum(found[1] for found in stamps if found)
    site.own(code, links)
    return _editable(site, info, links, code) or _found(info, site.place.site, code, size_bytes)


def _unlisted(site: Site, info: str) -> Found | None:
    """Return a distribution without a record of its files, such as Debian installs."""
    site.watch.see(f"{info}/METADATA")
    site.watch.see(f"{info}/PKG-INFO")
    if info.endswith(".dist-info") and not os.path.isfile(f"{info}/METADATA"):
        log.warning("%s has neither metadata nor a record", info)
        return None
    name = metadata.metadata(info)[0]
    tops = metadata.read_text(f"{info}/top_level.txt").split()
    tops = tops or [form for one in (name, name.lower()) for form in (one, one.replace("-", "_"))]
    first = {top.partition("/")[0] for top in tops}
    parts = [
        entry
        for entry, is_folder in site.names.items()
        if entry.partition(".")[0] in first and (is_folder or entry.endswith(CODE))
        if entry == entry.partition(".")[0] or not is_folder
    ]
    parts.append(os.path.basename(info))
    code, size_bytes = walked(site.place.site, parts)
    return _found(info, site.place.site, code, size_bytes, parts)


def walked(folder: str, parts: Iterable[str]) -> tuple[tuple[str, ...], int]:
    """Return the module files among these files and folders, and the size of all files."""
    files = [file for part in parts for file in walk(f"{folder}/{part}", part)]
    code = tuple(file.target for file in files if file.target.endswith(CODE))
    return code, sum(file.size_bytes for file in files)


def _editable(site: Site, info: str, links: Collection[str], code: Collection[str]) -> Found | None:
    """Return a distribution whose code is not here, None where it is."""
    project = metadata.direct_url(info)
    roots: list[str] = []
    mapping: dict[str, str] = {}
    for name in links:
        path = f"{site.place.site}/{name}"
        if name.endswith(".pth"):
            roots += filter(os.path.isdir, site.outside(metadata.path_lines(path)))
        elif name.endswith("_finder.py"):
            mapping.update(metadata.finder_mapping(path))
    # Code beside them is the distribution's own: what it puts on the path is part of it.
    if not project and (set(code) - set(links) or not (roots or mapping)):
        return None
    site.linked.update(roots)
    tops = {key.partition(".")[0] for key in mapping}
    tops.update(metadata.read_text(f"{info}/top_level.txt").split())
    # Some build backends install the compiled modules and link to the others.
    tops.update(top for top in top_level(code) if "editable" not in top)
    size_bytes = sum(file.size_bytes for file in linked_metadata(info, ""))
    found = _found(info, site.place.site, (), size_bytes)
    if not tops and not roots:
        tops.add(found.distribution.name.replace("-", "_"))
    changed = replace(
        found.distribution,
        modules=tuple(sorted(tops)),
        editable=project or project_of([*roots, *mapping.values()][0]),
    )
    linked = tuple(f"{key.replace('.', '/')}/__init__.py" for key in mapping)
    return replace(found, distribution=changed, roots=() if tops else tuple(roots), code=linked)


def project_of(path: str) -> str:
    """Return the folder of the project that a package, or the folder above it, is part of."""
    folder = path
    while folder not in {"/", ""}:
        if any(os.path.isfile(f"{folder}/{name}") for name in ("pyproject.toml", "setup.py")):
            return folder
        folder = os.path.dirname(folder)
    return path


def _egg(site: Site, egg: str) -> Found:
    """Return an egg: a folder on ``sys.path`` that holds one distribution."""
    inner = Site.open(Place(egg, "", site.place.below), site.watch)
    code, size_bytes = walked(egg, inner.names)
    site.own((), [os.path.basename(egg)])
    return _found(f"{egg}/EGG-INFO", egg, code, size_bytes, inner.names)


def _egg_link(site: Site, link: str) -> Iterator[Found]:
    """Yield what ``setup.py develop`` has linked to."""
    lines = [line.strip() for line in metadata.read_text(link).splitlines() if line.strip()]
    folder = os.path.normpath(os.path.join(site.place.site, lines[0])) if lines else ""
    wanted = canonical(os.path.basename(link).removesuffix(".egg-link"))
    infos = [name for name in listing(folder) if name.endswith(".egg-info")] if folder else []
    infos = [name for name in infos if canonical(name.removesuffix(".egg-info")) == wanted]
    if not infos:
        log.warning("%s leads to no project", link)
        return
    info = f"{folder}/{infos[0]}"
    site.watch.see(f"{info}/PKG-INFO")
    site.linked.add(folder)
    size_bytes = sum(file.size_bytes for file in linked_metadata(info, ""))
    found = _found(info, site.place.site, (), size_bytes)
    tops = tuple(sorted(metadata.read_text(f"{info}/top_level.txt").split()))
    project = os.path.normpath(os.path.join(folder, *lines[1:2]))
    changed = replace(found.distribution, modules=tops, editable=project)
    yield replace(found, distribution=changed, roots=() if tops else (folder,))
