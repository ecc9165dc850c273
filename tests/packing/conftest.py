"""Packages of conda for all tests of packing."""

from __future__ import annotations

from pathlib import Path

import conda_packages
import pytest


@pytest.fixture(scope="session")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a channel that no test changes."""
    folder = tmp_path_factory.mktemp("channel")
    conda_packages.write_channel(folder)
    return folder
