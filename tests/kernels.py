"""What tests have in common that talk to kernels."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from traitlets.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# of the libraries that talk to the kernel, not of ours
IGNORED = [
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning:(jupyter_client|zmq|traitlets|asyncio).*"
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
VIEW_TYPE = "application/vnd.jupyter.widget-view+json"


@contextmanager
def by_sockets() -> Iterator[Config]:
    """Provide settings for one kernel that is talked to through sockets in a folder.

    Ports that are free when they are chosen may be taken by tests beside when a kernel binds them.
    """
    with tempfile.TemporaryDirectory(prefix="kernel-") as place:
        file = f"{place}/kernel.json"
        yield Config(KernelManager={"transport": "ipc", "connection_file": file})


def execute(notebook: Any, folder: Path, timeout_s: int) -> None:
    """Execute the cells of a notebook in a kernel of their own, in a folder."""
    place = {"metadata": {"path": str(folder)}}
    with by_sockets() as config:
        NotebookClient(
            notebook, timeout=timeout_s, kernel_name="python3", resources=place, config=config
        ).execute()


@contextmanager
def started(cwd: Path | None = None, **environ: str) -> Iterator[Any]:
    """Start a kernel; provide a client of it."""
    with by_sockets() as config:
        manager = KernelManager(config=config)
        folder = None if cwd is None else str(cwd)
        manager.start_kernel(cwd=folder, env={**os.environ, **environ})
        client = manager.blocking_client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            yield client
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
