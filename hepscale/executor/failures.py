"""From what a worker reports of a failure to what its user reads."""

from __future__ import annotations

import itertools
import linecache
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepscale.env.local import is_installed
from hepscale.executor import unpickle
from hepscale.executor.task import Chunk, ChunkFailure, FailureKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["describe", "from_frame"]

_MOST_REASON = 300
# the standard library of an unpacked environment, which is nobody's own code
_UNPACKED = re.compile(r"/(?:[0-9a-f]{64}|hepscale/environment)/lib(?:64)?/python3")


def describe(
    chunk: Chunk, kind: FailureKind, reason: str, *, attempts: int = 1, output_tail: str = ""
) -> ChunkFailure:
    """Return the record of a chunk that failed without an exception of its own."""
    return ChunkFailure(
        chunk.dataset,
        chunk.file,
        chunk.start,
        chunk.stop,
        kind,
        reason,
        attempts=attempts,
        output_tail=output_tail,
    )


def from_frame(
    chunk: Chunk,
    meta: Mapping[str, Any],
    payload: bytes,
    sources: Mapping[str, str],
    wraps: Callable[[str, str], bool],
) -> ChunkFailure:
    """Return the record of a chunk whose task reported an exception.

    Parameters
    ----------
    chunk
        The chunk.
    meta, payload
        Of the frame.
    sources
        From the files of the snapshot that workers import to the user's own files.
    wraps
        Says of an exception's type and message that it only wraps its cause.
    """
    every = [_with_sources(one, sources) for one in meta["exceptions"]]
    told = [one for one in every if not wraps(one["type"], one["message"])] or every
    exceptions = _load(payload)
    core = told[0]
    where = _user_line(told)
    kind = core["type"].rpartition(".")[2]
    reason = f"{kind}: {core['message']}" if core["message"] else kind
    if meta["kind"] == "output":
        # coffea keeps what process() returns under this name
        path = meta["path"].removeprefix("['out']")
        reason = f"its output{path} cannot be pickled ({reason})"
    reason = " ".join(reason.split())
    return ChunkFailure(
        chunk.dataset,
        chunk.file,
        chunk.start,
        chunk.stop,
        meta["kind"],
        reason if len(reason) <= _MOST_REASON else f"{reason[:_MOST_REASON]} ...",
        where=where,
        traceback=_format(told),
        exceptions=exceptions,
    )


def _with_sources(told: dict[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    frames = [(sources.get(file, file), line, name) for file, line, name in told["frames"]]
    return {**told, "frames": frames}


def _load(payload: bytes) -> tuple[BaseException, ...]:
    """Return the exceptions that could be brought back, each with the next as its cause."""
    if not payload:
        return ()
    found: list[BaseException] = []
    for data in unpickle.loads(payload):
        if data is not None:
            with suppress(Exception):
                error = unpickle.loads(data)
                found += [error] * isinstance(error, BaseException)
    for error, cause in itertools.pairwise(found):
        with suppress(Exception):
            error.__cause__ = cause
    return tuple(found)


def _user_line(told: list[dict[str, Any]]) -> str:
    """Return the innermost line of the user's own code, the root cause's first."""
    for one in reversed(told):
        for file, line, name in reversed(one["frames"]):
            if not (is_installed(file) or file.startswith("<") or _UNPACKED.search(file)):
                text = linecache.getline(file, line).strip()
                return f"{_shown(file)}:{line} in {name}" + (f": {text}" if text else "")
    return ""


def _shown(file: str) -> str:
    """Return how a source file is called: a notebook's cell by its number."""
    ipython: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    with suppress(Exception):
        label, name = ipython.compile.format_code_name(file)
        return f"{label} {name}"
    with suppress(ValueError, OSError):
        return str(Path(file).relative_to(Path.cwd()))
    return file


def _format(told: list[dict[str, Any]]) -> str:
    """Return the worker's traceback, the root cause first, as Python prints it."""
    parts = []
    for one in reversed(told):
        lines = ["Traceback (most recent call last, on the worker):"] if one["frames"] else []
        for file, line, name in one["frames"]:
            lines.append(f'  File "{_shown(file)}", line {line}, in {name}')
            text = linecache.getline(file, line).strip()
            if text:
                lines.append(f"    {text}")
        lines.append(f"{one['type']}: {one['message']}" if one["message"] else one["type"])
        parts.append("\n".join(lines))
    joint = "\n\nThe above exception was the direct cause of the following exception:\n\n"
    return joint.join(parts)
