"""Histograms to draw, and which of them were drawn."""

from __future__ import annotations

import hist
import numpy as np

from hepscale.view.gallery import Gallery


def mass(*datasets: str, n: int = 100, storage: str = "Weight") -> hist.Hist:
    made = hist.Hist.new.StrCat([], growth=True, name="dataset").Reg(10, 0, 10, name="m", label="M")
    made = getattr(made, storage)()
    for i, dataset in enumerate(datasets):
        made.fill(dataset=dataset, m=np.linspace(-1, 11, n), weight=i + 1.0)
    return made


def plain(n: int = 100) -> hist.Hist:
    made = hist.Hist.new.Reg(10, 0, 10, name="m").Double()
    return made.fill(np.linspace(-1, 11, n))


def drawn(gallery: Gallery, output: object) -> list[str]:
    return [plot.name for plot in gallery.draw(output).plots]
