"""The view in real kernels, driven by made-up events."""

from __future__ import annotations

import base64
import io
import struct
from typing import TYPE_CHECKING, Any

import nbclient
import nbformat
import pytest
from kernels import IGNORED, VIEW_TYPE, by_sockets
from rich.console import Console

from hepscale.notebook_run import run_file

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = IGNORED
DRIVE = """
import time
from hepscale.executor.task import *
from hepscale.view import RunState, apply, make_view

def drive(desc="Processing", unit="chunk", chunks=40, entries=2_000_000, failed=0, status="done"):
    state, view = RunState(), make_view(True)
    def tell(event):
        apply(state, event, time.monotonic())
        view.update(state)
    tell(RunStarted("r", desc, unit, chunks, entries, "local", time.time()))
    tell(WorkerJoined("w1", 2))
    for i in range(chunks - failed):
        tell(ChunksCounted(1, entries // chunks, 1_000))
        time.sleep(0.005)
    for i in range(failed):
        tell(ChunkFailed(ChunkFailure("DY", "a.root", i, i + 1, "exception", "ValueError: no")))
    tell(RunEnded(status, time.time()))
    view.close(state)
"""
DRAW = """
import hist
from hepscale.view.gallery import Gallery

def fill(names=("mass",), chunks=40, choose=None):
    state, gallery = RunState(), Gallery(choose)
    view = make_view(True, gallery)
    out = {name: hist.Hist.new.StrCat([], growth=True).Reg(4, 0, 4).Weight() for name in names}
    def tell(event):
        apply(state, event, time.monotonic())
        view.update(state, lambda: out)
    tell(RunStarted("r", "Processing", "chunk", chunks, 0, "local", time.time()))
    for i in range(chunks):
        for one in out.values():
            one.fill(f"d{i % 2}", [0.5, 1.5, 1.5], weight=2.0)
        tell(ChunksCounted(1, 0, 1_000))
        time.sleep(0.01)
    view.update(state, lambda: out, force=True)
    tell(RunEnded("done", time.time()))
    view.close(state, lambda: out)
"""
GOOD = "Processing: 40 of 40 chunks, 2,000,000 events, 0 failed"


