"""A folder that is served over HTTP."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Slow:
    """A path that is answered when the test says so."""

    def __init__(self, path: str) -> None:
        self.path, self.asked, self.go_on = path, threading.Event(), threading.Event()


@contextlib.contextmanager
def served(folder: Path, slow: Slow | None = None, asked: list[str] | None = None) -> Iterator[str]:
    """Serve a folder; yield its URL. The paths of what is asked for are added to `asked`."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # the head of an answer and its body are sent one by one: the second must not wait
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if slow is not None and self.path == f"/{slow.path}":
                slow.asked.set()
                slow.go_on.wait(20)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            if asked is not None:
                asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
