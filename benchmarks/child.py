"""``python -m benchmarks.child CASE OPTIONS``: run one case here and print what came of it."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import awkward as ak
import hist
import numpy as np
from coffea import processor


class ZMuMu(processor.ProcessorABC):  # type: ignore[misc]
    """The selection of ``hepscale demo``.

    It stands here for what a user writes in a cell: a class of ``__main__``, sent by value.
    """

    def process(self, events: Any) -> dict[str, Any]:
        """Analyse one chunk of events."""
        dataset = events.metadata["dataset"]
        cutflow = {"all events": len(events)}

        good = (events.Muon.pt > 15) & (abs(events.Muon.eta) < 2.4)
        two = ak.num(events.Muon[good]) == 2
        events, muons = events[two], events.Muon[good][two]
        hard = ak.any(muons.pt > 25, axis=1)
        events, muons = events[hard], muons[hard]
        opposite = muons[:, 0].charge + muons[:, 1].charge == 0
        events, muons = events[opposite], muons[opposite]
        mass = (muons[:, 0] + muons[:, 1]).mass
        window = (mass > 60) & (mass < 120)
        events, mass = events[window], mass[window]
        cutflow["selected"] = len(events)

        jets = ak.sum((events.Jet.pt > 30) & (abs(events.Jet.eta) < 2.4), axis=1)
        edges = np.array([0.0, 10, 20, 30, 50, 80, 120, 200])
        book = hist.Hist.new.StrCat([], growth=True, name="dataset")
        fill = {"dataset": dataset, "weight": events.genWeight}
        return {
            "mass": book.Reg(60, 60, 120, name="mass").Weight().fill(mass=mass, **fill),
            "met": book.Var(edges, name="met").Weight().fill(met=events.MET.pt, **fill),
            "jets": book.Int(0, 10, name="jets").Weight().fill(jets=jets, **fill),
            "cutflow": {dataset: cutflow},
        }

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Return the merged output as it is."""
        return accumulator


def main() -> None:
    """Run the case; the last line that is printed is the result, as JSON."""
    # whatever a user would have imported before the clock starts
    from benchmarks import cases

    name, options = sys.argv[1], json.loads(sys.argv[2])
    before = os.getloadavg()[0]
    if name == "zmumu":
        options["analysis"] = ZMuMu()
    result = cases.CASES[name](**options)
    print(json.dumps(result | {"load": [before, os.getloadavg()[0]]}), flush=True)


if __name__ == "__main__":
    main()
