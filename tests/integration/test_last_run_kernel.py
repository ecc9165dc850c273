"""`last_run().show()` in a kernel: after a run, and in a subshell while one goes on."""

from __future__ import annotations

import queue
from typing import Any

import pytest
from kernels import IGNORED, VIEW_TYPE, started

pytestmark = IGNORED
RUN = """
import threading, time, hist, hepscale
from pathlib import Path
from hepscale.executor import session
from hepscale.executor.job import StopRequest
from hepscale.executor.task import *

shown = threading.Event()

def run(folder, wait):
    out = {"mass": hist.Hist.new.Reg(4, 0, 4, name="m").Double()}
    watched = session.Watched(lambda merged: merged, None, None, 1.0, Path(folder))
    stop = StopRequest()
    with session.shown(stop, status=False, watched=watched) as observer:
        observer.see(RunStarted("r", "Processing", "chunk", 40, 0, "local", time.time()))
        print("begun", flush=True)
        end_s = time.monotonic() + 60
        after = 0
        while after < 10 and time.monotonic() < end_s and not stop.requested:
            after += shown.is_set() or not wait
            out["mass"].fill([0.5])
            observer.see(ChunksCounted(0 if after < 10 else 40, 0, 1))
            observer.tick(lambda: out)
            time.sleep(0.02)
        observer.see(RunEnded("done", time.time()))
"""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("HEPSCALE_VIEW", raising=False)
    with started() as client:
        client.execute_interactive(RUN, timeout=60, output_hook=lambda _: None)
        yield client


class Outputs:
    """What the kernel says, by the request that it says it for."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.messages: list[dict[str, Any]] = []

    def until(self, done: Any) -> None:
        while not any(map(done, self.messages[-1:])):
            try:
                self.messages.append(self.client.get_iopub_msg(timeout=60))
            except queue.Empty:
                pytest.fail(f"the kernel said only {[one['msg_type'] for one in self.messages]}")

    def of(self, parent: str, kind: str) -> list[dict[str, Any]]:
        return [
            one["content"]
            for one in self.messages
            if one["msg_type"] == kind and one["parent_header"].get("msg_id") == parent
        ]


def idle(parent: str) -> Any:
    def is_it(message: dict[str, Any]) -> bool:
        return (
            message["parent_header"].get("msg_id") == parent
            and message["content"].get("execution_state") == "idle"
        )

    return is_it


def ask_subshell(client: Any, code: str) -> str:
    """Run code in a new subshell; return the id of the request."""
    client.control_channel.send(client.session.msg("create_subshell_request", {}))
    subshell = client.control_channel.get_msg(timeout=60)["content"]["subshell_id"]
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": True}
    message = client.session.msg("execute_request", content)
    message["header"]["subshell_id"] = subshell
    client.shell_channel.send(message)
    found: str = message["header"]["msg_id"]
    return found


def test_after_a_run_its_picture_comes_back(kernel, tmp_path):
    outputs = Outputs(kernel)
    first = kernel.execute(f"run({str(tmp_path)!r}, False)")
    outputs.until(idle(first))
    second = kernel.execute("hepscale.last_run().show(); hepscale.last_run()")
    outputs.until(idle(second))
    (shown,) = outputs.of(second, "display_data")
    (returned,) = outputs.of(second, "execute_result")
    assert set(shown["data"]) == {"image/png", "text/plain"}
    assert shown["data"] == returned["data"]
    assert shown["data"]["text/plain"].startswith("Processing: 40 of 40 chunks")
    third = kernel.execute("hepscale.last_run().timeline")
    outputs.until(idle(third))
    (timeline,) = outputs.of(third, "execute_result")
    assert timeline["data"]["text/plain"] == "Timeline: nothing yet"
    assert (tmp_path / "summary.json").is_file()


def test_while_a_run_goes_on_a_subshell_sees_it_live(kernel, tmp_path):
    outputs = Outputs(kernel)
    first = kernel.execute(f"run({str(tmp_path)!r}, True)")
    outputs.until(lambda message: "begun" in message["content"].get("text", ""))
    second = ask_subshell(kernel, "hepscale.last_run().show(); shown.set()")
    outputs.until(idle(first))
    (shown,) = outputs.of(second, "display_data")
    assert VIEW_TYPE in shown["data"]
    kinds = [one["msg_type"] for one in outputs.messages]
    at = kinds.index("display_data")
    specs = [
        one["content"]["data"]["state"]
        for one in outputs.messages[at:]
        if one["msg_type"] == "comm_msg" and "spec" in one["content"]["data"].get("state", {})
    ]
    assert specs
    assert specs[-1]["spec"]["plots"][0]["name"] == "mass"
    (last,) = [one for one in outputs.messages if one["msg_type"] == "update_display_data"]
    assert set(last["content"]["data"]) == {"image/png", "text/plain"}
    assert last["content"]["transient"] == shown["transient"]
