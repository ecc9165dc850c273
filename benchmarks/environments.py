"""How long an environment takes to analyse, to pack and to unpack, and how large it becomes.

What is packed is a venv made for it: this checkout with what it depends on, nothing of tests.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import packing
from benchmarks.report import Line
from benchmarks.rounds import Spread, in_turn
from hepscale.config import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rounds import Rounds

__all__ = ["environment"]

_CHECKOUT = Path(__file__).parents[1]
# a round of packing takes most of a minute
_MOST_ROUNDS = 3
# what says little more than the others, in the first round only
_ONCE = ("tar.zst, imports", "tar.gz, imports")
_PAIRS = 20
_EVENTS, _FILES = 20_000, 2
_MOST_ANALYZE_S, _MOST_INDEXED_S = 3.0, 0.5
_MOST_TIME = 0.35
_MOST_SIZE = {"full": 0.65, "imports": 0.5}
_MOST_UNCHANGED_S, _MOST_EDITED_S, _MOST_EDITED_KB = 0.3, 0.5, 100.0
_MOST_UNPACK, _MOST_START_MS = 1.3, 20.0
_PEER = "tar | gzip -4"


@dataclass(frozen=True)
class _Place:
    """Where it is measured: the packed Python, a copy of the analysis, folders for caches."""

    python: Path
    folder: Path

    def run(self, rounds: Rounds, name: str, case: str, cache: str, **options: Any) -> None:
        within = (str(self.python), *packing.COMMAND)
        path = str(self.folder / cache)
        rounds.run(name, case, within=within, cache=path, **options)

    def fresh(self, cache: str) -> str:
        """Empty a folder for caches; return its name."""
        shutil.rmtree(self.folder / cache, ignore_errors=True)
        (self.folder / cache).mkdir(parents=True)
        return cache

    @property
    def analysis(self) -> Path:
        return self.folder / "analysis"


def environment(rounds: Rounds, number: int, *, quick: bool) -> list[Line]:
    """Analyse, pack, pack again, unpack."""
    if shutil.which("zstd") is None:
        sys.exit("the peer of unpacking is the program zstd: apt install zstd")
    place = _Place(_venv() / "bin" / "python", rounds.folder / "environment")
    shutil.copytree(_CHECKOUT / "benchmarks" / "analysis", place.analysis)
    shutil.copy(_CHECKOUT / "notebooks" / "quickstart.ipynb", place.analysis)
    _warm_up(place)
    packs = min(number, _MOST_ROUNDS)
    for at in range(number):
        print(f"environment, analysis, round {at + 1} of {number}", file=sys.stderr)
        _analyze(rounds, place)
    for at in range(packs):
        print(f"environment, packing, round {at + 1} of {packs}", file=sys.stderr)
        for one in in_turn([one for one in _PACKING if at == 0 or one not in _ONCE], at):
            _PACKING[one](rounds, place)
    place.run(rounds, "tar, no bytecode", "archive", "none", output=_output(place), bytecode=False)
    _pack_quickstart(rounds, place)
    for at in range(number):
        print(f"environment, unchanged and edited, round {at + 1} of {number}", file=sys.stderr)
        _again(rounds, place)
    for at in range(packs):
        print(f"environment, worker, round {at + 1} of {packs}", file=sys.stderr)
        _work(rounds, place, at)
    return [
        *_analysis_lines(rounds),
        *_packing_lines(rounds),
        *_again_lines(rounds),
        *_worker_lines(rounds),
    ]


def _venv() -> Path:
    """Return a venv with this checkout and what it depends on, making it at the first time."""
    project = tomllib.loads((_CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = hashlib.sha256(f"{sys.version} {project['dependencies']}".encode())
    home = load_settings().cache_dir / "bench-environment"
    folder = home / wanted.hexdigest()[:12]
    if (folder / "complete").exists():
        return folder
    print("making a venv for the benchmark of environments, once ...", file=sys.stderr)
    shutil.rmtree(home, ignore_errors=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    if subprocess.run([sys.executable, "-m", "venv", str(folder)], check=False).returncode:
        # without the system's ensurepip the pip that is there installs another
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        own = [sys.executable, "-m", "pip", "--python", pip[0]]
        subprocess.run([*own, "install", "-qq", "pip"], check=True)
    subprocess.run([*pip, "install", "-qq", str(_CHECKOUT)], check=True)
    (folder / "complete").touch()
    return folder


def _warm_up(place: _Place) -> None:
    """Read every file once, so that the first round finds it where the others do."""
    base = subprocess.run(
        [str(place.python), "-I", "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    for folder in (place.python.parents[1], base.stdout.strip()):
        # to a pipe: tar knows /dev/null and would not read
        subprocess.run(["sh", "-c", f"tar -cf - -C '{folder}' . | cat >/dev/null"], check=True)
    subprocess.run(
        [str(place.python), "-c", "import hepscale.cli, hepscale.executor.coffea"], check=True
    )


def _output(place: _Place, name: str = "peer.tar.gz") -> str:
    return str(place.folder / name)


def _analyze(rounds: Rounds, place: _Place) -> None:
    file = str(place.analysis / "zmumu.ipynb")
    command = ["env", "analyze", file]
    cache = place.fresh("index")
    place.run(rounds, "analyze, first", "analyze", cache, file=file, times=1)
    place.run(rounds, "analyze, indexed", "analyze", cache, file=file, times=2)
    cache = place.fresh("index")
    place.run(rounds, "command, first", "command", cache, arguments=command, times=1)
    place.run(rounds, "command, indexed", "command", cache, arguments=command, times=1)


def _peer(rounds: Rounds, place: _Place) -> None:
    place.run(rounds, "tar", "archive", "none", output=_output(place), bytecode=True)


def _pack_layers(rounds: Rounds, place: _Place, closure: str) -> None:
    folder = str(place.analysis)
    cache = place.fresh(closure)
    place.run(rounds, f"layers, {closure}", "layers", cache, folder=folder, closure=closure)


def _pack_single(rounds: Rounds, place: _Place, closure: str, form: str) -> None:
    options = {"file": str(place.analysis / "zmumu.py"), "closure": closure}
    output = _output(place, f"{closure}.{form}")
    cache = place.fresh("single")
    place.run(rounds, f"{form}, {closure}", "single", cache, output=output, **options)


def _packing_cases() -> dict[str, Callable[[Rounds, _Place], None]]:
    def layers(closure: str) -> Callable[[Rounds, _Place], None]:
        return lambda rounds, place: _pack_layers(rounds, place, closure)

    def single(closure: str, form: str) -> Callable[[Rounds, _Place], None]:
        return lambda rounds, place: _pack_single(rounds, place, closure, form)

    cases = {"tar": _peer}
    for closure in _MOST_SIZE:
        cases[f"layers, {closure}"] = layers(closure)
        for form in ("tar.zst", "tar.gz"):
            cases[f"{form}, {closure}"] = single(closure, form)
    return cases


_PACKING = _packing_cases()


def _pack_quickstart(rounds: Rounds, place: _Place) -> None:
    file = str(place.analysis / "quickstart.ipynb")
    for closure in _MOST_SIZE:
        output = _output(place, f"quickstart-{closure}.tar.zst")
        name, cache = f"quickstart, {closure}", place.fresh("single")
        place.run(rounds, name, "single", cache, file=file, output=output, closure=closure)


def _again(rounds: Rounds, place: _Place) -> None:
    folder, output = str(place.analysis), _output(place, "again.tar.zst")
    edited = str(place.analysis / "selection.py")
    place.run(rounds, "unchanged", "again", "full", folder=folder, edit=None)
    place.run(rounds, "edited", "again", "full", folder=folder, edit=edited)
    # the first time writes what the second finds
    command = ["env", "pack", str(place.analysis / "zmumu.ipynb"), "-o", output]
    if "command, unchanged" not in rounds.told:
        place.run(rounds, "command, pack", "command", "full", arguments=command, times=1)
    place.run(rounds, "command, unchanged", "command", "full", arguments=command, times=1)


def _work(rounds: Rounds, place: _Place, at: int) -> None:
    folder, files = str(place.analysis), (_EVENTS, _FILES)
    order = list(in_turn(["worker", "tar", "single"], at))
    archive = _output(place, "full.tar.gz")
    place.run(rounds, "unpack", "unpack", "full", folder=folder, single_file=archive, order=order)
    place.run(rounds, "starts", "starts", "full", folder=folder, pairs=_PAIRS)
    run = {"folder": folder, "files": files}
    if at == 0:
        # what the processor refers to is packed before the clock starts
        place.run(
            rounds, "run, packing", "runs", "full", environment="packed", unpacked=False, **run
        )
    for name in in_turn(["run, live", "run, to be unpacked", "run, packed"], 0):
        kept = name != "run, to be unpacked"
        what = None if name == "run, live" else "packed"
        place.run(rounds, name, "runs", "full", environment=what, unpacked=kept, **run)


def _seconds(rounds: Rounds, name: str, run: int = 0) -> Spread:
    return rounds.spread(name, lambda one: one["seconds"][run])


def _analysis_lines(rounds: Rounds) -> list[Line]:
    section = "Analysis of a notebook of 40 cells"

    def line(label: str, name: str, run: int, target: float) -> Line:
        return Line(section, label, "s", _seconds(rounds, name, run), target)

    return [
        line("first time, in a process", "analyze, first", 0, _MOST_ANALYZE_S),
        line("first time, as a command", "command, first", 0, _MOST_ANALYZE_S),
        line("index cached, new process", "analyze, indexed", 0, _MOST_INDEXED_S),
        line("index cached, same process", "analyze, indexed", 1, _MOST_INDEXED_S),
        line("index cached, as a command", "command, indexed", 0, _MOST_INDEXED_S),
    ]


def _packing_lines(rounds: Rounds) -> list[Line]:
    section = f"First pack, beside {_PEER} of what is installed"
    tar_mb = rounds.told["tar"][0]["size_mb"]
    no_bytecode = rounds.told["tar, no bytecode"][0]
    lines = []

    def size(name: str) -> Spread:
        return rounds.spread(name, lambda one: one["size_mb"])

    for name in list(_PACKING)[1:]:
        closure = name.rpartition(" ")[2]
        ratio = (
            Spread.of([rounds.told[name][0]["seconds"][0] / rounds.told["tar"][0]["seconds"][0]])
            if name in _ONCE
            else rounds.ratio((name, 0), ("tar", 0))
        )
        to_tar = size(name).times(1 / tar_mb)
        lines += [
            Line(section, f"{name}: time / {_PEER}", "", ratio, _MOST_TIME),
            Line(section, f"{name}: size / {_PEER}", "", to_tar, _MOST_SIZE[closure]),
        ]
    for name in _PACKING:
        peak = rounds.spread(name, lambda one: one.get("peak_mb", 0.0))
        lines += [
            Line(section, f"{name}: time", "s", _seconds(rounds, name)),
            Line(section, f"{name}: size", "MB", size(name)),
        ]
        if peak.most:
            lines.append(Line(section, f"{name}: peak memory", "MB", peak))
    return [
        *lines,
        *_parts_lines(rounds, section),
        Line(section, "tar without bytecode: time", "s", Spread.of(no_bytecode["seconds"])),
        Line(section, "tar without bytecode: size", "MB", Spread.of([no_bytecode["size_mb"]])),
        *(
            Line(
                section,
                f"quickstart.ipynb, tar.zst, {closure}: size",
                "MB",
                size(f"quickstart, {closure}"),
            )
            for closure in _MOST_SIZE
        ),
    ]


def _parts_lines(rounds: Rounds, section: str) -> list[Line]:
    """Say what packing spends its time on, and how large each layer is."""
    name = "layers, full"
    lines = [
        Line(
            section,
            f"{name}: {part}",
            "s",
            rounds.spread(name, lambda one, part=part: one["spent"][part]),
        )
        for part in ("import", "analyze", "plan", "build")
    ]
    for at, label in enumerate(("interpreter", "packages", "other packages")):
        lines.append(
            Line(
                section,
                f"{name}: {label}",
                "MB",
                rounds.spread(name, lambda one, at=at: one["layers"][at][1]),
            )
        )
    return lines


def _again_lines(rounds: Rounds) -> list[Line]:
    section = "Packed again, as a run does"
    edited_kb = rounds.spread("edited", lambda one: one["code_kb"])
    return [
        Line(
            section,
            "unchanged, same process",
            "s",
            _seconds(rounds, "unchanged", 1),
            _MOST_UNCHANGED_S,
        ),
        Line(
            section, "unchanged, new process", "s", _seconds(rounds, "unchanged"), _MOST_UNCHANGED_S
        ),
        Line(section, "unchanged, as a command", "s", _seconds(rounds, "command, unchanged")),
        Line(
            section,
            "a local module edited, same process",
            "s",
            _seconds(rounds, "edited", 1),
            _MOST_EDITED_S,
        ),
        Line(
            section,
            "a local module edited, new process",
            "s",
            _seconds(rounds, "edited"),
            _MOST_EDITED_S,
        ),
        Line(section, "a local module edited: shipped", "kB", edited_kb, _MOST_EDITED_KB),
    ]


def _worker_lines(rounds: Rounds) -> list[Line]:
    section = "On the worker"

    def unpack(run: int) -> Spread:
        return rounds.ratio(("unpack", 0), ("unpack", run))

    def more(name: str, run: int) -> Spread:
        pairs = rounds.quiet(name, "run, live")
        return Spread.of([one["seconds"][run] - two["seconds"][run] for one, two in pairs])

    start_ms = rounds.spread("starts", lambda one: one["more_ms"])
    return [
        Line(
            section, "first line of the worker / tar x of the layers", "", unpack(1), _MOST_UNPACK
        ),
        Line(section, "first line of the worker / tar xzf of one file", "", unpack(2)),
        Line(section, "first line of the worker", "s", _seconds(rounds, "unpack")),
        Line(section, "tar x of the layers", "s", _seconds(rounds, "unpack", 1)),
        Line(section, "tar xzf of one file", "s", _seconds(rounds, "unpack", 2)),
        Line(section, "later start, more than python3 -c pass", "ms", start_ms, _MOST_START_MS),
        Line(section, "python3 -c pass", "ms", _seconds(rounds, "starts", 1).times(1e3)),
        Line(section, "first run, live", "s", _seconds(rounds, "run, live")),
        Line(section, "first run, more: to be unpacked", "s", more("run, to be unpacked", 0)),
        Line(section, "first run, more: unpacked", "s", more("run, packed", 0)),
        Line(section, "second run, live", "s", _seconds(rounds, "run, live", 1)),
        Line(section, "second run, more: packed", "s", more("run, packed", 1)),
    ]
