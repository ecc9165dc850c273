"""Fixtures that several of these modules have in common."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import unpacking
from looking import Look
from objects import serving
from revisions import Here
from settings_files import Layout
from site_folder import write
from sites import Site
from unpacking import Place

from hepscale.config import files
from hepscale.env import analysis, interpreter, sources
from hepscale.env.analysis import Analysis
from hepscale.worker.cvmfs.fetch import Fetcher


@pytest.fixture
def offered():
    """What servers have at first, by its path."""
    return {}


@pytest.fixture
def server(offered):
    with serving(dict(offered)) as one:
        yield one


@pytest.fixture
def other(offered):
    with serving(dict(offered)) as one:
        yield one


@pytest.fixture
def fetcher(server):
    """What fetches from the server."""
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


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A prefix in which nothing is installed yet."""
    return Site(tmp_path / "prefix")


@pytest.fixture
def look(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Write files into a folder and analyse one of them.

    The running interpreter has few packages: ``lamp`` needs ``shade``, not so ``idle``.
    """
    site.put("lamp", {"lamp/__init__.py": "", "lamp/bulb.py": ""}, requires=["shade"])
    site.put("shade", {"shade.py": ""})
    site.put("idle", {"idle.py": ""})
    here = site.interpreter
    monkeypatch.setattr(interpreter, "this", lambda: here)
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def look(files: dict[str, str], name: str = "analysis.py", **options: Any) -> Analysis:
        write(tmp_path / "own", files)
        found = sources.from_file(tmp_path / "own" / name)
        return analysis.examine(found, name, **options)

    return look


@pytest.fixture
def here(tmp_path):
    return Here(tmp_path)


@pytest.fixture(params=unpacking.SHELLS)
def shell(request):
    return unpacking.need(request.param)


@pytest.fixture
def place(tmp_path, shell, layers):
    """Where a worker starts with a shell and the module's `layers`."""
    return Place(tmp_path, shell, layers)


@pytest.fixture
def plain(tmp_path, layers):
    """The same with the machine's own shell, for tests that put programs of their own on PATH."""
    return Place(tmp_path, "sh", layers)
