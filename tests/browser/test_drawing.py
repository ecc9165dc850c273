"""What the live view draws, in a real browser, read back from the elements of its page."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import plots
import pytest
from browsing import drawn, frames, shoot

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.browser

CARD = ".hepscale-run-card"
LINE = ".hepscale-run-line"
COLOURS = {"#3f90da": "a", "#ffa90e": "b"}
# Counts the pictures that changed at each of the screen's refreshes.
WATCH = """
() => {
  window.changes = [];
  new MutationObserver((records) => {
    const paths = records.filter((one) => one.attributeName === "d" &&
      one.target.classList.contains("hepscale-run-line"));
    window.changes.push(new Set(paths.map((one) => one.target)).size);
  }).observe(document.body, {subtree: true, attributes: true});
}
"""


def card(page: Any, name: str) -> Any:
    return page.locator(CARD, has=page.get_by_text(name, exact=True))


def press(place: Any, name: str) -> None:
    place.get_by_role("button", name=name, exact=True).click()


def heights(path: str) -> list[float]:
    """Return the heights, from the base upwards, of the steps of a path."""
    ups = [float(one) for one in re.findall(r"V([-\d.]+)", path)]
    return [ups[-1] - up for up in ups[:-1]]


def lines(place: Any) -> list[str]:
    found: list[str] = place.locator(LINE).evaluate_all(
        "all => all.map(one => one.getAttribute('d'))"
    )
    return found


def test_heights_are_the_numbers(browser: Any) -> None:
    picture = plots.Picture()
    values = [1.0, 4.0, 2.0, 0.0]
    picture.add("n", "steps", plots.axis("x", range(5)), {"": (values, [0.25, 1, 1, 0])})
    with drawn(browser, picture.state) as page:
        found = heights(lines(card(page, "n"))[0])
        assert found == pytest.approx([one * found[0] for one in values], rel=0.02, abs=0.3)
        band = page.locator(".hepscale-run-band").first.get_attribute("d")
        upper, lower = (
            float(one)
            for one in (re.search(r"M\S+ (\S+?)H", band)[1], re.findall(r"L\S+ (\S+?)H", band)[-1])
        )
        assert lower - upper == pytest.approx(2 * 0.5 * found[0], rel=0.05)
        ticks = page.locator(".hepscale-run-number").all_text_contents()
        assert {"0", "1", "2", "3", "4"} <= set(ticks)
        card(page, "n").locator("svg").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert page.locator(".hepscale-run-readout > div").all_text_contents() == [
            "1 to 2",
            "4 ± 1",
        ]


def test_ticks_are_where_their_numbers_are_while_the_range_grows(browser: Any) -> None:
    picture = plots.Picture()
    picture.add("n", "steps", plots.axis("x", [0, 1, 2]), {"": ([10.0, 50.0], [0, 0])})
    with drawn(browser, picture.state, width=300) as page:
        plot = card(page, "n")
        for highest in range(50, 500, 15):
            picture.parts[0][1] = highest
            page.evaluate("bins => model.put({bins})", picture.state["bins"])
            frames(page)
            first = float(plot.locator(".hepscale-run-number").all_text_contents()[1])
            base, above = plot.locator(".hepscale-run-rule").evaluate_all(
                "all => all.map((one) => Number(one.getAttribute('d').match(/ ([-\\d.]+)H/)[1]))"
            )[:2]
            height = heights(lines(plot)[0])[1]
            assert height / (base - above) == pytest.approx(highest / first, rel=0.02)


def test_every_kind_in_both_themes_and_a_narrow_window(browser: Any, tmp_path: Path) -> None:
    state = plots.gallery().state
    for name, options in {"light": {}, "dark": {"dark": True}, "narrow": {"width": 340}}.items():
        with drawn(browser, state, **options) as page:
            assert page.locator(CARD).count() == len(state["spec"]["plots"])
            overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(overflow) <= 0
            # a label is text, whatever it looks like
            assert page.locator("b").count() == 0
            assert "<b>μμμ</b>" in page.locator("title").all_text_contents()
            shoot(page, name, tmp_path)


def test_a_map_is_coloured_by_its_numbers(browser: Any) -> None:
    picture = plots.Picture()
    sides = plots.axis("x", [0, 1, 2]), plots.axis("y", [0, 1, 3])
    picture.add("xy", "map", sides[0], {"": [[0, 5], [10, 0]]}, y=sides[1])
    with drawn(browser, picture.state) as page:
        place = page.evaluate(
            """() => [...document.querySelectorAll('.hepscale-run-frame')].map(
              (one) => one.getAttribute('d').match(/[-\\d.]+/g).map(Number))[0]"""
        )
        left, top, bottom, right = place
        pixel = """([x, y]) => { const canvas = document.querySelector('canvas');
          const scale = window.devicePixelRatio;
          return [...canvas.getContext('2d').getImageData(x * scale, y * scale, 1, 1).data] }"""

        def at(x: float, y: float) -> list[int]:
            found: list[int] = page.evaluate(
                pixel, [left + x * (right - left), bottom - y * (bottom - top)]
            )
            return found

        # upwards y grows, and its second bin is twice as high as its first
        assert at(0.75, 0.25) == [0xFD, 0xE7, 0x25, 255]
        assert at(0.25, 0.5)[:3] == pytest.approx([0x21, 0x91, 0x8C], abs=3)
        assert at(0.25, 0.2)[3] == at(0.75, 0.5)[3] == 0
        box = page.locator("canvas").bounding_box()
        page.mouse.move(box["x"] + left + 0.75 * (right - left), box["y"] + bottom - 10)
        frames(page)
        told = page.locator(".hepscale-run-readout > div").all_text_contents()
        assert told == ["1 to 2; 0 to 1", "10"]


def test_a_category_of_a_map_is_asked_for(browser: Any, tmp_path: Path) -> None:
    picture = plots.Picture()
    sides = {"y": plots.axis("y", range(3)), "choices": ["$Z$", "<b>TT</b>"], "chosen": None}
    sides["choice_labels"] = ["Z", "<b>TT</b>"]
    picture.add("m", "map", plots.axis("x", range(4)), {"": [1, 2, 3, 4, 5, 6]}, **sides)
    with drawn(browser, picture.state) as page:
        choice = page.get_by_label("Category of m")
        assert choice.locator("option").all_text_contents() == ["all categories", "Z", "<b>TT</b>"]
        choice.select_option("<b>TT</b>")
        (said,) = page.evaluate("sent")
        assert said == {"type": "choose", "name": "m", "category": "<b>TT</b>"}
        picture.plots[0]["chosen"] = "<b>TT</b>"
        page.evaluate("(state) => model.put(state)", picture.state)
        frames(page)
        assert choice.input_value() == "<b>TT</b>"
        shoot(page, "category", tmp_path)
        choice.select_option("all categories")
        assert page.evaluate("sent[1].category") is None


def test_log_stack_ratio_and_legend_stay_while_data_change(browser: Any, tmp_path: Path) -> None:
    picture = plots.Picture()
    edges = plots.axis("x", [0, 1, 2, 3])
    picture.add("m", "steps", edges, {"a": [30, 10, 100], "b": [10, 30, 60]})
    with drawn(browser, picture.state) as page:
        plot = card(page, "m")

        def tall() -> dict[str, list[float]]:
            frames(page)
            found = plot.locator(LINE).evaluate_all(
                "all => all.map((one) => "
                "[one.style.getPropertyValue('--hepscale-series'), one.getAttribute('d')])"
            )
            return {COLOURS[colour]: heights(path) for colour, path in found}

        plain = tall()
        assert plain["a"][0] == pytest.approx(3 * plain["b"][0], rel=0.02)
        press(plot, "Stack")
        stacked = tall()
        assert stacked["b"][0] == pytest.approx(stacked["b"][1])
        assert stacked["b"][0] / stacked["a"][0] == pytest.approx(4 / 3, rel=0.02)
        press(plot, "Ratio")
        assert "1" in plot.locator(".hepscale-run-number").all_text_contents()
        press(plot, "Stack")
        share = tall()
        assert share["a"][0] / share["b"][0] == pytest.approx(3, rel=0.02)
        picture.parts = [part * 1000 for part in picture.parts]
        page.evaluate("state => model.put(state)", picture.state)
        assert tall() == share
        press(plot, "Ratio")
        press(plot, "Log")
        log = tall()
        assert plot.locator("text", has_text="10⁴").count() == 1
        decade = log["a"][2] - log["a"][1]
        assert log["a"][0] - log["a"][1] == pytest.approx(0.477 * decade, abs=0.5)
        press(plot, "b")
        assert set(tall()) == {"a"}
        page.evaluate("state => model.put(state)", picture.state)
        assert set(tall()) == {"a"}
        shoot(page, "hidden", tmp_path)


def test_a_cut_flow_is_a_table(browser: Any) -> None:
    with drawn(browser, plots.gallery().state) as page:
        rows = [
            one.split("\t")
            for one in card(page, "cutflow").locator("table").inner_text().splitlines()
        ]
        assert ["two muons", "412,009", "51.3 %", "34.2 %"] in rows


def test_the_picker_says_what_is_wanted(browser: Any, tmp_path: Path) -> None:
    picture = plots.many(3, 1000)
    picture.more = ["other.pt", "<i>odd</i>"]
    with drawn(browser, picture.state) as page:
        page.get_by_text("Plots: 3 of 5").click()
        page.get_by_role("searchbox").fill("odd")
        page.get_by_label("<i>odd</i>", exact=True).check()
        page.get_by_role("searchbox").fill("mass1")
        page.get_by_label("DY.mass1", exact=True).uncheck()
        assert page.evaluate("sent") == [
            {"type": "watch", "names": ["DY.mass0", "DY.mass1", "DY.mass2", "<i>odd</i>"]},
            {"type": "watch", "names": ["DY.mass0", "DY.mass2", "<i>odd</i>"]},
        ]
        shoot(page, "picker", tmp_path)


@pytest.mark.parametrize("count", [12, 20])
def test_histograms_change_ten_times_a_second(browser: Any, count: int, tmp_path: Path) -> None:
    with drawn(browser, plots.many(count, 1000).state) as page:
        page.evaluate(WATCH)
        for step in range(20):
            page.evaluate("state => model.put(state)", plots.many(count, 1000 * (step + 2)).state)
            time.sleep(0.1)
        frames(page)
        changes = page.evaluate("changes")
        assert len(changes) >= 10
        assert min(changes) == count
        shoot(page, f"histograms_{count}", tmp_path)


def test_what_has_not_changed_is_not_drawn_again(browser: Any) -> None:
    picture = plots.many(2, 1000)
    with drawn(browser, picture.state) as page:
        page.evaluate(WATCH)
        picture.parts[1] = picture.parts[1] + 1
        page.evaluate("bins => model.put({bins})", picture.state["bins"])
        frames(page)
        assert page.evaluate("changes") == [1]


def test_numbers_that_are_none_and_axes_without_ends(browser: Any) -> None:
    picture = plots.Picture()
    nan, inf = float("nan"), float("inf")
    picture.add("odd", "steps", plots.axis("x", [-inf, 0, 1, inf]), {"": [nan, 3, inf]})
    picture.add("none", "steps", plots.axis("x", [0]), {"": []})
    picture.add("flat", "map", plots.axis("x", [0, 1]), {"": [nan]}, y=plots.axis("y", [0, 1]))
    with drawn(browser, picture.state) as page:
        for name in ("Log", "Log"):
            page.get_by_role("button", name="Log", exact=True).first.click()
            frames(page)
            paths = page.locator("path").evaluate_all(
                "all => all.map(one => one.getAttribute('d'))"
            )
            assert not [path for path in paths if "NaN" in path or "Infinity" in path], name
        assert page.locator(CARD).count() == 3
        page.evaluate("state => model.put(state)", plots.many(1, 100).state)
        frames(page)
        assert page.locator(CARD).count() == 1


def test_a_failure_folds_out_by_mouse_and_by_keys(browser: Any, tmp_path: Path) -> None:
    failures = [
        [f"DY, a{i}.root: ValueError: <b>no</b>", f"Traceback {i}\n  boom"] for i in range(3)
    ]
    with drawn(browser, {"failures": failures}) as page:
        listed = page.get_by_role("list", name="Failed chunks")
        first = listed.get_by_text("a0.root")
        assert first.text_content() == failures[0][0]
        assert not listed.get_by_text("Traceback 0").is_visible()
        first.click()
        assert listed.get_by_text("Traceback 0").is_visible()
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert listed.get_by_label(f"Details of {failures[1][0]}").is_visible()
        # another fails, one is known better: what is unfolded stays
        more = [*failures[:2], ["DY, a2.root: died", "killed"], ["and 3 more", ""]]
        page.evaluate("(failures) => model.put({failures})", more)
        frames(page)
        assert listed.get_by_text("Traceback 0").is_visible()
        assert listed.get_by_role("listitem").count() == 4
        assert not listed.get_by_text("killed").is_visible()
        shoot(page, "failures", tmp_path)
        page.keyboard.press("Escape")
        assert not listed.get_by_text("Traceback 1").is_visible()


def test_the_stop_button_tells_and_hints(browser: Any) -> None:
    with drawn(browser, {"channel": "somewhere"}) as page:
        press(page, "Stop and keep")
        assert page.get_by_role("button", name="Stopping").is_disabled()
        assert page.evaluate("sent") == [{"type": "stop"}]
        page.get_by_text("Not stopped yet").wait_for(timeout=5000)
    with drawn(browser, {}) as page:
        assert page.get_by_role("button").count() == 0
        assert not page.locator("summary").is_visible()
