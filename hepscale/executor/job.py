"""What a run is given and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from hepscale.env.environment import Environment
    from hepscale.executor.task import Chunk, ChunkFailure, Event, InputFile, Resources, RunStatus

__all__ = ["Job", "Observer", "Outcome", "StopRequest"]


@dataclass(frozen=True)
class Job:
    """What is to be run, and how its chunks are handled.

    Attributes
    ----------
    run_id, desc, unit
        What it is called.
    payload, code
        Files that every task reads, see :class:`hepscale.executor.task.Task`.
    environment
        What tasks run in; None: what this process runs in.
    widen
        Returns environment and code that have these modules too, which a task has missed; None
        where there are no others.
    sources
        From the files below `code` to the user's own.
    merge
        ``merge(outputs, into=None)``: adds outputs up, into the given one where there is one.
    dumps
        Pickles the chunks of a task.
    split
        Returns the two halves of a chunk, or None where it cannot be split.
    inputs
        The files that a chunk reads by a relative name.
    wraps
        Says of an exception's type and message that it only wraps its cause.
    resources, retries, compression
        For each task.
    elsewhere
        Whether tasks run on machines that may not see the files of this one.
    interposed
        Whether they may run in a sandbox: what they leave there is known at their ends.
    """

    run_id: str
    desc: str
    unit: str
    payload: Path
    code: Path | None
    sources: Mapping[str, str]
    merge: Callable[..., Any]
    dumps: Callable[[object], bytes]
    split: Callable[[Chunk], tuple[Chunk, Chunk] | None]
    inputs: Callable[[Chunk], Iterable[InputFile]]
    wraps: Callable[[str, str], bool]
    resources: Resources
    retries: int
    compression: int
    environment: Environment | None = None
    widen: Callable[[Sequence[str]], tuple[Environment | None, Path | None]] | None = None
    elsewhere: bool = False
    interposed: bool = False


class Observer(Protocol):
    """Is told what happens in a run; raises nothing."""

    @property
    def interposers(self) -> Mapping[str, int]:
        """Number of tasks that have ended, by the kind of what they have run inside."""
        ...

    def see(self, event: Event) -> None:
        """Take note of an event."""
        ...

    def tick(self, output: Callable[[], Any] | None = None) -> None:
        """Show what there is to be seen; called after each poll, also when nothing happened.

        `output` returns what has been merged, or None; where there is no `output`, the last one
        does. It is not copied: whoever calls it does so in the thread of the run and changes
        nothing.
        """
        ...


@dataclass
class StopRequest:
    """Set from a signal handler or a button: hand out no more work, keep what has arrived.

    Attributes
    ----------
    requested
        The run is to end.
    keep
        What has arrived is the result, and not part of an exception: the button's promise.
    by_interrupt
        An interrupt may be the button's, which has no other way to be heard.
    """

    requested: bool = False
    keep: bool = False
    by_interrupt: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its merged output (None: nothing was merged) and what failed."""

    status: RunStatus
    output: Any
    failed: tuple[ChunkFailure, ...]
    counted: int
    total: int
