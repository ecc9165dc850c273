"""The events of ``hepscale demo``: Drell-Yan and ttbar, in the shape of CMS NanoAOD.

They are drawn at random, not simulated: plausible enough for a mass peak on a background, quick to
make, and the same for the same seed.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import uproot

from hepscale.config import load_settings
from hepscale.errors import ConfigError, RunDirectoryError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["DATASETS", "SEED", "generate"]

logger = logging.getLogger(__name__)

DATASETS = ("DYJets", "TTbar")
SEED = 2026

_FORMAT = 1
_BASKET = 50_000
_Z_MASS, _Z_WIDTH = 91.1876, 2.4952
_MUON_MASS = 0.10566
_BYTES_PER_EVENT = 160

# NanoAODSchema warns, for each chunk, about every cross-reference that it does not find. These
# collections have them; here they hold no objects.
_EMPTY = {
    "Electron": ("jetIdx", "photonIdx"),
    "FatJet": ("subJetIdx1", "subJetIdx2"),
    "FsrPhoton": ("muonIdx",),
    "LowPtElectron": ("electronIdx", "photonIdx"),
    "Photon": ("electronIdx", "jetIdx"),
    "SubJet": ("nBHadrons",),
    "Tau": ("jetIdx",),
}
_NO_REFERENCE = {
    "Muon": ("jetIdx", "fsrPhotonIdx"),
    "Jet": ("muonIdx1", "muonIdx2", "electronIdx1", "electronIdx2"),
}
_OBJECTS = {
    "Muon": dict.fromkeys(("pt", "eta", "phi", "mass", "pfRelIso04_all"), "float32")
    | {"charge": "int32"},
    "Jet": dict.fromkeys(("pt", "eta", "phi", "mass"), "float32"),
}


def generate(
    out: str | os.PathLike[str] | None = None,
    events: int = 1_000_000,
    files: int = 4,
    seed: int = SEED,
) -> dict[str, list[str]]:
    """Write events for the demo, or find those of an earlier call with the same arguments.

    Parameters
    ----------
    out
        Folder below which the folder of this sample is made; by default ``demo`` in the cache
        folder of the settings.
    events
        Number of events in all; at least one a file. About 140 bytes each on disk.
    files
        Number of files in all, at least two: they are shared out over the datasets.
    seed
        The same seed gives the same events.

    Returns
    -------
    dict
        A fileset: for each dataset ("DYJets", "TTbar") the paths of its files, tree "Events".

    Raises
    ------
    ConfigError
        If a number is too small.
    RunDirectoryError
        If the files cannot be written.
    """
    sample = _Sample(events, files, seed)
    home = Path(out) if out is not None else load_settings().cache_dir / "demo"
    folder = home.absolute() / sample.name
    if not _is_complete(folder, sample):
        try:
            _write_sample(folder, sample)
        except OSError as error:
            raise _cannot_write(folder, sample, error) from error
    return {
        dataset: [str(folder / name) for name, _, _ in sample.files_of(dataset)]
        for dataset in DATASETS
    }


@dataclass(frozen=True, slots=True)
class _Sample:
    events: int
    files: int
    seed: int

    def __post_init__(self) -> None:
        if self.files < len(DATASETS):
            raise ConfigError(
                f"files={self.files} is too few for the demo.",
                cause=f"it has {len(DATASETS)} datasets, each with at least one file",
                fix=f"give files={len(DATASETS)} or more",
            )
        if self.events < self.files:
            raise ConfigError(
                f"{self.events} events are too few for the demo.",
                cause=f"each of its {self.files} files holds at least one event",
                fix=f"ask for {self.files} events or more",
            )
        if self.seed < 0:
            raise ConfigError(
                f"seed={self.seed} cannot be used.",
                cause="a seed is not negative",
                fix=f"give a seed of 0 or more, for instance {SEED}",
            )

    @property
    def name(self) -> str:
        return f"events{self.events}-files{self.files}-seed{self.seed}-v{_FORMAT}"

    def files_of(self, dataset: str) -> Iterator[tuple[str, int, int]]:
        """Yield name, index and number of events of each file of `dataset`."""
        first = DATASETS.index(dataset)
        for number, index in enumerate(range(first, self.files, len(DATASETS)), start=1):
            count = self.events // self.files + (index < self.events % self.files)
            yield f"{dataset}_{number}.root", index, count


def _is_complete(folder: Path, sample: _Sample) -> bool:
    try:
        sizes = json.loads((folder / "complete.json").read_text())
        return bool(sizes) and all(
            (folder / name).stat().st_size == sizes[name]
            for dataset in DATASETS
            for name, _, _ in sample.files_of(dataset)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_sample(folder: Path, sample: _Sample) -> None:
    """Write all files into a folder with another name, then give it its own."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        sizes = {}
        for dataset in DATASETS:
            for name, index, count in sample.files_of(dataset):
                _write_file(work / name, dataset, count, (sample.seed, index))
                sizes[name] = (work / name).stat().st_size
        (work / "complete.json").write_text(json.dumps(sizes, indent=1) + "\n")
        work.chmod(0o755)
        if folder.exists() and not _is_complete(folder, sample):
            logger.info("replacing incomplete demo events in %s", folder)
            shutil.rmtree(folder)
        try:
            work.rename(folder)
        except OSError:
            # Another process was quicker with the same events.
            if not _is_complete(folder, sample):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _cannot_write(folder: Path, sample: _Sample, error: OSError) -> RunDirectoryError:
    megabytes = 1 + sample.events * _BYTES_PER_EVENT // 1_000_000
    fix = "set HEPSCALE_CACHE_DIR to a folder that you can write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        fix = (
            f"free {megabytes} MB there, set HEPSCALE_CACHE_DIR to a folder with more space, "
            "or ask for fewer events"
        )
    return RunDirectoryError(
        "The events of the demo cannot be written.",
        items=(str(folder.parent),),
        cause=error.strerror or str(error),
        fix=fix,
    )


