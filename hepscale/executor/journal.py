"""A run's accepted frames on disk: what a restarted kernel resumes from.

A journal is a file of frames: first one that says whose journal it is, then each accepted frame
as it came from the worker, and a note for each chunk that was split. It appears under its name
only once its first frame is on disk; later frames are appended whole, and a half-written last one
does not verify, so it is not read.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from hepscale.errors import RunDirectoryError
from hepscale.worker.frames import Frame, FrameReader, Kind, encode

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence
    from pathlib import Path

__all__ = ["Journal", "find", "prune", "read"]

log = logging.getLogger(__name__)

_NAME = "journal"
_READ_BYTES = 1 << 20


class Journal:
    """The journal that a run writes.

    Parameters
    ----------
    folder
        The run's folder below the run directory; made here.
    digest
        Digest of the function and its code.
    desc
        What the run is called.

    Raises
    ------
    RunDirectoryError
        If the folder cannot be written.
    """

    def __init__(self, folder: Path, digest: str, desc: str) -> None:
        self.path = folder / _NAME
        self.failed = ""
        begun = folder / f"{_NAME}.tmp"
        try:
            folder.mkdir(parents=True, mode=0o700)
            self._fd = os.open(begun, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                # whoever prunes leaves a locked journal alone; some file systems know no locks
                with suppress(OSError):
                    fcntl.flock(self._fd, fcntl.LOCK_SH)
                self._size = 0
                self._write(encode(Kind.RUN, 0, {"function": digest, "desc": desc}))
                begun.rename(self.path)
            except OSError:
                os.close(self._fd)
                raise
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise RunDirectoryError(
                "The folder for journals of runs cannot be written.",
                items=[f"{folder.parent}: {error.strerror}"],
                cause="it is read-only or full, or its disk quota is used up",
                fix="export HEPSCALE_RUN_DIR=<a folder that you can write>",
            ) from None

    def append(self, frame: Frame) -> None:
        """Write an accepted frame."""
        self._append(frame.raw)

    def append_split(self, key: str, parts: Sequence[str]) -> None:
        """Note that a chunk was replaced by its parts."""
        self._append(encode(Kind.SPLIT, 0, {"key": key, "parts": list(parts)}))

    def frames(self) -> Iterator[Frame]:
        """Yield what has been written so far."""
        return read(self.path)

    def close(self) -> None:
        """Write everything to the disk."""
        with suppress(OSError):
            os.fsync(self._fd)
        os.close(self._fd)

    def _append(self, data: bytes) -> None:
        # a disk that fills up must not cost the run: it goes on, but cannot be resumed from here
        if not self.failed:
            try:
                self._write(data)
            except OSError as error:
                self.failed = error.strerror or str(error)
                log.warning("the journal %s cannot be written: %s", self.path, self.failed)
                with suppress(OSError):
                    os.ftruncate(self._fd, self._size)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._size += len(data)


def read(path: Path) -> Iterator[Frame]:
    """Yield the frames of a journal, up to the first that was not written whole."""
    reader = FrameReader()
    with open(path, "rb") as stream:
        while data := stream.read(_READ_BYTES):
            yield from reader.feed(data)
    if reader.pending or reader.broken or reader.dropped:
        log.info("%s ends with a frame that was not written whole; it is ignored", path)


def find(run_dir: Path, digest: str, wanted: Container[str]) -> list[Path]:
    """Return the journals of the same function with any of the `wanted` chunks, newest first.

    The newest alone may have less than one before it: a run that was stopped at once, say.
    """
    found = []
    for folder in _newest_first(run_dir):
        path = folder / _NAME
        with suppress(OSError):
            frames = read(path)
            first = next(frames, None)
            if first is None or first.meta.get("function") != digest:
                continue
            if any(_concerns(frame, wanted) for frame in frames):
                found.append(path)
    return found


def prune(run_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep` journals; one that is being written stays."""
    for folder in _newest_first(run_dir)[keep:]:
        with suppress(OSError), open(folder / _NAME, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _newest_first(run_dir: Path) -> list[Path]:
    try:
        folders = [folder for folder in run_dir.iterdir() if _is_ours(folder / _NAME)]
    except OSError:
        return []
    return sorted(folders, key=lambda folder: folder.name, reverse=True)


def _is_ours(path: Path) -> bool:
    # reading a journal runs what is pickled in it
    return path.is_file() and path.stat().st_uid == os.getuid()


def _concerns(frame: Frame, wanted: Container[str]) -> bool:
    keys = [frame.meta["key"]] if frame.kind is Kind.SPLIT else frame.meta.get("chunks", [])
    return any(key in wanted for key in keys)
