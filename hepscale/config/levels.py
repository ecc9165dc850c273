"""Settings from files, variables and arguments, put together: the strongest wins."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from hepscale.config.files import ConfigFile, config_files, user_file
from hepscale.config.model import PATHS, RUN_OPTIONS, SHORT, TABLES, Settings
from hepscale.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    # a setting, or a table and a key of it
    Key = tuple[str, ...]

__all__ = ["Level", "Origin", "Resolved", "load_settings", "resolve"]

Level = Literal["default", "site", "user", "project", "environment", "argument"]

_PREFIX = "HEPSCALE_"
_NAMES = frozenset(Settings.model_fields)
_KEYS: list[Key] = [
    *((name,) for name in Settings.model_fields if name not in TABLES),
    *((table, name) for table, names in TABLES.items() for name in names),
]
_VARIABLES = {_PREFIX + "_".join(key).upper(): key for key in _KEYS}
_VARIABLES |= {_PREFIX + table.upper(): (table, name) for table, name in SHORT.items()}
# a variable that differs more than this from ours is not meant for us
_ALIKE = 0.85


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from.

    Attributes
    ----------
    level
        How strong it is.
    key
        The name of it there: of a variable, of an argument, or the path to it in a file.
    file
        The file; None: there is none.
    """

    level: Level
    key: Key = ()
    file: ConfigFile | None = None

    def __str__(self) -> str:
        if self.file is not None:
            inside = f" [site.{self.key[1]}]" if self.key[0] == "site" and self.key[2:] else ""
            return f"{self.file.where(self.key)}{inside}"
        return self.key[0] if self.level == "environment" else self.level


