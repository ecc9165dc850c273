"""What all tests of faults share: a crew to count with, and nothing left behind it."""

from __future__ import annotations

import crew as crews
import pytest

import hepscale


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    hepscale.shutdown()
    crews.nothing_runs()


@pytest.fixture
def crew(tmp_path):
    return crews.Crew(tmp_path)
