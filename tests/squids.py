"""A squid of a test's own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ports
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def running(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Run a squid that keeps what it has fetched in memory; yield its address."""
    program = shutil.which("squid", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("there is no squid (Debian: squid)")
    address = f"{host}:{ports.free(host)}"
    config = folder / "squid.conf"
    config.write_text(
        f"http_port {address}\nhttp_access allow all\nicp_port 0\npid_filename none\n"
        "access_log none\ncache_log /dev/null\ncache_store_log none\nnetdb_filename none\n"
        "cache_mem 16 MB\ncoredump_dir /tmp\nshutdown_lifetime 0 seconds\n"
        "connect_timeout 2 seconds\n"
        # servers say of these that they change, and of objects that they never do
        "refresh_pattern /\\.cvmfs 0 0% 0\nrefresh_pattern . 60 100% 600 override-expire\n"
        "pinger_enable off\nvisible_hostname test\n"
    )
    process = subprocess.Popen(
        [program, "-N", "-n", f"hepscale{os.getpid()}", "-f", config],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        _connect(address, process)
        yield address
    finally:
        # so that it removes its shared memory
        process.terminate()
        try:
            process.communicate(timeout=20)
        finally:
            process.kill()


def _connect(address: str, process: subprocess.Popen[bytes]) -> None:
    host, _, port = address.partition(":")
    while process.poll() is None:
        try:
            with socket.create_connection((host, int(port)), 1):
                return
        except ConnectionRefusedError:
            time.sleep(0.02)
    pytest.fail(f"squid ended: {process.communicate()[0].decode()}")
