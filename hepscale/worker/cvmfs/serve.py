"""The process behind a mount: it opens a repository, says so, and serves it.

``python -I -S FOLDER --cvmfs SETTINGS REPOSITORY DESCRIPTOR``: standard output gets one line of
JSON, ``{"ok": true, "notice": ...}`` or what is wrong; nothing is mounted before. The descriptor is
``/dev/fuse``.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys

from . import RepositoryError, fuse, opening
from .repository import Repository
from .server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from .cache import Cache
    from .repository import Revision

__all__ = ["main"]

# an answer must not wait long for a thread that is busy with what it fetched
_SWITCH_S = 0.0005
# nodes come by the thousand, and none of them is part of a cycle
_GARBAGE = 100_000


def main(argv: Sequence[str]) -> int:
    """Serve the repository of these arguments until it is unmounted or the parent has died."""
    settings, name, descriptor = argv
    try:
        with open(settings, encoding="utf-8") as stream:
            told = json.load(stream)
        cache, repository, revision = _open(told, name)
    except RepositoryError as error:
        _tell(fact=error.fact, item=error.item, cause=error.cause, fix=error.fix)
        return 1
    except OSError as error:
        _tell(fact=f"The repository cannot be opened: {error}", item=name, cause="", fix="")
        return 1
    _tell(ok=True, notice=revision.notice)
    # who stops a command that it serves does not mean this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir("/")
    sys.setswitchinterval(_SWITCH_S)
    gc.set_threshold(_GARBAGE)
    Server(fuse.Connection(int(descriptor)), repository, revision, cache.has).run()
    # threads that still wait for the network hold nobody up
    os._exit(0)


def _open(told: Mapping[str, Any], name: str) -> tuple[Cache, Repository, Revision]:
    one = next(one for one in told["repositories"] if one["name"] == name)
    cache = opening.cache(told)
    repository = Repository(
        one,
        cache,
        opening.fetcher(told, one),
        max_ttl_s=told["max_ttl_s"],
        variables=told["variables"],
    )
    return cache, repository, repository.open()


def _tell(**line: object) -> None:
    """Write the only line of standard output, and close it."""
    os.write(1, json.dumps(line).encode() + b"\n")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)
