"""Processors whose outputs hold one of everything that can be added; workers import them."""

from __future__ import annotations

import collections
import os
import warnings
from typing import Any

import awkward as ak
import hist
import numpy as np
from coffea import processor
from coffea.nanoevents import NanoAODSchema


class Everything(processor.ProcessorABC):
    """Fills accumulators of every kind that coffea has, from events like the demo's."""

    def __init__(self, threshold: float = 25.0) -> None:
        self.threshold = threshold

    def process(self, events: Any) -> dict[str, Any]:
        about = events.metadata
        dataset, name = about["dataset"], os.path.basename(about["filename"])
        muons = events.Muon[events.Muon.pt > self.threshold]
        weight = events.genWeight * about.get("scale", 1.0)
        n = ak.to_numpy(ak.num(muons))
        plain = hist.Hist.new.StrCat([], growth=True, name="dataset").Reg(20, 0, 200, name="pt")
        counts, weighted = plain.Int64(), plain.Weight()
        pt = ak.to_numpy(ak.flatten(muons.pt))
        counts.fill(dataset=dataset, pt=pt)
        spread = ak.broadcast_arrays(weight, muons.pt)[0]
        weighted.fill(dataset=dataset, pt=pt, weight=ak.to_numpy(ak.flatten(spread)))
        regions = hist.Hist.new.StrCat([], growth=True).IntCat([], growth=True).Double()
        regions.fill([f"{dataset}-{k % 2}" for k in n], n, weight=ak.to_numpy(weight))
        chunk = (name, about["entrystart"], about["entrystop"])
        by_number: collections.defaultdict[int, int] = collections.defaultdict(int)
        for k in n:
            by_number[int(k)] += 1
        return {
            "counts": counts,
            "weighted": weighted,
            "regions": regions,
            "events": {dataset: len(events)},
            "sum": float(ak.sum(weight)),
            "deep": {dataset: {"muons": int(n.sum()), "by file": {name: len(events)}}},
            "by number": by_number,
            "counter": collections.Counter(int(k) for k in n),
            "chunks": {chunk},
            "columns": processor.column_accumulator(ak.to_numpy(events.MET.pt)),
            "list": [chunk],
            "array": np.bincount(n, minlength=10),
            "value": processor.value_accumulator(float, float(ak.sum(events.MET.pt))),
            "set": processor.set_accumulator({name}),
            "dict": processor.defaultdict_accumulator(int, {dataset: len(events)}),
            "scales": {about.get("scale", 1.0)},
        }

    def postprocess(self, accumulator: Any) -> Any:
        return accumulator


class Finished(Everything):
    """Has a postprocess, which is to run once."""

    def postprocess(self, accumulator: Any) -> Any:
        accumulator["finished"] = accumulator.get("finished", 0) + 1
        return accumulator


def entries(events: Any) -> dict[str, Any]:
    """Return what any file can be asked for."""
    about = events.metadata
    part = (about["dataset"], about["filename"], about["entrystart"], about["entrystop"])
    return {"events": len(events), "chunks": [part], "tree": {about["treename"]}}


def quiet(events: Any) -> dict[str, Any]:
    """Return the same from files whose cross-references NanoAODSchema does not know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return {**entries(events), "muons": int(ak.sum(ak.num(events.Muon)))}


class QuietSchema(NanoAODSchema):
    """Cross-references that are missing are no news."""

    warn_missing_crossrefs = False


class Checkpoints(processor.SimpleCheckpointer):
    """Leaves a mark for each chunk that was loaded instead of computed."""

    def load(self, metadata: Any, processor_instance: Any) -> Any:
        found = super().load(metadata, processor_instance)
        if found is not None:
            entry = f"{metadata['fileuuid']}-{metadata['entrystart']}"
            with open(os.path.join(self.checkpoint_dir, f"loaded-{entry}"), "a") as stream:
                stream.write("x")
        return found


def same(one: Any, other: Any, path: str = "output") -> None:
    """Assert that two outputs are equal: whole numbers exactly, sums of floats to 1e-12.

    The order of merging differs: so may that of lists and of categories that grow.
    """
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            same(one[key], other[key], f"{path}[{key!r}]")
    elif isinstance(one, hist.Hist):
        same_hist(one, other, path)
    elif isinstance(one, processor.column_accumulator):
        np.testing.assert_array_equal(np.sort(one.value), np.sort(other.value), err_msg=path)
    elif isinstance(one, processor.value_accumulator):
        same(one.value, other.value, path)
    elif isinstance(one, list):
        assert sorted(one) == sorted(other), path
    elif isinstance(one, (float, np.ndarray)):
        np.testing.assert_allclose(one, other, rtol=1e-12, err_msg=path)
    else:
        assert one == other, path


def same_hist(one: hist.Hist, other: hist.Hist, path: str) -> None:
    assert one.storage_type is other.storage_type, path
    places: list[Any] = []
    for mine, yours in zip(one.axes, other.axes, strict=True):
        if mine.traits.growth:
            assert set(mine) == set(yours), path
            places.append([yours.index(name) for name in mine])
        else:
            assert mine == yours, path
            places.append(list(range(mine.extent)))
    mine, yours = (np.asarray(h.view(flow=True)) for h in (one, other))
    for axis, order in enumerate(places):
        mine = mine.take(range(len(order)), axis=axis)
        yours = yours.take(order, axis=axis)
    for field in mine.dtype.names or (None,):
        left, right = (v[field] if field else v for v in (mine, yours))
        if np.issubdtype(left.dtype, np.integer):
            np.testing.assert_array_equal(left, right, err_msg=path)
        else:
            np.testing.assert_allclose(left, right, rtol=1e-12, err_msg=path)
