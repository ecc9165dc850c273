"""What the views draw, when, and that a broken one harms nothing."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hepscale.errors import ConfigError
from hepscale.executor.shipping import Packing
from hepscale.executor.task import (
    ChunkFailed,
    ChunkFailure,
    ChunksCounted,
    Notice,
    RunEnded,
    RunStarted,
    TaskId,
    TaskSubmitted,
    WorkerJoined,
)
from hepscale.view import RunState, View, advance, apply, make_view
from hepscale.view import base as view_base
from hepscale.view.base import GuardedView, NullView, Throttle, choose_mode
from hepscale.view.html import page
from hepscale.view.notebook import final_bundle, payload
from hepscale.view.terminal import LinesView, TerminalView, draw
from hepscale.view.text import failure_details
from hepscale.view.widget import WidgetView

FAILURE = ChunkFailure(
    "DY", "root://host//a/b/c.root", 0, 10, "exception", "ValueError: [bold]no\x1b[2J\nreally"
)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Stopped(View):
    """A view that fails."""

    def __init__(self) -> None:
        self.closed = 0

    def update(self, state: RunState, output: object = None, *, force: bool = False) -> None:
        raise RuntimeError("no display")

    def close(self, state: RunState, output: object = None) -> None:
        self.closed += 1
        raise RuntimeError("no display")


def running(done: int = 20, failed: int = 0, unit: str = "chunk") -> RunState:
    state = RunState()
    apply(state, RunStarted("r", "Processing", unit, 40, 2_000_000, "local", 0.0), 0.0)
    apply(state, WorkerJoined("w1", 2), 0.0)
    for name in ("t1", "t2"):
        apply(state, TaskSubmitted(TaskId(name), 1), 0.0)
    for i in range(done):
        apply(state, ChunksCounted(1, 50_000, 1_000), 0.1 * (i + 1))
    for _ in range(failed):
        apply(state, ChunkFailed(FAILURE), 2.0)
    return state


def ended(state: RunState, status: str = "done") -> RunState:
    apply(state, RunEnded(status, 0.0), 4.0)  # type: ignore[arg-type]
    return state


def terminal(width: int = 100) -> Console:
    return Console(record=True, width=width, file=io.StringIO(), force_terminal=True)


def drawn(state: RunState, width: int = 100) -> str:
    console = terminal(width)
    console.print(draw(state, width))
    return console.export_text()


# -- which view -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "asks", "tty", "mode"),
    [
        ("", None, True, "text"),
        ("", None, False, "lines"),
        ("", True, False, "widget"),
        ("", False, False, "static"),
        ("widget", False, False, "widget"),
        ("widget", None, True, "text"),
        ("widget", None, False, "lines"),
        ("static", True, False, "static"),
        ("text", True, True, "text"),
        ("text", None, False, "lines"),
        ("lines", True, True, "lines"),
        ("off", True, True, "off"),
        ("html", True, False, "html"),
        ("html", False, False, "html"),
        ("html", None, True, "text"),
        ("html", None, False, "lines"),
    ],
)
def test_which_view(requested: str, asks: bool | None, tty: bool, mode: str) -> None:
    assert choose_mode(requested, asks=asks, tty=tty) == mode
    without = "html" if mode == "widget" else mode
    assert choose_mode(requested, asks=asks, tty=tty, widgets=False) == without


@pytest.mark.parametrize("status", [True, False])
def test_an_unknown_view_is_an_error_that_names_the_known(
    monkeypatch: pytest.MonkeyPatch, status: bool
) -> None:
    monkeypatch.setenv("HEPSCALE_VIEW", "fancy")
    with pytest.raises(ConfigError, match="HEPSCALE_VIEW='fancy'") as caught:
        make_view(status)
    for mode in ("widget", "static", "text", "lines", "off"):
        assert mode in str(caught.value)


@pytest.mark.parametrize(("status", "value"), [(False, "lines"), (True, "off")])
def test_a_silent_run(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    status: bool,
    value: str,
) -> None:
    monkeypatch.setenv("HEPSCALE_VIEW", value)
    view = make_view(status)
    view.update(running(), force=True)
    view.close(ended(running(40)))
    assert capfd.readouterr() == ("", "")


def test_static_without_a_kernel_is_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEPSCALE_VIEW", "static")
    view = make_view(True)
    view.update(running(), force=True)
    view.close(ended(running(40)))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_a_script_does_not_pay_for_what_it_does_not_draw() -> None:
    code = (
        "import sys; from hepscale.view import make_view; make_view(False);"
        "sys.exit(any(n in sys.modules for n in ('rich', 'anywidget', 'ipywidgets', 'IPython')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_state_imports_only_the_events() -> None:
    code = (
        "import sys; import hepscale.executor.task; before = set(sys.modules);"
        "import hepscale.view.state;"
        "print([n for n in set(sys.modules) - before if n.startswith('hepscale')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names = ("view", "view.state", "view.environment", "view.base", "errors")
    assert {*json.loads(done.stdout.replace("'", '"'))} <= {f"hepscale.{one}" for one in names}


# -- a view that fails -----------------------------------------------------------------------------


def test_a_failing_view_is_logged_once_and_silent(caplog: pytest.LogCaptureFixture) -> None:
    inner = Stopped()
    view = GuardedView(inner)
    with caplog.at_level(logging.INFO, logger="hepscale"):
        for _ in range(3):
            view.update(running(), force=True)
        for _ in range(2):
            view.close(ended(running()))
    assert len(caplog.records) == 1
    assert "no display" in caplog.text
    assert inner.closed == 1


def test_a_view_that_cannot_be_made_is_no_view(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(mode: str, gallery: object, stop: object, *, kernel: bool) -> View:
        raise ImportError("no rich")

    monkeypatch.setattr(view_base, "build", broken)
    monkeypatch.setenv("HEPSCALE_VIEW", "lines")
    with caplog.at_level(logging.WARNING, logger="hepscale"):
        view = make_view(True)
    assert isinstance(view, NullView)
    assert "no rich" in caplog.text


def test_ctrl_c_goes_through_the_guard() -> None:
    class Interrupted(NullView):
        def update(self, state: RunState, output: object = None, *, force: bool = False) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GuardedView(Interrupted()).update(running())


# -- how often -------------------------------------------------------------------------------------


def test_the_throttle_keeps_to_its_interval_and_its_part_of_the_time() -> None:
    clock, cpu_clock = Clock(), Clock()
    throttle = Throttle(0.1, clock, cpu_clock)

    def waits_s(wall_s: float = 0.0, cpu_s: float = 0.0, sent: int | None = None) -> float:
        def render() -> int | None:
            clock.now_s += wall_s
            cpu_clock.now_s += cpu_s
            return sent

        begun_s = clock.now_s
        assert throttle.due()
        throttle.draw(render)
        while not throttle.due():
            clock.now_s += 0.01
        return clock.now_s - begun_s

    assert waits_s() == pytest.approx(0.1, abs=0.02)
    # slow once: by chance
    assert waits_s(cpu_s=0.1) == pytest.approx(0.1, abs=0.02)
    assert waits_s(cpu_s=0.1) == pytest.approx(5.0, abs=0.02)
    assert waits_s(cpu_s=0.001) == pytest.approx(0.1, abs=0.02)
    assert waits_s(wall_s=0.1) == pytest.approx(1.0, abs=0.02)
    assert waits_s(sent=1_000_000) == pytest.approx(4.0, abs=0.02)


def test_the_last_state_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, state = Clock(), running(0)
    view = WidgetView(clock=clock)
    view.update(state)
    sent: list[str] = []
    widget = view._widget
    assert widget is not None
    monkeypatch.setattr(widget, "put", lambda run: sent.append(run["chunks"]))
    for i in range(1, 31):
        clock.now_s = 0.0101 * i
        apply(state, ChunksCounted(1, 50_000, 1), clock.now_s)
        view.update(state)
    assert sent == ["10 of 40 chunks", "20 of 40 chunks", "30 of 40 chunks"]
    view.update(state, force=True)
    view.close(ended(state))
    view.close(state)


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


# -- the notebook ----------------------------------------------------------------------------------


def test_the_widget_gets_a_small_dict_of_texts() -> None:
    state = running(failed=7)
    for i in range(9):
        apply(state, Notice(f"notice {i}"), 2.0)
    sent = payload(state)
    assert sent["chunks"] == "20 of 40 chunks"
    assert sent["percent"] == pytest.approx(50.0)
    assert [name for name, _ in sent["facts"]] == [
        "Events",
        "Rate",
        "Results",
        "Workers",
        "Failures",
        "Elapsed",
        "Remaining",
    ]
    assert len(sent["notices"]) == 5
    assert len(json.dumps(payload(running()))) < 500


def test_the_end_is_one_plain_text() -> None:
    text = "Processing: 40 of 40 chunks, 2,000,000 events, 0 failed"
    assert final_bundle(ended(running(40))) == {"text/plain": text}


def test_preprocessing_is_worth_a_word_only_if_it_went_wrong() -> None:
    assert final_bundle(ended(running(40, unit="file"))) == {}
    assert final_bundle(ended(running(39, failed=1, unit="file"), "failed"))
    assert final_bundle(ended(running(12, unit="file"), "interrupted"))


def test_the_widget_takes_no_html_from_outside() -> None:
    script = (Path(view_base.__file__).parent / "static" / "run.js").read_text()
    assert "innerHTML" not in script
    assert 'setAttribute("role", "progressbar")' in script


def test_a_run_that_has_not_begun_is_not_counted() -> None:
    """Its environment is packed before anything is known of its chunks."""
    state = RunState()
    apply(state, Notice("A note"), 1.0)
    apply(state, Packing("packages", 5_000_000, 10_000_000), 1.0)
    packing = "packing packages, 5.0 MB of 10.0 MB"
    stream = io.StringIO()
    view = LinesView(stream)
    view.update(state, force=True)
    view.close(state)
    assert stream.getvalue().splitlines() == [
        "  note: A note",
        f"Run: being prepared, environment: {packing}",
        "Run: did not begin",
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(draw(state, 80))
    assert "Run" in console.file.getvalue()
    assert "being prepared" in console.file.getvalue()
    assert f"environment: {packing}" in console.file.getvalue()
    assert "0 of 0" not in console.file.getvalue()
    assert "elapsed" not in console.file.getvalue()
    sent = payload(state)
    assert (sent["chunks"], sent["facts"]) == ("being prepared", [["Environment", packing]])
    assert packing in page(sent, [], [])
    assert sent["notices"] == ["A note"]
    assert final_bundle(state) == {"text/plain": "Run: did not begin"}
