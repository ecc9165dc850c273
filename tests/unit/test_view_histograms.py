"""What of an output is found and drawn: nothing is lost on the way, and nothing raises."""

from __future__ import annotations

import copy
import json
import math

import boost_histogram as bh
import hist
import numpy as np
import pytest
from histograms import mass, plain
from hypothesis import given, settings
from hypothesis import strategies as st

from hepscale.view.finding import Found, find
from hepscale.view.gallery import Drawing, Gallery, decode, encode
from hepscale.view.histograms import Plot, Projector

STORAGES = ("Double", "Int64", "AtomicInt64", "Unlimited", "Weight", "Mean", "WeightedMean")


def plot_of(source: object) -> Plot:
    found = Found("h", ())
    return Projector().project(found, source)


def names(output: object) -> list[str]:
    return [one.name for one in find(output)]


# -- finding ---------------------------------------------------------------------------------------


def test_histograms_are_named_by_their_path():
    output = {"mass": plain(), "DY": {"pt": plain(), "bins": [plain(), plain()]}, "n": 3, "s": "x"}
    assert names(output) == ["DY.bins.0", "DY.bins.1", "DY.pt", "mass"]
    assert names(plain()) == ["output"]
    assert names({("DY", "b"): plain(), 2: plain()}) == ["2", "DY.b"]


def test_the_order_is_that_of_the_names_not_of_arrival():
    one = {"h2": plain(), "h10": plain(), "h1": plain()}
    assert names(one) == ["h1", "h2", "h10"]
    assert names(dict(reversed(one.items()))) == names(one)


def test_two_paths_of_one_name_are_told_apart():
    output = {"a.b": plain(1), "a": {"b": plain(2)}}
    assert names(output) == ["a.b", "a.b (2)"]
    drawing = Gallery().draw(output)
    assert [plot.series[0].values.sum() for plot in drawing.plots] == [
        output["a"]["b"].sum(),
        output["a.b"].sum(),
    ]


def test_other_things_are_not_histograms():
    output = {
        "class": hist.Hist,
        "array": np.zeros(5),
        "data": list(range(100_000)),
        "set": {1, 2},
        "none": None,
        "flags": {"a": True, "b": False},
        "one": {"n": 3},
        "huge": {f"{i}": i for i in range(10_000)},
    }
    assert names(output) == []


def test_an_output_that_holds_itself():
    output: dict[str, object] = {"h": plain()}
    output["self"] = output
    assert "h" in names(output)


def test_a_cut_flow_is_a_table_whose_rows_keep_their_order():
    found = find({"cuts": {"all": 10, "two muons": np.int64(4), "b": 2.5}})
    (plot,) = Gallery().draw({"cuts": {"all": 10, "two muons": np.int64(4), "b": 2.5}}).plots
    assert [one.table for one in found] == [True]
    assert plot.kind == "table"
    assert plot.rows == ("all", "two muons", "b")
    assert list(plot.series[0].values) == [10, 4, 2.5]


def test_cut_flows_of_datasets_are_one_table():
    output = {"cutflow": {"TT": {"all": 3, "cut": 2}, "DY": {"all": 5, "extra": 1}}}
    (plot,) = Gallery(["cutflow.*"]).draw(output).plots
    assert plot.name == "cutflow"
    assert plot.rows == ("all", "extra", "cut")
    assert [one.name for one in plot.series] == ["DY", "TT"]
    np.testing.assert_array_equal(plot.series[0].values, [5, 1, np.nan])
    # and also while only one of them has come in
    assert names({"cutflow": {"TT": {"all": 3, "cut": 2}}}) == ["cutflow"]
    # those without a row in common are others
    assert names({"a": {"x": 1, "y": 2}, "b": {"p": 1, "q": 2}}) == ["a", "b"]


# -- projecting ------------------------------------------------------------------------------------


