"""A client of CVMFS: read-only, on demand, over HTTP; the standard library is all that it needs."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["ObjectError", "RepositoryError", "own_folder"]

# not TMPDIR, which for a worker is a folder of the job or of one task
_SHARED = "/tmp"


class RepositoryError(Exception):
    """A repository cannot be used: its manifest was refused, no server answers, and the like.

    Parameters
    ----------
    fact
        What happened.
    item
        What it is about: a URL, a line, a digest.
    cause
        Why that is likely.
    fix
        What to do next.
    """

    def __init__(self, fact: str, item: str = "", cause: str = "", fix: str = "") -> None:
        super().__init__(fact, item, cause, fix)
        self.fact, self.item, self.cause, self.fix = fact, item, cause, fix

    def __str__(self) -> str:
        """Return the fact and its item in one line."""
        return f"{self.fact} {self.item}".rstrip()


class ObjectError(OSError):
    """An object that cannot be had, or is damaged: EIO for the file that needs it."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(errno.EIO, message, name)


def own_folder(told: Mapping[str, Any]) -> str:
    """Return the cache of this user on this machine; variables in its path are the machine's."""
    return os.path.expandvars(told["cache"] or f"{_SHARED}/hepscale-cvmfs-{os.getuid()}")
