"""What the executor's options may be; what they mean is said where they are declared."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hepscale.env.environment import CLOSURES
from hepscale.errors import ConfigError, misspelt
from hepscale.executor import placing
from hepscale.executor.cvmfs import CvmfsConfig

if TYPE_CHECKING:
    from hepscale.executor.coffea import HepScaleExecutor

__all__ = ["check"]


def check(given: HepScaleExecutor) -> None:
    """Refuse values that cannot be used.

    Raises
    ------
    ConfigError
        There is one.
    """
    for name, least in (("cores", 1), ("memory_mb", 1), ("retries", 0)):
        value = getattr(given, name)
        if value is not None and (type(value) is not int or value < least):
            raise ConfigError(
                f"{name}={value!r} cannot be used.",
                cause=f"it is a whole number, at least {least}",
                fix=f"HepScaleExecutor({name}={max(least, 1)})",
            )
    if given.wall_s is not None and not _is_duration(given.wall_s):
        raise ConfigError(
            f"wall_s={given.wall_s!r} cannot be used.",
            cause="it is the time that one chunk may take, in seconds",
            fix="HepScaleExecutor(wall_s=600), or leave it out for no limit",
        )
    if given.engine is not None:
        placing.check(given.engine, given.workers)
    if given.closure not in CLOSURES:
        raise misspelt("closure", given.closure, CLOSURES, 'HepScaleExecutor(closure="{}")')
    for name in ("extra_packages", "exclude_packages", "files"):
        _check_names(name, getattr(given, name))
    if given.watch is not None and not callable(given.watch):
        _check_names("watch", given.watch)
    if given.on_partial is not None and not callable(given.on_partial):
        raise ConfigError(
            f"on_partial={given.on_partial!r} cannot be used.",
            cause="it is a function of the partial output and the state of the run",
            fix="HepScaleExecutor(on_partial=lambda output, state: ...)",
        )
    if given.cvmfs is not None and not isinstance(given.cvmfs, CvmfsConfig):
        raise ConfigError(
            f"cvmfs={given.cvmfs!r} cannot be used.",
            cause="it says which repositories there are, and where",
            fix='HepScaleExecutor(cvmfs=CvmfsConfig(repositories=["cms.cern.ch"], ...))',
        )
    if not _is_duration(given.interval_s):
        raise ConfigError(
            f"interval_s={given.interval_s!r} cannot be used.",
            cause="it is the least number of seconds between two calls of on_partial",
            fix="HepScaleExecutor(on_partial=..., interval_s=1)",
        )


def _check_names(name: str, given: object) -> None:
    if isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable):
        raise ConfigError(
            f"{name}={given!r} cannot be used.",
            cause="it is a list of names",
            fix=f"HepScaleExecutor({name}=[{str(given or '...')!r}])",
        )


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
