"""The page about a run that is over."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import hist
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from hepscale import cli, report
from hepscale.errors import InputError
from hepscale.executor import summary
from hepscale.executor.shipping import EnvironmentReady, TaskPlaced
from hepscale.executor.task import (
    ChunkFailed,
    ChunkFailure,
    ChunksCounted,
    Interposed,
    Notice,
    RunEnded,
    RunStarted,
    TaskBegun,
    TaskEnded,
    TaskId,
    TaskSubmitted,
    Usage,
    WorkerJoined,
)
from hepscale.view import RunState, apply
from hepscale.view.gallery import Gallery, encode
from hepscale.view.timeline import Timeline

VOID = {"meta", "img", "br"}
NASTY = "</td></table><script src='https://evil.example/x.js'>&amp;$title"


class Page(HTMLParser):
    """Checks that tags are closed; collects texts and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def sources(self) -> list[str]:
        named = {"src", "href", "srcset", "action", "data", "poster", "background"}
        return [value or "" for name, value in self.attributes if name in named]


def kept(
    folder: Path,
    *,
    text: str = "",
    status: str = "done",
    output: Any = None,
    run_id: str = "20260101-1",
) -> Path:
    """Write what a run leaves in its folder."""
    state, timeline = RunState(), Timeline()
    task = TaskId("t")
    for now_s, event in enumerate(
        (
            RunStarted(run_id, f"Processing{text}", "chunk", 3, 30, "local", 1e9),
            WorkerJoined("w", 2),
            TaskSubmitted(task, 3),
            ChunksCounted(2, 20, 1000),
            ChunkFailed(
                ChunkFailure(
                    f"DY{text}", f"root://h//a.root{text}", 20, 30, "exception", f"no{text}"
                )
            ),
            TaskEnded(
                task,
                "done",
                usage=Usage(2, 1, 300),
                interposed=Interposed("userns", repositories=(("a.org", "client"),), left_files=3),
            ),
            Notice(f"note{text}"),
            RunEnded(status, 0),  # type: ignore[arg-type]
        )
    ):
        apply(state, event, float(now_s))
        timeline.see(event, float(now_s))
    for told in (EnvironmentReady(3, 2, 2_100_000), TaskPlaced(task, "w"), TaskBegun(task)):
        apply(state, told, 7.0)
    folder = folder / run_id
    folder.mkdir()
    plots = None if output is None else encode(Gallery().draw(output), "<f8")
    summary.write(folder, summary.summarize(state, timeline), plots)
    return folder


def mass() -> hist.Hist:
    made = hist.Hist.new.StrCat(["<b>DY", "TT"], name="d").Reg(8, 0, 8, name="m").Weight()
    return made.fill(d="TT", m=np.arange(8.0))


def pictures(page: Page) -> list[bytes]:
    head = "data:image/png;base64,"
    assert all(one.startswith(head) for one in page.sources)
    return [base64.b64decode(one.removeprefix(head)) for one in page.sources]


def test_a_page_says_what_happened(tmp_path):
    page = Page(report.page(kept(tmp_path, status="failed", output={"mass": mass()})))
    for text in (
        "Processing 20260101-1 Some chunks failed.",
        "Begun 2001-09-09 01:46:40 UTC Took 7.0 s Engine local Chunks 2 of 3; 1 failed",
        "Events 20 of 30, 2.9 per second",
        "DY, root://h//a.root, entries 20 to 30 no",
        "300 MB at most",
        "Environment 3 layers, 2.1 MB, 2 of them packed before; on 1 worker",
        "Sandbox userns: 1 tasks; 3 files, 0B left in /tmp Repositories a.org (client)",
        "environment 25.0 % 3.0 s",
        "note",
        "python 3.",
    ):
        assert text in page.text
    timeline, histograms = pictures(page)
    assert timeline != histograms
    assert timeline[:4] == histograms[:4] == b"\x89PNG"


def test_the_picture_is_that_of_the_run(tmp_path):
    from hepscale.view.picture import png

    output = {
        "mass": mass(),
        "map": hist.Hist.new.Reg(3, 0, 1).StrCat(["a", "b"]).Double(),
        "cuts": {"all": 123_456_789, "kept": 2},
        "none": hist.Hist.new.StrCat([], growth=True).Reg(2, 0, 1).StrCat([], growth=True).Double(),
    }
    page = Page(report.page(kept(tmp_path, output=output)))
    assert pictures(page)[1] == png(Gallery().draw(output), "")


