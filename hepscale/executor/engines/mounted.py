"""What this process takes from repositories of CVMFS: tasks find it at the same places."""

from __future__ import annotations

import os
import sys

from hepscale.env.repositories import TOP, repository_of
from hepscale.worker.remote import SEARCHED

__all__ = ["path", "variables"]

# Python's own, which `path` answers for, and what names the shell that is running
_NOT_FOR_TASKS = frozenset({"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PWD", "OLDPWD", "_"})


def path() -> list[str]:
    """Return the folders of ``sys.path`` in repositories, which are not packed."""
    return [entry for entry in sys.path if repository_of(entry)]


def variables() -> dict[str, list[str]]:
    """Return the paths in repositories that variables name, as the set-up of a release does.

    Returns
    -------
    dict
        By variable; of ``LD_LIBRARY_PATH`` and the like those of its paths that lie there.
    """
    found = {}
    for name, value in os.environ.items():
        paths = [entry for entry in value.split(os.pathsep) if entry]
        there = [entry for entry in paths if entry.startswith(f"{TOP}/")]
        # not of an address, nor of a text that happens to name one; a search path may hold "."
        is_list = name in SEARCHED or all(map(os.path.isabs, paths))
        if there and is_list and name not in _NOT_FOR_TASKS:
            found[name] = there
    return found
