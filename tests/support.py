"""What integration tests share: a way to run things, and what should come of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import analysis
import pytest
from coffea.nanoevents import BaseSchema
from coffea.processor import Runner

import hepscale
from hepscale import HepScaleExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

EVENTS = 60
CHUNK = 10

# what a test waits for comes at once, but not on a machine that others keep busy
PATIENCE_S = 30.0


def run(
    processor: Any,
    fileset: Any,
    *,
    chunksize: int = CHUNK,
    metadata_cache: Any = None,
    **options: Any,
) -> Any:
    """Run through `HepScaleExecutor`; chunks that raise are not repeated unless asked for."""
    options = {"cores": 2, "retries": 0, "status": False, **options}
    runner = Runner(
        executor=HepScaleExecutor(**options),
        schema=BaseSchema,
        chunksize=chunksize,
        metadata_cache=metadata_cache,
    )
    return runner(fileset, processor_instance=processor, treename="Events")


def ranges(files: Collection[str], chunksize: int = CHUNK) -> set[tuple[str, int, int]]:
    """Return the chunks of these files as `analysis.tally` names them."""
    return {
        (os.path.basename(file), start, start + chunksize)
        for file in files
        for start in range(0, EVENTS, chunksize)
    }


def tally_of(chunks: Collection[tuple[str, int, int]]) -> dict[str, Any]:
    """Return what `analysis.tally` gives for these chunks, added up by hand."""
    return {
        "events": sum(stop - start for _, start, stop in chunks),
        "sum": sum(value(name, at) for name, start, stop in chunks for at in range(start, stop)),
        "chunks": set(chunks),
    }


def value(name: str, entry: int) -> int:
    """Return what `x` is for an event of a file called ``good_N.root``."""
    return 1000 * int(name.partition("_")[2].partition(".")[0]) + entry


def first_chunk(files: list[str]) -> tuple[str, int, int]:
    """Return the first chunk of the first file."""
    return os.path.basename(files[0]), 0, CHUNK


def broken(error: hepscale.HepScaleError) -> set[tuple[str, int, int]]:
    """Return the chunks that an error lists as failed."""
    return {(os.path.basename(one.file), one.start, one.stop) for one in error.failed}


def failing(
    processor: Any,
    fileset: Any,
    kind: type[BaseException] = hepscale.ChunksFailed,
    **options: Any,
) -> Any:
    """Run, and return the error that this ends with, which has to be a complete one of ours."""
    with pytest.raises(kind) as caught:
        run(processor, fileset, **options)
    print(caught.value)
    return complete(caught.value)


def complete(error: Any) -> Any:
    """Check what every error of ours has: a fact, and what to do next."""
    assert isinstance(error, hepscale.HepScaleError)
    text = str(error)
    assert text.startswith(error.fact)
    assert error.fact.endswith(".")
    assert error.fix
    assert f"Next: {error.fix}" in text
    assert "hepscale_worker" not in text
    return error


BAD = ("good_1.root", 20, 30)


def only(bad: tuple[str, int, int], misbehave: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a processor that does this in one chunk."""

    def process(events: Any) -> Any:
        return misbehave(events) if analysis.where(events) == bad else analysis.tally(events)

    return process


def check(error: Any, files: Any, kind: str, *texts: str) -> hepscale.ChunkFailure:
    """Check that chunk `BAD` is reported and all others are counted; run a good processor."""
    assert broken(error) == {BAD}
    failure: hepscale.ChunkFailure
    (failure,) = error.failed
    assert isinstance(failure, hepscale.ChunkFailure)
    assert failure.kind == kind
    assert failure.dataset == "data"
    assert error.partial_output == tally_of(ranges(files.good) - {BAD})
    text = str(error)
    assert f"{files.good[1]}, entries 20 to 30: {failure.reason}" in text
    assert error.fact == "1 of 18 chunks failed, 17 are counted."
    assert error.cause
    for one in texts:
        assert one in text
    assert run(analysis.tally, files.fileset) == tally_of(ranges(files.good))
    return failure


# -- processes -----------------------------------------------------------------------------------


def processes(marker: str = "") -> dict[int, str]:
    """Return the processes, besides this one, that were started with our scratch folder."""
    wanted = (marker or f"HEPSCALE_SCRATCH_DIR={os.environ['HEPSCALE_SCRATCH_DIR']}").encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(folder.name)] = command
    return found


def scratch() -> list[str]:
    """Return what lies in the scratch folder: forkservers' folders and what is in them."""
    top = Path(os.environ["HEPSCALE_SCRATCH_DIR"])
    own = {"environment", "lock", "log", "s", "settings.json"}
    return sorted(
        str(path.relative_to(top))
        for folder in top.iterdir()
        for path in (folder, *(folder.iterdir() if folder.is_dir() else ()))
        if path.name not in own
    )


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """Wait until the condition holds, and return what it gave."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)
    return found


class Gate:
    """A door that chunks wait at until a test opens it; it pickles, and knows who came."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def arrive(self, name: str = "") -> None:
        (self.folder / f"came-{name}-{os.getpid()}").touch()

    def wait(self, name: str = "") -> None:
        """Called by a chunk."""
        self.arrive(name)
        while not (self.folder / "open").exists():
            time.sleep(0.005)

    def came(self) -> list[int]:
        """Return the processes that came, in the test."""
        return [int(path.name.rpartition("-")[2]) for path in self.folder.glob("came-*")]

    def open(self) -> None:
        (self.folder / "open").touch()


# -- scripts -------------------------------------------------------------------------------------


class Script:
    """A Python script in a process of its own; what it tells with `print` can be waited for."""

    def __init__(self, path: Path, *args: object, **environ: str) -> None:
        path_of_modules = [os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, str(path), *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=path.parent,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, path_of_modules)),
                **environ,
            },
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def finish(self, code: int = 0) -> Any:
        """Wait for it; return what the last line that it printed holds, as JSON."""
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == code, err
        self.err = err
        return json.loads(out.splitlines()[-1]) if out.strip() else None


@contextmanager
def script(path: Path, source: str, *args: object, **environ: str) -> Iterator[Script]:
    """Write a script and run it; it does not outlive the block."""
    path.write_text(source)
    started = Script(path, *args, **environ)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()


def as_json(output: dict[str, Any]) -> dict[str, Any]:
    """Return a tally as it comes out of JSON."""
    return {**output, "chunks": sorted([list(one) for one in output["chunks"]])}


def python(*args: str, cwd: Path, **environ: str) -> str:
    """Run Python, which has to succeed and to say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environ},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
