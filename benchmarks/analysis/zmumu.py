"""Z to two muons, as a script: what a user has who does not work in a notebook."""

from __future__ import annotations

from typing import Any

import awkward as ak
import hist
import numpy as np
import selection
from coffea import processor


class ZMuMu(processor.ProcessorABC):  # type: ignore[misc]
    """Fill the mass of two muons, the missing energy and the number of jets."""

    def process(self, events: Any) -> dict[str, Any]:
        """Analyse one chunk of events."""
        dataset = events.metadata["dataset"]
        cutflow = {"all events": len(events)}
        events, muons = selection.two_muons(events)
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
