"""Copies of local modules: what the tasks of a run import, whatever is edited meanwhile."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from hepscale.env.local import unreadable
from hepscale.errors import RunDirectoryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from hepscale.env.local import LocalModule

__all__ = ["digest", "snapshot"]

_BLOCK_BYTES = 1 << 20


def digest(modules: Iterable[LocalModule]) -> str:
    """Return the digest of the modules' relative names and contents, as 64 hex digits.

    Raises
    ------
    PayloadError
        A file cannot be read.
    """
    return _combined((below, _read(path, None)) for below, path in _files(modules))


def snapshot(modules: Iterable[LocalModule], target: Path) -> str:
    """Copy the modules into the folder `target`, which is to go first on ``sys.path``.

    Parameters
    ----------
    modules
        What to copy. Links are replaced by what they lead to.
    target
        An empty folder; it is made where it is missing.

    Returns
    -------
    str
        The digest of the bytes that were copied: equal to :func:`digest` of the same modules
        unless a file has changed between the two.

    Raises
    ------
    PayloadError
        A source file cannot be read.
    RunDirectoryError
        `target` cannot be written.
    """

    def copies() -> Iterator[tuple[str, bytes]]:
        for below, path in _files(modules):
            yield below, _read(path, target / below)

    try:
        target.mkdir(parents=True, exist_ok=True)
        return _combined(copies())
    except OSError as error:
        raise RunDirectoryError(
            f"The copy of the local modules cannot be written: {error.strerror or error}.",
            items=[str(error.filename or target)],
            cause="the folder is read-only or its disk is full",
            fix=f"df -h {target}",
        ) from error


def _files(modules: Iterable[LocalModule]) -> list[tuple[str, str]]:
    return sorted({pair for module in modules for pair in module.files})


def _read(path: str, copy: Path | None) -> bytes:
    """Return the digest of a file, and write its bytes to `copy` on the way."""
    content = hashlib.sha256()
    if copy is None:
        for block in _blocks(path):
            content.update(block)
        return content.digest()
    copy.parent.mkdir(parents=True, exist_ok=True)
    with copy.open("wb") as out:
        for block in _blocks(path):
            content.update(block)
            out.write(block)
    return content.digest()


def _blocks(path: str) -> Iterator[bytes]:
    # Only the reads are inside "try": an error of a writer must not be taken for one of ours.
    try:
        source = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise unreadable(path, error) from error
    with source:
        while True:
            try:
                block = source.read(_BLOCK_BYTES)
            except OSError as error:
                raise unreadable(path, error) from error
            if not block:
                return
            yield block


def _combined(contents: Iterable[tuple[str, bytes]]) -> str:
    total = hashlib.sha256()
    for below, content in contents:
        name = below.encode("utf-8", "surrogateescape")
        total.update(b"%d:%b" % (len(name), name))
        total.update(content)
    return total.hexdigest()
