"""From what failed in a run to the exception that its user gets, with the likely cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hepscale.errors import ChunksFailed, MergeFailed, RunError, RunInterrupted, also_as

if TYPE_CHECKING:
    from collections.abc import Callable

    from hepscale.executor.job import Outcome
    from hepscale.executor.task import ChunkFailure

__all__ = ["error_for"]

# (text to be found in reason, kind or worker's traceback; likely cause; what to do next)
_KNOWN = (
    (
        "Output of process() should not be None",
        "process() has no return statement on some path",
        "end process() with `return output`",
    ),
    (
        "FileNotFoundError",
        "a path that is wrong, or relative: tasks run in folders of their own",
        "give absolute paths or URLs, or set skipbadfiles=True to go on without such files",
    ),
    (
        "KeyInFileError",
        "the tree has another name in this file",
        "list what is there: python -c \"import uproot; print(uproot.open('FILE').keys())\"",
    ),
    (
        "UprootMissTreeError",
        "the tree has another name in this file",
        "list what is there: python -c \"import uproot; print(uproot.open('FILE').keys())\"",
    ),
    (
        "not a ROOT file",
        "the file is of another format, or an error page that was downloaded in its place",
        "look at it: file FILE; or set skipbadfiles=(ValueError,) to go on without such files",
    ),
    (
        "uproot",
        "the file is truncated or damaged: a copy that was interrupted",
        "copy the file again, or leave it out of the fileset",
    ),
    (
        "ModuleNotFoundError",
        "a module that is not installed here, or imported in a way that cannot be seen in advance",
        "pip install it, or import it at the top of the notebook",
    ),
    (
        "SystemExit",
        "process() or something that it calls runs sys.exit()",
        "raise an exception instead",
    ),
    (
        "SIGSEGV",
        "compiled code that process() calls crashes on this chunk",
        "run process() on this chunk alone, under python -X faulthandler",
    ),
)
_BY_KIND = {
    "memory": (
        "one event needs more memory than a task may use",
        "raise memory_mb=, or use fewer cores so that each task has more",
    ),
    "wall": (
        "process() waits for ever, or wall_s is too short for this chunk",
        "raise wall_s=, or make chunksize smaller",
    ),
    "output": (
        "the output holds a file, a lock, a generator or another thing that lives in one process",
        "return histograms, numbers, arrays and dicts of these only",
    ),
    "merge": (
        "the processor returns differently shaped outputs for different chunks or datasets",
        "give all histograms of one name the same axes",
    ),
    "died": (
        "the process was killed by the system, or ended itself",
        "run process() on this chunk alone; hepscale doctor shows the memory that there is",
    ),
}


def error_for(outcome: Outcome, unwrap: Callable[[BaseException], BaseException]) -> RunError:
    """Return the exception for a run that did not count all of its chunks.

    Parameters
    ----------
    outcome
        How it ended.
    unwrap
        Returns the exception of the analysis from the one that wraps it.
    """
    if outcome.status == "interrupted":
        error: RunError = RunInterrupted(
            f"Stopped: {outcome.counted} of {outcome.total} chunks are counted.",
            cause="Ctrl-C or the stop button",
            fix="their output is in `partial_output`; HepScaleExecutor(resume=True) runs the rest",
        )
    else:
        error = _failed(outcome, unwrap)
    error.partial_output, error.failed = outcome.output, outcome.failed
    return error


def _failed(outcome: Outcome, unwrap: Callable[[BaseException], BaseException]) -> RunError:
    first = outcome.failed[0]
    n_failed = len(outcome.failed)
    fact = f"{n_failed} of {outcome.total} chunks failed, {outcome.counted} are counted."
    if outcome.status == "stopped":
        fact = (
            f"Stopped early: chunk after chunk fails in the same way. {n_failed} of "
            f"{outcome.total} chunks failed, {outcome.counted} are counted."
        )
    base = MergeFailed if all(one.kind == "merge" for one in outcome.failed) else ChunksFailed
    original = unwrap(first.exceptions[0]) if first.exceptions else None
    cls = also_as(base, type(original)) if original is not None else base
    cause, fix = _advice(first)
    error = cls(
        fact,
        items=[_item(one) for one in outcome.failed],
        detail=_detail(first),
        cause=cause,
        fix=fix,
    )
    assert isinstance(error, RunError)
    error.__cause__ = original
    return error


def _item(failure: ChunkFailure) -> str:
    return f"{failure}\n    at {failure.where}" if failure.where else str(failure)


def _detail(failure: ChunkFailure) -> str:
    parts = [failure.traceback] if failure.traceback else []
    if failure.output_tail.strip():
        parts.append(f"The last that it printed:\n{failure.output_tail.strip()}")
    return "\n\n".join(parts)


def _advice(failure: ChunkFailure) -> tuple[str, str]:
    for text, cause, fix in _KNOWN:
        if text in failure.reason or (not failure.where and text in failure.traceback):
            return cause, fix.replace("FILE", failure.file or "FILE")
    if failure.kind in _BY_KIND:
        return _BY_KIND[failure.kind]
    if failure.where:
        return "an error in the analysis", f"correct {failure.where.partition(' in ')[0]}"
    return "", "look at .failed of this exception"