_DEFAULT = Origin("default")
_Given = tuple[Any, Origin]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, and where they came from.

    Attributes
    ----------
    settings
        All of them.
    origins
        By name, as ``workers.count``: of those that somebody has given.
    files
        The files that were read, the weakest first.
    """

    settings: Settings
    origins: Mapping[str, Origin]
    files: tuple[ConfigFile, ...]

    def origin(self, name: str) -> Origin:
        """Return where the value of a setting came from."""
        return self.origins.get(name, _DEFAULT)

    @property
    def sites(self) -> list[str]:
        """The names of all profiles."""
        return sorted({name for file in self.files for name in _profiles(file)})


def load_settings(site: str | None = None, **arguments: Any) -> Settings:
    """Read the settings.

    Parameters
    ----------
    site
        The profile to use; None: the one that a variable or a file names; empty: none.
    arguments
        Settings that are stronger than all others; None: not given.

    Raises
    ------
    ConfigError
        If a value cannot be used, a key or a profile is not known, or a file cannot be read.
    """
    return resolve(site, **arguments).settings


def resolve(site: str | None = None, **arguments: Any) -> Resolved:
    """Read the settings as `load_settings` does, and return where each came from too."""
    files = config_files()
    given: dict[Key, _Given] = {}
    for file in files:
        given.update(_from_file(file, file.table, ()))
    strong = dict(_from_environment())
    strong.update(_flat({"site": site, **arguments}, "argument", None, ()))
    name, origin = strong.get(("site",)) or given.get(("site",)) or ("", _DEFAULT)
    if not isinstance(name, str):
        raise _unusable(("site",), name, origin, "it is the name of a table [site.NAME]")
    if name:
        given.update(_profile(files, name, origin))
    given.update(strong)
    return Resolved(
        _settings(given),
        {".".join(key): origin for key, (_, origin) in given.items()},
        tuple(files),
    )


def _settings(given: Mapping[Key, _Given]) -> Settings:
    nested: dict[str, Any] = {}
    for (name, *inner), (value, _) in given.items():
        if inner:
            nested.setdefault(name, {})[inner[0]] = value
        else:
            nested[name] = value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        first = error.errors()[0]
        place = tuple(map(str, first["loc"]))
        key = next(key for key in (place[:2], place[:1]) if key in given)
        cause = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "literal_error":
            known = re.findall("'([^']+)'", first["ctx"]["expected"])
            near = nearest(given[key][0], known)
            cause = (f"it is spelt {near!r}; " if near else "") + f"known are: {', '.join(known)}"
        raise _unusable(key, *given[key], cause) from None


def _flat(
    table: Mapping[str, Any], level: Level, file: ConfigFile | None, head: Key
) -> Iterator[tuple[Key, _Given]]:
    for name, value in table.items():
        origin = Origin(level, (*head, name), file)
        if name not in _NAMES or (name == "site" and head):
            raise _unknown(name, _NAMES - ({"site"} if head else set()), origin)
        if value is None:
            # an argument that was not given
            continue
        if name not in TABLES:
            yield (name,), (value, origin)
            continue
        if name in SHORT and isinstance(value, str):
            yield (name, SHORT[name]), (value, origin)
            continue
        if not isinstance(value, Mapping):
            raise _unusable((name,), value, origin, f"it is a table: [{name}]")
        for inner, one in value.items():
            origin = Origin(level, (*head, name, inner), file)
            if inner not in TABLES[name]:
                raise _unknown(inner, TABLES[name], origin)
            if one is not None:
                yield (name, inner), (one, origin)


def _from_file(
    file: ConfigFile, table: Mapping[str, Any], head: Key
) -> Iterator[tuple[Key, _Given]]:
    for key, (value, origin) in _flat(table, file.level, file, head):
        if key == ("site",) and isinstance(value, dict):
            yield from _chosen(file, value)
        else:
            yield key, (_placed(file, key, value, origin), origin)


def _chosen(file: ConfigFile, sites: Mapping[str, Any]) -> Iterator[tuple[Key, _Given]]:
    """Yield which profile to use, where a file says so beside its profiles."""
    for name, value in sites.items():
        origin = Origin(file.level, ("site", name), file)
        if isinstance(value, dict):
            continue
        if name != "use":
            key = ("site", name)
            raise _unusable(key, value, origin, "settings of a site stand below [site.NAME]")
        yield ("site",), (value, origin)


def _placed(file: ConfigFile, key: Key, value: Any, origin: Origin) -> Any:
    """Return a value with the paths in it seen from the folder of the file."""
    if isinstance(value, list):
        return [_placed(file, key, one, origin) for one in value]
    if isinstance(value, dict):
        return {name: _placed(file, (*key, name), one, origin) for name, one in value.items()}
    if key not in PATHS or not isinstance(value, str):
        return value
    path = os.path.expandvars(value)
    if "$" in path:
        raise _unusable(key, value, origin, "a variable in it is not set")
    return path if path.startswith("~") else str(file.path.parent / path)


def _from_environment() -> Iterator[tuple[Key, _Given]]:
    for name, value in os.environ.items():
        if not value or not name.startswith(_PREFIX):
            continue
        origin = Origin("environment", (name,))
        key = _VARIABLES.get(name)
        table = name.removeprefix(_PREFIX).lower().partition("_")[0]
        if key is not None:
            yield key, (value, origin)
        elif table in TABLES or _resembles(name):
            raise _unknown(name, _VARIABLES, origin)


@lru_cache(maxsize=64)
def _resembles(name: str) -> bool:
    return bool(nearest(name, _VARIABLES, _ALIKE))


def _profiles(file: ConfigFile) -> dict[str, dict[str, Any]]:
    sites = file.table.get("site")
    if not isinstance(sites, dict):
        return {}
    return {name: table for name, table in sites.items() if isinstance(table, dict)}


def _profile(files: Iterable[ConfigFile], name: str, origin: Origin) -> dict[Key, _Given]:
    """Return what all files together say of a site."""
    found: dict[Key, _Given] = {}
    known: set[str] = set()
    for file in files:
        profiles = _profiles(file)
        known.update(profiles)
        found.update(_from_file(file, profiles.get(name, {}), ("site", name)))
    if name in known:
        return found
    near = nearest(name, known)
    raise ConfigError(
        f"There is no site {name!r}.",
        items=_items(origin),
        cause=f"known are: {', '.join(sorted(known))}" if known else "no file has such a profile",
        fix=f"site={near!r}"
        if near
        else f"write a table [site.{name}] in {user_file() or 'hepscale.toml'}",
    )


def _items(origin: Origin) -> list[str]:
    return [str(origin)] if origin.file is not None or origin.level == "environment" else []


def _unknown(name: str, known: Iterable[str], origin: Origin) -> ConfigError:
    inside = [f"{table}.{name}" for table, names in TABLES.items() if name in names]
    near = next(iter(inside), "") or nearest(name, known)
    cause = f"it is spelt {near!r}" if near else f"known are: {', '.join(sorted(known))}"
    fix = (
        f"write {near} in place of {name}" if near else f"remove {name}, see: hepscale config show"
    )
    if name in RUN_OPTIONS:
        of = f"; of {near.partition('.')[0]} it is {near!r}" * bool(inside)
        cause = f"it is an option of the executor{of}"
        fix = f"HepScaleExecutor({name}=...)" + (f", or {fix}" * bool(inside))
    what = "variable" if origin.level == "environment" else "setting"
    return ConfigError(f"There is no {what} {name!r}.", items=_items(origin), cause=cause, fix=fix)


def _unusable(key: Key, value: Any, origin: Origin, cause: str) -> ConfigError:
    name = origin.key[0] if origin.level == "environment" else ".".join(key)
    fix = f"give {name} another value, or leave it out"
    if origin.level == "environment":
        fix = f"unset {name}, or give it another value"
    return ConfigError(
        f"{name}={value!r} cannot be used.", items=_items(origin), cause=cause, fix=fix
    )
