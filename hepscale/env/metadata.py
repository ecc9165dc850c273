"""Readers of what stands beside installed packages: metadata, entry points, links to projects.

Nothing here raises for a damaged file: what can be read of it counts, the rest is logged.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import logging
import os
import re
import urllib.parse
from pathlib import Path
from typing import Any

__all__ = [
    "Watch",
    "canonical",
    "direct_url",
    "entry_points",
    "finder_mapping",
    "load_json",
    "metadata",
    "path_lines",
    "read_text",
    "stamp",
]

log = logging.getLogger(__name__)

_FIELD = re.compile(
    r"^(Name|Version|Requires-Dist):[ \t]*(.*(?:\n[ \t].*)*)", re.IGNORECASE | re.MULTILINE
)


class Watch:
    """What has been looked at, with what changes when it does.

    Attributes
    ----------
    stamps
        Time and size by path; None for what is not there.
    """

    def __init__(self, stamps: dict[str, tuple[int, int] | None] | None = None) -> None:
        self.stamps = {} if stamps is None else stamps

    def see(self, path: str) -> None:
        """Remember the state of `path`: to be called before it is read."""
        self.stamps.setdefault(path, stamp(path))

    def is_unchanged(self) -> bool:
        """Return whether everything is as it was."""
        return all(stamp(path) == before for path, before in self.stamps.items())


def stamp(path: str) -> tuple[int, int] | None:
    """Return the modification time in ns and the size in bytes, None for what is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size


def read_text(path: str) -> str:
    """Return the text of a file, an empty one where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return ""


def load_json(path: str) -> dict[str, Any]:
    """Return the object in a file, an empty one where it cannot be read."""
    try:
        found = json.loads(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return {}
    return found if isinstance(found, dict) else {}


def canonical(name: str) -> str:
    """Return a name normalised after PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def metadata(info: str) -> tuple[str, str, tuple[str, ...]]:
    """Return name, version and requirements; what the metadata lack is taken from the file name.

    Parameters
    ----------
    info
        A ``.dist-info`` or ``.egg-info`` folder, the ``EGG-INFO`` of an egg, or the single file
        that distutils wrote.
    """
    path = Path(info)
    named = path.parent.stem if path.name == "EGG-INFO" else path.stem
    name, _, version = re.sub(r"-py\d[\d.]*(-.*)?$", "", named).partition("-")
    if info.endswith(".dist-info"):
        file = f"{info}/METADATA"
    else:
        file = f"{info}/PKG-INFO" if path.is_dir() else info
    head = read_text(file).replace("\r", "").partition("\n\n")[0]
    fields = [(key.lower(), " ".join(value.split())) for key, value in _FIELD.findall(head)]
    first = dict(reversed(fields))
    requires = tuple(value for key, value in fields if key == "requires-dist" and value)
    if not requires and not info.endswith(".dist-info"):
        requires = _egg_requires(info)
    return first.get("name") or name, first.get("version") or version, requires


def _egg_requires(info: str) -> tuple[str, ...]:
    if not os.path.isfile(f"{info}/requires.txt"):
        return ()
    try:
        return tuple(importlib.metadata.Distribution.at(info).requires or ())
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        log.warning("%s/requires.txt cannot be read: %s", info, error)
        return ()


def entry_points(info: str) -> tuple[tuple[str, str], ...]:
    """Return pairs of group and module, sorted."""
    found, group = set(), ""
    for line in read_text(f"{info}/entry_points.txt").splitlines():
        text = line.strip()
        if text.startswith("[") and text.endswith("]"):
            group = text[1:-1].strip()
        elif "=" in text and not text.startswith(("#", ";")):
            module = re.split(r"[:\[#;]", text.partition("=")[2], maxsplit=1)[0].strip()
            if group and module:
                found.add((group, module))
    return tuple(sorted(found))


def direct_url(info: str) -> str:
    """Return the folder of an editable project after PEP 610, else an empty string."""
    found = load_json(f"{info}/direct_url.json")
    folder, url = found.get("dir_info"), found.get("url")
    if not isinstance(folder, dict) or not folder.get("editable") or not isinstance(url, str):
        return ""
    try:
        path = urllib.parse.urlsplit(url).path
    except ValueError:
        return ""
    return os.path.normpath(urllib.parse.unquote(path)) if path else ""


def path_lines(file: str) -> list[str]:
    """Return the folders that a ``.pth`` file adds to ``sys.path``, existing or not."""
    above, text = os.path.dirname(file), read_text(file).removeprefix("\ufeff")
    return [
        os.path.normpath(os.path.join(above, line.rstrip()))
        for line in text.splitlines()
        if line.strip() and "\0" not in line and not line.startswith(("#", "import ", "import\t"))
    ]


def finder_mapping(file: str) -> dict[str, str]:
    """Return path by module from the file that setuptools writes for an editable project."""
    try:
        tree = ast.parse(read_text(file))
    except (SyntaxError, ValueError, RecursionError) as error:
        log.warning("%s cannot be read: %s", file, error)
        return {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            target = node.targets[0]
        elif isinstance(node, ast.AnnAssign):
            target = node.target
        else:
            continue
        if isinstance(target, ast.Name) and target.id == "MAPPING" and node.value is not None:
            try:
                found = dict(ast.literal_eval(node.value))
            except (ValueError, TypeError, SyntaxError, RecursionError) as error:
                log.warning("%s cannot be read: %s", file, error)
                return {}
            return {str(key): str(path) for key, path in found.items()}
    return {}
