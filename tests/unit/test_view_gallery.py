"""Which of the histograms that were found are drawn, and what is sent of them again."""

from __future__ import annotations

import copy
from collections import defaultdict
from unittest import mock

import hist
import pytest
from histograms import drawn, mass, plain

from hepscale.view import gallery as gallery_module
from hepscale.view.finding import Found, find
from hepscale.view.gallery import Encoder, Gallery, encode
from hepscale.view.histograms import Projector

# -- choosing --------------------------------------------------------------------------------------


def many(n: int) -> dict[str, hist.Hist]:
    return {f"h{i}": plain(i) for i in range(n)}


def test_the_first_twelve_and_the_rest_in_the_picker():
    drawing = Gallery().draw(many(15))
    assert [plot.name for plot in drawing.plots] == [f"h{i}" for i in range(12)]
    assert drawing.more == ("h12", "h13", "h14")
    assert Gallery().draw(None).plots == ()


def test_patterns_choose_and_order():
    output = {**many(15), "cutflow": {"DY": {"a": 1, "b": 2}}}
    gallery = Gallery(["cutflow.*", "h1?", "h1*"])
    assert drawn(gallery, output) == ["cutflow", "h10", "h11", "h12", "h13", "h14", "h1"]
    assert gallery.missed(output) == []


def test_a_pattern_in_vain_is_told_with_what_is_near():
    output = {"mass": plain(), "pt": plain()}
    assert Gallery(["mas*"]).missed(output) == []
    (told,) = Gallery(["maas", "pt"]).missed(output)
    assert "watch='maas'" in told
    assert "'mass'" in told
    (told,) = Gallery(["zzz"]).missed({"mass": plain()})
    assert "'mass'" in told
    assert "there are none" in Gallery(["x"]).missed({})[0]


def test_a_callable_chooses_from_a_copy():
    output = {"mass": mass("DY", "TT")}
    before = copy.deepcopy(output)

    def watch(partial):
        partial["mass"].reset()
        partial.clear()
        return {"two": {"mine": plain(7)}}

    assert drawn(Gallery(watch), output) == ["two.mine"]
    assert output == before


@pytest.mark.parametrize("watch", [lambda partial: 1 / 0, lambda partial: plain()])
def test_a_callable_that_fails_is_told_once(watch):
    told: list[str] = []
    gallery = Gallery(watch, told.append)
    for _ in range(3):
        assert drawn(gallery, many(2)) == ["h0", "h1"]
    assert len(told) == 1
    assert "Error" in told[0]


def test_what_is_picked_replaces_the_choice():
    gallery = Gallery(["h1"], clock=lambda: 0.0)
    output = many(5)
    assert drawn(gallery, output) == ["h1"]
    gallery.pick(["h4", "h4", "nothing", "h2"])
    assert drawn(gallery, output) == ["h4", "h2"]
    assert gallery.draw(output).more == ("h0", "h1", "h3")


# -- while the output grows ------------------------------------------------------------------------


def test_a_growing_output_is_followed():
    gallery = Gallery()
    output = {"mass": mass("TT")}
    assert [one.name for one in gallery.draw(output).plots[0].series] == ["TT"]
    output["mass"] += mass("DY")
    assert [one.name for one in gallery.draw(output).plots[0].series] == ["DY", "TT"]
    # other objects, of the same shape
    output = {"mass": mass("AA", "BB")}
    assert [one.name for one in gallery.draw(output).plots[0].series] == ["AA", "BB"]


def test_a_spec_is_made_again_only_when_it_differs():
    output = {"a": plain(3), "c": hist.Hist(hist.axis.StrCategory([], growth=True)).fill(["x"])}
    gallery, encoder = Gallery(), Encoder()
    spec, numbers = encoder(gallery.draw(output))
    output["a"].fill([0.5] * 7)
    again, more = encoder(gallery.draw(output))
    assert again is spec
    assert more != numbers
    output["c"].fill(["y"])
    grown, _ = encoder(gallery.draw(output))
    assert grown == encode(gallery.draw(output))[0] != spec


def test_looking_for_histograms_is_no_part_of_each_drawing():
    now, searches = [0.0], []
    gallery = Gallery(clock=lambda: now[0])
    with mock.patch.object(gallery_module, "find", lambda one: searches.append(1) or find(one)):
        for _ in range(21):
            drawn(gallery, {"a": plain()})
            now[0] += 0.1
    assert len(searches) <= 5
    with_more = {"a": plain(), "b": plain()}
    now[0] += 0.5
    assert drawn(gallery, with_more) == ["a", "b"]


def test_an_output_that_is_another_is_searched_again_and_nothing_is_made_in_it():
    gallery = Gallery(clock=lambda: 0.0)
    assert drawn(gallery, {"a": defaultdict(plain, h=plain()), "b": {"h": plain()}}) == [
        "a.h",
        "b.h",
    ]
    output = {"a": defaultdict(plain, g=plain()), "b": 3}
    assert drawn(gallery, output) == ["a.g"]
    assert list(output["a"]) == ["g"]


def test_of_thousands_only_what_is_drawn_is_looked_at_each_time():
    now = [0.0]
    reads = [0]

    class Counting(dict):
        def items(self):
            reads[0] += 1
            now[0] += 0.02
            return super().items()

    gallery = Gallery(clock=lambda: now[0])
    output = Counting(many(30))
    for _ in range(100):
        gallery.draw(output)
        now[0] += 0.1
    # a search of 0.02 s and more, one in a hundred times that
    assert 2 <= reads[0] <= 8


@pytest.mark.parametrize("storage", ["Double", "Int64", "AtomicInt64", "Unlimited", "Weight"])
@pytest.mark.parametrize("growth", [False, True])
def test_what_lies_in_memory_is_what_a_histogram_says(storage, growth):
    source = hist.Hist(hist.axis.Regular(5, 0, 5, growth=growth), storage=storage)
    projector, found = Projector(), Found("h", ())
    for filled in ([0.5, 1.5, 1.5, -3.0], [4.5] * 3, [7.5, 1.5], [1.5] * 300):
        source.fill(filled)
        # at first it is asked, then its memory is read
        for _ in range(2):
            (one,) = projector.project(found, source).series
            assert one.values.tolist() == source.values().tolist()
            if storage == "Weight":
                assert one.variances.tolist() == source.variances().tolist()
            else:
                assert one.variances is None
    with mock.patch("numpy.frombuffer", side_effect=AssertionError("read")):
        assert projector.project(found, source).kind == "table", "the memory is not read"
