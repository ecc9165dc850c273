"""The picture that stays in a notebook, and the histogram on a terminal."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import hist
import numpy as np
import pytest
from rich.console import Console

from hepscale.executor.task import ChunksCounted, Notice, RunEnded, RunStarted
from hepscale.view import RunState, apply
from hepscale.view.gallery import Drawing, Gallery
from hepscale.view.notebook import final_bundle
from hepscale.view.picture import png
from hepscale.view.terminal import TerminalView


def histogram(label: str = r"$m_{\mu\mu}$ [GeV]", *datasets: str) -> hist.Hist:
    made = hist.Hist.new.StrCat([], growth=True, name="d").Reg(8, 0, 8, name="m", label=label)
    made = made.Weight()
    for dataset in datasets or ("DY", "TT"):
        made.fill(d=dataset, m=np.arange(8), weight=3.0)
    return made


def size(picture: bytes) -> tuple[int, int]:
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    return width, height


def state(status: str | None = "done") -> RunState:
    made = RunState()
    apply(made, RunStarted("r", "Processing", "chunk", 200, 0, "local", 0.0), 0.0)
    apply(made, ChunksCounted(190, 0, 1), 1.0)
    if status is not None:
        apply(made, RunEnded(status, 0.0), 2.0)
    return made


def test_the_same_output_gives_the_same_bytes_in_any_order_of_arrival():
    one = {"a": histogram("m", "DY", "TT"), "cuts": {"x": 1, "y": 2}}
    other = {"cuts": {"x": 1, "y": 2}, "a": histogram("m", "TT", "DY")}
    assert png(Gallery().draw(one), "text") == png(Gallery().draw(other), "text")


def test_the_text_is_in_the_picture():
    drawing = Gallery().draw({"a": histogram()})
    assert png(drawing, "190 of 200 chunks") != png(drawing, "191 of 200 chunks")
    assert png(drawing, "first\nfailed: a") != png(drawing, "first\nfailed: b")


def test_a_grid_of_at_most_twelve():
    def drawn(n: int) -> tuple[int, int]:
        return size(png(Gallery(["h*"]).draw({f"h{i}": histogram() for i in range(n)}), "text"))

    assert drawn(1) < drawn(12)
    # a line says how many are missing
    assert drawn(12)[1] + 10 < drawn(30)[1] < drawn(12)[1] + 25
    assert drawn(30)[1] < 1_100


ODD = {
    "lone dollar": histogram("cost in $"),
    "no math": histogram(r"$\frobnicate{x$ and $y$"),
    "underscores": histogram("x", "_hidden", "$a$ $b$", "\u200b", ""),
    "empty": hist.Hist.new.Reg(3, 0, 1).Double(),
    "no categories": hist.Hist.new.StrCat([], growth=True).Reg(3, 0, 1).Double(),
    "only labels": hist.Hist.new.StrCat([], growth=True).Double(),
    "many": histogram("x", *(f"dataset {i}" for i in range(40))),
    "bad numbers": hist.Hist.new.Reg(3, 0, 1).Weight().fill([0.1, 0.5], weight=[np.nan, np.inf]),
    "negative": hist.Hist.new.Reg(3, 0, 1).Weight().fill([0.1, 0.5], weight=[-3, 1]),
    "huge": hist.Hist.new.Reg(3, 0, 1).Double().fill([0.1], weight=[1e300]),
    "mean": hist.Hist.new.Reg(3, 0, 1).Mean().fill([0.1], sample=[3.0]),
    "map": hist.Hist.new.Reg(300, 0, 1).StrCat(["a"], name="c").Boolean().Var([0, 3, 9]).Double(),
    "empty map": hist.Hist.new.Reg(3, 0, 1).Reg(3, 0, 1).Mean(),
    "no axes": hist.Hist(storage=hist.storage.Double()),
    "table": {f"$cut {i}$": i * 1e9 for i in range(50)},
    "tables": {f"d{i}": {"a": np.nan, "b": np.inf} for i in range(9)},
    "multi": hist.Hist(hist.axis.Regular(3, 0, 1), storage=hist.storage.MultiCell(2)),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:.*overflow.*:RuntimeWarning")
def test_anything_can_be_drawn(name):
    drawing = Gallery().draw({f"{name}_$x": ODD[name], "other": histogram()})
    assert len(drawing.plots) == 2
    assert size(png(drawing, "$text_ {"))[0] > 300


def test_what_a_notebook_has_set_is_neither_used_nor_changed():
    code = (
        "import matplotlib as mpl; mpl.rcParams['text.usetex'] = True\n"
        "mpl.rcParams['font.size'] = 40\n"
        "import hist\n"
        "from hepscale.view.gallery import Gallery\n"
        "from hepscale.view.picture import png\n"
        "drawing = Gallery().draw({'h': hist.Hist.new.Reg(3, 0, 1).Double()})\n"
        "made = png(drawing, 'x')\n"
        "assert mpl.rcParams['text.usetex'] and mpl.rcParams['font.size'] == 40\n"
        "import sys; assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_matplotlib_is_not_imported_before_the_end():
    code = "import sys, hepscale.view.widget; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_bundle_is_a_picture_and_a_text_without_times():
    bundle = final_bundle(state("stopped"), Gallery().draw({"a": histogram()}))
    assert list(bundle) == ["text/plain", "image/png"]
    assert bundle["text/plain"] == (
        "Processing stopped early: 190 of 200 chunks, 0 failed\n  1 plot"
    )
    assert final_bundle(state(), Drawing()) == {
        "text/plain": "Processing: 190 of 200 chunks, 0 failed"
    }


def test_without_matplotlib_there_is_the_text(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "hepscale.view.picture", None)
    bundle = final_bundle(state(), Gallery().draw({"a": histogram()}))
    assert list(bundle) == ["text/plain"]
    assert "cannot be drawn" in caplog.text


def test_what_is_to_be_known_afterwards_stays():
    ended = state(None)
    apply(ended, Notice("packing 12 MB"), 1.0)
    apply(ended, Notice("on_partial has failed at 0x7f0011223344", lasting=True), 1.0)
    apply(ended, RunEnded("done", 0.0), 2.0)
    assert final_bundle(ended)["text/plain"].splitlines()[1:] == [
        "  note: on_partial has failed at 0x..."
    ]
    written = on_terminal(ended, 30)
    assert "! on_partial has failed" in written.split("Processing")[-2] + written
    assert "packing" not in written.splitlines()[-1]


def on_terminal(shown: RunState, height: int) -> str:
    console = Console(record=True, width=90, height=height, file=io.StringIO(), force_terminal=True)
    view = TerminalView(Gallery(), console)
    view.update(shown, lambda: {"mass": histogram(), "map": ODD["map"]}, force=True)
    view.close(shown, lambda: None)
    return console.file.getvalue()


@pytest.mark.parametrize(("height", "drawn"), [(40, True), (24, True), (16, False)])
def test_a_tall_terminal_shows_one_histogram(height, drawn):
    written = on_terminal(state(None), height)
    assert ("mass" in written) is drawn
    assert ("█" in written) is drawn
    assert "190 of 200 chunks" in written