def test_categories_are_series():
    one = mass("TT", "DY")
    plot = plot_of(one)
    assert (plot.kind, plot.x.label, len(plot.x.edges)) == ("steps", "M", 11)
    assert [series.name for series in plot.series] == ["DY", "TT"]
    for series in plot.series:
        np.testing.assert_array_equal(series.values, one[series.name, :].values())
        # counts are their own variances
        shown = series.values if series.variances is None else series.variances
        np.testing.assert_array_equal(shown, one[series.name, :].variances())


def test_several_categories_are_pairs_and_the_axis_may_stand_anywhere():
    one = (
        hist.Hist.new.StrCat(["a", "b"], name="region")
        .Reg(4, 0, 4, name="m")
        .IntCat([7, 5], name="n")
        .Double()
    )
    rng = np.random.default_rng(1)
    one.fill(
        region=rng.choice(["a", "b", "c"], 99), m=rng.uniform(0, 4, 99), n=rng.choice([5, 7, 9], 99)
    )
    plot = plot_of(one)
    assert [series.name for series in plot.series] == ["a / 7", "a / 5", "b / 7", "b / 5", "other"]
    np.testing.assert_array_equal(plot.series[1].values, one["a", :, hist.loc(5)].values())
    total = sum(series.values for series in plot.series)
    np.testing.assert_array_equal(total, one.project("m").values())
    assert total.sum() == 99


def test_more_than_twenty_series_are_summed():
    one = mass(*(f"d{i}" for i in range(30)))
    plot = plot_of(one)
    assert [series.name for series in plot.series] == [*(f"d{i}" for i in range(19)), "other"]
    total = sum(series.values for series in plot.series)
    np.testing.assert_allclose(total, one.project("m").values())


def test_only_categories_are_bins_with_labels():
    one = hist.Hist.new.StrCat([], growth=True, name="cut").Double()
    one.fill(["b", "a", "b"])
    plot = plot_of(one)
    assert plot.x.labels == ("a", "b")
    assert plot.x.edges is None
    assert list(plot.series[0].values) == [1, 2]


def test_two_axes_are_a_map_of_x_first():
    one = (
        hist.Hist.new.Reg(3, 0, 3, name="x").Reg(4, 0, 4, name="y").StrCat(["s"], name="c").Weight()
    )
    one.fill(x=[0.5, 2.5, 2.5], y=[1.5, 3.5, 9.0], c="s")
    plot = plot_of(one)
    assert plot.kind == "map"
    assert (plot.x.label, plot.y.label) == ("x", "y")
    assert plot.series[0].values.shape == (3, 4)
    assert plot.series[0].values[0, 1] == plot.series[0].values[2, 3] == 1
    spec, numbers = encode(Drawing((plot,)))
    offset, n = spec["plots"][0]["series"][0]["values"]
    assert n == 12
    assert np.frombuffer(numbers, "<f4")[offset + 0 * 4 + 1] == 1


@pytest.mark.parametrize("storage", ["Double", "Weight", "Mean"])
def test_a_category_of_a_map_can_be_chosen(storage):
    made = (
        hist.Hist.new.Reg(3, 0, 3).StrCat([], growth=True).Var([0, 1, 3]).IntCat([0], growth=True)
    )
    made = getattr(made, storage)()
    rng = np.random.default_rng(1)
    sample = {"sample": rng.random(50)} if storage == "Mean" else {}
    for one in ("b", "a"):
        made.fill(rng.random(50) * 4, one, rng.random(50) * 4, [0, 7] * 25, **sample)
    gallery = Gallery()
    (plot,) = gallery.draw({"m": made}).plots
    assert plot.choices == ("a / 0", "a / 7", "b / 0", "b / 7")
    assert plot.chosen is None
    gallery.choose("m", "b / 7")
    (plot,) = gallery.draw({"m": made}).plots
    assert (plot.chosen, plot.title) == ("b / 7", "m: b / 7")
    wanted = made[:, hist.loc("b"), :, hist.loc(7)].values()
    filled = np.isfinite(plot.series[0].values)
    np.testing.assert_allclose(plot.series[0].values[filled], wanted[filled])
    assert wanted[~filled].sum() == 0
    assert decode(*encode(Drawing((plot,)), "<f8")).plots[0].chosen == "b / 7"
    gallery.choose("m", "gone")
    assert gallery.draw({"m": made}).plots[0].chosen is None