class Recorder(nbclient.NotebookClient):
    """Keeps the messages of the kernel."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.messages: list[dict[str, Any]] = []

    def process_message(self, msg: dict[str, Any], *args: Any, **options: Any) -> Any:
        self.messages.append(msg)
        return super().process_message(msg, *args, **options)

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [message["content"] for message in self.messages if message["msg_type"] == kind]


def execute(*cells: str) -> tuple[list[Any], Recorder]:
    new: Any = nbformat.v4
    notebook = new.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    notebook.cells = [new.new_code_cell(cell) for cell in (DRIVE, *cells)]
    with by_sockets() as config:
        client = Recorder(notebook, timeout=60, config=config)
        client.execute()
    return [cell.outputs for cell in notebook.cells[1:]], client


def texts(outputs: list[Any]) -> list[str]:
    return [output["data"].get("text/plain", "") for output in outputs]


def test_an_executed_notebook_shows_one_text_twice_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HEPSCALE_VIEW", raising=False)
    cells = (
        "drive('Preprocessing', 'file', 4, 0); drive()",
        "drive(failed=2, status='failed')",
    )
    first, client = execute(*cells)
    second, _ = execute(*cells)
    assert first == second
    assert [output["data"] for output in first[0]] == [{"text/plain": GOOD}]
    assert texts(first[1])[0].splitlines() == [
        "Processing failed: 38 of 40 chunks, 1,900,000 events, 2 failed",
        "  DY, a.root, entries 0 to 1: ValueError: no",
        "  DY, a.root, entries 1 to 2: ValueError: no",
    ]
    assert client.of_type("comm_open") == []


def test_a_live_widget_is_replaced_by_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPSCALE_VIEW", "widget")
    outputs, client = execute("drive('Preprocessing', 'file', 4, 0)\ndrive()")
    shown = [content["data"] for content in client.of_type("display_data")]
    assert [VIEW_TYPE in data for data in shown] == [True, True]
    assert [data["text/plain"] for data in shown] == [
        "Preprocessing: running",
        "Processing: running",
    ]
    updates = [content["data"] for content in client.of_type("update_display_data")]
    assert updates == [{}, {"text/plain": GOOD}]
    assert [output["data"] for output in outputs[0]] == [{}, {"text/plain": GOOD}]
    opened = {content["comm_id"] for content in client.of_type("comm_open")}
    assert opened == {content["comm_id"] for content in client.of_type("comm_close")}
    ours = {data[VIEW_TYPE]["model_id"] for data in shown}
    sent = [
        content["data"]["state"]["run"]
        for content in client.of_type("comm_msg")
        if content["comm_id"] in ours and "run" in content["data"].get("state", {})
    ]
    assert 1 <= len(sent) <= 20


def test_a_saved_notebook_has_the_picture_twice_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEPSCALE_VIEW", raising=False)
    cells = (DRAW, "fill([f'h{i}' for i in range(14)])")
    (_, first), _ = execute(*cells)
    (_, second), _ = execute(*cells)
    assert first == second
    assert [set(output["data"]) for output in first] == [{"image/png", "text/plain"}]
    assert texts(first) == ["Processing: 40 of 40 chunks, 0 failed\n  14 plots, 12 drawn"]
    assert base64.b64decode(first[0]["data"]["image/png"]).startswith(b"\x89PNG")


def test_histograms_are_sent_once_they_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPSCALE_VIEW", "widget")
    (_, outputs), client = execute(DRAW, "fill()")
    assert set(outputs[-1]["data"]) == {"image/png", "text/plain"}
    (view,) = [content["data"][VIEW_TYPE] for content in client.of_type("display_data")]
    updates = [
        message
        for message in client.messages
        if message["msg_type"] == "comm_msg"
        and message["content"]["comm_id"] == view["model_id"]
        and message["content"]["data"].get("method") == "update"
    ]
    sent = [message["content"]["data"]["state"] for message in updates]
    # a layout never goes without its numbers
    assert all(
        ["bins"] in m["content"]["data"]["buffer_paths"]
        for m, state in zip(updates, sent, strict=True)
        if state.get("spec", {}).get("plots")
    )
    # two datasets come in, and then only numbers change
    assert 1 <= sum("spec" in state for state in sent) <= 3
    assert sum(["bins"] in m["content"]["data"]["buffer_paths"] for m in updates) >= 3
    spec = [state["spec"] for state in sent if "spec" in state][-1]
    (plot,) = spec["plots"]
    assert [one["name"] for one in plot["series"]] == ["d0", "d1"]
    last = [m for m in updates if ["bins"] in m["content"]["data"]["buffer_paths"]][-1]
    numbers = struct.unpack("<16f", last["buffers"][0])
    shown = 0.0
    for one in plot["series"]:
        offset, n = one["values"]
        shown += sum(numbers[offset : offset + n])
    assert shown == 40 * 3 * 2.0


def test_another_choice_is_drawn_at_the_next_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPSCALE_VIEW", "widget")
    cell = """
from hepscale.view.widget import WidgetView
view, state = WidgetView(Gallery(["a"])), RunState()
out = {name: hist.Hist.new.Reg(2, 0, 1).Double() for name in "abc"}
def drawn():
    view.update(state, lambda: out, force=True)
    spec = view._widget.shown["spec"]
    return [plot["name"] for plot in spec["plots"]], spec["more"]
print(drawn())
view._widget._handle_custom_msg({"type": "watch", "names": ["c", 3, "b"]}, [])
print(drawn())
for odd in ({"type": "choose"}, {"type": "watch"}, {}, 3):
    view._widget._handle_custom_msg(odd, [])
for odd in ({"type": "watch", "names": "b"}, "x", {"type": "?"}, None):
    view._widget._handle_custom_msg(odd, [])
print(drawn())
"""
    (_, outputs), _ = execute(DRAW, cell)
    assert [output["text"] for output in outputs if output.get("name") == "stdout"] == [
        "(['a'], ['b', 'c'])\n(['c', 'b'], ['a'])\n(['c', 'b'], ['a'])\n"
    ]


def test_a_category_of_a_map_is_chosen_by_its_name_and_shown_by_its_label(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEPSCALE_VIEW", "widget")
    cell = r"""
import numpy as np
import hepscale
from hepscale.view.widget import WidgetView

kinds = [r"$Z \to \mu\mu$", "TT"]

def fill_map(item):
    made = hist.Hist.new.Reg(4, 0, 4).Reg(4, 0, 4).StrCat([], growth=True).Int64()
    made.fill([0.5] * 3, [1.5] * 3, kinds[item % 2])
    time.sleep(0.2)
    return {"m": made}

draw, seen = WidgetView._draw, []

