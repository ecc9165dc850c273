"""`CvmfsConfig`, and what workers are told of repositories of CVMFS."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hepscale.config import CvmfsSettings, RepositorySettings
from hepscale.config.cvmfs import folder_on_worker, usable_proxies
from hepscale.env import repositories
from hepscale.errors import ConfigError
from hepscale.executor import cvmfs_keys
from hepscale.executor.cvmfs_files import SYSTEM, parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from hepscale.config.cvmfs import How
    from hepscale.executor.cvmfs_files import Parameter

__all__ = ["CvmfsConfig", "for_workers", "named", "unreachable"]

_QUOTA_MB = 4000
_TIMEOUT_S, _DIRECT_TIMEOUT_S, _RETRIES = 5.0, 10.0, 1
_BLACKLIST = "blacklist"
# parameters that are one for all repositories, and the settings that stand for them
_SHARED = {
    "CVMFS_HTTP_PROXY": "proxies",
    "CVMFS_FALLBACK_PROXY": "proxies",
    "CVMFS_CACHE_BASE": "cache",
    "CVMFS_ALIEN_CACHE": "alien_cache",
    "CVMFS_QUOTA_LIMIT": "quota_mb",
    "CVMFS_TIMEOUT": "timeout_s",
    "CVMFS_TIMEOUT_DIRECT": "direct_timeout_s",
    "CVMFS_MAX_RETRIES": "retries",
    "CVMFS_MAX_TTL": "max_ttl_s",
}


@dataclass(frozen=True, slots=True)
class CvmfsConfig:
    """Repositories of CVMFS that tasks find below ``/cvmfs``.

    What is None is what the settings say, and then CVMFS's own files.

    Parameters
    ----------
    repositories
        Names, ``["cms.cern.ch"]``; or mappings with ``name`` and what differs from the others:
        ``servers``, ``keys``, and a ``tag`` or a ``root_hash`` that pins a revision.
    servers
        URLs in the order in which they are tried: a list, or a text with ``;`` between them.
        ``@fqrn@`` stands for the name of the repository, ``@org@`` for its first part.
    keys
        Files with public master keys, or folders of ``*.pub`` files. Their content is sent.
    proxies
        As ``CVMFS_HTTP_PROXY``: ``;`` between groups that are tried in order, ``|`` within a
        group, ``DIRECT`` for none. There is no default.
    cache
        Folder of the workers' own cache; by default ``/tmp/hepscale-cvmfs-UID``. Variables in it,
        as in `alien_cache`, are the workers'.
    alien_cache
        A site's cache, on the workers: it is looked at first, and never cleaned.
    quota_mb
        How large the own cache becomes, in MB; 4000 by default, -1: no limit.
    timeout_s, direct_timeout_s
        Seconds without an answer with a proxy (5), and without one (10).
    retries
        How often a server is asked again (1).
    max_ttl_s
        Seconds after which a new revision is looked for, unless the repository says earlier.
    variables
        For symlinks that depend on variables, ``$(NAME)``.
    how
        How tasks get ``/cvmfs``: "mounted" (it is there), "cvmfs2" (the node's client, also that of
        its ``cvmfsexec``), "client" (HepScale's), "parrot", or "auto", the first that works.
    config
        A file in CVMFS's own form, or a folder as ``/etc/cvmfs``, which it replaces.
    """

    repositories: Sequence[str | Mapping[str, Any]] | None = None
    servers: str | Sequence[str] | None = None
    keys: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None
    proxies: str | None = None
    cache: str | None = None
    alien_cache: str | None = None
    quota_mb: int | None = None
    timeout_s: float | None = None
    direct_timeout_s: float | None = None
    retries: int | None = None
    max_ttl_s: float | None = None
    variables: Mapping[str, str] | None = None
    how: How | None = None
    config: str | os.PathLike[str] | None = None

    def table(self) -> dict[str, Any]:
        """Return what is given, as the table ``[cvmfs]`` has it."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in given.items() if value is not None}


def named(config: CvmfsSettings, names: Iterable[str]) -> CvmfsSettings:
    """Return settings with these repositories, with what is said of them there.

    Raises
    ------
    ConfigError
        One of the names cannot be one.
    """
    known = {one.name: one for one in config.repositories}
    try:
        found = [known.get(name) or RepositorySettings(name=name) for name in dict.fromkeys(names)]
    except ValidationError as error:
        cause = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ConfigError(
            "A repository cannot be used.", cause=cause, fix="hepscale cvmfs ls cms.cern.ch /"
        ) from None
    return config.model_copy(update={"repositories": tuple(found)})


def for_workers(
    config: CvmfsSettings, environ: Mapping[str, str] = os.environ
) -> dict[str, Any] | None:
    """Return what workers are told, as JSON holds it; None where there are no repositories.

    Parameters
    ----------
    config
        The settings. What they leave open is read from CVMFS's own files.
    environ
        Variables that these files may refer to.

    Raises
    ------
    ConfigError
        Servers, keys or proxies are missing or cannot be used, or a file is not understood.
    """
    if not config.repositories:
        return None
    given = config.config or (SYSTEM if SYSTEM.is_dir() else None)
    each = {
        one.name: _Given(one.name, parameters(given, one.name, environ) if given else {}, given)
        for one in config.repositories
    }
    common = _common(config, each.values())
    of_cache = {} if given is None or given.is_dir() else common
    base = _folder(of_cache, "CVMFS_CACHE_BASE")
    quota = _number(config.quota_mb, of_cache, "CVMFS_QUOTA_LIMIT", _QUOTA_MB)
    ttl_s = config.max_ttl_s or (_number(None, common, "CVMFS_MAX_TTL", 0) or 0) * 60
    return {
        "repositories": [_repository(config, one, each[one.name]) for one in config.repositories],
        "proxies": config.proxies or _proxies(common),
        "cache": config.cache or (f"{base}/hepscale" if base else None),
        "alien_cache": config.alien_cache or _folder(common, "CVMFS_ALIEN_CACHE") or None,
        "quota_mb": None if quota is None or quota < 0 else int(quota),
        "timeout_s": _number(config.timeout_s, common, "CVMFS_TIMEOUT", _TIMEOUT_S),
        "direct_timeout_s": _number(
            config.direct_timeout_s, common, "CVMFS_TIMEOUT_DIRECT", _DIRECT_TIMEOUT_S
        ),
        "retries": int(_number(config.retries, common, "CVMFS_MAX_RETRIES", _RETRIES)),
        "max_ttl_s": ttl_s or None,
        "variables": {**_variables(each.values()), **config.variables},
        "how": config.how,
    }


def unreachable(
    used: Iterable[str], config: CvmfsSettings, mounted: Callable[[str], bool] = os.path.isdir
) -> list[str]:
    """Return what is to be said of repositories that code uses, and that tasks may not find.

    Parameters
    ----------
    used
        Names of repositories.
    config
        Those that are configured are found.
    mounted
        Whether there is such a folder here; then it is assumed to be on the workers as well.
    """
    known = {one.name for one in config.repositories}
    absent = [
        one for one in used if one not in known and not mounted(f"{repositories.TOP}/{one}/.")
    ]
    if not absent:
        return []
    paths = ", ".join(f"/cvmfs/{name}" for name in absent)
    given = ", ".join(f'"{name}"' for name in absent)
    verb = "is" if len(absent) == 1 else "are"
    text = f"The analysis uses {paths}, which {verb} neither configured nor mounted here"
    return [f"{text}: HepScaleExecutor(cvmfs=CvmfsConfig(repositories=[{given}], ...))"]


@dataclass(frozen=True, slots=True)
class _Given:
    """What CVMFS's own files say of a repository."""

    name: str
    found: Mapping[str, Parameter]
    source: Path | None

    def get(self, key: str) -> str:
        return _text(self.found, key)

    def filled(self, text: str) -> str:
        return text.replace("@fqrn@", self.name).replace("@org@", self.name.partition(".")[0])


def _text(found: Mapping[str, Parameter], key: str) -> str:
    given = found.get(key)
    return given.text(key) if given else ""


def _common(config: CvmfsSettings, each: Iterable[_Given]) -> dict[str, Parameter]:
    """Return the parameters that are one for all repositories, where settings do not rule.

    Raises
    ------
    ConfigError
        One differs.
    """
    first, *others = each
    wanted = [key for key, name in _SHARED.items() if getattr(config, name) is None]
    for one in others:
        for key in wanted:
            if first.get(key) != one.get(key):
                raise ConfigError(
                    f"{key} differs between {first.name} and {one.name}.",
                    items=[by.found[key].where for by in (first, one) if key in by.found],
                    cause="the workers' client has it once for all repositories",
                    fix=f"say it for all: CvmfsConfig({_SHARED[key]}=...)",
                )
    return {key: first.found[key] for key in wanted if key in first.found}


def _repository(config: CvmfsSettings, one: RepositorySettings, given: _Given) -> dict[str, Any]:
    servers = one.servers or config.servers or tuple(given.get("CVMFS_SERVER_URL").split(";"))
    servers = tuple(
        given.filled(server.strip()).rstrip("/") for server in servers if server.strip()
    )
    if not servers:
        raise _lacking("server", one.name, given, 'servers = "http://server/cvmfs/@fqrn@"')
    if given.get("CVMFS_REPOSITORY_DATE") and not (one.tag or one.root_hash):
        raise ConfigError(
            f"{one.name} is pinned to a date, which is not supported.",
            items=[given.found["CVMFS_REPOSITORY_DATE"].where],
            cause="CVMFS_REPOSITORY_DATE",
            fix="give a tag or a root_hash in place of it",
        )
    pinned = one.tag or one.root_hash
    return {
        "name": one.name,
        "servers": list(servers),
        "keys": _keys(config, one, given),
        "root_hash": one.root_hash if pinned else given.get("CVMFS_ROOT_HASH") or None,
        "tag": one.tag if pinned else given.get("CVMFS_REPOSITORY_TAG") or None,
        "blacklist": _blacklist(given),
    }


def _keys(config: CvmfsSettings, one: RepositorySettings, given: _Given) -> list[str]:
    """Return the texts of the public keys, each once."""
    paths: Sequence[Path] | None = one.keys or config.keys
    if paths is None and (files := given.get("CVMFS_PUBLIC_KEY")):
        paths = [Path(given.filled(file)) for file in files.split(":") if file]
    if paths is None and (folder := given.get("CVMFS_KEYS_DIR")):
        paths = [Path(given.filled(folder))]
    if paths is None and given.source is not None and given.source.is_dir():
        paths = [given.source / "keys"]
    if not paths:
        raise _lacking("public key", one.name, given, 'keys = ["/etc/cvmfs/keys/cern.ch"]')
    return cvmfs_keys.read(paths, one.name)


def _blacklist(given: _Given) -> list[str]:
    """Return the lines of the site's list of what is forbidden."""
    path = given.source / _BLACKLIST if given.source and given.source.is_dir() else None
    if path is None or not path.is_file():
        return []
    lines = path.read_text("utf-8", "replace").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _proxies(common: Mapping[str, Parameter]) -> str:
    """Return the proxies, with those for when none of them answers; these rule DIRECT out."""
    where = [common["CVMFS_HTTP_PROXY"].where] if "CVMFS_HTTP_PROXY" in common else []
    text = _text(common, "CVMFS_HTTP_PROXY")
    others = _text(common, "CVMFS_FALLBACK_PROXY")
    try:
        usable_proxies(text)
        if others:
            text = usable_proxies(_without_direct(f"{text};{others}"))
    except ValueError as error:
        raise ConfigError(
            "The proxies of CVMFS cannot be used." if where else "No proxy is given for CVMFS.",
            items=where,
            cause=f"CVMFS_HTTP_PROXY: {error}" if where else "CVMFS wants it to be said",
            fix='write CVMFS_HTTP_PROXY="http://squid:3128", or DIRECT for none'
            if where
            else 'CvmfsConfig(proxies="http://squid:3128"), or proxies="DIRECT" for none; '
            "CVMFS_HTTP_PROXY=... in a file of CVMFS's own form",
        ) from None
    return text


def _without_direct(proxies: str) -> str:
    groups = ([one.strip() for one in group.split("|")] for group in proxies.split(";"))
    kept = ([one for one in group if one not in ("", "DIRECT")] for group in groups)
    return ";".join("|".join(group) for group in kept if group)


def _number(given: float | None, found: Mapping[str, Parameter], key: str, default: float) -> float:
    if given is not None:
        return given
    try:
        return float(_text(found, key) or default)
    except ValueError:
        raise _unusable(found, key, "it is a number") from None


def _folder(found: Mapping[str, Parameter], key: str) -> str:
    text = _text(found, key)
    try:
        return text and folder_on_worker(text)
    except ValueError as error:
        raise _unusable(found, key, str(error)) from None


def _unusable(found: Mapping[str, Parameter], key: str, cause: str) -> ConfigError:
    where = found[key].where
    return ConfigError(
        f"{key}={_text(found, key)!r} cannot be used.",
        items=[where],
        cause=cause,
        fix=f"correct {where}",
    )


def _variables(each: Iterable[_Given]) -> dict[str, str]:
    """Return parameters as variables: CVMFS sets each of them for symlinks that depend on some.

    Raises
    ------
    ConfigError
        One that is not CVMFS's own differs between repositories, or is not understood.
    """
    found: dict[str, str] = {}
    odd: set[str] = set()
    for one in each:
        for key, given in one.found.items():
            own = key.startswith("CVMFS_")
            value = given.value if own else given.text(key)
            if value is None or found.setdefault(key, value) != value:
                if not own:
                    raise ConfigError(
                        f"{key} differs between repositories.",
                        items=[given.where],
                        cause="the workers' client has variables once for all repositories",
                        fix=f"CvmfsConfig(variables={{{key!r}: ...}})",
                    )
                odd.add(key)
    return {key: value for key, value in found.items() if key not in odd}


def _lacking(what: str, name: str, given: _Given, example: str) -> ConfigError:
    where = given.source or f"{SYSTEM}, which is not there,"
    return ConfigError(
        f"No {what} is given for {name}.",
        cause=f"neither [cvmfs] nor {where} names one",
        fix=f"write {example} below [cvmfs] in hepscale.toml",
    )
