"""The files that settings are read from: which there are, what they say, and in which line."""

from __future__ import annotations

import os
import re
import stat
import sys
import time
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from hepscale.config.model import home
from hepscale.errors import ConfigError

__all__ = ["ConfigFile", "config_files", "user_file"]

_NAME = "hepscale.toml"
_PYPROJECT = "pyproject.toml"
# a file system may give what is written within this time the same time stamp
_SETTLED_S = 2.0
_PART = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_PATH = rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*"
_HEADER = re.compile(rf"\s*\[{_PATH}\]\s*(?:#.*)?$")
_KEY = re.compile(rf"{_PATH}=")
_BOTH = re.compile(r"(?m)^\s*site\s*=.*(?s:.*)^\s*\[site\.")

system_file = Path("/etc/hepscale", _NAME)

Level = Literal["site", "user", "project"]


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file with settings.

    Attributes
    ----------
    path
        Where it is.
    level
        Whose it is.
    table
        What it says of HepScale.
    head
        The tables around that.
    """

    path: Path
    level: Level
    table: dict[str, Any]
    head: tuple[str, ...] = ()

    def where(self, key: tuple[str, ...]) -> str:
        """Return the file and, if it can be seen easily, the line of a key."""
        found: dict[tuple[str, ...], int] = {}
        above: tuple[str, ...] = ()
        for number, line in enumerate(self.path.read_text("utf-8").splitlines(), 1):
            if header := _HEADER.match(line):
                above = _parts(header[1])
                found.setdefault(above, number)
            elif begun := _KEY.match(line):
                found.setdefault((*above, *_parts(begun[1])), number)
        whole = (*self.head, *key)
        # a key of an inline table stands where that begins
        lines = (found.get(whole[:length]) for length in range(len(whole), len(self.head), -1))
        return ":".join(map(str, filter(None, (self.path, next(filter(None, lines), None)))))


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_PART, text))


def config_files() -> list[ConfigFile]:
    """Return the files with settings that apply here, the weakest first.

    Raises
    ------
    ConfigError
        If one of them cannot be read, or is not TOML.
    """
    places: list[tuple[Level, Path | None]] = [
        ("site", system_file),
        ("site", Path(sys.prefix, "etc", "hepscale", _NAME)),
        ("user", user_file()),
    ]
    read = [_read(path, level) for level, path in places if path]
    found = {one.path: one for one in read if one}
    for one in _project():
        found.setdefault(one.path, one)
    return list(found.values())


def user_file() -> Path | None:
    """Return where the user's own file is, or would be; None for a user without a home."""
    given = os.environ.get("XDG_CONFIG_HOME")
    if given:
        return Path(given, "hepscale", _NAME)
    folder = home()
    return folder and folder / ".config" / "hepscale" / _NAME


def _project() -> list[ConfigFile]:
    try:
        here = Path.cwd()
    except FileNotFoundError:
        # somebody has removed it
        return []
    for folder in (here, *here.parents):
        read = [_read(folder / name, "project") for name in (_PYPROJECT, _NAME)]
        if found := [one for one in read if one]:
            return found
    return []


def _read(path: Path, level: Level) -> ConfigFile | None:
    try:
        about = path.stat()
        if level == "project" and _planted(path, about):
            return None
    except OSError:
        return None
    load = _load if time.time() - about.st_mtime > _SETTLED_S else _load.__wrapped__
    return load(path, level, (about.st_mtime_ns, about.st_size, about.st_ino))


def _planted(path: Path, about: os.stat_result) -> bool:
    """Whether anybody could have put it there: in /tmp, above all that is worked on below it."""
    mine = about.st_uid in (0, os.geteuid())
    return not mine and bool(path.parent.stat().st_mode & stat.S_IWOTH)


@lru_cache(maxsize=64)
def _load(path: Path, level: Level, _stamp: tuple[int, ...]) -> ConfigFile | None:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read.",
            cause=(error.strerror or str(error)).lower(),
            fix=f"chmod u+r {path}, or move it away",
        ) from None
    shared = path.name == _PYPROJECT
    if shared and b"hepscale" not in data:
        return None
    try:
        table: Any = tomllib.loads(data.decode().replace("\r\n", "\n"))
    except ValueError as error:
        raise _not_toml(path, data, error) from None
    if not shared:
        return ConfigFile(path, level, table)
    tools = table.get("tool")
    table = tools.get("hepscale") if isinstance(tools, dict) else None
    if table is None:
        return None
    if not isinstance(table, dict):
        raise ConfigError(
            f"tool.hepscale={table!r} cannot be used.",
            items=[str(path)],
            cause="it is a table of settings",
            fix='write [tool.hepscale], and below it lines like engine = "local"',
        )
    return ConfigFile(path, level, table, ("tool", "hepscale"))


def _not_toml(path: Path, data: bytes, error: ValueError) -> ConfigError:
    fix = f"correct {path}, or move it away"
    if _BOTH.search(data.decode(errors="replace")):
        fix = 'in a file that has [site.NAME] tables, choose with site.use = "NAME"'
    return ConfigError(f"{path} is not TOML.", cause=str(error), fix=fix)
