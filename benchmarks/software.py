"""Software from CVMFS, mounted by the worker's own client, beside a copy on a local disk.

Where this machine has a client of CVMFS, ``cvmfs2``, it is measured beside such a copy as well.

The repository is the one in ``../shared/data`` (or the folder that ``HEPSCALE_TEST_DATA`` names),
else one like it that is published for the purpose. A web server of Python's serves it here.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import Line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.rounds import Rounds

__all__ = ["software"]

_CHECKOUT = Path(__file__).parents[1]
_TESTS = _CHECKOUT / "tests"
_NAME = "hepscale.example.org"
_PEER = "cvmfs2"
_COMMAND = (sys.executable, "-c", "from benchmarks.software import main; main()")
_MOST = {"cat": 1.5, "find": 4.0, "import": 3.0}
_MOST_COLD_IMPORT = 12.0
_TIMES, _QUICK_TIMES = 9, 3
_MODULES, _SMALL, _MB = 204, 5000, 1 << 20
_IMPORT = (
    "import sys, importlib, pkgutil; sys.path.insert(0, 'sw/pyana'); import pyana;"
    "[importlib.import_module(one.name) for one in pkgutil.walk_packages(pyana.__path__, 'pyana.')]"
)
_COMMANDS = {
    "import": [sys.executable, "-I", "-S", "-B", "-c", _IMPORT],
    "find": ["sh", "-c", "find many | wc -l"],
    "cat": ["sh", "-c", "cat big/chunked_34M.bin"],
}
_COPY = """
os.mkdir(local)
subprocess.run(["cp", "-r", "sw", "many", "big", local], check=True)
"""
# runs inside, where it is mounted: each command in the mount and in the copy, in turn
_MEASURE = """
import statistics, time

def seconds(command, place):
    begun = time.perf_counter()
    subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun

result = {}
for name, command in commands.items():
    cold = seconds(command, ".")
    seconds(command, local)
    pairs = [(seconds(command, "."), seconds(command, local)) for _ in range(times)]
    result[name] = {
        "ratio": statistics.median(ours / theirs for ours, theirs in pairs),
        "cold_ratio": cold / statistics.median(theirs for _, theirs in pairs),
        "hot_ms": 1000 * statistics.median(ours for ours, _ in pairs),
        "cold_ms": 1000 * cold,
    }
