"""The view in real kernels, driven by made-up events."""

from __future__ import annotations

from typing import Any

import nbclient
import nbformat
import pytest

pytestmark = [
    # Of the libraries that talk to the kernel, not of ours.
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning:(jupyter_client|zmq|traitlets|asyncio).*"
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

VIEW_TYPE = "application/vnd.jupyter.widget-view+json"
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
    client = Recorder(notebook, timeout=60)
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
