"""Cache, servers and repository of what a worker is told, see `hepscale.executor.cvmfs`."""

from __future__ import annotations

import os

from .cache import Cache
from .fetch import Fetcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["cache", "fetcher"]

# not TMPDIR, which for a worker is a folder of the job or of one task
_SHARED = "/tmp"


def cache(told: Mapping[str, Any]) -> Cache:
    """Return the cache of this user on this machine; variables in its path are the machine's."""
    quota_mb, alien = told["quota_mb"], told["alien_cache"]
    own = told["cache"] or os.path.join(_SHARED, f"hepscale-cvmfs-{os.getuid()}")
    return Cache(
        os.path.expandvars(own),
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
