"""Files of a repository over HTTP: servers in their order, proxies in groups, with fail-over.

A request goes over *routes*, pairs of a proxy and a server, until one of them gives what verifies.
What failed is asked last for some minutes; then it has its old place again.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import random
import ssl
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from . import ObjectError, RepositoryError
from .routes import SERVER_PORTS, Address, Blame, Round, Route, Trouble, groups, share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Damaged", "Fetcher"]

T = TypeVar("T")
_BLOCK_BYTES = 1 << 18
_LEAST_BYTES_S = 1024
_IDLE_CONNECTIONS = 16
_CERTIFICATES = "/etc/grid-security/certificates"


class Damaged(Exception):
    """What came does not verify: raised by the one who takes the blocks."""


class Fetcher:
    """Fetches files of one repository; for any number of threads.

    Parameters
    ----------
    servers
        URLs with the repository's name in them, the best one first.
    proxies
        CVMFS_HTTP_PROXY: groups with ";" between them, tried in order; members of a group with "|"
        between them, one of them chosen by lot; "DIRECT" is no proxy.
    timeout_s, direct_timeout_s
        How long to wait for a connection or for the next bytes, through a proxy and without one.
    retries
        How often all routes are tried once more if all failed.
    proxy_reset_s, server_reset_s
        For how long a proxy or a server that failed is asked last.
    shard
        Spread files over the members of a group by their names.

    Raises
    ------
    RepositoryError
        If there is no server, or `proxies` is empty, or an address cannot be understood.
    """

    def __init__(
        self,
        servers: Sequence[str],
        proxies: str,
        *,
        timeout_s: float = 5.0,
        direct_timeout_s: float = 10.0,
        retries: int = 1,
        proxy_reset_s: float = 300.0,
        server_reset_s: float = 1800.0,
        shard: bool = False,
    ) -> None:
        self._servers = [Address.parse(one, SERVER_PORTS) for one in servers]
        if not self._servers:
            fact = "The repository has no server."
            raise RepositoryError(fact, "CVMFS_SERVER_URL", "it is not set", "set it")
        self._groups = groups(proxies)
        self._timeout_s = timeout_s
        self._direct_timeout_s = direct_timeout_s
        self._retries = retries
        self._proxy_reset_s = proxy_reset_s
        self._server_reset_s = server_reset_s
        self._shard = shard
        self._bad_until: dict[Address | None, float] = {}
        self._idle: list[tuple[tuple[object, ...], http.client.HTTPConnection]] = []
        self._lock = threading.Lock()

    def get(self, path: str, *, most: int = 1 << 20, fresh: bool = False) -> bytes:
        """Return a small file.

        Parameters
        ----------
        path
            Below the URL of the repository.
        most
            Bytes that it may have.
        fresh
            Not from the memory of a proxy.

        Raises
        ------
        RepositoryError
            If no server gives it.
        """

        def take(blocks: Iterator[bytes]) -> bytes:
            found = bytearray()
            for block in blocks:
                found += block
                if len(found) > most:
                    raise Damaged(f"it has more than {most} bytes")
            return bytes(found)

        try:
            return self.stream(path, take, fresh=fresh)
        except ObjectError as error:
            raise RepositoryError(
                f"No server of the repository gives {path}.",
                error.filename,
                str(error.strerror),
                f"curl -v '{self._servers[0].text}/{path}'",
            ) from None

    def stream(self, path: str, take: Callable[[Iterator[bytes]], T], *, fresh: bool = False) -> T:
        """Return what `take` makes of a file's blocks.

        Parameters
        ----------
        path
            Below the URL of the repository.
        take
            Called once for each attempt, with blocks of at most 256 KiB. It raises `Damaged` if
            they do not verify; what the iterator raises it must let pass.
        fresh
            Not from the memory of a proxy.

        Raises
        ------
        ObjectError
            If no server gives it as it should be.
        """
        why: dict[str, None] = {}
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(random.uniform(0.3, 1.0))
            tour = self._round(path)
            while (route := tour.next()) is not None:
                try:
                    made = self._verified(route, path, take, fresh)
                except Trouble as trouble:
                    tour.failed(route, trouble)
                    self._blame(route, trouble.blame)
                    why[f"{route}: {trouble}"] = None
                else:
                    self._learn(tour, route)
                    return made
            # to wait once more for what never answers, or is not there, helps nobody
            if any(trouble.lasting for trouble in tour.troubles):
                break
        raise ObjectError("; ".join(why), f"{self._servers[0].text}/{path}")

    def close(self) -> None:
        """Close what connections there are."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    # -- routes ------------------------------------------------------------------------------------

    def _round(self, path: str) -> Round:
        now = time.monotonic()

        def is_bad(one: Address | None) -> bool:
            return self._bad_until.get(one, now) > now

        proxies: list[Address | None] = []
        for group in self._groups:
            proxies += sorted(group, key=lambda one: share(one, path)) if self._shard else group
        return Round(sorted(proxies, key=is_bad), sorted(self._servers, key=is_bad))

    def _blame(self, route: Route, blame: Blame) -> None:
        if blame is Blame.PROXY:
            self._avoid(route.proxy)
        elif blame is Blame.SERVER:
            self._avoid(route.server)

    def _learn(self, tour: Round, route: Route) -> None:
        """Now that one route works, it is known why others did not."""
        for server in tour.behind:
            if server != route.server:
                self._avoid(server)
        for doubted in tour.doubted:
            if doubted.server == route.server:
                self._avoid(doubted.proxy)
        self._bad_until.pop(route.server, None)
        self._bad_until.pop(route.proxy, None)

    def _avoid(self, one: Address | None) -> None:
        reset_s = self._server_reset_s if one in self._servers else self._proxy_reset_s
        self._bad_until[one] = time.monotonic() + reset_s

    # -- one route ---------------------------------------------------------------------------------

    def _verified(
        self, route: Route, path: str, take: Callable[[Iterator[bytes]], T], fresh: bool
    ) -> T:
        with contextlib.suppress(Damaged):
            return self._once(route, path, take, fresh)
        try:
            return self._once(route, path, take, True)
        except Damaged as error:
            raise Trouble(Blame.FILE, str(error), lasting=True) from None

    def _once(
        self, route: Route, path: str, take: Callable[[Iterator[bytes]], T], fresh: bool
    ) -> T:
        connection, response = self._answer(route, path, fresh)
        reusable = False
        try:
            _check_status(route, response)
            made = take(self._blocks(route, response))
            # what has been read to its end can serve again
            reusable = not response.will_close and not response.length
            return made
        finally:
            response.close()
            if reusable:
                self._put(route, connection)
            else:
                connection.close()

    def _answer(
        self, route: Route, path: str, fresh: bool
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        target = f"{route.server.path}/{path}"
        headers = {"User-Agent": "HepScale cvmfs"}
        if route.proxy is not None and not route.is_tunnel:
            target = f"{route.server.text.rstrip('/')}/{path}"
            if route.proxy.authorization:
                headers["Proxy-Authorization"] = route.proxy.authorization
        if fresh:
            headers["Cache-Control"] = "no-cache"
            headers["Pragma"] = "no-cache"
        while True:
            connection = self._taken(route)
            used = connection is not None
            if connection is None:
                connection = self._connected(route)
            try:
                connection.request("GET", target, headers=headers)
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                # a peer may close what was idle; a new connection tells more
                if used and not isinstance(error, TimeoutError):
                    continue
                blame = Blame.EITHER if route.proxy else Blame.SERVER
                raise _troubled(blame, error) from None

    def _blocks(self, route: Route, response: http.client.HTTPResponse) -> Iterator[bytes]:
        blame = Blame.EITHER if route.proxy else Blame.SERVER
        limit_s = self._timeout(route)
        waited_s, received = 0.0, 0
        while True:
            began = time.monotonic()
            try:
                block = response.read1(_BLOCK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _troubled(blame, error) from None
            if not block:
                break
            waited_s += time.monotonic() - began
            received += len(block)
            if waited_s > limit_s:
                if received < _LEAST_BYTES_S * waited_s:
                    raise Trouble(blame, "it is too slow", lasting=True)
                waited_s, received = 0.0, 0
            yield block
        if response.length:
            raise Trouble(blame, f"{response.length} bytes are missing at the end")

    # -- connections -------------------------------------------------------------------------------

    def _timeout(self, route: Route) -> float:
        return self._direct_timeout_s if route.proxy is None else self._timeout_s

    def _connected(self, route: Route) -> http.client.HTTPConnection:
        near, timeout_s = route.proxy or route.server, self._timeout(route)
        if route.server.scheme == "https":
            secured = http.client.HTTPSConnection(
                near.host, near.port, timeout=timeout_s, context=trusted()
            )
            if route.proxy is not None:
                said = {"Proxy-Authorization": near.authorization} if near.authorization else {}
                secured.set_tunnel(route.server.host, route.server.port, said)
            connection: http.client.HTTPConnection = secured
        else:
            connection = http.client.HTTPConnection(near.host, near.port, timeout=timeout_s)
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            blame = Blame.PROXY if route.proxy else Blame.SERVER
            raise _troubled(Blame.EITHER if route.is_tunnel else blame, error) from None
        return connection

    def _taken(self, route: Route) -> http.client.HTTPConnection | None:
        with self._lock:
            for at in range(len(self._idle) - 1, -1, -1):
                if self._idle[at][0] == route.key:
                    return self._idle.pop(at)[1]
        return None

    def _put(self, route: Route, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._idle.append((route.key, connection))
            dropped = self._idle.pop(0)[1] if len(self._idle) > _IDLE_CONNECTIONS else None
        if dropped is not None:
            dropped.close()


def _check_status(route: Route, response: http.client.HTTPResponse) -> None:
    if response.status == http.client.OK:
        return
    why = f"{response.status} {response.reason}"
    if response.status >= http.client.INTERNAL_SERVER_ERROR:
        raise Trouble(Blame.BEHIND if route.proxy else Blame.SERVER, why)
    if response.status in (http.client.NOT_FOUND, http.client.GONE) or route.proxy is None:
        raise Trouble(Blame.FILE, why, lasting=True)
    raise Trouble(Blame.EITHER, why, lasting=True)


def _troubled(blame: Blame, error: Exception) -> Trouble:
    why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
    return Trouble(blame, why or type(error).__name__, lasting=isinstance(error, TimeoutError))


@functools.cache
def trusted() -> ssl.SSLContext:
    """Return what knows the authorities that this machine trusts, and the grid's."""
    context = ssl.create_default_context()
    folder = os.environ.get("X509_CERT_DIR", _CERTIFICATES)
    if os.path.isdir(folder):
        context.load_verify_locations(capath=folder)
    return context
