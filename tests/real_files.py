"""Files of other software's making, which are not in the project."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest


def real(name: str) -> Path:
    """Return the path of such a file; skip the test where it is not there."""
    given = os.environ.get("HEPSCALE_TEST_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not (folder / name).is_file():
        pytest.skip(f"no {folder / name}: set HEPSCALE_TEST_DATA to the folder that has {name}")
    return folder / name


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive."""
    with tarfile.open(archive) as packed:
        # Debian's Python 3.11.2 knows of no filters yet
        if hasattr(tarfile, "data_filter"):
            packed.extraction_filter = tarfile.data_filter
        packed.extractall(folder)
