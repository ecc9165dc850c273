"""What plans have found, as long as nothing was added to or removed from the folders of files."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import tempfile
from typing import TYPE_CHECKING, Any

from hepscale.env.metadata import Watch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

__all__ = ["PlanCache"]

log = logging.getLogger(__name__)

_FORMAT = 1
# in memory, and on disk, where each is a few megabytes
_MOST_REMEMBERED = 4
_MOST_KEPT = 8
_DAMAGE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ImportError),
    *(MemoryError, pickle.UnpicklingError),
)


class PlanCache:
    """Anything that pickles, by a name, and the state of the folders that it was found in.

    A notebook plans the same again at each run, so what was used last also stays in memory.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Watch, Any]] = {}

    def recall(self, name: str, folder: Path | None) -> Any:
        """Return what was kept under a name if it still holds, else None."""
        known = self._known.get(name)
        if known is None and folder is not None:
            known = _read(_file(folder, name))
        if known is None or not known[0].is_unchanged():
            self._known.pop(name, None)
            return None
        self._remember(name, known)
        return known[1]

    def keep(
        self,
        name: str,
        folder: Path | None,
        value: Any,
        files: Iterable[str],
        roots: Collection[str],
        begun_s: float,
    ) -> None:
        """Keep a value.

        Parameters
        ----------
        name
            For :meth:`recall`.
        folder
            Where it is kept for other processes.
        value
            Anything that pickles.
        files
            What it was made from: absolute paths.
        roots
            Folders; what lies between these and the files counts too.
        begun_s
            When it was begun, by ``time.time()``; if anything has changed since, nothing is kept.
        """
        watch = Watch()
        for one in {os.path.dirname(file) for file in files}:
            watch.see(one)
            while one not in roots and one.startswith(tuple(f"{root}/" for root in roots)):
                one = os.path.dirname(one)
                watch.see(one)
        if any(found and found[0] > begun_s * 1e9 for found in watch.stamps.values()):
            return
        self._remember(name, (watch, value))
        if folder is not None:
            _write(_file(folder, name), (_FORMAT, watch.stamps, value))

    def _remember(self, name: str, known: tuple[Watch, Any]) -> None:
        self._known.pop(name, None)
        self._known[name] = known
        while len(self._known) > _MOST_REMEMBERED:
            self._known.pop(next(iter(self._known)))


def _file(folder: Path, name: str) -> Path:
    return folder / f"plan-{name}"


def _read(file: Path) -> tuple[Watch, Any] | None:
    try:
        form, stamps, value = pickle.loads(file.read_bytes())  # noqa: S301
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        log.info("%s is made anew: %r", file, error)
        return None
    with contextlib.suppress(OSError):
        os.utime(file)
    return (Watch(stamps), value) if form == _FORMAT else None


def _write(file: Path, value: Any) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".plan-", delete=False) as out:
            out.write(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        os.replace(out.name, file)
        kept = sorted(file.parent.glob("plan-*"), key=lambda one: one.stat().st_mtime)
        for old in kept[:-_MOST_KEPT]:
            old.unlink(missing_ok=True)
    except OSError as error:
        log.info("%s cannot be kept: %s", file, error)