def _write_file(path: Path, dataset: str, events: int, seed: tuple[int, ...]) -> None:
    make = {"DYJets": _drell_yan, "TTbar": _ttbar}[dataset]
    with uproot.recreate(path, compression=uproot.LZ4(1)) as file:
        tree = file.mktree("Events", _branch_types())
        for number, start in enumerate(range(0, events, _BASKET)):
            count = min(_BASKET, events - start)
            rng = np.random.default_rng((*seed, number))
            tree.extend(_ids(start, count, seed[-1]) | _empty(count) | make(rng, count))


def _branch_types() -> dict[str, Any]:
    def record(fields: Mapping[str, str]) -> Any:
        inside = ", ".join(f"{name}: {kind}" for name, kind in fields.items())
        return ak.types.from_datashape(f"var * {{{inside}}}", highlevel=False)

    types: dict[str, Any] = {"run": "uint32", "luminosityBlock": "uint32", "event": "uint64"}
    for name, fields in _OBJECTS.items():
        types[name] = record(fields | dict.fromkeys(_NO_REFERENCE[name], "int32"))
    for name, indices in _EMPTY.items():
        types[name] = record(dict.fromkeys(indices, "int32"))
    return types | dict.fromkeys(("MET_pt", "MET_phi", "genWeight"), "float32")


