"""Which engine a run has, by what the user and the settings say."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING

from hepscale.errors import ConfigError, misspelt
from hepscale.executor.engines import warm
from hepscale.executor.engines.local import LocalEngine
from hepscale.executor.packing import PACKED
from hepscale.workers.api import Workers, beyond_machine
from hepscale.workers.version import PROGRAMS

if TYPE_CHECKING:
    import os

    from hepscale.config import Settings
    from hepscale.config.model import WorkersSettings
    from hepscale.env.environment import Environment
    from hepscale.executor.credentials import Credential
    from hepscale.executor.engines.base import Engine

__all__ = ["beyond", "check", "default_environment", "engine_for", "shutdown", "warnings"]

_ENGINES = ("local", *PROGRAMS)


def check(name: str, workers: Workers | None) -> None:
    """Refuse an engine that there is none of, and workers for one that has its own.

    Raises
    ------
    ConfigError
        So it is.
    """
    if name not in _ENGINES:
        raise misspelt("engine", name, _ENGINES, 'HepScaleExecutor(engine="{}")')
    if workers is not None and not isinstance(workers, Workers):
        raise ConfigError(
            f"workers={workers!r} cannot be used.",
            cause="it says who starts workers, and how many",
            fix='HepScaleExecutor(engine="workqueue", workers=Workers("local", cores=2)), or '
            "HepScaleExecutor(cores=2)",
        )
    if name == "local" and workers is not None:
        raise ConfigError(
            "The engine 'local' starts its own workers.",
            items=[repr(workers)],
            cause="Workers are for Work Queue and TaskVine",
            fix='HepScaleExecutor(engine="workqueue", workers=...), or HepScaleExecutor(cores=...)',
        )


def default_environment(engine: str) -> str | os.PathLike[str] | None:
    """Return what tasks run in unless the user says otherwise: workers elsewhere have nothing."""
    return None if engine == "local" else PACKED


def engine_for(
    settings: Settings,
    workers: Workers | None,
    slots: int,
    preload: tuple[str, ...],
    environment: Environment | None,
) -> Engine:
    """Return the engine that the settings name.

    Parameters
    ----------
    settings
        With what the user has given.
    workers
        Are started with the manager; None: what the settings say.
    slots
        Of this machine.
    preload
        Modules that every task imports.
    environment
        What the first tasks run in.
    """
    if settings.engine == "local":
        return LocalEngine(slots, settings, preload, environment)
    # with its compiled binding
    from hepscale.executor.engines.manager import Listening
    from hepscale.executor.engines.workqueue import WorkQueueEngine

    if workers is None and settings.workers.count:
        workers = _workers(settings.workers)
    listening = Listening(
        settings.engine, settings.name or "", settings.port, settings.password_file, workers
    )
    proofs = {one.variable: one.path for one in _credentials(settings)}
    return WorkQueueEngine(listening, settings, preload, proofs)


def warnings(settings: Settings) -> list[str]:
    """Return what is to be said before a run of credentials that do not hold, or not for long."""
    from hepscale.executor import credentials

    return [*credentials.warnings(_credentials(settings))]


def beyond(
    settings: Settings, workers: Workers | None, slots: int, memory_mb: int | None
) -> list[str]:
    """Return what is to be said before a run that is to use more than this machine has.

    Parameters
    ----------
    settings
        With what the user has given.
    workers
        As he has given them.
    slots, memory_mb
        How many tasks this machine is to run at a time, and what he lets each of them use.
    """
    count, cores = slots, 1
    if settings.engine != "local":
        wanted = workers or settings.workers
        if wanted.batch != "local":
            return []
        count, cores, memory_mb = wanted.count, wanted.cores, wanted.memory_mb
    return beyond_machine(count, cores, memory_mb)


def _credentials(settings: Settings) -> list[Credential]:
    if settings.engine == "local" or not settings.send_credentials:
        # tasks of this machine find them where they are
        return []
    from hepscale.executor import credentials

    return credentials.find()


@lru_cache(maxsize=8)
def _workers(wanted: WorkersSettings) -> Workers:
    """Return the same workers for the same settings: they wait for the next run."""
    return Workers(
        wanted.batch,
        count=wanted.count,
        cores=wanted.cores,
        memory_mb=wanted.memory_mb,
        disk_mb=wanted.disk_mb,
        options=wanted.options,
        setup=wanted.setup,
        workdir=wanted.workdir,
    )


def shutdown(*, idle_only: bool = False) -> None:
    """End the warm workers of this process, with `idle_only` those that no run uses."""
    warm.shutdown(idle_only=idle_only)
    manager = sys.modules.get("hepscale.executor.engines.manager")
    if manager is not None:
        manager.shutdown(idle_only=idle_only)