def test_more_axes_are_summed_over():
    one = hist.Hist.new.Reg(3, 0, 3).Reg(4, 0, 4).Reg(5, 0, 5).Double()
    one.fill([1.5], [1.5], [99.0])
    plot = plot_of(one)
    assert plot.kind == "map"
    assert plot.series[0].values[1, 1] == 1


def test_means_are_combined_by_their_entries():
    one = (
        hist.Hist.new.StrCat(["a", "b"], name="c")
        .Reg(300, 0, 3, name="x")
        .Reg(2, 0, 2, name="y")
        .Mean()
    )
    one.fill(c=["a", "a", "b"], x=[0.5, 0.5, 0.5], y=[0.5, 1.5, 0.5], sample=[1.0, 3.0, 5.0])
    plot = plot_of(one[:, :, sum])
    assert not plot.summable
    assert plot.series[0].values[50] == 2
    assert math.isnan(plot.series[0].values[51])
    assert plot_of(one).series[0].values.shape == (150, 2)
    assert plot_of(one).series[0].values[25, 0] == 3


def test_many_bins_become_fewer_and_none_is_lost():
    one = hist.Hist.new.Reg(10_007, 0, 1).Double().fill(np.linspace(0, 0.999, 5_000))
    plot = plot_of(one)
    assert len(plot.x.edges) <= 1_001
    assert (plot.x.edges[0], plot.x.edges[-1]) == (0, 1)
    assert len(plot.x.edges) == len(plot.series[0].values) + 1
    assert plot.series[0].values.sum() == 5_000
    square = hist.Hist.new.Reg(1_000, 0, 1).Reg(1_000, 0, 1).Double()
    square.fill(np.linspace(0, 0.999, 500), np.linspace(0, 0.999, 500))
    drawn = plot_of(square)
    assert drawn.series[0].values.sum() == 500
    assert max(drawn.series[0].values.shape) <= 160


def test_edges_at_infinity_can_be_drawn():
    one = hist.Hist.new.Var([-np.inf, 0, 1, np.inf]).Double().fill([5.0])
    assert plot_of(one).x.edges == (-1, 0, 1, 2)


class Broken:
    """Says that it is a histogram."""

    kind = "COUNT"
    axes = (1, 2)

    def values(self, flow: bool = False) -> np.ndarray:
        raise RuntimeError("no values")


def test_what_cannot_be_drawn_says_so():
    (plot,) = Gallery().draw({"bad": Broken()}).plots
    assert plot.kind == "table"
    assert "cannot be drawn: TypeError" in plot.rows[0]