def chosen(view, widget, *rest):
    sent = draw(view, widget, *rest)
    for plot in widget.shown["spec"].get("plots", ()):
        seen.append((plot["chosen"], sum(np.frombuffer(widget.shown["bins"], "f4"))))
        if len(plot["choices"]) == 2:
            # as the page says it
            widget._handle_custom_msg({"type": "choose", "name": "m", "category": kinds[0]}, [])
            labels.update(plot["choice_labels"])
    return sent

labels, WidgetView._draw = set(), chosen
out, error = hepscale.HepScaleExecutor(cores=2)(range(12), fill_map, None)
hepscale.shutdown()
print(sorted(labels), sorted({name for name, _ in seen if name}) == [kinds[0]])
print(int(out["m"].sum()), max(total for name, total in seen if name) <= 18)
"""
    (_, outputs), _ = execute(DRAW, cell)
    printed = "".join(one["text"] for one in outputs if one.get("name") == "stdout")
    assert printed == "['TT', 'Z → μμ'] True\n36 True\n"
    (kept,) = (one["data"] for one in outputs if "image/png" in one.get("data", {}))
    assert kept["text/plain"].startswith("Processing: 12 of 12 chunks")


def test_papermill_gets_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    papermill = pytest.importorskip("papermill", reason="papermill is not there: make test")
    monkeypatch.delenv("HEPSCALE_VIEW", raising=False)
    new: Any = nbformat.v4
    notebook = new.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    parameters = new.new_code_cell("chunks = 1", metadata={"tags": ["parameters"]})
    rest = [new.new_code_cell(cell) for cell in (DRIVE, DRAW, "fill(chunks=chunks)")]
    notebook.cells = [parameters, *rest]
    given, made = tmp_path / "given.ipynb", tmp_path / "made.ipynb"
    nbformat.write(notebook, given)
    papermill.execute_notebook(str(given), str(made), {"chunks": 3}, progress_bar=False)
    (kept,) = (one["data"] for cell in nbformat.read(made, 4).cells for one in cell.outputs)
    assert kept.keys() == {"image/png", "text/plain"}
    assert kept["text/plain"] == "Processing: 3 of 3 chunks, 0 failed\n  1 plot"


def test_hepscale_run_gives_lines_and_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEPSCALE_VIEW", raising=False)
    new: Any = nbformat.v4
    cells = [new.new_code_cell(cell) for cell in (DRIVE, DRAW, "fill(chunks=3)")]
    given, made = tmp_path / "given.ipynb", tmp_path / "made.ipynb"
    nbformat.write(new.new_notebook(cells=cells), given)
    printed, log = (Console(file=io.StringIO(), width=100) for _ in range(2))
    run_file(given, printed, log, out=made)
    *_, written, shown = nbformat.read(made, 4).cells[-1].outputs
    assert written["name"] == "stderr"
    assert shown["data"].keys() == {"image/png", "text/plain"}
    assert shown["data"]["text/plain"] == "Processing: 3 of 3 chunks, 0 failed\n  1 plot"
    assert log.file.getvalue().count("Processing: 3 of 3 chunks") == 2
    assert printed.file.getvalue() == ""


def test_html_is_replaced_by_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPSCALE_VIEW", "html")
    without = "import os, sys; os.environ['HEPSCALE_VIEW'] = 'widget'\n"
    without += "sys.modules['anywidget'] = None; fill()"
    (_, asked, missing), client = execute(DRAW, "fill()", without)
    assert [one["data"].keys() for one in asked] == [{"image/png", "text/plain"}]
    assert [one["data"] for one in missing] == [one["data"] for one in asked]
    shown = [client.of_type(kind) for kind in ("display_data", "update_display_data")]
    pages = [[one["data"].get("text/html", "") for one in several] for several in shown]
    assert len(pages[0]) == 2
    assert all(pages[0])
    assert len([one for one in pages[1] if "<svg" in one and "mass" in one]) >= 2
    assert client.of_type("comm_open") == []


def test_silence_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPSCALE_VIEW", "off")
    outputs, _ = execute("drive()")
    assert outputs == [[]]


def test_a_widget_that_breaks_does_not_break_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPSCALE_VIEW", "widget")
    outputs, _ = execute(
        "import hepscale.view.widget as w\n"
        "def payload(state): raise RuntimeError('no payload')\n"
        "w.payload = payload\n"
        "drive()\n"
        "print('went on')"
    )
    assert [output.get("text") for output in outputs[0] if output.get("name") == "stdout"] == [
        "went on\n"
    ]
    assert GOOD in [output["data"]["text/plain"] for output in outputs[0] if "data" in output]
