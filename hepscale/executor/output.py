"""The merged output of a run, kept whole whatever happens while it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hepscale.executor import unpickle
from hepscale.worker.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hepscale.executor.journal import Journal
    from hepscale.worker.frames import Frame

__all__ = ["Output"]


class Output:
    """Adds up frames; each goes into the journal once it is merged.

    Outputs are merged in place, which is fast but leaves a damaged value behind when it fails
    halfway. The value is then made again from the journal, and from there on merging makes a new
    object each time; so it does from the start without a whole journal.
    """

    def __init__(self, merge: Callable[..., Any], journal: Journal | None) -> None:
        self.value: Any = None
        self._merge = merge
        self._journal = journal
        self._in_place = journal is not None
        self._merging = False

    @property
    def whole(self) -> Any:
        """The value, or None if a merge did not come to its end: it may be damaged then."""
        return None if self._merging else self.value

    @property
    def journal_failure(self) -> str:
        """Why the journal cannot be written any more, or an empty string."""
        return self._journal.failed if self._journal is not None else ""

    def add(self, frame: Frame) -> Exception | None:
        """Merge a frame; return why it cannot be merged, in which case it leaves no trace."""
        if self.journal_failure:
            self._in_place = False
        if payload := frame.payload:
            # it stays set should Ctrl-C end the merge, or what follows a failed one fail too
            self._merging = True
            error = self._merged(payload)
            self._merging = False
            if error is not None:
                return error
        if self._journal is not None:
            self._journal.append(frame)
        return None

    def _merged(self, payload: bytes) -> Exception | None:
        try:
            self._add_value(unpickle.loads(payload))
        except Exception as error:
            if self._in_place:
                self._in_place = False
                self._make_again()
            return error
        return None

    def note_split(self, key: str, parts: Sequence[str]) -> None:
        """Journal that a chunk was split."""
        if self._journal is not None:
            self._journal.append_split(key, parts)

    def _add_value(self, value: Any) -> None:
        if self.value is None:
            self.value = value
        elif self._in_place:
            self.value = self._merge([value], self.value)
        else:
            self.value = self._merge([self.value, value])

    def _make_again(self) -> None:
        self.value = None
        frames = self._journal.frames() if self._journal is not None else ()
        for frame in frames:
            if frame.kind is Kind.OUTPUT and (payload := frame.payload):
                self._add_value(unpickle.loads(payload))
