"""Scale a coffea analysis from the notebook it was written in, and watch its histograms fill."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hepscale.env.api import analyze, pack
    from hepscale.errors import (
        ChunksFailed,
        ConfigError,
        EngineError,
        HepScaleError,
        InputError,
        MergeFailed,
        NotebookError,
        PackError,
        PayloadError,
        RunDirectoryError,
        RunError,
        RunInterrupted,
    )
    from hepscale.executor.coffea import HepScaleExecutor, shutdown
    from hepscale.executor.cvmfs import CvmfsConfig
    from hepscale.executor.interposer import Interposer
    from hepscale.executor.task import ChunkFailure
    from hepscale.executor.uproot_job import run_uproot_job
    from hepscale.view.record import last_run
    from hepscale.workers.api import Workers

__version__ = "0.1.0"

_HOME = {
    "HepScaleExecutor": "hepscale.executor.coffea",
    "run_uproot_job": "hepscale.executor.uproot_job",
    "shutdown": "hepscale.executor.coffea",
    "last_run": "hepscale.view.record",
    "analyze": "hepscale.env.api",
    "pack": "hepscale.env.api",
    "ChunkFailure": "hepscale.executor.task",
    "CvmfsConfig": "hepscale.executor.cvmfs",
    "ChunksFailed": "hepscale.errors",
    "ConfigError": "hepscale.errors",
    "EngineError": "hepscale.errors",
    "HepScaleError": "hepscale.errors",
    "InputError": "hepscale.errors",
    "Interposer": "hepscale.executor.interposer",
    "MergeFailed": "hepscale.errors",
    "NotebookError": "hepscale.errors",
    "PackError": "hepscale.errors",
    "PayloadError": "hepscale.errors",
    "RunDirectoryError": "hepscale.errors",
    "RunError": "hepscale.errors",
    "RunInterrupted": "hepscale.errors",
    "Workers": "hepscale.workers.api",
}

__all__ = [
    "ChunkFailure",
    "ChunksFailed",
    "ConfigError",
    "CvmfsConfig",
    "EngineError",
    "HepScaleError",
    "HepScaleExecutor",
    "InputError",
    "Interposer",
    "MergeFailed",
    "NotebookError",
    "PackError",
    "PayloadError",
    "RunDirectoryError",
    "RunError",
    "RunInterrupted",
    "Workers",
    "__version__",
    "analyze",
    "last_run",
    "pack",
    "run_uproot_job",
    "shutdown",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
