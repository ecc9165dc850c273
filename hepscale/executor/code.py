"""The local code of a run: a copy that its tasks import, whatever is edited meanwhile."""

from __future__ import annotations

import itertools
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hepscale.env import local, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from hepscale.env.environment import Environment
    from hepscale.executor.packing import RunEnvironment
    from hepscale.executor.payload import Fingerprint

__all__ = ["Code", "installed"]


class Code:
    """The snapshot of the local modules that the tasks of a run import, the latest one.

    Attributes
    ----------
    folder
        Goes first on ``sys.path``; None where no module is local.
    sources
        From all files of snapshots to the user's own.

    Parameters
    ----------
    spool
        The folder of the run.
    printed
        Of the function that the tasks run.
    """

    def __init__(self, spool: Path, printed: Fingerprint) -> None:
        self.folder: Path | None = None
        self.sources: dict[str, str] = {}
        self._spool = spool
        self._printed = printed
        self._numbers = itertools.count(1)

    def take(self, packed: RunEnvironment) -> str:
        """Copy the modules as they are now; return their digest."""
        modules = local.closure((*self._printed.modules, *packed.modules), self._printed.codes)
        if not modules:
            return ""
        folder = self.folder = self._spool / f"code-{next(self._numbers)}"
        digest = snapshot.snapshot(modules, folder)
        self.sources.update(
            (str(folder / name), source) for one in modules for name, source in one.files
        )
        return digest

    def widener(
        self, packed: RunEnvironment
    ) -> Callable[[Sequence[str]], tuple[Environment | None, Path | None]] | None:
        """Return how to add modules to the environment and to the snapshot."""
        widen = packed.widen
        if widen is None:
            return None

        def more(missed: Sequence[str]) -> tuple[Environment | None, Path | None]:
            wider = widen(missed)
            self.take(wider)
            return wider.environment, self.folder

        return more


def installed(names: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield installed modules that the analysis refers to, with the time of their installation."""
    for name in sorted({name.partition(".")[0] for name in names}):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and local.is_installed(file):
            with suppress(OSError):
                yield name, Path(file).stat().st_mtime_ns
