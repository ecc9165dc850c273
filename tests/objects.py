"""Objects as a repository of CVMFS stores them, and an HTTP server that gives them, or fails to."""

from __future__ import annotations

import socket
import threading
import zlib
from collections import Counter
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hepscale.worker.cvmfs.names import Algorithm, Name, hasher

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

# below which everything is served, as on a real server
BASE = "/cvmfs/test.example.org"


def stored(
    plain: bytes,
    algorithm: Algorithm = Algorithm.SHA1,
    suffix: str = "",
    *,
    compressed: bool = True,
    level: int = -1,
) -> tuple[Name, bytes]:
    """Return an object's name, and its bytes on a server."""
    data = zlib.compress(plain, level) if compressed else plain
    return named(data, algorithm, suffix), data


def named(data: bytes, algorithm: Algorithm = Algorithm.SHA1, suffix: str = "") -> Name:
    """Return the name of what a server stores."""
    digest = hasher(algorithm)
    digest.update(data)
    return Name(digest.digest(), algorithm, suffix)


class Server(ThreadingHTTPServer):
    """Serves `files` (by path below `BASE`), as a server or as a proxy, and notes what was asked.

    `fault(handler, path)` may answer in its place, and says so by returning true.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: Counter[str] = Counter()
        self.lines: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        self.fault: Callable[[Handler, str], bool] | None = None
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.address}{BASE}"

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests go when they like."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # header and body in one packet, else the kernels wait for each other
    wbufsize = -1
    server: Server

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.removeprefix(f"{BASE}/")
        with self.server.lock:
            self.server.asked[path] += 1
            self.server.lines.append(self.path)
            self.server.headers.append(dict(self.headers))
        if self.server.fault is not None and self.server.fault(self, path):
            return
        if path in self.server.files:
            self.answer(self.server.files[path])
        else:
            self.answer(b"no such file", 404)

    def answer(self, data: bytes, status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def serving(files: dict[str, bytes], context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Serve until the block is left."""
    with Server(files) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Silent:
    """Takes connections, and never answers."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._taken: list[socket.socket] = []
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"

    @property
    def connections(self) -> int:
        """How many there were."""
        with suppress(BlockingIOError):
            while True:
                self._taken.append(self._listener.accept()[0])
        return len(self._taken)

    def close(self) -> None:
        for one in self._taken:
            one.close()


@contextmanager
def silent() -> Iterator[Silent]:
    """Let one listen until the block is left."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with closing(Silent(listener)) as one:
            yield one
