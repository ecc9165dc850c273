"""The table ``[cvmfs]``: repositories for the workers, and how these get at them."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_serializer, model_validator

from hepscale.config.table import Folder, Table

__all__ = ["CvmfsSettings", "How", "RepositorySettings", "folder_on_worker", "usable_proxies"]

How: TypeAlias = Literal["auto", "mounted", "cvmfs2", "client", "parrot"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+")
_HASH = re.compile(r"[0-9a-f]{40}(-rmd160|-shake128)?")
_NO_LIMIT = -1


def usable_proxies(text: str) -> str:
    """Return proxies as ``CVMFS_HTTP_PROXY`` has them.

    Raises
    ------
    ValueError
        There are none, or one that has to be looked for.
    """
    names = [name.strip() for name in re.split("[;|]", text) if name.strip()]
    if not names:
        raise ValueError('it is empty; for no proxy say "DIRECT"')
    if odd := [name for name in names if name == "auto" or name.startswith("pac+")]:
        raise ValueError(f"{odd[0]!r} is looked for by the client of CVMFS only; name the proxies")
    return text


def folder_on_worker(text: str) -> str:
    """Return the path of a folder on the workers.

    Raises
    ------
    ValueError
        It depends on the folder in which a worker stands.
    """
    if not text.startswith(("/", "$")):
        raise ValueError("it is a folder on the workers, which begins with / or a variable")
    return text


def _servers(value: Any) -> Any:
    return (
        [one.strip() for one in value.split(";") if one.strip()]
        if isinstance(value, str)
        else value
    )


def _urls(value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        if not re.match(r"https?://[^/\s]+(/\S*)?$", one):
            raise ValueError(f"{one!r} is no URL; http://server/cvmfs/@fqrn@ is one")
    return value


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str | os.PathLike) else value


def _names(value: Any) -> Any:
    """Take names for repositories of which nothing else is said."""
    if isinstance(value, str):
        value = re.split(r"[,\s]+", value.strip(", "))
    if isinstance(value, list | tuple):
        return [{"name": one} if isinstance(one, str) else one for one in value]
    return value


def _each_once(value: tuple[RepositorySettings, ...]) -> tuple[RepositorySettings, ...]:
    names = [one.name for one in value]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is there twice")
    return value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no name of a repository; cms.cern.ch is one")
    return value


def _hash(value: str) -> str:
    if not _HASH.fullmatch(value):
        raise ValueError("a root hash is 40 hex digits, and -rmd160 or -shake128 if it is one")
    return value


Servers = Annotated[tuple[str, ...], BeforeValidator(_servers), AfterValidator(_urls)]
Keys = Annotated[tuple[Folder, ...], BeforeValidator(_one_or_more)]
_OnWorker = Annotated[str, AfterValidator(folder_on_worker)]
_Seconds = Annotated[float, Field(gt=0)]


class RepositorySettings(Table):
    """One repository; what is None is what the table around it says.

    Attributes
    ----------
    name
        Its name, as below ``/cvmfs``.
    servers, keys
        As in the table.
    tag, root_hash
        Pin a revision.
    """

    name: Annotated[str, AfterValidator(_name)]
    servers: Servers | None = None
    keys: Keys | None = None
    tag: str | None = None
    root_hash: Annotated[str, AfterValidator(_hash)] | None = None

    @model_validator(mode="after")
    def _one_pin(self) -> RepositorySettings:
        if self.tag and self.root_hash:
            raise ValueError("tag and root_hash both pin a revision; give one of them")
        return self

    @model_serializer
    def _short(self) -> Any:
        given = {
            "name": self.name,
            "servers": self.servers and list(self.servers),
            "keys": self.keys and [str(one) for one in self.keys],
            "tag": self.tag,
            "root_hash": self.root_hash,
        }
        given = {name: value for name, value in given.items() if value}
        return given if len(given) > 1 else self.name


class CvmfsSettings(Table):
    """Repositories for the workers; see :class:`hepscale.CvmfsConfig`."""

    repositories: Annotated[
        tuple[RepositorySettings, ...], BeforeValidator(_names), AfterValidator(_each_once)
    ] = ()
    servers: Servers | None = None
    keys: Keys | None = None
    proxies: Annotated[str, AfterValidator(usable_proxies)] | None = None
    cache: _OnWorker | None = None
    alien_cache: _OnWorker | None = None
    quota_mb: Annotated[int, Field(ge=_NO_LIMIT)] | None = None
    timeout_s: _Seconds | None = None
    direct_timeout_s: _Seconds | None = None
    retries: Annotated[int, Field(ge=0)] | None = None
    max_ttl_s: _Seconds | None = None
    variables: dict[str, str] = Field(default_factory=dict)
    how: How = "auto"
    config: Folder | None = None

    def __bool__(self) -> bool:
        """Whether there are repositories."""
        return bool(self.repositories)
