"""Cache, servers and repository of what a worker is told, see `hepscale.executor.cvmfs`."""

from __future__ import annotations

import os

from . import own_folder
from .cache import Cache
from .fetch import Fetcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["cache", "fetcher"]


def cache(told: Mapping[str, Any]) -> Cache:
    """Return the cache of this user on this machine, with the site's that it is told of."""
    quota_mb, alien = told["quota_mb"], told["alien_cache"]
    return Cache(
        own_folder(told),
        alien=alien and os.path.expandvars(alien),
        quota_bytes=None if quota_mb is None else quota_mb * 1_000_000,
    )


def fetcher(told: Mapping[str, Any], repository: Mapping[str, Any]) -> Fetcher:
    """Return what fetches from the servers of one of the repositories."""
    return Fetcher(
        repository["servers"],
        told["proxies"],
        timeout_s=told["timeout_s"],
        direct_timeout_s=told["direct_timeout_s"],
        retries=told["retries"],
    )
