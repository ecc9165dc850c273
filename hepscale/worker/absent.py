"""Modules that this environment was made without, though the whole of it has them.

A slim environment holds what is imported when the analysis is imported. What a task misses beyond
that must not look like a package that is not installed: a processor that goes another way then
would give another result. So the import ends the task, which is repeated in the whole environment.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ModuleAbsent", "enter_task", "missed", "watch"]


class ModuleAbsent(BaseException):
    """A task imports, or looks for, a module that was left out.

    Not an `Exception`: neither ``except ImportError`` nor ``except Exception`` may take it for a
    module that is not installed.
    """


class _Finder:
    """Stands last in ``sys.meta_path``: it is asked for what nobody else has found."""

    def __init__(self) -> None:
        self.known: frozenset[str] = frozenset()
        # in the order in which they were missed, also if somebody swallowed the exception
        self.missed: dict[str, None] = {}
        self.in_task = False

    def find_spec(self, name: str, _path: Any = None, _target: Any = None, /) -> None:
        if name in self.known:
            self.missed[name] = None
            if self.in_task:
                raise ModuleAbsent(f"{name} was left out of this environment")


_finder = _Finder()


def watch(known: Iterable[str]) -> None:
    """Watch for imports of the modules `known`, top-level names, from now on.

    Until :func:`enter_task` such an import fails as that of any missing module does.
    """
    _finder.known = frozenset(known)
    _finder.missed.clear()
    _finder.in_task = False
    _place_last()


def enter_task() -> None:
    """Let such imports raise :class:`ModuleAbsent` in this process, which runs one task."""
    _finder.in_task = True
    _place_last()


def missed() -> list[str]:
    """Return the names that this process, or the one that it was forked from, has missed."""
    return list(_finder.missed)


def _place_last() -> None:
    # what was imported meanwhile may have brought finders of its own
    sys.meta_path[:] = [one for one in sys.meta_path if one is not _finder]
    if _finder.known:
        sys.meta_path.append(_finder)
