"""What is measured of environments, in processes of the environment that is packed.

The command `COMMAND` runs one case there, as `benchmarks.child` does here: options come as JSON,
and so does what came of it. Only HepScale is this checkout's; nothing else is imported beforehand.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from hepscale.env.environment import Closure, Environment

# not "-m": a process whose main module has a file is one whose file is analysed
COMMAND = ("-c", "from benchmarks.packing import main; main()")
# the command line, of this checkout too
_CLI = ("-c", "from hepscale.cli import main; main()")
_MB = 1e6


def analyze(file: str, times: int) -> dict[str, Any]:
    """Analyse a file several times; the first time what does it is imported too."""
    import hepscale

    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        found = hepscale.analyze(file)
        seconds.append(time.perf_counter() - begun)
    _check(not found.missing, f"missing: {found.missing}")
    local = [one.name for one in found.modules]
    return {"seconds": seconds, "distributions": len(found.distributions), "local": local}


def command(arguments: list[str], times: int) -> dict[str, Any]:
    """Run ``hepscale ARGUMENTS`` several times, from the start of a process to its end."""
    seconds, peak_mb = [], 0.0
    for _ in range(times):
        begun = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *_CLI, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            said = process.stderr.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds.append(time.perf_counter() - begun)
        peak_mb = max(peak_mb, used.ru_maxrss * 1024 / _MB)
        _check(process.returncode == 0, said.decode())
    return {"seconds": seconds, "peak_mb": peak_mb}


def archive(output: str, bytecode: bool) -> dict[str, Any]:
    """Write what is installed, and the interpreter, with tar and gzip.

    That is the venv's packages and programs, the interpreter, its library, and the standard
    library, without what only serves to compile against it.
    """
    library = Path(sysconfig.get_path("stdlib"))
    shared = Path(sysconfig.get_config_var("LIBDIR") or "/", sysconfig.get_config_var("INSTSONAME"))
    plain = "" if bytecode else "--exclude=__pycache__"
    packages = Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    without = f"{plain} --exclude='config-*' --exclude=site-packages --exclude=dist-packages"
    parts = [
        f"tar {plain} -cf - -C '{sys.prefix}' bin '{packages}'",
        f"tar {without} -cf - -C '{library.parent}' '{library.name}'",
        f"tar -chf - -C / '{_below_root(sys._base_executable)}'",  # type: ignore[attr-defined]
    ]
    if ".so" in shared.name and shared.exists():
        parts.append(f"tar -chf - -C / '{_below_root(str(shared))}'")
    seconds = [_shell(f"{{ {'; '.join(parts)}; }} | gzip -4 >'{output}'")]
    return {"seconds": seconds, "size_mb": _size_mb(Path(output))}


def layers(folder: str, closure: Closure) -> dict[str, Any]:
    """Pack what a run ships."""
    os.sync()
    begun = time.perf_counter()
    made, spent = _build(folder, closure)
    seconds = time.perf_counter() - begun
    kinds = [(one.kind, one.size_bytes / _MB, one.unpacked_bytes / _MB) for one in made.layers]
    return {
        "seconds": [seconds],
        "spent": spent,
        "layers": kinds,
        "size_mb": sum(size for _, size, _ in kinds),
        "unpacked_mb": sum(size for _, _, size in kinds),
        "files": sum(one.files for one in made.layers),
        "code_kb": made.code.size_bytes / 1e3 if made.code else 0.0,
        "peak_mb": _peak_mb(),
    }


def single(file: str, output: str, closure: Closure) -> dict[str, Any]:
    """Pack one file that holds everything."""
    import hepscale

    os.sync()
    begun = time.perf_counter()
    made = hepscale.pack(file, output, closure=closure)
    seconds = time.perf_counter() - begun
    return {"seconds": [seconds], "size_mb": made.size_bytes / _MB, "peak_mb": _peak_mb()}


def again(folder: str, edit: str | None) -> dict[str, Any]:
    """Pack layers that are in the store already, twice; `edit` a local module before each.

    Whoever has an executor to run with has imported it before.
    """
    import hepscale.executor.coffea

    assert hepscale.executor.coffea
    seconds, kilobytes = [], []
    for at in range(2):
        if edit is not None:
            with open(edit, "a") as stream:
                stream.write(f"# edited {at} {time.time_ns()}\n")
        begun = time.perf_counter()
        made, _ = _build(folder, "full")
        seconds.append(time.perf_counter() - begun)
        assert made.code is not None
        kilobytes.append(made.code.size_bytes / 1e3)
    return {"seconds": seconds, "code_kb": max(kilobytes)}


def unpack(folder: str, single_file: str, order: list[str]) -> dict[str, Any]:
    """Unpack layers as a worker does, and with tar alone; and the single file."""
    with tempfile.TemporaryDirectory(dir=os.environ["HEPSCALE_CACHE_DIR"]) as place:
        made, _ = _build(folder, "full")
        start = _start_command(made, Path(place))
        one, *others = (str(one.path) for one in made.layers)
        tar = f"tar xof - -C '{place}/tar'"
        by_tar = " && ".join(
            [
                f"gzip -dc '{one}' | {tar}",
                *(f"zstd -dcq --long=27 '{two}' | {tar}" for two in others),
            ]
        )
        ways: dict[str, Callable[[], float]] = {
            "worker": lambda: _first_line(start),
            "tar": lambda: _shell(f"mkdir '{place}/tar' && {by_tar}"),
            "single": lambda: _shell(
                f"mkdir '{place}/one' && tar xozf '{single_file}' -C '{place}/one'"
            ),
        }
        spent = {}
        for name in order:
            os.sync()
            spent[name] = ways[name]()
            for left in ("store", "tar", "one"):
                shutil.rmtree(Path(place, left), ignore_errors=True)
    return {"seconds": [spent["worker"], spent["tar"], spent["single"]]}


def starts(folder: str, pairs: int) -> dict[str, Any]:
    """Start the interpreter of an unpacked environment by the worker's way and plainly."""
    with tempfile.TemporaryDirectory(dir=os.environ["HEPSCALE_CACHE_DIR"]) as place:
        made, _ = _build(folder, "full")
        start = _start_command(made, Path(place))
        python = Path(place, "store", made.digest, "bin", "python3")
        _first_line(start)
        # the empty worker, as "pass" is an empty program
        Path(place, "worker", "__main__.py").write_text("pass\n")
        plain = [str(python), "-I", "-c", "pass"]
        _seconds_of(start)
        _seconds_of(plain)
        spent: dict[str, list[float]] = {"worker": [], "plain": []}
        for at in range(pairs):
            for name in ("worker", "plain") if at % 2 else ("plain", "worker"):
                spent[name].append(_seconds_of(start if name == "worker" else plain))
    more = [one - two for one, two in zip(spent["worker"], spent["plain"], strict=True)]
    return {
        "seconds": [median(spent["worker"]), median(spent["plain"])],
        "more_ms": 1e3 * median(more),
    }


