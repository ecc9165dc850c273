"""What runs on a worker. Standard library and its siblings only: it is shipped as it stands."""

from __future__ import annotations

__all__ = ["READY", "UNUSABLE", "VERSION"]

# HepScale's own; a test compares the two
VERSION = "0.1.0"

# the mark of an environment that is unpacked completely
READY = ".hepscale-ready"

# the exit code of a forkserver where a required sandbox, or a repository, cannot be had
UNUSABLE = 91
