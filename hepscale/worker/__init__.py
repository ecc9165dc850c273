"""What runs on a worker. Standard library and its siblings only: it is shipped as it stands."""

from __future__ import annotations

__all__ = ["READY", "UNUSABLE", "VERSION", "Unusable"]

# HepScale's own; a test compares the two
VERSION = "0.1.0"

# the mark of an environment that is unpacked completely
READY = ".hepscale-ready"

# the exit code of a forkserver where a required sandbox, or a repository, cannot be had
UNUSABLE = 91


class Unusable(Exception):
    """A required sandbox, or a repository, cannot be had; the text says why, and what to do."""

    def __init__(self, fact: str, item: str, cause: str, fix: str) -> None:
        super().__init__(f"HepScale: {fact}\n  {item}\nLikely cause: {cause}\nNext: {fix}\n")
        self.fact, self.item, self.cause, self.fix = fact, item, cause, fix
