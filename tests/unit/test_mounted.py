"""What a process takes from repositories of CVMFS: its tasks are told of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hepscale.executor.engines import mounted, warm

RELEASE = "/cvmfs/lcg.example.org/view"


@pytest.mark.parametrize(
    ("value", "there"),
    [
        (f"{RELEASE}/lib:/usr/lib:{RELEASE}/lib64", [f"{RELEASE}/lib", f"{RELEASE}/lib64"]),
        (f":{RELEASE}", [RELEASE]),
        ("/usr/lib:/opt/cvmfs/lib", None),
        ("/cvmfs", None),
        (f"file:{RELEASE}/calibration.db", None),
        (f"see {RELEASE}", None),
    ],
)
def test_variables_that_name_paths_there(monkeypatch, value, there):
    monkeypatch.setenv("DEMO_DATA", value)
    assert mounted.variables().get("DEMO_DATA") == there


@pytest.mark.parametrize("name", ["PATH", "LD_LIBRARY_PATH"])
def test_lists_that_are_searched_may_hold_other_things_too(monkeypatch, name):
    monkeypatch.setenv(name, f".:~/bin:{RELEASE}/lib:/usr/lib")
    assert mounted.variables()[name] == [f"{RELEASE}/lib"]


def test_variables_that_lead_python_are_no_matter_of_tasks(monkeypatch):
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PWD"):
        monkeypatch.setenv(name, RELEASE)
    assert not mounted.variables()


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [(RELEASE, f"{RELEASE}/lib"), ("/opt/own", "/unpacked/lib")],
)
def test_what_a_packed_interpreter_has_left_behind_is_where_it_was(monkeypatch, prefix, expected):
    """Of a release in a repository the libraries of packages are not packed."""
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{prefix}/lib")
    environ = warm.worker_environ(Path("/unpacked"))
    assert environ["LD_LIBRARY_PATH"] == expected
