"""Which chunks have been counted; a chunk is counted exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hepscale.executor.task import Chunk, ChunkKey

__all__ = ["Ledger"]


class Ledger:
    """The account of a run: each of its chunks is open, counted or given up.

    Parameters
    ----------
    chunks
        The chunks of the run; their keys differ.

    Attributes
    ----------
    chunks
        All chunks by key, parts of split chunks included, split chunks themselves not.
    """

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self.chunks: dict[ChunkKey, Chunk] = {chunk.key: chunk for chunk in chunks}
        self._open: dict[ChunkKey, Chunk] = dict(self.chunks)
        self._counted: set[ChunkKey] = set()

    @property
    def counted(self) -> int:
        """Number of chunks whose output is in the result."""
        return len(self._counted)

    def open_chunks(self) -> list[Chunk]:
        """Return the chunks that are neither counted nor given up, in their order."""
        return list(self._open.values())

    def is_open(self, key: ChunkKey) -> bool:
        """Whether the chunk is still to be counted."""
        return key in self._open

    @property
    def done(self) -> bool:
        """Whether nothing is open any more."""
        return not self._open

    def accept(self, keys: Sequence[ChunkKey]) -> bool:
        """Count these chunks, all of them or, if any is not open, none; say which it was."""
        if len(set(keys)) != len(keys) or any(key not in self._open for key in keys):
            return False
        for key in keys:
            del self._open[key]
        self._counted.update(keys)
        return True

    def take_back(self, keys: Sequence[ChunkKey]) -> None:
        """Undo `accept`: the output of these chunks could not be merged after all."""
        for key in keys:
            self._counted.remove(key)
            self._open[key] = self.chunks[key]

    def give_up(self, key: ChunkKey) -> None:
        """Close a chunk that has failed for good."""
        del self._open[key]

    def split(self, key: ChunkKey, parts: Sequence[Chunk]) -> None:
        """Replace an open chunk by its parts."""
        del self._open[key]
        del self.chunks[key]
        for part in parts:
            self.chunks[part.key] = self._open[part.key] = part
