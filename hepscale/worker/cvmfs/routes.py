"""The ways to a repository: its servers, the proxies before them, and what failed of both."""

from __future__ import annotations

import base64
import enum
import hashlib
import random
import urllib.parse
from typing import TYPE_CHECKING, NamedTuple

from . import RepositoryError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["SERVER_PORTS", "Address", "Blame", "Round", "Route", "Trouble", "groups", "share"]

SERVER_PORTS = {"http": 80, "https": 443}
# the default of curl, and so of CVMFS
_PROXY_PORTS = {"http": 1080}


class Blame(enum.Enum):
    """What is taken to be at fault when a route failed."""

    PROXY = enum.auto()
    SERVER = enum.auto()
    # a proxy that hangs, or the server behind it
    EITHER = enum.auto()
    # a proxy says that the server does not answer
    BEHIND = enum.auto()
    # the server is well and has not got it, or a bad one
    FILE = enum.auto()


class Trouble(Exception):
    """A route failed; `lasting` if it is of no use to take it again soon."""

    def __init__(self, blame: Blame, why: str, *, lasting: bool = False) -> None:
        super().__init__(why)
        self.blame = blame
        self.lasting = lasting


class Address(NamedTuple):
    """Of a server, or of a proxy."""

    text: str
    scheme: str
    host: str
    port: int
    path: str
    authorization: str

    @classmethod
    def parse(cls, text: str, ports: Mapping[str, int]) -> Address:
        """Return what a URL says; `ports` are those of the schemes that it may have.

        Raises
        ------
        RepositoryError
            If it cannot be understood.
        """
        try:
            if not text.isprintable() or " " in text:
                raise ValueError("there is a space or a control character in it")
            url = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
            if url.scheme not in ports or not url.hostname:
                raise ValueError(f"it is not like {' or '.join(ports)}://host:port")
            port = url.port or ports[url.scheme]
        except ValueError as error:
            fact = "An address of a server or a proxy cannot be understood."
            raise RepositoryError(fact, text, str(error), "correct it in the settings") from None
        authorization = ""
        if url.username:
            who = f"{urllib.parse.unquote(url.username)}:{urllib.parse.unquote(url.password or '')}"
            authorization = "Basic " + base64.b64encode(who.encode()).decode()
        return cls(text, url.scheme, url.hostname, port, url.path.rstrip("/"), authorization)


class Route(NamedTuple):
    """A way to a file: through a proxy (None: directly) from a server."""

    proxy: Address | None
    server: Address

    @property
    def is_tunnel(self) -> bool:
        """Whether the proxy passes on what it cannot read."""
        return self.proxy is not None and self.server.scheme == "https"

    @property
    def key(self) -> tuple[object, ...]:
        """What connections have in common that may serve each other's requests."""
        if self.proxy is not None and not self.is_tunnel:
            return (self.proxy,)
        return (self.proxy, self.server.scheme, self.server.host, self.server.port)

    def __str__(self) -> str:
        via = "" if self.proxy is None else f" via {self.proxy.host}:{self.proxy.port}"
        return f"{self.server.host}:{self.server.port}{via}"


class Round:
    """The routes of one request, each at most once, and what was learned of them."""

    def __init__(self, proxies: Sequence[Address | None], servers: Sequence[Address]) -> None:
        self._proxies = list(proxies)
        self._servers = list(servers)
        self._tried: list[Route] = []
        self.behind: list[Address] = []
        self.doubted: list[Route] = []
        self.troubles: list[Trouble] = []

    def next(self) -> Route | None:
        """Return the route to take now."""
        servers = [one for one in self._servers if one not in self.behind]
        for server in servers + [one for one in self._servers if one in self.behind]:
            for proxy in self._proxies:
                route = Route(proxy, server)
                if route not in self._tried:
                    self._tried.append(route)
                    return route
        return None

    def failed(self, route: Route, trouble: Trouble) -> None:
        """Say that a route failed."""
        self.troubles.append(trouble)
        if trouble.blame is Blame.PROXY:
            self._proxies = [one for one in self._proxies if one != route.proxy]
        elif trouble.blame is Blame.BEHIND:
            self.behind.append(route.server)
        elif trouble.blame is Blame.EITHER:
            self.doubted.append(route)
        else:
            self._servers = [one for one in self._servers if one != route.server]


def groups(proxies: str) -> list[list[Address | None]]:
    """Return the groups that CVMFS_HTTP_PROXY names, the members of each in the order of a lot.

    Raises
    ------
    RepositoryError
        If there are none, or an address cannot be understood.
    """
    found: list[list[Address | None]] = []
    for text in proxies.split(";"):
        members = [one.strip() for one in text.split("|") if one.strip()]
        group = [None if one == "DIRECT" else Address.parse(one, _PROXY_PORTS) for one in members]
        random.shuffle(group)
        if group:
            found.append(group)
    if not found:
        raise RepositoryError(
            "No proxy is given for the repository.",
            f"CVMFS_HTTP_PROXY={proxies}",
            "as in CVMFS itself, to go without a proxy has to be said",
            "CVMFS_HTTP_PROXY=DIRECT, or the address of the site's proxy",
        )
    return found


def share(proxy: Address | None, path: str) -> bytes:
    """Return a number for a proxy and a file: the smallest of a group is asked for the file."""
    text = f"{proxy.text if proxy else ''} {path}"
    return hashlib.sha1(text.encode(), usedforsecurity=False).digest()
