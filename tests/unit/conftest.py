"""Fixtures that several of these modules have in common."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from objects import serving
from settings_files import Layout

from hepscale.config import files
from hepscale.worker.cvmfs.fetch import Fetcher


@pytest.fixture
def server():
    """A server of objects, which has none yet."""
    with serving({}) as one:
        yield one


@pytest.fixture
def fetcher(server):
    """What fetches from it."""
    one = Fetcher([server.url], "DIRECT", direct_timeout_s=2, retries=0)
    yield one
    one.close()


@pytest.fixture
def folder(tmp_path):
    """A cache's folder, which is not made yet."""
    return tmp_path / "cache"


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the loader of this machine looks in."""
    folder = tmp_path / "outside"
    folder.mkdir()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"relative:{tmp_path}/nowhere:{folder}")
    return folder


@pytest.fixture
def layout(tmp_path, monkeypatch):
    """Folders of this test alone in which files with settings are looked for."""
    for name in [name for name in os.environ if name.startswith("HEPSCALE_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_CONFIG_HOME")
    found = Layout(tmp_path)
    found.project.parent.mkdir(parents=True)
    monkeypatch.setattr(files, "system_file", found.etc)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(found.project.parent)
    return found
