"""Fixtures that several of these modules have in common."""

from __future__ import annotations

import pytest
from objects import serving

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