"""


def software(rounds: Rounds, number: int, *, quick: bool) -> list[Line]:
    """Files of a mounted repository, once the kernel has them and with an empty cache."""
    place = rounds.folder / "cvmfs"
    settings = _publish(place)
    with _serving(place / "web") as url:
        settings["servers"] = [f"{url}/{_NAME}"]
        for _ in range(number):
            rounds.run(
                "cvmfs",
                "mount",
                within=_COMMAND,
                settings=settings,
                place=str(place),
                times=_QUICK_TIMES if quick else _TIMES,
            )
    return _lines(rounds)


def _lines(rounds: Rounds) -> list[Line]:
    section = "CVMFS, mounted by the own client, beside a local copy"

    def line(label: str, unit: str, case: str, key: str, target: float | None = None) -> Line:
        return Line(
            section, label, unit, rounds.spread("cvmfs", lambda one: one[case][key]), target
        )

    what = {"import": f"import of {_MODULES} modules", "find": "find over 5,000 names"}
    what["cat"] = "cat of a file of 33.5 MB"
    lines = [
        *(line(f"{what[one]}, hot / local", "", one, "ratio", _MOST[one]) for one in _MOST),
        line(f"{what['import']}, cold / local", "", "import", "cold_ratio", _MOST_COLD_IMPORT),
        line(f"{what['find']}, cold / local", "", "find", "cold_ratio"),
        line(f"{what['cat']}, cold / local", "", "cat", "cold_ratio"),
        line(f"{what['import']}, hot", "ms", "import", "hot_ms"),
        line(f"{what['import']}, cold", "ms", "import", "cold_ms"),
        line("mounting, empty cache", "ms", "mount", "cold_ms"),
        line("mounting, warm cache", "ms", "mount", "warm_ms"),
    ]
    if all(_PEER in one for one in rounds.told["cvmfs"]):
        lines += _peer_lines(rounds, what)
    return lines


def _peer_lines(rounds: Rounds, what: dict[str, str]) -> list[Line]:
    section = f"The same by {_PEER}, the client of this machine"

    def line(label: str, unit: str, case: str, key: str) -> Line:
        return Line(section, label, unit, rounds.spread("cvmfs", lambda one: one[_PEER][case][key]))

    return [
        *(line(f"{what[one]}, hot / local", "", one, "ratio") for one in _MOST),
        *(line(f"{what[one]}, cold / local", "", one, "cold_ratio") for one in _MOST),
        line("mounting, empty cache", "ms", "mount", "cold_ms"),
        line("mounting, warm cache", "ms", "mount", "warm_ms"),
    ]


def _publish(place: Path) -> dict[str, Any]:
    """Unpack or publish the repository; return what a client is told of it."""
    given = os.environ.get("HEPSCALE_TEST_DATA")
    data = (Path(given) if given else _CHECKOUT.parent / "shared" / "data") / "cvmfs"
    web = place / "web" / _NAME
    if (data / "repo.tar").exists():
        with tarfile.open(data / "repo.tar") as archive:
            archive.extractall(web, filter="data")
        key = (data / "repo.pub").read_text()
        return {"name": _NAME, "keys": [key], "root_hash": None, "tag": None, "blacklist": []}
    sys.path.append(str(_TESTS))
    from publisher import File, Folder, publish

    modules = {f"m{one:03}.py": b"VALUE = %d\n" % one for one in range(_MODULES - 2)}
    pyana = {"__init__.py": b"", "corr": {"__init__.py": b"", **modules}}
    content = random.Random(1).randbytes(_MB) * 33
    small = {f"f{one:04}.txt": b"%d\n" % one for one in range(_SMALL)}
    tree = {
        "sw": Folder({"pyana": {"pyana": pyana}}, nested=True),
        "many": Folder(small, nested=True),
        "big": {"chunked_34M.bin": File(content=content, chunk=8 * _MB)},
    }
    return publish(web, _NAME, tree).settings()


@contextmanager
def _serving(folder: Path) -> Iterator[str]:
    code = (
        "import pathlib, sys; from web import served\n"
        "with served(pathlib.Path(sys.argv[1])) as url: print(url, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_TESTS), str(_CHECKOUT)])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


def mount(settings: dict[str, Any], place: str, times: int) -> dict[str, Any]:
    """Measure in a mount with an empty cache, and how long mounting it again takes."""
    local = Path(place, "local")
    begun = time.perf_counter()
    found = _measured(settings, local, Path(place, "cache"), times, "client")
    if shutil.which(_PEER):
        found[_PEER] = _measured(settings, local, Path(place, _PEER), times, _PEER)
    return {"seconds": [time.perf_counter() - begun], **found}


def _measured(
    settings: dict[str, Any], local: Path, cache: Path, times: int, client: str
) -> dict[str, Any]:
    from cvmfs_mounts import mounted, open_to_all

    with open_to_all():
        if not local.exists():
            with mounted(settings, cache) as inside:
                inside.run(_COPY, local=str(local))
        shutil.rmtree(cache, ignore_errors=True)
        begun = time.perf_counter()
        with mounted(settings, cache, client=client) as inside:
            cold_s = time.perf_counter() - begun
            found: dict[str, Any] = inside.run(
                _MEASURE, commands=_COMMANDS, local=str(local), times=times
            )
        warm = time.perf_counter()
        with mounted(settings, cache, client=client):
            warm_s = time.perf_counter() - warm
    found["mount"] = {"cold_ms": 1000 * cold_s, "warm_ms": 1000 * warm_s}
    return found


def main() -> None:
    """Run the case; the last line that is printed is the result, as JSON."""
    sys.path.append(str(_TESTS))
    result: dict[str, Any] = {"mount": mount}[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps(result), flush=True)
