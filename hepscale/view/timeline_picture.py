"""What the slots did over time as a small PNG, by matplotlib."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hepscale.view.picture import STYLE
from hepscale.view.timeline import KINDS

if TYPE_CHECKING:
    from hepscale.view.timeline import Share

__all__ = ["COLOURS", "png"]

COLOURS = dict(
    zip(
        KINDS,
        ("#3f90da", "#832db6", "#92dadd", "#ffa90e", "#e76300", "#bd1f01", "#dadada"),
        strict=True,
    )
)
_SIZE_IN = (7.2, 2.4)
_DPI = 80
_UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))


def png(share: Share) -> bytes:
    """Return a stacked area: how many slots did what, and the totals in per cent."""
    per_bin = len(share.kinds["waiting"])
    unit, unit_s = next((one for one in _UNITS if share.span_s > 3 * one[1]), _UNITS[-1])
    edges = np.minimum(np.arange(per_bin + 1) * share.bin_s, share.span_s)
    # the last bin is as long as what is left of the run
    widths = np.maximum(np.diff(edges), 1e-9)
    percent = share.percent
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=_SIZE_IN, dpi=_DPI, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        below = np.zeros(per_bin)
        for kind in KINDS:
            above = below + np.asarray(share.kinds[kind]) / widths
            axes.stairs(
                above,
                edges / unit_s,
                baseline=below,
                fill=True,
                color=COLOURS[kind],
                lw=0,
                label=f"{kind} {percent[kind]:.1f} %",
            )
            below = above
        axes.set_xlim(0, max(share.span_s, share.bin_s / 100) / unit_s)
        axes.set_ylim(0, None)
        axes.set_xlabel(f"time [{unit}]")
        axes.set_ylabel("slots")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right center")
        made = io.BytesIO()
        figure.savefig(made, format="png", dpi=_DPI, metadata={"Software": None})
    return made.getvalue()
