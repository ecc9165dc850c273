"""From what failed in a run to the exception that its user gets, with the likely cause."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from hepscale.errors import (
    ChunksFailed,
    MergeFailed,
    PayloadError,
    RunError,
    RunInterrupted,
    also_as,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hepscale.executor.job import Outcome
    from hepscale.executor.task import ChunkFailure

__all__ = ["error_for", "is_kept", "kept", "nested_run", "refuse_in_task"]


class _Known(NamedTuple):
    """What is known of failures with `text` in reason, or in the traceback of a library."""

    text: str
    cause: str
    fix: str


_QUOTED = re.compile("'([^']+)'$")
_SYNTAX = re.compile(r"(?:Syntax|Indentation|Tab)Error: .*\((.+\.py, line \d+)\)$")
_DAMAGED = "the file is truncated or damaged: a copy that was interrupted"
_COPY = "copy the file again, or leave it out of the fileset: FILE"
# of failures within a line of the analysis
_IN_ANALYSIS = (
    _Known(
        "FileNotFoundError",
        "a path that is wrong, or relative: tasks run in folders of their own",
        'HepScaleExecutor(files=["NAME"]) sends it along; or open it by its absolute path',
    ),
    _Known(
        "SystemExit",
        "process() or something that it calls runs sys.exit()",
        "raise an exception instead",
    ),
    _Known(
        "ModuleNotFoundError",
        "a module that is not installed here, or imported in a way that cannot be seen in advance",
        "pip install it, or import it at the top of the notebook",
    ),
    _Known("expected Chunk of length", _DAMAGED, _COPY),
    _Known("DeserializationError", _DAMAGED, _COPY),
    _Known(
        "KeyboardInterrupt",
        "process() or something that it calls raises KeyboardInterrupt",
        "raise another exception",
    ),
)
_TREE = "list what is there: python -c \"import uproot; print(uproot.open('FILE').keys())\""
# of failures outside of it; what is found first counts
_ELSEWHERE = (
    _Known(
        "Output of process() should not be None",
        "process() has no return statement on some path",
        "end process() with `return output`",
    ),
    _Known(
        "FileNotFoundError",
        "a path that is wrong, or a disk that is not mounted here",
        "ls -l FILE; or set skipbadfiles=True to go on without such files",
    ),
    _Known(
        "PermissionError",
        "the file belongs to somebody else",
        "ls -l FILE; or set skipbadfiles=True to go on without such files",
    ),
    _Known("MissTreeError", "the tree has another name in this file", _TREE),
    _Known("KeyInFileError", "the tree has another name in this file", _TREE),
    _Known(
        "not a ROOT file",
        "the file is of another format, or an error page that was downloaded in its place",
        "look at it: file FILE; or set skipbadfiles=(ValueError,) to go on without such files",
    ),
    _Known("uproot", _DAMAGED, _COPY),
    _Known(
        "SIGSEGV",
        "compiled code that process() calls crashes on this chunk",
        "run process() on this chunk alone, under python -X faulthandler",
    ),
    _Known(
        "folder is full",
        "process() writes more than the disk of the scratch folder holds",
        "export HEPSCALE_SCRATCH_DIR=<a folder with more room>",
    ),
)
_BY_KIND = {
    "memory": (
        "one event needs more memory than a task may use",
        "raise memory_mb=, that of Workers(...) too, or use fewer cores so that each has more",
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


def refuse_in_task() -> None:
    """Refuse to start a run inside a task: each of its tasks would start another, without end.

    Raises
    ------
    PayloadError
        This process is a task.
    """
    if os.environ.get("HEPSCALE_TASK"):
        raise nested_run("This is a task of a run, and starts another run.")


def nested_run(fact: str) -> PayloadError:
    """Return the error for a run that is started where the analysis is imported."""
    return PayloadError(
        fact,
        cause="a module that the analysis imports starts a run when it is imported",
        fix='put the lines that start the run under  if __name__ == "__main__":',
    )


def error_for(
    outcome: Outcome, unwrap: Callable[[BaseException], BaseException], unit: str = "chunk"
) -> RunError:
    """Return the exception for a run that did not count all of its chunks.

    Parameters
    ----------
    outcome
        How it ended.
    unwrap
        Returns the exception of the analysis from the one that wraps it.
    unit
        What coffea calls a chunk of this run: "file" where metadata of files are read.
    """
    if outcome.status == "interrupted":
        error: RunError = RunInterrupted(
            f"Stopped: {_of(outcome.counted, outcome.total, unit)} counted.",
            cause="Ctrl-C or the stop button",
            fix="run it again"
            if unit == "file"
            else "their output is in `partial_output`; HepScaleExecutor(resume=True) runs the rest",
        )
    else:
        error = _failed(outcome, unwrap, unit)
    error.partial_output, error.failed = outcome.output, outcome.failed
    return error


def is_kept(outcome: Outcome, unit: str) -> bool:
    """Whether a run that was stopped has a result; one that reads metadata has none."""
    return outcome.status == "interrupted" and outcome.output is not None and unit != "file"


def kept(outcome: Outcome, unit: str) -> str:
    """Return what is said of a run whose user keeps what it has."""
    return (
        f"Stopped: {_of(outcome.counted, outcome.total, unit)} counted, and the result. "
        "HepScaleExecutor(resume=True) runs the rest."
    )


def _of(number: int, total: int, unit: str) -> str:
    return f"{number} of {total} {unit}{'s' * (total != 1)} {'is' if number == 1 else 'are'}"


def _fact(outcome: Outcome, unit: str) -> str:
    n_failed, total = len(outcome.failed), outcome.total
    verb = "cannot be read" if unit == "file" else "failed"
    fact = f"{n_failed} of {total} {unit}{'s' * (total != 1)} {verb}"
    if unit != "file":
        fact += f", {outcome.counted} {'is' if outcome.counted == 1 else 'are'} counted"
    if outcome.status != "stopped":
        return f"{fact}."
    untried = total - n_failed - outcome.counted
    fact += f", {untried} {'was' if untried == 1 else 'were'} not tried"
    return f"Stopped early, as one {unit} after another fails in the same way: {fact}."


def _failed(
    outcome: Outcome, unwrap: Callable[[BaseException], BaseException], unit: str
) -> RunError:
    first = outcome.failed[0]
    base = MergeFailed if all(one.kind == "merge" for one in outcome.failed) else ChunksFailed
    original = unwrap(first.exceptions[0]) if first.exceptions else None
    cls = also_as(base, type(original)) if original is not None else base
    known = _known(first)
    name = _QUOTED.search(first.reason)
    cause, fix = (known.cause, known.fix) if known else _by_kind(first)
    error = cls(
        _fact(outcome, unit),
        items=_items(outcome.failed),
        detail=_detail(first, is_known=known is not None),
        cause=cause,
        fix=fix.replace("FILE", first.file or "FILE").replace("NAME", name[1] if name else "NAME"),
    )
    assert isinstance(error, RunError)
    error.__cause__ = original
    return error


def _items(failed: Sequence[ChunkFailure]) -> list[str]:
    found, said = [], ("", "")
    for one in failed:
        if (one.reason, one.where) == said:
            found.append(str(replace(one, reason="the same")))
        else:
            found.append(f"{one}\n    at {one.where}" if one.where else str(one))
        said = one.reason, one.where
    return found


def _detail(failure: ChunkFailure, *, is_known: bool) -> str:
    # how a library came upon a bad file is of no use; the record of the failure has it
    is_told = failure.kind != "output" and (failure.where or not is_known)
    parts = [failure.traceback] if failure.traceback and is_told else []
    if failure.output_tail.strip():
        parts.append(f"The last that it printed:\n{failure.output_tail.strip()}")
    return "\n\n".join(parts)


def _known(failure: ChunkFailure) -> _Known | None:
    if failure.kind not in ("exception", "died"):
        return None
    table = _IN_ANALYSIS if failure.where else _ELSEWHERE
    told = failure.reason if failure.where else f"{failure.reason}\n{failure.traceback}"
    return next((known for known in table if known.text in told), None)


def _by_kind(failure: ChunkFailure) -> tuple[str, str]:
    if failure.kind in _BY_KIND:
        return _BY_KIND[failure.kind]
    broken = _SYNTAX.match(failure.reason)
    if broken:
        return "a local module is not Python", f"correct {broken[1]}, then run again"
    if failure.where:
        return "an error in the analysis", f"correct {failure.where.partition(' in ')[0]}"
    return "", "look at .failed of this exception"
