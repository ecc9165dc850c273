"""``hepscale demo``: a search for Z to two muons, over generated events or real CMS NanoAOD."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import hist
import numpy as np
from coffea import processor
from coffea.nanoevents import NanoAODSchema

from hepscale.demo_events import DATASETS, SEED, generate
from hepscale.errors import RunDirectoryError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.table import Table

    from hepscale.executor.coffea import HepScaleExecutor

__all__ = ["DemoResult", "ZMuMuProcessor", "draw_mass", "generate", "run_demo"]

_CHUNKSIZE = 50_000
_PICTURE = "hepscale-demo.png"
_TITLES = {"DYJets": "Drell-Yan", "TTbar": r"$t\bar{t}$"}
_COLORS = {"DYJets": "#5790fc", "TTbar": "#e42536"}


class ZMuMuProcessor(processor.ProcessorABC):  # type: ignore[misc]
    """Select Z bosons that decay to two muons.

    Events have exactly two muons with pt > 15 GeV and abs(eta) < 2.4, of which one has
    pt > 25 GeV, of opposite charge, with a mass between 60 and 120 GeV. Events of data, which
    have no ``genWeight``, have weight 1.

    The output has the histograms "mass" (GeV), "met" (GeV) and "jets" (number of jets with
    pt > 30 GeV and abs(eta) < 2.4), each with an axis "dataset", and the unweighted "cutflow":
    for each dataset the number of events after each cut.
    """

    def process(self, events: Any) -> dict[str, Any]:
        """Analyse one chunk of events."""
        dataset = events.metadata["dataset"]
        cutflow = {"all events": len(events)}

        good = (events.Muon.pt > 15) & (abs(events.Muon.eta) < 2.4)
        two = ak.num(events.Muon[good]) == 2
        events, muons = events[two], events.Muon[good][two]
        cutflow["two muons"] = len(events)

        hard = ak.any(muons.pt > 25, axis=1)
        events, muons = events[hard], muons[hard]
        cutflow["pt > 25 GeV"] = len(events)

        opposite = muons[:, 0].charge + muons[:, 1].charge == 0
        events, muons = events[opposite], muons[opposite]
        cutflow["opposite charge"] = len(events)

        mass = (muons[:, 0] + muons[:, 1]).mass
        window = (mass > 60) & (mass < 120)
        events, mass = events[window], mass[window]
        cutflow["60 < m < 120 GeV"] = len(events)

        weight = events.genWeight if "genWeight" in events.fields else np.ones(len(events))
        return {
            "mass": _book(
                hist.axis.Regular(60, 60, 120, name="mass", label="Dimuon mass [GeV]")
            ).fill(dataset=dataset, mass=mass, weight=weight),
            "met": _fill_met(events, dataset, weight),
            "jets": _book(hist.axis.Integer(0, 10, name="jets", label="Number of jets")).fill(
                dataset=dataset, jets=_count_jets(events), weight=weight
            ),
            "cutflow": {dataset: cutflow},
        }

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Return the merged output as it is."""
        return accumulator


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo came to.

    Attributes
    ----------
    output
        The output of :class:`ZMuMuProcessor`.
    picture
        The PNG file with the mass peak.
    events
        Number of events read.
    wall_s
        Seconds for the analysis, with the start of the workers, without generating events.
    """

    output: Mapping[str, Any]
    picture: Path
    events: int
    wall_s: float


def run_demo(
    console: Console,
    *,
    events: int = 1_000_000,
    out: str | os.PathLike[str] = ".",
    cores: int | None = None,
    engine: str | None = None,
    seed: int = SEED,
    executor: Any = None,
) -> DemoResult:
    """Generate events, find the Z boson in them and show it.

    Parameters
    ----------
    console
        Where the cut flow and the mass peak are printed.
    events
        Number of events to generate.
    out
        Folder for the picture ``hepscale-demo.png``; made if need be. The events themselves stay
        in the cache folder of the settings.
    cores
        Number of worker processes; by default as many as HepScale finds.
    engine
        Who runs the chunks; with "workqueue" a worker of Work Queue is started on this machine,
        unless the settings name others.
    seed
        The same seed gives the same events.
    executor
        An executor of coffea to use in place of ``HepScaleExecutor``.

    Raises
    ------
    ConfigError
        If a number is too small.
    RunDirectoryError
        If the events or the picture cannot be written.
    RunError
        If chunks failed.
    """
    folder = _writable(Path(out))
    fileset = _events(console, events, seed)
    if executor is None:
        executor = _executor(cores, engine)
    began = time.perf_counter()
    runner = processor.Runner(executor=executor, schema=NanoAODSchema, chunksize=_CHUNKSIZE)
    output = runner(fileset, processor_instance=ZMuMuProcessor(), treename="Events")
    wall_s = time.perf_counter() - began

    console.print()
    console.print(_cut_flow(output["cutflow"]))
    _print_mass(console, output["mass"])
    picture = folder / _PICTURE
    draw_mass(output["mass"], picture, f"{events:,} generated events")
    console.print(
        f"{events:,} events in {wall_s:.1f} s, with the start of the workers: "
        f"{events / wall_s:,.0f} events/s",
        highlight=False,
    )
    console.print(f"Picture: {picture}", soft_wrap=True, markup=False, highlight=False)
    return DemoResult(output, picture, events, wall_s)


def _executor(cores: int | None, engine: str | None) -> HepScaleExecutor:
    from hepscale.config import load_settings
    from hepscale.executor.coffea import HepScaleExecutor
    from hepscale.machine import usable_cores
    from hepscale.workers.api import Workers

    settings, workers = load_settings(engine=engine), None
    if settings.engine != "local" and not settings.workers.count:
        workers = Workers("local", cores=cores or usable_cores())
    return HepScaleExecutor(cores=cores, engine=engine, workers=workers)


def draw_mass(mass: hist.Hist[Any], path: str | os.PathLike[str], caption: str = "") -> None:
    """Draw the mass peak, one colour for each dataset, into the PNG file `path`.

    Parameters
    ----------
    mass
        The histogram "mass" of :class:`ZMuMuProcessor`.
    path
        The file; it is replaced.
    caption
        A few words for the upper right corner.

    Raises
    ------
    RunDirectoryError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure

    counts: Any = mass
    figure = Figure(figsize=(8, 6), dpi=150, layout="constrained")
    axes = figure.subplots()
    axis = mass.axes["mass"]
    below = np.zeros(len(axis))
    for dataset in reversed(list(mass.axes["dataset"])):
        values = counts[{"dataset": dataset}].values()
        axes.stairs(
            below + values,
            axis.edges,
            baseline=below,
            fill=True,
            color=_COLORS.get(dataset, "#86c8dd"),
            label=f"{_TITLES.get(dataset, dataset)}  ({values.sum():,.0f})",
        )
        below = below + values
    error = np.sqrt(counts[{"dataset": sum}].variances())
    axes.stairs(below, axis.edges, color="black", linewidth=1.0)
    axes.stairs(
        below + error,
        axis.edges,
        baseline=below - error,
        fill=True,
        color="black",
        alpha=0.25,
        linewidth=0,
        label="Statistical uncertainty",
    )
    _label(axes, axis.edges, max(below.max(), 1), caption)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise _no_picture(Path(path), error) from error


