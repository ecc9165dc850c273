"""Installed distributions and their files, as installers have recorded them.

Nothing here raises for a damaged record: what can be read of it counts, the rest is logged.
"""

from __future__ import annotations

import binascii
import csv
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hepscale.env.metadata import load_json, read_text, stamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "MACHINE_FILES",
    "Distribution",
    "InstalledFile",
    "Kind",
    "Place",
    "PrefixMode",
    "added",
    "conda_listed",
    "link_within",
    "linked_metadata",
    "listing",
    "present",
    "record",
    "record_listed",
    "walk",
]

log = logging.getLogger(__name__)

Kind = Literal["wheel", "conda", "egg", "folder"]
PrefixMode = Literal["", "text", "binary", "unknown"]

# What installers note about this machine: never part of a pack.
MACHINE_FILES = (".dist-info/direct_url.json", ".dist-info/uv_cache.json")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Distribution:
    """One installed distribution.

    Attributes
    ----------
    name
        Normalised after PEP 503. Modules that belong to no distribution are one of kind
        ``folder``, named after the module.
    version
        Empty where it is not known.
    kind
        How it is recorded.
    info
        Its ``.dist-info`` or ``.egg-info``, its record in ``conda-meta``, or empty.
    site
        The folder that its modules are imported from; empty where it has none.
    requires
        ``Requires-Dist`` as written. Where conda installed it, also the names of those of its
        dependencies that hold no Python modules.
    modules
        Top-level names that it provides, sorted.
    entry_points
        Pairs of group and module, sorted.
    editable
        Folder of the project where the code is not installed but linked to, else empty.
    size_bytes
        Of its files, without ``__pycache__``.
    """

    name: str
    version: str
    kind: Kind
    info: str
    site: str
    requires: tuple[str, ...]
    modules: tuple[str, ...]
    entry_points: tuple[tuple[str, str], ...]
    editable: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """One file of a distribution.

    Attributes
    ----------
    target
        Path below the prefix of the pack, with ``/``.
    source
        Absolute path of the file.
    sha256
        64 hex digits from the record, or empty. An edit since the installation does not change it.
    size_bytes
        From the record, or of the file where there is no record; 0 where the record has none.
    placeholder
        The prefix that the file had in conda's package. Here it holds conda's prefix instead.
    prefix_mode
        How that was filled in; ``unknown``: nobody has said, the prefix may be in the file.
    is_link
        Whether conda has put a link there; see :func:`link_within`.
    """

    target: str
    source: str
    sha256: str
    size_bytes: int
    placeholder: str = ""
    prefix_mode: PrefixMode = ""
    is_link: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A folder of installed packages, and where its files go in a pack.

    Attributes
    ----------
    site
        The folder.
    root
        The prefix that it belongs to; empty where it belongs to none.
    below
        The folder's place below the prefix of the pack.
    """

    site: str
    root: str
    below: str

    @classmethod
    def of(cls, site: str, below: str) -> Place:
        """Find the prefix of a folder like ``lib/python3.11/site-packages``."""
        parts = site.split("/")
        regular = parts[-3:-1] and parts[-3].startswith("lib") and parts[-2].startswith("python")
        return cls(site, "/".join(parts[:-3]) if regular else "", below)

    def find(self, path: str) -> tuple[str, str] | None:
        """Return target and source of a path as a record has it; None outside the prefix."""
        if not path.startswith((".", "/")) and "/../" not in path:
            return f"{self.below}/{path}", f"{self.site}/{path}"
        source = os.path.normpath(os.path.join(self.site, path))
        if source.startswith(f"{self.site}/"):
            return self.below + source[len(self.site) :], source
        if self.root and source.startswith(f"{self.root}/"):
            return source[len(self.root) + 1 :], source
        return None


def record(info: str) -> list[tuple[str, str, str]] | None:
    """Return path, digest and size of each file of a distribution, as its record has them.

    Parameters
    ----------
    info
        Its ``.dist-info`` or ``.egg-info``.

    Returns
    -------
    list or None
        Paths are relative to the site folder. None where there is no record.
    """
    try:
        # File names are bytes: a surrogate stands for one that is not UTF-8, as everywhere in os.
        with open(
            f"{info}/RECORD", encoding="utf-8", errors="surrogateescape", newline=""
        ) as lines:
            rows = [row if len(row) == 3 else [*row, "", ""] for row in csv.reader(lines) if row]
        return [(row[0], row[1], row[2]) for row in rows if "\0" not in row[0]]
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, csv.Error) as error:
        log.warning("%s/RECORD cannot be read: %s", info, error)
    if not info.endswith(".egg-info"):
        return None
    folder = os.path.basename(info)
    names = read_text(f"{info}/installed-files.txt").splitlines()
    paths = [os.path.normpath(f"{folder}/{name}") for name in names if name.strip()]
    return [(path, "", "") for path in paths] or None


def record_listed(info: str, place: Place) -> Iterator[InstalledFile]:
    """Yield the files that a record lists, there or not."""
    for path, digest, size in record(info) or ():
        if "__pycache__/" in path or path.endswith(MACHINE_FILES):
            continue
        found = place.find(path)
        if found is None:
            log.info("%s lists %s, which is outside the prefix", info, path)
        else:
            yield InstalledFile(*found, _hex(digest), int(size) if size.isdecimal() else 0)


def _hex(digest: str) -> str:
    kind, _, text = digest.partition("=")
    if kind != "sha256":
        return ""
    try:
        standard = text.replace("-", "+").replace("_", "/")
        found = binascii.a2b_base64(standard + "=" * (-len(text) % 4))
    except ValueError:
        return ""
    return found.hex() if len(found) == _DIGEST_BYTES else ""


def linked_metadata(info: str, below: str) -> Iterator[InstalledFile]:
    """Yield the metadata of an editable project, without what tells where the project is."""
    for file in walk(info, f"{below}/{os.path.basename(info)}"):
        if not file.target.endswith((*MACHINE_FILES, "/RECORD")):
            yield file


def conda_listed(info: str) -> Iterator[InstalledFile]:
    """Yield the files that a record in ``conda-meta`` lists, there or not."""
    prefix, found = os.path.dirname(os.path.dirname(info)), load_json(info)
    data = found.get("paths_data")
    paths = data.get("paths") if isinstance(data, dict) else None
    if not isinstance(paths, list):
        # An old record has names alone.
        names = found.get("files")
        paths = [{"_path": name} for name in (names if isinstance(names, list) else ())]
    for path in paths:
        target = path.get("_path") if isinstance(path, dict) else None
        if not isinstance(target, str) or path.get("path_type") == "directory":
            continue
        if "__pycache__/" in target or target.endswith(MACHINE_FILES):
            continue
        if target.startswith("/") or ".." in target.split("/"):
            log.warning("%s lists %s, which is outside the prefix", info, target)
            continue
        yield _conda_file(target, f"{prefix}/{target}", path)


def _conda_file(target: str, source: str, path: dict[str, Any]) -> InstalledFile:
    kind, placeholder = path.get("path_type"), path.get("prefix_placeholder") or ""
    mode: PrefixMode = path["file_mode"] if path.get("file_mode") in {"text", "binary"} else ""
    # A script that conda made itself, or an old record.
    if not mode and kind not in {"hardlink", "softlink"}:
        mode = "unknown"
    sha256 = path.get("sha256_in_prefix") or ("" if mode else path.get("sha256"))
    if not isinstance(sha256, str) or kind == "softlink":
        sha256 = ""
    size_bytes = path.get("size_in_bytes")
    size_bytes = size_bytes if isinstance(size_bytes, int) else 0
    return InstalledFile(target, source, sha256, size_bytes, placeholder, mode, kind == "softlink")


def present(
    files: Iterable[InstalledFile], listings: dict[str, dict[str, bool]]
) -> Iterator[InstalledFile]:
    """Drop the files that are gone; where a folder or a link to one is listed, yield its files.

    Conda's links to folders of the same prefix stay links: ``lib/python3.1`` leads to everything.

    Parameters
    ----------
    files
        As a record lists them.
    listings
        Takes what is in their folders, see :func:`listing`.
    """
    for file in files:
        folder, _, name = file.source.rpartition("/")
        if folder not in listings:
            listings[folder] = listing(folder)
        is_folder = listings[folder].get(name)
        if is_folder is None:
            log.info("%s is recorded but not there", file.source)
        elif is_folder and not (
            file.is_link and link_within(file.source, file.source.removesuffix(f"/{file.target}"))
        ):
            yield from walk(file.source, file.target)
        else:
            yield file


def added(
    files: Iterable[InstalledFile],
    listings: Mapping[str, Mapping[str, bool]],
    packages: Iterable[str],
    below: str,
) -> Iterator[InstalledFile]:
    """Yield what somebody has put into installed packages and no record lists.

    Parameters
    ----------
    files
        What is recorded and there.
    listings
        What is in their folders.
    packages
        Folders whose files are all of this distribution.
    below
        Where these folders are in a pack.
    """
    known = {file.source for file in files}
    for path in listings:
        while path and path not in known:
            known.add(path)
            path = path.rpartition("/")[0]
    for package in packages:
        top = package.rpartition("/")[0]
        for folder, names in listings.items():
            if folder == package or folder.startswith(f"{package}/"):
                for name in names:
                    path = f"{folder}/{name}"
                    if path not in known and not name.startswith((".", "~", "__pycache__")):
                        yield from walk(path, below + path[len(top) :])


def link_within(source: str, prefix: str) -> str:
    """Return where a link leads that can stay one, relative to it: to a place in its own prefix."""
    if not os.path.islink(source):
        return ""
    to = os.readlink(source)
    real = os.path.normpath(os.path.join(os.path.dirname(source), to))
    inside = real.startswith(f"{os.path.normpath(prefix)}/")
    return to if not os.path.isabs(to) and inside and os.path.exists(real) else ""


def listing(folder: str) -> dict[str, bool]:
    """Return what is in a folder, and whether it is a folder; broken links are left out."""
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name: entry.is_dir()
                for entry in entries
                if not entry.is_symlink() or os.path.exists(entry.path)
            }
    except OSError as error:
        log.info("%s cannot be listed: %s", folder, error)
        return {}


def walk(source: str, target: str) -> Iterator[InstalledFile]:
    """Yield a file, or all files of a folder."""
    if not os.path.isdir(source):
        found = stamp(source)
        if found is not None:
            yield InstalledFile(target, source, "", found[1])
        return
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if name != "__pycache__"]
        inner = target + folder[len(source) :]
        for name in names:
            found = stamp(f"{folder}/{name}")
            if found is not None:
                yield InstalledFile(f"{inner}/{name}", f"{folder}/{name}", "", found[1])