def runs(
    folder: str, environment: str | None, files: tuple[int, int], unpacked: bool
) -> dict[str, Any]:
    """Run the analysis twice over few events; the first run starts the worker."""
    from coffea import processor
    from coffea.nanoevents import NanoAODSchema

    from hepscale.demo_events import generate
    from hepscale.executor.coffea import HepScaleExecutor

    fileset = generate(events=files[0], files=files[1])
    if not unpacked:
        shutil.rmtree(Path(os.environ["HEPSCALE_CACHE_DIR"], "unpacked"), ignore_errors=True)
        os.sync()
    sys.path.insert(0, folder)
    import zmumu  # type: ignore[import-not-found]

    seconds = []
    for _ in range(2):
        executor = HepScaleExecutor(cores=1, status=False, environment=environment)
        runner = processor.Runner(
            executor=executor, schema=NanoAODSchema, chunksize=files[0], metadata_cache={}
        )
        begun = time.perf_counter()
        out = runner(fileset, processor_instance=zmumu.ZMuMu(), treename="Events")
        seconds.append(time.perf_counter() - begun)
        counted = sum(one["all events"] for one in out["cutflow"].values())
        _check(counted == files[0], f"{out['cutflow']}")
    return {"seconds": seconds}


def _build(folder: str, closure: Closure) -> tuple[Environment, dict[str, float]]:
    """Pack the layers of the script in this folder, as a run does."""
    times = [time.perf_counter()]
    from hepscale.env import api, environment

    times.append(time.perf_counter())
    found = api.analyze(Path(folder, "zmumu.py"))
    times.append(time.perf_counter())
    planned = api.planned(found)
    times.append(time.perf_counter())
    made = environment.build(planned, api.store(), closure)
    times.append(time.perf_counter())
    _check(not found.missing, f"missing: {found.missing}")
    names = ("import", "analyze", "plan", "build")
    return made, {name: times[at + 1] - times[at] for at, name in enumerate(names)}


def _start_command(made: Environment, place: Path) -> list[str]:
    """Return how a worker is started in an environment; it says one line and ends."""
    from hepscale import worker

    here = Path(worker.__file__).parent
    copy = shutil.copytree(here, place / "worker", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "__main__.py").write_text("print('here', flush=True)\n")
    about = place / "environment"
    about.write_text(made.describe(worker.VERSION))
    stored = made.layers[0].path.parent
    return ["sh", *map(str, (copy / "stage0.sh", about, stored, place / "store", copy))]


def _first_line(line: list[str]) -> float:
    begun = time.perf_counter()
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        seconds = time.perf_counter() - begun
    _check(said == "here\n", f"the worker ended with {process.returncode}")
    return seconds


def _seconds_of(line: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(line, check=True)
    return time.perf_counter() - begun


def _shell(line: str) -> float:
    os.sync()
    return _seconds_of(["sh", "-c", line])


def _below_root(path: str) -> str:
    return os.path.realpath(path).lstrip("/")


def _size_mb(path: Path) -> float:
    return path.stat().st_size / _MB


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MB


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(what)


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    one.__name__: one
    for one in (analyze, command, archive, layers, single, again, unpack, starts, runs)
}


def main() -> None:
    """Run the case; the last line that is printed is the result, as JSON."""
    name, options = sys.argv[1], json.loads(sys.argv[2])
    os.environ["HEPSCALE_CACHE_DIR"] = options.pop("cache")
    os.environ.pop("PYTHONPATH", None)
    print(json.dumps(CASES[name](**options)), flush=True)
