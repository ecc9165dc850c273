"""A run in words and numbers, the same in every view and in every locale."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hepscale.executor.task import ChunkFailure
    from hepscale.view.state import RunState

__all__ = [
    "COLOURS",
    "chunks_text",
    "count_text",
    "duration_text",
    "environment_text",
    "events_text",
    "failed_text",
    "failure_details",
    "failure_lines",
    "final_text",
    "one_line",
    "progress_text",
    "rate_text",
    "read_text",
    "received_text",
    "remaining_text",
    "summary_text",
    "usage_text",
    "workers_text",
]

# Petroff's ten, which those who see colours differently tell apart, too.
COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
_MOST_FAILURES, _MOST_DETAILS, _MOST_TEXT = 5, 20, 3_000
_LEAST_ELAPSED_S = 0.5
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{4,}")
# A task reads relative files in a folder of its own, which nobody knows or finds again.
_TASK_FOLDER = re.compile(r"/\S*/work\.d/(?:_/)*")
_ENDED = {
    None: " ended early",
    "done": "",
    "failed": " failed",
    "stopped": " stopped early",
    "interrupted": " interrupted",
}
# The reasons of these hold what was measured (megabytes, a process id): it differs each time.
_MEASURED = {
    "memory": "over its memory",
    "wall": "over its time",
    "died": "its process died",
}


def count_text(number: float) -> str:
    """Return a number in at most four digits: ``0.25``, ``7.5``, ``9,999``, ``1.2 M``, ``123 k``.

    Infinite or undefined numbers give ``?``.
    """
    if not math.isfinite(number):
        return "?"
    if abs(number) < 9_999.5:
        if number == int(number) or abs(number) >= 99.95:
            return f"{number:,.0f}"
        return f"{number:.2f}" if abs(number) < 0.995 else f"{number:.1f}"
    power = 0
    while abs(number) >= 999.5 and power < len(_PREFIXES) - 1:
        number /= 1_000
        power += 1
    digits = 0 if abs(number) >= 99.95 else 1
    return f"{number:,.{digits}f} {_PREFIXES[power]}"


def duration_text(seconds: float, *, tenths: bool = False) -> str:
    """Return a duration, such as ``5 s``, ``1 min 05 s``, ``2 h 05 min`` or ``3 d 02 h``.

    Parameters
    ----------
    seconds
        The duration; infinite or undefined ones give ``?``.
    tenths
        Show tenths of a second below one minute (``5.2 s``).
    """
    if not math.isfinite(seconds):
        return "?"
    seconds = max(0.0, seconds)
    if tenths and seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = minutes // 60
    return f"{hours // 24} d {hours % 24:02d} h"


def one_line(text: str, most: int = 300) -> str:
    """Return the text on one line of at most `most` characters, without control characters."""
    clean = "".join(char if char.isprintable() else " " for char in text[: 4 * most])
    clean = " ".join(clean.split())
    return clean if len(clean) <= most else clean[: most - 3] + "..."


def _noun(state: RunState) -> str:
    return state.unit or "chunk"


def _plural(number: int, noun: str) -> str:
    return noun if number == 1 else f"{noun}s"


def chunks_text(state: RunState) -> str:
    """Return ``21 of 40 chunks``, or that the run has not begun."""
    if state.started_s is None:
        return "being prepared"
    noun = _plural(state.chunks_total, _noun(state))
    return f"{state.chunks_done:,} of {state.chunks_total:,} {noun}"


def events_text(state: RunState) -> str:
    """Return ``1.0 M of 2.0 M events``, or nothing where events are not counted."""
    if state.counts_entries:
        return f"{count_text(state.entries_done)} of {count_text(state.entries_total)} events"
    return f"{count_text(state.entries_done)} events" if state.entries_done else ""


def rate_text(state: RunState) -> str:
    """Return ``650 k events/s`` (or chunks), or nothing where the rate is not known."""
    rate = state.rate_per_s
    if rate is None:
        return ""
    if not state.counts_entries:
        return f"{count_text(rate)} {_noun(state)}s/s"
    return f"{count_text(rate if rate < 10 else round(rate))} events/s"


def read_text(state: RunState) -> str:
    """Return ``1.2 GB, 34.0 MB/s`` of what tasks have read, or nothing where that is not known."""
    return _flow(state.bytes_read, state)


def received_text(state: RunState) -> str:
    """Return ``12 MB, 250 kB/s`` of results, or nothing before any has come."""
    return _flow(state.bytes_merged - state.bytes_resumed, state)


def _flow(nbytes: int, state: RunState) -> str:
    if not nbytes or state.elapsed_s < _LEAST_ELAPSED_S:
        return ""
    return f"{_bytes_text(nbytes)}, {_bytes_text(nbytes / state.elapsed_s)}/s"


def _bytes_text(number: float) -> str:
    text = count_text(number)
    return f"{text}B" if text[-1:].isalpha() else f"{text} B"


def workers_text(state: RunState) -> str:
    """Return ``37 of 40 slots busy on 5 workers, 6 joined, 1 lost``."""
    lost = f", {state.workers_lost:,} lost" if state.workers_lost else ""
    if not state.workers:
        return f"no workers left{lost}" if lost else "waiting for workers"
    slots, workers = state.slots, len(state.workers)
    text = f"{state.slots_busy:,} of {slots:,} {_plural(slots, 'slot')} busy"
    if workers > 1:
        text += f" on {workers:,} workers"
    if lost:
        text += f", {state.workers_joined:,} joined"
    return text + lost


def environment_text(state: RunState) -> str:
    """Return what is packed, or ``3 layers (210 MB), 2 packed before, on 4 workers``.

    Nothing where tasks run in what their workers have.
    """
    env = state.environment
    if env.packing:
        done, total = _bytes_text(env.packed_bytes), _bytes_text(env.packing_bytes)
        return f"packing {one_line(env.packing, 40)}, {done} of {total}"
    if not env.layers:
        return ""
    size = f"{env.layers:,} {_plural(env.layers, 'layer')} ({_bytes_text(env.size_bytes)})"
    cached = "all" if env.layers_cached == env.layers else f"{env.layers_cached:,}"
    there, sent = len(env.workers), env.workers_sent
    parts = [
        size,
        f"{cached} packed before" if env.layers_cached else "",
        f"on {there:,} {_plural(there, 'worker')}" if there else "",
        f"being sent to {sent:,} {_plural(sent, 'worker')}" if sent else "",
    ]
    return ", ".join(filter(None, parts))


def failed_text(state: RunState) -> str:
    """Return ``0 failed``, and how many tasks were repeated and chunks split, where some were."""
    text = f"{state.chunks_failed:,} failed"
    for number, noun, done in (
        (state.tasks_retried, "task", "repeated"),
        (state.chunks_split, "chunk", "split"),
    ):
        text += f", {number:,} {_plural(number, noun)} {done}" if number else ""
    return text


def usage_text(state: RunState) -> str:
    """Return ``a task used up to 612 MB of 800 MB, 1.0 cores``, or nothing before one has ended."""
    cores = state.task_cores
    if not state.task_memory_mb or cores is None:
        return ""
    given = f" of {state.task_given_mb:,} MB" if state.task_given_mb else ""
    return f"a task used up to {state.task_memory_mb:,.0f} MB{given}, {cores:.1f} cores"


def remaining_text(state: RunState) -> str:
    """Return ``about 25 s left``, or nothing where it is not known."""
    remaining_s = state.remaining_s
    return "" if remaining_s is None else f"about {duration_text(remaining_s)} left"


def failure_lines(state: RunState, most: int = _MOST_FAILURES) -> list[str]:
    """Return one line for each of the first `most` failures, and how many more there are.

    Of a file's path only the name is shown, to leave room for the reason.
    """
    lines = []
    for failure in state.failures[:most]:
        name = failure.file.rsplit("/", 1)[-1]
        where = _where(failure.dataset, name, failure.start, failure.stop)
        reason = _TASK_FOLDER.sub("", failure.reason)
        lines.append(one_line(f"{where}: {reason}" if where else reason))
    more = len(state.failures) - len(lines)
    return [*lines, f"and {more:,} more"] if more else lines


def failure_details(state: RunState) -> list[tuple[str, str]]:
    """Return the line and all that is known of each of the first failures, and how many more.

    The lines are those of :func:`failure_lines`; what is known has several lines, or none.
    """
    lines = failure_lines(state, _MOST_DETAILS)
    known = [_detail(failure) for failure in state.failures[:_MOST_DETAILS]]
    rest = [""] * (len(lines) - len(known))
    return list(zip(lines, known + rest, strict=True))


def _detail(failure: ChunkFailure) -> str:
    tried = f"tried {failure.attempts:,} times" if failure.attempts > 1 else ""
    where = _where(failure.dataset, failure.file, failure.start, failure.stop)
    printed = f"It printed last:\n{failure.output_tail}" if failure.output_tail else ""
    # the reason, if nothing ends with it: else it would be there twice
    reason = "" if failure.reason in failure.traceback else failure.reason
    parts = (where, tried, failure.where, failure.traceback, reason, printed)
    text = "\n".join(part.strip("\n") for part in parts if part)
    clean = "".join(char for char in text if char.isprintable() or char == "\n")
    return clean if len(clean) <= _MOST_TEXT else f"...{clean[-_MOST_TEXT:]}"


def progress_text(state: RunState) -> str:
    """Return where the run stands on one line, for a log."""
    if state.started_s is None:
        parts = [chunks_text(state), _named_environment(state)]
        return f"{_title(state)}: {', '.join(filter(None, parts))}"
    parts = [
        chunks_text(state),
        events_text(state),
        rate_text(state),
        workers_text(state),
        _named_environment(state),
        failed_text(state),
        f"{duration_text(state.elapsed_s)} elapsed",
        remaining_text(state),
    ]
    return f"{_title(state)}: {', '.join(part for part in parts if part)}"


def _named_environment(state: RunState) -> str:
    text = environment_text(state)
    return f"environment: {text}" if text else ""


def final_text(state: RunState) -> str:
    """Return how the run ended on one line, with its time and its rate, for a terminal or a log."""
    if state.started_s is None:
        return _counts(state)
    rate = rate_text(state)
    took = f"in {duration_text(state.elapsed_s, tenths=True)}" + (f" ({rate})" if rate else "")
    text = f"{_counts(state)} {took}, {failed_text(state)}"
    if state.workers_lost:
        text += f", {state.workers_lost:,} {_plural(state.workers_lost, 'worker')} lost"
    if state.chunks_resumed:
        text += f", {state.chunks_resumed:,} resumed"
    usage = usage_text(state)
    return f"{text}, {usage}" if usage else text


def summary_text(state: RunState) -> str:
    """Return how the run ended, for a saved notebook: the same input gives the same text.

    Hence no times, rates, sizes or names of workers, and failures in the order of the chunks.
    """
    if state.started_s is None:
        return _counts(state)
    lines = [f"{_counts(state)}, {state.chunks_failed:,} failed"]
    failures = sorted(state.failures, key=lambda f: (f.dataset, f.file, f.start, f.stop))
    for failure in failures[:_MOST_FAILURES]:
        where = _where(failure.dataset, failure.file, failure.start, failure.stop)
        reason = _MEASURED.get(failure.kind) or _lasting(failure.reason)
        lines.append(f"  {where}: {reason}" if where else f"  {reason}")
    if len(failures) > _MOST_FAILURES:
        lines.append(f"  and {len(failures) - _MOST_FAILURES:,} more")
    lines += [f"  note: {_lasting(text)}" for text in state.lasting]
    return "\n".join(lines)


def _lasting(text: str) -> str:
    return _ADDRESS.sub("0x...", one_line(_TASK_FOLDER.sub("", text)))


def _where(dataset: str, file: str, start: int, stop: int) -> str:
    where = ", ".join(part for part in (dataset, file) if part)
    return f"{where}, entries {start} to {stop}" if stop > start else where


def _title(state: RunState) -> str:
    return one_line(state.desc, 60) or "Run"


def _counts(state: RunState) -> str:
    if state.started_s is None:
        return f"{_title(state)}: did not begin"
    text = f"{_title(state)}{_ENDED[state.status]}: {chunks_text(state)}"
    entries = state.entries_done
    return f"{text}, {entries:,} {_plural(entries, 'event')}" if entries else text
