"""A fetcher that reads the folder of a publisher instead of asking servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from hepscale.worker.cvmfs import ObjectError, RepositoryError
from hepscale.worker.cvmfs.fetch import Damaged, Fetcher

T = TypeVar("T")


class Shelf(Fetcher):
    """Gives what is below `folder`, unless it is `closed`; `asked` is what it was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(["http://127.0.0.1:9/cvmfs/none"], "DIRECT")
        self.folder, self.closed = folder, False
        self.asked: list[str] = []
        # in the place of what is in the folder
        self.changed: dict[str, bytes] = {}
        # what a proxy keeps, and gives to those who do not want it fresh
        self.stale: dict[str, bytes] = {}

    def get(self, path: str, *, most: int = 1 << 20, fresh: bool = False) -> bytes:
        """Return a small file."""
        try:
            return self.stream(path, b"".join, fresh=fresh)
        except ObjectError:
            raise RepositoryError("No server of the repository answers.", path) from None

    def stream(self, path: str, take: Callable[[Iterator[bytes]], T], *, fresh: bool = False) -> T:
        """Give the blocks of a file to `take`."""
        self.asked.append(path)
        if self.closed or not (self.folder / path).is_file():
            raise ObjectError("no server has it", path)
        content = self.changed.get(path) or (self.folder / path).read_bytes()
        if not fresh:
            content = self.stale.get(path, content)
        try:
            return take(content[at : at + 1000] for at in range(0, len(content), 1000))
        except Damaged as error:
            raise ObjectError(str(error), path) from error
