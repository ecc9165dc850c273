"""Made-up plots in the form in which the live view's page gets them."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Picture:
    """A `spec` and the numbers of its `bins`."""

    plots: list[dict[str, Any]] = field(default_factory=list)
    parts: list[NDArray[np.float32]] = field(default_factory=list)
    more: list[str] = field(default_factory=list)

    def put(self, values: Any) -> list[int]:
        """Add numbers; return where they are."""
        part = np.ravel(np.asarray(values, "<f4"))
        offset = sum(map(len, self.parts))
        self.parts.append(part)
        return [offset, len(part)]

    def add(self, name: str, kind: str, x: Any, series: dict[str, Any], **rest: Any) -> None:
        """Add a plot; a series is its values, or a pair of values and variances."""
        shown = [
            {
                "name": one,
                "values": self.put(given[0] if isinstance(given, tuple) else given),
                "variances": self.put(given[1]) if isinstance(given, tuple) else None,
            }
            for one, given in series.items()
        ]
        self.plots.append({"name": name, "kind": kind, "x": x, "y": None, "series": shown, **rest})

    @property
    def spec(self) -> dict[str, Any]:
        return {"plots": self.plots, "more": self.more}

    @property
    def bins(self) -> bytes:
        return np.concatenate(self.parts).tobytes() if self.parts else b""

    @property
    def state(self) -> dict[str, Any]:
        """What a page's model is given; the bytes as text."""
        return {"spec": self.spec, "bins": base64.b64encode(self.bins).decode()}


def axis(label: str, edges: Any = None, labels: list[str] | None = None) -> dict[str, Any]:
    """Return an axis; edges that are not finite are null, as in JSON."""
    if edges is not None:
        edges = [float(edge) if np.isfinite(edge) else None for edge in edges]
    return {"label": label, "edges": edges, "labels": labels}


def many(count: int, filled: int, bins: int = 100) -> Picture:
    """Return histograms of `bins` bins with `filled` entries each."""
    rng = np.random.default_rng(filled)
    picture = Picture()
    edges = np.linspace(0, 200, bins + 1)
    for number in range(count):
        values, _ = np.histogram(rng.normal(60 + 5 * number, 15 + number, filled), edges)
        picture.add(f"DY.mass{number}", "steps", axis("mass [GeV]", edges), {"": values})
    return picture


def gallery(filled: int = 20_000) -> Picture:
    """Return one of each kind of plot."""
    rng = np.random.default_rng(2026)
    picture = Picture()
    mass = np.linspace(50, 150, 101)
    zpeak = np.histogram(91.2 + 2.5 * rng.standard_t(2, filled), mass)[0]
    top = np.histogram(rng.uniform(20, 160, filled // 4), mass)[0]
    qcd = np.histogram(50 + rng.exponential(30, filled // 3), mass)[0]
    weights = (zpeak * 0.8, zpeak * 0.64), (top * 0.3, top * 0.09), (qcd * 1.1, qcd * 1.21)
    names = ("DYJets", "TTbar", "QCD")
    picture.add(
        "mass", "steps", axis("dimuon mass [GeV]", mass), dict(zip(names, weights, strict=True))
    )
    pt = np.geomspace(10, 1000, 41)
    spectrum = np.histogram(10 * rng.pareto(2.0, filled) + 10, pt)[0]
    picture.add("muons.pt", "steps", axis("leading muon pT [GeV]", pt), {"": spectrum})
    eta, phi = np.linspace(-2.5, 2.5, 51), np.linspace(-np.pi, np.pi, 41)
    plane = np.histogram2d(
        rng.normal(0, 1.1, 4 * filled), rng.normal(0.4, 1.4, 4 * filled), (eta, phi)
    )[0]
    picture.add("muons.eta_phi", "map", axis("η", eta), {"": plane}, y=axis("φ", phi))
    labels = ["ee", "eμ", "μμ", "eeμ", "<b>μμμ</b>"]
    counts = {"DYJets": [9100, 80, 11200, 40, 31], "TTbar": [2100, 4300, 2300, 210, 190]}
    picture.add("channel", "steps", axis("channel", None, labels), counts)
    picture.add(
        "cutflow",
        "table",
        None,
        {"": [1_204_331, 803_112, 412_009, 98_330, 41_002]},
        rows=["all events", "trigger", "two muons", "opposite charge", "Z window"],
    )
    pulls = np.histogram(rng.normal(0, 1, filled), np.linspace(-5, 5, 51))[0].astype(float)
    pulls[:20] *= -0.3
    picture.add(
        "nlo.weight", "steps", axis("cos θ*", np.linspace(-1, 1, 51)), {"": (pulls, abs(pulls) * 3)}
    )
    jets = {
        f"sample {i}": rng.poisson(3000 / (i + 1) * np.exp(-np.arange(10) / 2)) for i in range(14)
    }
    picture.add("jets.n", "steps", axis("number of jets", np.arange(11) - 0.5), jets)
    picture.add(
        "empty", "steps", axis("nothing yet [GeV]", np.linspace(0, 1e-3, 21)), {"": np.zeros(20)}
    )
    picture.more = [f"systematics.jes_{i}.mass" for i in range(30)]
    return picture