def _label(axes: Any, edges: Any, highest: float, caption: str) -> None:
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.15 * highest))
    axes.set_xlabel(r"$m_{\mu\mu}$ [GeV]", loc="right", fontsize=14)
    axes.set_ylabel(f"Weighted events / {edges[1] - edges[0]:g} GeV", loc="top", fontsize=14)
    axes.tick_params(which="both", direction="in", top=True, right=True, labelsize=12)
    axes.minorticks_on()
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False, fontsize=13, loc="upper left")
    axes.set_title("HepScale demo", loc="left", fontweight="bold", fontsize=15)
    axes.set_title(caption, loc="right", fontsize=12)


def _book(axis: Any) -> hist.Hist[Any]:
    datasets = hist.axis.StrCategory([], growth=True, name="dataset", label="Dataset")
    return hist.Hist(datasets, axis, storage=hist.storage.Weight())


def _fill_met(events: Any, dataset: str, weight: Any) -> hist.Hist[Any]:
    met = _book(
        hist.axis.Regular(50, 0, 200, name="met", label="Missing transverse momentum [GeV]")
    )
    # NanoAOD changed the name over the years.
    for name in ("MET", "PFMET", "PuppiMET"):
        if name in events.fields:
            return met.fill(dataset=dataset, met=events[name].pt, weight=weight)
    return met


