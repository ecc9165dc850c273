"""Modules in a folder of installed packages that belong to no distribution."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hepscale.env import metadata
from hepscale.env.installed import CODE, Found, project_of, top_level, walked
from hepscale.env.metadata import canonical
from hepscale.env.records import Distribution, listing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from hepscale.env.installed import Site

__all__ = ["loose"]

_SITE_FOLDERS = frozenset({"site-packages", "dist-packages"})
_NO_MODULES = (".dist-info", ".egg-info", ".egg", ".egg-link", ".pth")


def loose(site: Site, names: Collection[str], modules: Collection[str]) -> Iterator[Found]:
    """Yield a distribution of kind ``folder`` for each module that nobody has recorded.

    Parameters
    ----------
    site
        The folder, after what is recorded in it has been found.
    names
        Names of distributions that cannot be used again.
    modules
        Top-level modules of folders that come first on ``sys.path``.
    """
    taken = set(names)
    groups = _Groups(site)
    groups.collect("")
    roots = groups.path_files()
    for module in sorted(groups.parts):
        if module in modules:
            continue
        name = canonical(module).strip("-")
        while name in taken:
            name += "-folder"
        taken.add(name)
        parts, outside = groups.parts[module], roots.get(module, ())
        code, size_bytes = walked(site.place.site, parts)
        editable = project_of(outside[0]) if outside else ""
        tops = top_level(code)
        distribution = Distribution(
            name, "", "folder", "", site.place.site, (), tops, (), editable, size_bytes
        )
        yield Found(distribution, tuple(parts), outside, code)


class _Groups:
    """Files and folders by the dotted module that they belong to."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.parts: dict[str, list[str]] = {}
        self._regular = {
            path.rpartition("/")[0]
            for path in site.code
            if path.rpartition("/")[2][:9] == "__init__."
        }
        self._owned = set(site.owned)
        for path in site.code:
            top = path.partition("/")[0]
            if top != path and top not in self._regular:
                self._own_with_folders(path)

    def _own_with_folders(self, path: str) -> None:
        while path and path not in self._owned:
            self._owned.add(path)
            path = path.rpartition("/")[0]

    def collect(self, below: str) -> None:
        """Gather what is in the folder `below`, and in namespace packages that others share."""
        folder = f"{self.site.place.site}/{below}".rstrip("/")
        if below:
            self.site.watch.see(folder)
        names = sorted((listing(folder) if below else self.site.names).items())
        for name, is_folder in names:
            path = f"{below}/{name}".lstrip("/")
            stem = name.partition(".")[0]
            if path in self._owned:
                if is_folder and path not in self._regular and name.isidentifier():
                    self.collect(path)
            elif name.startswith(("~", ".")) or name.endswith(_NO_MODULES):
                continue
            elif self._is_module(f"{folder}/{name}", is_folder=is_folder):
                module = f"{below}/{stem}".strip("/").replace("/", ".")
                self.parts.setdefault(module, []).append(path)
                # Where auditwheel puts shared libraries.
                if (f"{stem}.libs", True) in names:
                    self.parts[module].append(f"{below}/{stem}.libs".lstrip("/"))

    def _is_module(self, path: str, *, is_folder: bool) -> bool:
        name = os.path.basename(path)
        if not is_folder:
            return name.endswith(CODE) and name.partition(".")[0].isidentifier()
        if not name.isidentifier() or name == "__pycache__":
            return False
        # The code of a linked folder is local.
        is_linked = os.path.islink(path)
        if is_linked and _SITE_FOLDERS.isdisjoint(os.path.realpath(path).split("/")):
            return False
        return any(
            file.endswith(CODE)
            for folder, _, files in os.walk(path)
            if not folder.endswith("__pycache__")
            for file in files
        )

    def path_files(self) -> dict[str, tuple[str, ...]]:
        """Add ``.pth`` files; return the folders that they put on ``sys.path``, by group."""
        roots = {}
        for name in self.site.names:
            if name.endswith(".pth") and name not in self._owned:
                group = name.removesuffix(".pth")
                folders = metadata.path_lines(f"{self.site.place.site}/{name}")
                outside = self.site.outside(folders)
                if not outside:
                    self.parts.setdefault(group, []).append(name)
                else:
                    unknown = tuple(path for path in outside if path not in self.site.linked)
                    if unknown:
                        self.parts.setdefault(group, [])
                        roots[group] = unknown
        return roots