def _ids(start: int, count: int, file: int) -> dict[str, Any]:
    number = np.arange(start, start + count, dtype=np.uint64)
    return {
        "run": np.ones(count, np.uint32),
        "luminosityBlock": (1 + number // 1000 + 10_000 * file).astype(np.uint32),
        "event": number + 1,
    }


def _empty(count: int) -> dict[str, Any]:
    none = np.zeros(count, np.int64)
    flat = np.empty(0, np.int32)
    return {
        name: ak.unflatten(ak.zip(dict.fromkeys(indices, flat)), none)
        for name, indices in _EMPTY.items()
    }


def _objects(name: str, counts: NDArray[np.int64], columns: Mapping[str, Any]) -> ak.Array:
    kinds = _OBJECTS[name]
    fields = {field: np.asarray(values, kinds[field]) for field, values in columns.items()}
    nowhere = np.full(int(counts.sum()), -1, np.int32)
    return ak.unflatten(ak.zip(fields | dict.fromkeys(_NO_REFERENCE[name], nowhere)), counts)


def _muons(rng: np.random.Generator, seen: NDArray[np.bool_], columns: dict[str, Any]) -> ak.Array:
    """Turn columns of shape (events, candidates) into jagged muons, hardest first."""
    columns["pt"] = columns["pt"] * rng.normal(1, 0.015, seen.shape)
    seen = seen & (columns["pt"] > 3) & (np.abs(columns["eta"]) < 2.4)
    order = np.argsort(np.where(seen, -columns["pt"], np.inf), axis=1)
    seen = np.take_along_axis(seen, order, axis=1)
    flat = {name: np.take_along_axis(c, order, axis=1)[seen] for name, c in columns.items()}
    flat["mass"] = np.full(len(flat["pt"]), _MUON_MASS)
    return _objects("Muon", seen.sum(axis=1), flat)


def _jets(rng: np.random.Generator, counts: NDArray[np.int64], scale: float) -> ak.Array:
    """Draw jets above 20 GeV, hardest first; `scale` (GeV) is the slope of their spectrum."""
    total = int(counts.sum())
    pt = 20 + rng.exponential(scale, total)
    event = np.repeat(np.arange(len(counts)), counts)
    pt = pt[np.argsort(event * 1e5 - pt)]
    return _objects(
        "Jet",
        counts,
        {
            "pt": pt,
            "eta": np.clip(rng.normal(0, 1.7, total), -4.7, 4.7),
            "phi": rng.uniform(-np.pi, np.pi, total),
            "mass": pt * rng.lognormal(-2.1, 0.3, total),
        },
    )


def _drell_yan(rng: np.random.Generator, count: int) -> dict[str, Any]:
    mass = _dilepton_mass(rng, count)
    boson_pt = rng.gamma(1.4, 11.0, count)
    pt, eta, phi = _decay(rng, mass, boson_pt, rng.normal(0, 1.4, count))
    soft_pt, soft_eta, soft_phi = (
        3 + rng.exponential(4, count),
        rng.normal(0, 1.2, count),
        phi[:, 0],
    )
    first = rng.choice(np.array([-1, 1], np.int32), count)
    seen = np.column_stack([rng.random((count, 2)) < 0.95, rng.random(count) < 0.02])
    third = rng.choice(np.array([-1, 1], np.int32), count)
    columns = {
        "pt": np.column_stack([pt, soft_pt]),
        "eta": np.column_stack([eta, soft_eta]),
        "phi": np.column_stack([phi, -soft_phi]),
        "charge": np.column_stack([first, -first, third]),
        "pfRelIso04_all": rng.exponential([0.04, 0.04, 1.5], (count, 3)),
    }
    return {
        "Muon": _muons(rng, seen, columns),
        "Jet": _jets(rng, rng.poisson(0.5 + boson_pt / 40), 18),
        "MET_pt": rng.rayleigh(13, count).astype(np.float32),
        "MET_phi": rng.uniform(-np.pi, np.pi, count).astype(np.float32),
        "genWeight": _signs(rng, count, 0.04),
    }


def _ttbar(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """Muons of W bosons and b quarks: no peak, more jets, neutrinos."""
    shape = (count, 4)
    prompt = rng.random((count, 2)) < 0.45
    first = rng.choice(np.array([-1, 1], np.int32), (count, 3))
    pt = np.column_stack([5 + rng.gamma(1.9, 22, (count, 2)), 3 + rng.exponential(7, (count, 2))])
    columns = {
        "pt": pt,
        "eta": rng.normal(0, 1.1, shape),
        "phi": rng.uniform(-np.pi, np.pi, shape),
        "charge": np.column_stack([first[:, 0], -first[:, 0], first[:, 1:]]),
        "pfRelIso04_all": rng.exponential([0.06, 0.06, 1.5, 1.5], shape),
    }
    seen = np.column_stack([prompt, rng.random((count, 2)) < 0.08])
    neutrinos = prompt.sum(axis=1)
    return {
        "Muon": _muons(rng, seen, columns),
        "Jet": _jets(rng, 1 + rng.poisson(4.6 - neutrinos), 42),
        "MET_pt": rng.gamma(1.6 + 0.5 * neutrinos, 24).astype(np.float32),
        "MET_phi": rng.uniform(-np.pi, np.pi, count).astype(np.float32),
        "genWeight": _signs(rng, count, 0.01),
    }


def _signs(rng: np.random.Generator, count: int, negative: float) -> NDArray[np.float32]:
    return np.where(rng.random(count) < negative, -1, 1).astype(np.float32)


def _dilepton_mass(rng: np.random.Generator, count: int) -> Floats:
    """Draw masses in GeV: a Breit-Wigner in 50 to 150, and some of the photon's continuum."""
    low, high = (np.arctan((edge - _Z_MASS) / (_Z_WIDTH / 2)) for edge in (50.0, 150.0))
    peak = _Z_MASS + _Z_WIDTH / 2 * np.tan(rng.uniform(low, high, count))
    continuum = 50 / (1 - rng.uniform(0, 2 / 3, count))
    drawn: Floats = np.where(rng.random(count) < 0.04, continuum, peak)
    return drawn


def _decay(
    rng: np.random.Generator, mass: Floats, boson_pt: Floats, rapidity: Floats
) -> tuple[Floats, Floats, Floats]:
    """Decay bosons at rest as 1 + cos² and boost the two muons; pt, eta, phi of shape (n, 2)."""
    middle = 4 * rng.random(len(mass)) - 2
    root = np.cbrt(middle + np.sqrt(middle**2 + 1))
    cosine = np.clip(root - 1 / root, -1, 1)
    angle = rng.uniform(-np.pi, np.pi, len(mass))
    energy = mass / 2
    along = energy * cosine
    sideways = energy * np.sqrt(1 - cosine**2)
    momentum = np.stack([sideways * np.cos(angle), sideways * np.sin(angle), along])
    momentum = np.stack([momentum, -momentum], axis=-1)

    transverse = np.sqrt(mass**2 + boson_pt**2)
    gamma_x, beta_gamma_x = (transverse / mass)[:, None], (boson_pt / mass)[:, None]
    px = gamma_x * momentum[0] + beta_gamma_x * energy[:, None]
    in_x = gamma_x * energy[:, None] + beta_gamma_x * momentum[0]
    pz = np.cosh(rapidity)[:, None] * momentum[2] + np.sinh(rapidity)[:, None] * in_x

    pt = np.hypot(px, momentum[1])
    turn = rng.uniform(-np.pi, np.pi, len(mass))[:, None]
    phi = np.arctan2(momentum[1], px) + turn
    return pt, np.arcsinh(pz / pt), (phi + np.pi) % (2 * np.pi) - np.pi
