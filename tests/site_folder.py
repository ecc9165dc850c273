"""Folders of installed packages, written as installers leave them behind."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepscale.env import index, interpreter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
BELOW = f"lib/{PYTHON}/site-packages"
TAG = f"cpython-{sys.version_info[0]}{sys.version_info[1]}-x86_64-linux-gnu"


def write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files into a folder, by their paths below it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def row(name: str, content: str | bytes) -> str:
    """Return a line of a RECORD."""
    data = content.encode() if isinstance(content, str) else content
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return f"{name},sha256={digest},{len(data)}\n"


@dataclasses.dataclass
class Prefix:
    """A prefix whose site folder tests fill."""

    root: Path
    below: str = BELOW

    def __post_init__(self) -> None:
        self.site.mkdir(parents=True, exist_ok=True)

    @property
    def site(self) -> Path:
        return self.root / self.below

    def add(self, files: Mapping[str, str | bytes]) -> None:
        """Write files into the site folder."""
        write(self.site, files)

    def install(
        self,
        name: str,
        files: Mapping[str, str | bytes] = {},
        version: str = "1.0",
        requires: Sequence[str] = (),
        **info: str,
    ) -> Path:
        """Write a wheel's files, also metadata files such as ``entry_points="..."``."""
        stem = f"{name}-{version}.dist-info"
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"]
        lines += [f"Requires-Dist: {one}\n" for one in requires]
        metadata = {
            "METADATA": "".join([*lines, "\nText.\nRequires-Dist: text\n"]),
            "INSTALLER": "pip\n",
        }
        for key, text in info.items():
            metadata[key + {"direct_url": ".json"}.get(key, ".txt")] = text
        every = {**files, **{f"{stem}/{key}": text for key, text in metadata.items()}}
        self.add(every)
        rows = [row(path, content) for path, content in every.items()]
        self.add({f"{stem}/RECORD": "".join([*rows, f"{stem}/RECORD,,\n"])})
        return self.site / stem

    def conda(
        self,
        name: str,
        paths: Sequence[str | Mapping[str, Any]] = (),
        version: str = "1.0",
        depends: Sequence[str] = (),
    ) -> Path:
        """Write a record of conda; `paths` are files, or what it says of them."""
        described = [{"_path": path} if isinstance(path, str) else dict(path) for path in paths]
        for path in described:
            path.setdefault("path_type", "hardlink")
            path.setdefault("size_in_bytes", 10)
        record = {
            "name": name,
            "version": version,
            "depends": list(depends),
            "files": [path["_path"] for path in described],
            "paths_data": {"paths": described, "paths_version": 1},
        }
        target = self.root / "conda-meta" / f"{name}-{version}-0.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(record))
        return target

    def load(
        self, *behind: Prefix, cache: Path | None = None, eggs: Sequence[str] = ()
    ) -> index.Index:
        """Read what is installed here, and in prefixes that come after on ``sys.path``."""
        sites = tuple(str(one.site) for one in (self, *behind))
        found = dataclasses.replace(
            interpreter.this(),
            prefix=str(self.root),
            sites=sites,
            site_below=BELOW,
            path=(*eggs, *sites),
            conda=(self.root / "conda-meta").is_dir(),
        )
        return index.load(found, cache)


def targets(found: index.Index, name: str) -> list[str]:
    """Return the targets of a distribution's files, those in the site folder without it."""
    return [file.target.removeprefix(f"{BELOW}/") for file in found.files(name)]


def finder(mapping: Mapping[str, str | os.PathLike[str]]) -> str:
    """Return what setuptools writes for an editable project, as far as it matters."""
    pairs = {name: str(path) for name, path in mapping.items()}
    return (
        "from __future__ import annotations\nimport sys\n\n"
        f"MAPPING: dict[str, str] = {pairs!r}\nNAMESPACES: dict[str, list[str]] = {{}}\n"
        "PATH_PLACEHOLDER = '__editable__.finder' + '.__path_hook__'\n"
        "class _EditableFinder:\n    pass\n"
    )


def direct_url(folder: Path) -> str:
    """Return what pip writes about an editable project."""
    return json.dumps({"dir_info": {"editable": True}, "url": folder.as_uri()})
