"""The public surface: what users may rely on. A change here is a change for them."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest

import hepscale

PUBLIC = """
ChunkFailure ChunksFailed ConfigError CvmfsConfig EngineError HepScaleError HepScaleExecutor
InputError Interposer MergeFailed NotebookError PackError PayloadError RunDirectoryError RunError
RunInterrupted Workers __version__ analyze last_run pack run_uproot_job shutdown
"""

EXECUTOR = {
    "status": True,
    "unit": "items",
    "desc": "Processing",
    "compression": 1,
    "function_name": None,
    "cores": None,
    "memory_mb": None,
    "wall_s": None,
    "retries": 3,
    "resume": False,
    "engine": None,
    "run_dir": None,
    "environment": None,
    "closure": "full",
    "extra_packages": (),
    "exclude_packages": (),
    "files": (),
    "site": None,
    "workers": None,
    "name": None,
    "port": None,
    "password_file": None,
    "interposer": None,
    "watch": None,
    "on_partial": None,
    "interval_s": 1.0,
    "cvmfs": None,
}

JOB = {
    "fileset": inspect.Parameter.empty,
    "treename": inspect.Parameter.empty,
    "processor_instance": inspect.Parameter.empty,
    "executor": inspect.Parameter.empty,
    "executor_args": None,
    "pre_executor": None,
    "pre_args": None,
    "chunksize": 100_000,
    "maxchunks": None,
    "metadata_cache": None,
}


def test_names():
    assert hepscale.__all__ == PUBLIC.split()
    assert dir(hepscale) == sorted(hepscale.__all__)
    assert all(hasattr(hepscale, name) for name in hepscale.__all__)
    star: dict[str, object] = {}
    exec("from hepscale import *", star)
    assert set(PUBLIC.split()) <= set(star)
    with pytest.raises(AttributeError, match="no attribute 'HepscaleExecutor'"):
        hepscale.HepscaleExecutor  # noqa: B018


def test_options_of_the_executor():
    found = {one.name: one.default for one in dataclasses.fields(hepscale.HepScaleExecutor)}
    assert found == EXECUTOR
    assert list(found) == list(EXECUTOR)


def test_signature_of_run_uproot_job():
    parameters = inspect.signature(hepscale.run_uproot_job).parameters
    assert {name: one.default for name, one in parameters.items()} == JOB
    assert list(parameters) == list(JOB)
    assert {one.kind for one in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_every_public_name_is_documented():
    for name in set(PUBLIC.split()) - {"__version__"}:
        assert getattr(hepscale, name).__doc__, name


def imported(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"coffea", "numpy", "awkward", "hist", "uproot", "pydantic", "cloudpickle", "click"}
    assert not heavy & imported("import hepscale; dir(hepscale); hepscale.__all__")
    assert not heavy & imported("from hepscale import ChunksFailed")
    assert "coffea" in imported("from hepscale import HepScaleExecutor")


def test_importing_starts_nothing():
    found = imported("import threading; import hepscale.executor.coffea, hepscale.cli;"
                     "assert threading.active_count() == 1")  # fmt: skip
    assert "matplotlib" not in found
