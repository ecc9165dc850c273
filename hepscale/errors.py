"""Every error that HepScale raises on purpose.

::

    HepScaleError
    ├── ConfigError            an option or setting that cannot be used
    ├── InputError             a fileset or an input that cannot be used
    ├── RunDirectoryError      the folder for journals or scratch files cannot be written
    ├── PayloadError           the analysis cannot be sent to a worker
    ├── PackError              the environment cannot be packed, stored or unpacked
    ├── EngineError            workers cannot be started, or went away for good
    ├── NotebookError          a notebook or script that ``hepscale run`` ran has failed
    └── RunError               a run that ended without all of its chunks
        ├── ChunksFailed       chunks failed, the others are in ``partial_output``
        ├── MergeFailed        two outputs cannot be added
        └── RunInterrupted     stopped by Ctrl-C or by a stop button

An error says the fact, the items it concerns, the likely cause and what to do next, in this order.
This module imports nothing of HepScale and nothing outside the standard library.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "ChunksFailed",
    "ConfigError",
    "EngineError",
    "HepScaleError",
    "InputError",
    "MergeFailed",
    "NotebookError",
    "PackError",
    "PayloadError",
    "RunDirectoryError",
    "RunError",
    "RunInterrupted",
    "also_as",
    "misspelt",
    "nearest",
]

_MOST_ITEMS = 5
# below it another word is meant: "cores" is no misspelt "workers"
_ALIKE = 0.75


class HepScaleError(Exception):
    """Base of all errors of HepScale.

    Parameters
    ----------
    fact
        What happened, in one sentence.
    items
        What it happened to: chunks, files, options; the message shows the first five.
    detail
        More about the first item: the traceback of a worker, say.
    cause
        The likely cause.
    fix
        The next command to type, or the next thing to change.

    Attributes
    ----------
    partial_output
        Where it ended a run: the merged output of the chunks that were counted, or None.
    failed
        Where it ended a run: the chunks that failed, as
        :class:`hepscale.executor.task.ChunkFailure` records.
    """

    partial_output: Any = None
    failed: tuple[Any, ...] = ()

    def __init__(
        self,
        fact: str,
        *,
        items: Sequence[str] = (),
        detail: str = "",
        cause: str = "",
        fix: str = "",
    ) -> None:
        Exception.__init__(self, fact)
        self.fact = fact
        self.items = tuple(items)
        self.detail = detail
        self.cause = cause
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.fact]
        lines += [f"  {item}" for item in self.items[:_MOST_ITEMS]]
        if len(self.items) > _MOST_ITEMS:
            lines.append(f"  ... and {len(self.items) - _MOST_ITEMS} more")
        if self.detail:
            lines += ["", self.detail, ""]
        if self.cause:
            lines.append(f"Likely cause: {self.cause}")
        if self.fix:
            lines.append(f"Next: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        cls = type(self)
        original = getattr(cls, "_original", None)
        base = cls.__mro__[1] if original is not None else cls
        return _rebuild, (base, original, dict(self.__dict__))


class ConfigError(HepScaleError):
    """An option or a setting cannot be used."""


class InputError(HepScaleError):
    """A fileset or an input cannot be used."""


class RunDirectoryError(HepScaleError):
    """The folder that holds journals or scratch files cannot be written."""


class PayloadError(HepScaleError):
    """The analysis cannot be sent to a worker."""


class PackError(HepScaleError):
    """The environment of an analysis cannot be packed, stored or unpacked."""


class EngineError(HepScaleError):
    """Workers cannot be started, or went away for good."""


class NotebookError(HepScaleError):
    """A notebook or script that ``hepscale run`` ran has failed."""


class RunError(HepScaleError):
    """A run ended without all of its chunks; ``partial_output`` has the others."""


class ChunksFailed(RunError):
    """Chunks failed; the others are in ``partial_output``."""


class MergeFailed(RunError):
    """The outputs of two chunks cannot be added."""


class RunInterrupted(RunError, KeyboardInterrupt):
    """The run was stopped; what had arrived is in ``partial_output``."""


def nearest(name: object, known: Iterable[str], alike: float = _ALIKE) -> str:
    """Return which of the known names a misspelt one stands for, or ""; case does not matter."""
    by_lower = {one.lower(): one for one in known}
    found = get_close_matches(str(name).lower(), by_lower, 1, alike)
    return by_lower[found[0]] if found else ""


def misspelt(what: str, name: object, known: Sequence[str], fix: str) -> ConfigError:
    """Return the error for a name that is none of a few.

    Parameters
    ----------
    what
        What it is the name of.
    name
        As it was given.
    known
        Those that there are, the usual one first.
    fix
        What to write, with ``{}`` in place of the name.
    """
    near = nearest(name, known)
    spelt = f"it is spelt {near!r}; " if near else ""
    return ConfigError(
        f"There is no {what} {name!r}.",
        cause=f"{spelt}known are: {', '.join(known)}",
        fix=fix.format(near or known[0]),
    )


_combined: dict[tuple[type, type], type] = {}


def also_as(error: type[HepScaleError], original: type[BaseException]) -> type[HepScaleError]:
    """Return a subclass of `error` that is caught as `original` as well.

    An analysis that catches ``FileNotFoundError`` around a run keeps working, whatever executor
    raised it, and ``except HepScaleError`` works too. ``error`` itself is returned where the two
    cannot be combined: an exception that ends the interpreter, or one of another layout or with a
    ``__new__`` of its own.
    """
    if not issubclass(original, Exception) or issubclass(error, original):
        return error
    key = (error, original)
    if key not in _combined:
        try:
            members = {"_original": original, "__module__": error.__module__}
            combined = type(error.__name__, (error, original), members)
            # it may make its objects in a way of its own
            combined("")
        except Exception:  # noqa: BLE001
            return error
        _combined[key] = combined
    return _combined[key]


def _rebuild(
    base: type[HepScaleError], original: type[BaseException] | None, state: dict[str, Any]
) -> HepScaleError:
    cls = base if original is None else also_as(base, original)
    error = cls(state["fact"])
    error.__dict__.update(state)
    return error