AXES = st.one_of(
    st.builds(
        lambda n, growth, circular: bh.axis.Regular(
            n, 0, 1, growth=growth, circular=circular and not growth
        ),
        st.integers(1, 7),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(
        lambda edges, growth: bh.axis.Variable(sorted(edges), growth=growth),
        st.sets(st.floats(-2, 2).map(lambda x: round(x, 3)), min_size=2, max_size=5),
        st.booleans(),
    ),
    st.builds(lambda n: bh.axis.Integer(0, n), st.integers(1, 5)),
    st.just(bh.axis.Boolean()),
    st.builds(bh.axis.IntCategory, st.lists(st.integers(0, 3), unique=True, min_size=1)),
    st.builds(
        lambda growth, names: bh.axis.StrCategory(names or ["a"], growth=growth),
        st.booleans(),
        st.lists(st.text(max_size=3), unique=True, max_size=30),
    ),
    st.just(bh.axis.StrCategory([], growth=True)),
)


@given(
    st.lists(AXES, max_size=4),
    st.sampled_from(STORAGES),
    st.integers(0, 20),
    st.sampled_from([1.0, 0.0, -2.5, math.nan, math.inf, 1e300]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_any_histogram_can_be_drawn_and_nothing_is_lost(axes, storage, n, weight, random):
    one = bh.Histogram(*axes, storage=getattr(bh.storage, storage)())
    columns = [
        [random.choice(["a", "b", "zz"]) for _ in range(n)]
        if isinstance(axis, bh.axis.StrCategory)
        else [random.randint(-1, 4) for _ in range(n)]
        for axis in axes
    ]
    options = {}
    if "Mean" in storage:
        options["sample"] = [random.random() for _ in range(n)]
    elif "Int" not in storage:
        options["weight"] = [weight] * n
    if axes and n:
        one.fill(*columns, **options)
    before = copy.deepcopy(one)
    with np.errstate(all="ignore"):
        plot = plot_of(one)
        gallery = Gallery()
        drawn = gallery.draw({"h": one}).plots[0]
        spec, numbers = encode(Drawing((plot, drawn)))
    assert one == before or not math.isfinite(weight)
    json.dumps(spec, allow_nan=False)
    floats = np.frombuffer(numbers, "<f4")
    check(spec, floats, [plot, drawn])
    if plot.kind == "table" or not plot.summable:
        return
    drawn_axes = {"steps": 1, "map": 2}[plot.kind]
    kept = [
        i
        for i, axis in enumerate(axes)
        if axis.traits.continuous or isinstance(axis, bh.axis.Integer)
    ]
    kept = (kept or [len(axes) - 1])[:drawn_axes]
    wanted = one.project(*kept).values().sum()
    with np.errstate(all="ignore"):
        shown = sum(series.values.sum() for series in plot.series)
    np.testing.assert_allclose(shown, wanted, rtol=1e-9, equal_nan=True)


def check(spec, floats, plots):
    """Every offset is within the numbers, they do not overlap, and hold what is drawn."""
    end = 0
    for one, plot in zip(spec["plots"], plots, strict=True):
        for placed, series in zip(one["series"], plot.series, strict=True):
            for where, array in (
                (placed["values"], series.values),
                (placed["variances"], series.variances),
            ):
                assert (where is None) == (array is None)
                if where is None:
                    continue
                assert where[0] == end
                end += where[1]
                with np.errstate(all="ignore"):
                    np.testing.assert_array_equal(
                        floats[where[0] : end], array.reshape(-1).astype("f4")
                    )
        for axis, dim in ((one["x"], 0), (one["y"], 1)):
            if axis is not None:
                n = plot.series[0].values.shape[dim] if plot.series else None
                count = len(axis["edges"]) - 1 if axis["labels"] is None else len(axis["labels"])
                assert n in (None, count)
    assert end == len(floats)


LEAVES = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.builds(plain, st.integers(0, 3)),
    st.sets(st.integers(), max_size=3),
)
OUTPUTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=3) | st.integers() | st.tuples(st.text(max_size=2)), inner
        )
    ),
    max_leaves=20,
)


@given(OUTPUTS)
@settings(deadline=None)
def test_any_output_can_be_drawn(output):
    def count(node):
        if isinstance(node, dict):
            return sum(map(count, node.values()))
        if isinstance(node, list):
            return sum(map(count, node))
        return isinstance(node, hist.Hist)

    found = find(output)
    assert len({one.name for one in found}) == len(found)
    assert sum(not one.table for one in found) == count(output)
    drawing = Gallery().draw(output)
    assert len(drawing.plots) + len(drawing.more) == (0 if output is None else len(found))
    json.dumps(encode(drawing)[0], allow_nan=False)
