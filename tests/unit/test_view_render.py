"""Which view is made, how often it draws, and that a broken one harms nothing."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from run_states import Clock, ended, running

from hepscale.errors import ConfigError
from hepscale.executor.shipping import Packing
from hepscale.executor.task import (
    ChunksCounted,
    Notice,
)
from hepscale.view import RunState, View, apply, make_view
from hepscale.view import base as view_base
from hepscale.view.base import GuardedView, NullView, Throttle, choose_mode
from hepscale.view.html import page
from hepscale.view.notebook import final_bundle, payload
from hepscale.view.terminal import LinesView, draw
from hepscale.view.widget import WidgetView


class Stopped(View):
    """A view that fails."""

    def __init__(self) -> None:
        self.closed = 0

    def update(self, state: RunState, output: object = None, *, force: bool = False) -> None:
        raise RuntimeError("no display")

    def close(self, state: RunState, output: object = None) -> None:
        self.closed += 1
        raise RuntimeError("no display")


# -- which view ------------------------------------------------------------------------------------


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