def test_without_histograms_there_is_the_timeline(tmp_path):
    page = Page(report.page(kept(tmp_path)))
    assert len(pictures(page)) == 1
    assert "Output" not in page.texts


def test_everything_is_escaped(tmp_path):
    written = report.page(kept(tmp_path, text=NASTY, output={NASTY: mass(), "b": mass()}))
    page, plain = Page(written), Page(report.page(kept(tmp_path, output={"a": mass()}, run_id="2")))
    assert page.tags == plain.tags
    assert all(one.startswith("data:image/png;base64,") for one in page.sources)
    assert f"Processing{NASTY}" in page.texts
    assert f"note{NASTY}" in page.texts


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_no_text_becomes_a_tag(text):
    table = report._table([(text, text), (text, text)])
    assert Page(table).tags == ["table", *(["tr", "th", "td"] * 2)]


def test_nothing_is_fetched(tmp_path):
    written = report.page(kept(tmp_path, output={"a": mass()}))
    assert "default-src 'none'" in written
    assert "http://" not in written
    assert "https://" not in written
    assert "@import" not in written
    assert "url(" not in written


def test_which_run(tmp_path):
    with pytest.raises(InputError, match="no run that can be reported"):
        report.find_run(tmp_path)
    old, new = kept(tmp_path, run_id="2026-1-a1"), kept(tmp_path, run_id="2026-2-b1")
    (tmp_path / "2026-3-c1").mkdir()
    assert report.find_run(tmp_path) == new
    assert report.find_run(tmp_path, "2026-1-a1") == old
    assert report.find_run(tmp_path, "b1") == report.find_run(tmp_path, "2026-2") == new
    assert report.find_run(tmp_path / "other", str(old)) == old
    with pytest.raises(InputError, match="More than one run is called '2026'"):
        report.find_run(tmp_path, "2026")
    with pytest.raises(InputError, match="No run is called 'x'") as caught:
        report.find_run(tmp_path, "x")
    assert caught.value.items == ("2026-2-b1", "2026-1-a1")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("summary.json", ""),
        ("summary.json", "[1]"),
        ("summary.json", '{"format": 99}'),
        ("summary.json", '{"format": 1}'),
        ("plots.json", '{"spec": 1, "bins": "x"}'),
        ("plots.json", '{"spec": {"plots": [], "more": []}, "bins": "AAA="}'),
    ],
)
def test_what_cannot_be_read_is_an_error(tmp_path, name, text):
    folder = kept(tmp_path, output={"a": mass()})
    (folder / name).write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        report.page(folder)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HEPSCALE_RUN_DIR", str(tmp_path))
    kept(tmp_path)
    out = tmp_path / "a b.html"
    done = CliRunner().invoke(cli.main, ["report", "last", "-o", str(out)])
    assert (done.exit_code, done.stdout) == (0, "")
    assert "20260101-1" in done.stderr
    assert "20260101-1" in Page(out.read_text()).text
    done = CliRunner().invoke(cli.main, ["report", "-o", "-"])
    assert Page(done.stdout).tags[0] == "html"
    refused = CliRunner().invoke(cli.main, ["report", "-o", str(tmp_path / "no" / "x.html")])
    assert refused.exit_code == 1
    assert "No such file" in refused.stderr


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("root://me:pw@host//a.root", "root://host//a.root"),
        ("root://host//a.root?authz=Bearer%20ey.x&b=1", "root://host//a.root"),
        ("OSError: [https://h/x?token=abc] (401)", "OSError: [https://h/x"),
        ("Authorization: Bearer ey.abc", "Authorization: Bearer..."),
        ("/data/what?.root a@b", "/data/what?.root a@b"),
    ],
)
def test_secrets_are_left_out(text, left):
    assert summary.without_secrets(text).startswith(left)
    assert not {"pw", "ey", "abc"} & set(summary.without_secrets(text).replace(".", " ").split())


def test_a_summary_holds_nothing_of_the_surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hunter2-secret")
    folder = kept(tmp_path)
    text = (folder / "summary.json").read_text()
    assert "hunter2" not in text
    assert len(text) < 10_000
    assert json.loads(text)["timeline"]["kinds"]
