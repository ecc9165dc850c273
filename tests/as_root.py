"""What only root can do for a test; who is not root sees it skipped, with the reason."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


NOBODY = 65534
# of the system: that of a user may be out of others' sight
SYSTEM_PYTHON = "/usr/bin/python3"


def needed(why: str) -> None:
    """Skip the test where it is not root's; `why` says what needs root."""
    if os.geteuid():
        pytest.skip(f"{why} needs root; run the tests as root to see this one")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a small file system there; skip where this is not possible."""
    needed("mounting a file system")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
