"""Which muons and events are taken: a local module of the analysis."""

from __future__ import annotations

from typing import Any

import awkward as ak

LEAST_PT = 15.0
LEAST_LEADING_PT = 25.0
MOST_ETA = 2.4


def two_muons(events: Any) -> tuple[Any, Any]:
    """Return the events with two good muons of opposite charge, and these muons."""
    good = (events.Muon.pt > LEAST_PT) & (abs(events.Muon.eta) < MOST_ETA)
    two = ak.num(events.Muon[good]) == 2
    events, muons = events[two], events.Muon[good][two]
    hard = ak.any(muons.pt > LEAST_LEADING_PT, axis=1)
    events, muons = events[hard], muons[hard]
    opposite = muons[:, 0].charge + muons[:, 1].charge == 0
    return events[opposite], muons[opposite]