def _count_jets(events: Any) -> Any:
    if "Jet" not in events.fields:
        return np.zeros(len(events), int)
    return ak.sum((events.Jet.pt > 30) & (abs(events.Jet.eta) < 2.4), axis=1)


def _events(console: Console, events: int, seed: int) -> dict[str, list[str]]:
    began = time.perf_counter()
    with console.status(f"Generating {events:,} events ..."):
        fileset = generate(events=events, seed=seed)
    took_s = time.perf_counter() - began
    files = [file for paths in fileset.values() for file in paths]
    # What took no time was there already.
    how = f"generated in {took_s:.1f} s" if took_s > 0.05 else "from an earlier run"
    console.print(
        f"{events:,} events in {len(files)} files ({how}): {Path(files[0]).parent}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    return fileset


def _cut_flow(cutflow: Mapping[str, Mapping[str, int]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title="Cut flow", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("Cut")
    datasets = sorted(cutflow, key=lambda name: DATASETS.index(name) if name in DATASETS else 99)
    for dataset in datasets:
        table.add_column(dataset, justify="right")
        table.add_column("", justify="right", style="dim")
    for cut in cutflow[datasets[0]]:
        row = [cut]
        for dataset in datasets:
            flow = cutflow[dataset]
            share = flow[cut] / max(flow["all events"], 1)
            row += [f"{flow[cut]:,}", f"{share:.1%}"]
        table.add_row(*row)
    return table


class _InGeV(str):
    """The format of a tick; histoprint would print 91 GeV as 0.91 x 10^+02."""

    __slots__ = ()

    def format(self, *args: Any, **kwargs: Any) -> str:
        return super().format(*(100 * arg for arg in args), **kwargs)


def _print_mass(console: Console, mass: Any) -> None:
    import histoprint

    datasets = [name for name in reversed(DATASETS) if name in mass.axes["dataset"]]
    # Bins of 2 GeV fit on a screen; negative weights may leave a bin of few events below zero.
    counts = [
        np.clip(mass[{"dataset": name, "mass": hist.rebin(2)}].values(), 0, None)
        for name in datasets
    ]
    edges = mass.axes["mass"].edges[::2]
    color = console.is_terminal and not console.no_color
    histoprint.print_hist(
        (np.stack(counts), edges / 100),
        file=console.file,
        title="Dimuon mass [GeV]",
        labels=datasets,
        stack=True,
        columns=min(console.width, 100) - 1,
        lines=len(edges) + 2,
        count_area=False,
        tick_format=_InGeV("{: 5.0f} "),
        symbols="  " if color else "|=",
        fg_colors="RB" if color else "00",
        bg_colors="RB" if color else "00",
        use_color=color,
    )


def _writable(folder: Path) -> Path:
    """Make `folder`; find out before the analysis runs that nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _no_picture(folder / _PICTURE, error) from error
    return folder.absolute()


def _no_picture(picture: Path, error: OSError) -> RunDirectoryError:
    return RunDirectoryError(
        "The picture of the demo cannot be written.",
        items=(str(picture),),
        cause=error.strerror or str(error),
        fix="give another folder with --out",
    )
