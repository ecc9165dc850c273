"""The view for notebooks without widgets: HTML that holds what is drawn, and no code of anybody."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import hist
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepscale.executor.task import ChunkFailed, ChunkFailure, ChunksCounted, RunStarted
from hepscale.view import RunState, apply
from hepscale.view.gallery import Gallery
from hepscale.view.html import page
from hepscale.view.notebook import payload
from hepscale.view.text import failure_lines

TAGS = {
    "div", "span", "b", "br", "figure", "figcaption", "svg", "path", "text", "image",
    "table", "tbody", "tr", "th", "td", "ul", "li",
}  # fmt: skip


class Read(HTMLParser):
    """What a page says, and the elements that it says it with."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.names: set[str] = set()
        self.paths: list[str] = []
        self.feed(written)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}
        self.paths += [value or "" for name, value in attrs if name == "d"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def state(desc: str = "Processing", reason: str = "no") -> RunState:
    made = RunState()
    apply(made, RunStarted("r", desc, "chunk", 10, 100, "local", 0.0), 1.0)
    apply(made, ChunksCounted(4, 40, 1_000), 2.0)
    apply(made, ChunkFailed(ChunkFailure("DY", "a.root", 0, 10, "exception", reason)), 3.0)
    return made


def read(made: RunState, output: object) -> Read:
    return Read(page(payload(made), failure_lines(made), Gallery().draw(output).plots))


def test_a_line_goes_through_what_was_counted():
    output = {"m": hist.Hist.new.Reg(3, 0, 3).Double().fill([0.5, 1.5, 1.5, 1.5, 1.5])}
    found = read(state(), output)
    (line, _frame) = found.paths
    # 128 high: one is a quarter of the four
    assert re.findall(r"V([\d.]+)", line) == ["104.0", "8.0", "136.0"]
    assert {"40 % ", "Σ 5", "m"} & {text.strip() for text in found.texts} >= {"m", "Σ 5"}
    assert any("a.root, entries 0 to 10: no" in text for text in found.texts)


@given(st.text(max_size=40) | st.sampled_from(["<script>x</script>", '"><img onerror=x>', "&lt;"]))
@settings(deadline=None, max_examples=50)
def test_whatever_the_user_named_is_text(name):
    flow = {name: 3, "all": 4.5}
    mass = hist.Hist.new.StrCat([], growth=True).Reg(3, 0, 3, label=name).Weight()
    mass.fill([name or "-", "b"], [0.5, 1.5])
    plane = hist.Hist.new.StrCat([name or "-"]).Reg(2, 0, 1).Reg(2, 0, 1, label=name).Double()
    output = {name: mass, f"{name}2": flow, f"{name}3": plane.fill(name or "-", 0.1, 0.2)}
    found = read(state(name, name), output)
    assert set(found.tags) <= TAGS
    assert not {one for one in found.names if one.startswith("on")}


@pytest.mark.parametrize("storage", ["Double", "Weight", "Mean"])
def test_any_kind_can_be_drawn(storage):
    axes = [hist.axis.StrCategory([], growth=True), hist.axis.Variable([0, 1, np.inf])]
    output = {
        str(i): hist.Hist(*chosen, storage=storage)
        for i, chosen in enumerate([axes[:1], axes[1:], axes, [axes[1], axes[1]]])
    }
    assert read(state(), output).tags.count("figure") == 4


def test_it_needs_no_widgets():
    code = (
        "import sys; sys.modules.update(anywidget=None, ipywidgets=None)\n"
        "import json, hepscale.view.html, hepscale.view.notebook, hepscale.view.record\n"
        "print(json.dumps('matplotlib' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
