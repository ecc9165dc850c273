"""What is drawn in a terminal, and written to a log."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from run_states import Clock, ended, running

from hepscale.executor.task import (
    ChunkFailed,
    ChunkFailure,
    ChunksCounted,
    Notice,
)
from hepscale.view import RunState, advance, apply
from hepscale.view.base import GuardedView
from hepscale.view.notebook import payload
from hepscale.view.terminal import LinesView, TerminalView, draw
from hepscale.view.text import failure_details


def terminal(width: int = 100) -> Console:
    return Console(record=True, width=width, file=io.StringIO(), force_terminal=True)


def drawn(state: RunState, width: int = 100) -> str:
    console = terminal(width)
    console.print(draw(state, width))
    return console.export_text()


# -- the terminal ----------------------------------------------------------------------------------


def test_a_terminal_shows_the_run() -> None:
    shown = drawn(running())
    for words in ("Processing", "50 %", "20 of 40 chunks", "1.0 M of 2.0 M events"):
        assert words in shown
    for words in ("events/s", "2 of 2 slots busy", "0 failed", "2 s elapsed", "about 2 s left"):
        assert words in shown
    assert len(shown.splitlines()) == 3


def test_failures_and_notices_are_lines_and_never_markup() -> None:
    state = running(failed=7)
    apply(state, Notice("[red]a worker left"), 2.0)
    shown = drawn(state, 140)
    assert shown.count("x DY, c.root, entries 0 to 10: ValueError: [bold]no [2J really") == 5
    assert "and 2 more" in shown
    assert "! [red]a worker left" in shown
    assert "\x1b" not in shown


def test_how_fast_results_come() -> None:
    state = running(0)
    assert "Results" not in dict(payload(state)["facts"])
    apply(state, ChunksCounted(1, 50_000, 900_000, resumed=True), 1.0)
    assert "Results" not in dict(payload(state)["facts"])
    assert "Read" not in dict(payload(state)["facts"])
    apply(state, ChunksCounted(1, 50_000, 300_000, read_bytes=24_000_000), 2.0)
    facts = dict(payload(state)["facts"])
    assert facts["Results"] == "300 kB, 150 kB/s"
    assert facts["Read"] == "24.0 MB, 12.0 MB/s"


def test_a_failure_unfolds_to_all_that_is_known_of_it() -> None:
    state = running()
    told = "Traceback:\n  boom\x1b[2J\nValueError: no"
    for i in range(23):
        reason = "ValueError: no" if i else "killed"
        one = ChunkFailure("DY", "/a/c.root", i, i + 1, "exception", reason, "n.ipynb:3", told, 3)
        apply(state, ChunkFailed(one), 2.0)
    details = failure_details(state)
    assert len(details) == 21
    assert details[-1] == ("and 3 more", "")
    line, first = details[0]
    assert line == "DY, c.root, entries 0 to 1: killed"
    assert first.splitlines() == [
        "DY, /a/c.root, entries 0 to 1",
        "tried 3 times",
        "n.ipynb:3",
        "Traceback:",
        "  boom[2J",
        "ValueError: no",
        "killed",
    ]
    assert details[1][1].count("ValueError: no") == 1


@given(st.integers(1, 200), st.integers(0, 40), st.integers(0, 9), st.text(max_size=40))
def test_any_width_can_be_drawn(width: int, done: int, failed: int, desc: str) -> None:
    state = running(done, failed)
    state.desc = desc
    lines = drawn(state, width).splitlines()
    assert all(len(line) <= max(width, 1) for line in lines if line.isascii())


def test_the_bar_is_not_full_before_the_end() -> None:
    state = running(0)
    apply(state, ChunksCounted(39, 1_999_999, 1), 3.0)
    assert "99 %" in drawn(state)


def test_a_terminal_keeps_one_line() -> None:
    console, clock = terminal(), Clock()
    view = TerminalView(console=console, clock=clock)
    state = running()
    view.update(state)
    view.close(ended(running(40)))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[?25h" in written
    assert " 50 %" in written
    assert written.rindex("100 %") < written.index("\x1b[?25h")
    last = console.export_text().splitlines()[-1]
    assert (
        last == "Processing: 40 of 40 chunks, 2,000,000 events in 4.0 s (500 k events/s), 0 failed"
    )


def test_a_terminal_is_drawn_five_times_a_second() -> None:
    console, clock, state = terminal(), Clock(), running()
    view = TerminalView(console=console, clock=clock)
    sizes = set()
    for i in range(100):
        clock.now_s = i / 100
        view.update(state)
        sizes.add(len(console.file.getvalue()))  # type: ignore[attr-defined]
    view.close(ended(state))
    assert len(sizes) == 5


# -- a log -----------------------------------------------------------------------------------------


def test_lines_every_five_seconds_and_only_on_change() -> None:
    stream, clock, state = io.StringIO(), Clock(), running()
    view = LinesView(stream, clock=clock)
    for i in range(30):
        clock.now_s = float(i)
        advance(state, clock.now_s)
        view.update(state)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Processing: 20 of 40 chunks, 1.0 M of 2.0 M events, ")
    apply(state, ChunksCounted(20, 1_000_000, 1), 30.0)
    view.update(state)
    view.close(ended(state))
    assert len(stream.getvalue().splitlines()) == 3


def test_lines_say_each_notice_and_the_first_failures_once() -> None:
    stream, clock, state = io.StringIO(), Clock(), running(failed=7)
    apply(state, Notice("a worker left"), 2.0)
    view = LinesView(stream, clock=clock)
    for _ in range(2):
        view.update(state, force=True)
    view.close(ended(state, "failed"))
    shown = stream.getvalue()
    assert shown.isascii()
    assert shown.count("note: a worker left") == 1
    assert shown.count("failed: DY") == 5
    assert shown.splitlines()[-1].startswith("Processing failed: 20 of 40 chunks")


def test_a_closed_stderr_does_not_end_a_run(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    view = GuardedView(LinesView(stream))
    stream.close()
    view.close(ended(running(40)))
    assert "switched off" in caplog.text
