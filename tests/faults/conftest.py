"""What all tests of faults share: a crew to count with, and nothing left behind it."""

from __future__ import annotations

from functools import partial

import crew as crews
import pytest
from queues import where_installed

import hepscale
from hepscale.executor.engines import manager as managers


@pytest.fixture(params=["workqueue", *where_installed("taskvine")], autouse=True)
def engine(request, monkeypatch):
    """Have runs go to workers of Work Queue, and once more of TaskVine."""
    monkeypatch.setattr(crews, "engine", request.param)
    return request.param


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    hepscale.shutdown()
    crews.nothing_runs()


@pytest.fixture
def plain(monkeypatch):
    """Have managers speak in plain text, which a relay can read and change."""
    options = managers.QueueOptions
    monkeypatch.setattr(managers, "QueueOptions", partial(options, ssl=False))


@pytest.fixture
def crew(tmp_path):
    return crews.Crew(tmp_path)
