"""Fixtures for all tests: places of their own for what HepScale keeps, and small input files."""

from __future__ import annotations

import os
import secrets
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import packed
import parrots
import pytest
import support
import uproot
import wheels

import hepscale

# a machine that others use keeps no time limits for single examples
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")

if TYPE_CHECKING:
    from collections.abc import Iterator


# under nohup, and in the background of a shell, they are ignored, and would be by all processes
# that tests start and send them to
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[pytest.TestReport]:
    """Make a skipped test a failed one where nothing may be skipped."""
    report = yield
    if report.skipped and os.environ.get("HEPSCALE_TEST_STRICT"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but HEPSCALE_TEST_STRICT is set: {report.longrepr}"
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes a real Parrot where nothing may be skipped: none can be installed."""
    marked = [item for item in items if item.get_closest_marker("parrot")]
    if marked and os.environ.get("HEPSCALE_TEST_STRICT") and not parrots.real():
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


@pytest.fixture(scope="session", autouse=True)
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep journals, scratch folders, caches, settings away from those of who runs the tests."""
    # its number, and pytest's, may be those of a run before, of which something may still be there
    top = tmp_path_factory.mktemp(f"hepscale-{secrets.token_hex(3)}", numbered=False)
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in (
            ("HEPSCALE_RUN_DIR", "runs"),
            ("HEPSCALE_SCRATCH_DIR", "scratch"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_CONFIG_HOME", "config"),
        ):
            (top / folder).mkdir()
            patch.setenv(name, str(top / folder))
        patch.setenv("HEPSCALE_VIEW", "off")
        yield top
        hepscale.shutdown()


@dataclass(frozen=True)
class Files:
    """Paths of small ROOT files; `good` ones hold the integers ``x`` that `support.value` says."""

    good: list[str]
    empty: str
    no_tree: str
    truncated: str
    cut_short: str
    not_root: str
    missing: str

    @property
    def fileset(self) -> dict[str, list[str]]:
        return {"data": self.good}

    def with_bad(self, name: str) -> dict[str, list[str]]:
        """Return a fileset of the good files and one other."""
        return {"data": [*self.good, getattr(self, name)]}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Write the input files."""
    top = tmp_path_factory.mktemp("files")

    def written(
        name: str, first: int, events: int, tree: str = "Events", basket: int = 1000
    ) -> str:
        with uproot.recreate(top / name) as out:
            out.mktree(tree, {"x": "int64"})
            for begin in range(0, events, basket):
                stop = min(begin + basket, events)
                out[tree].extend({"x": np.arange(first + begin, first + stop)})
        return str(top / name)

    def cut(source: str, name: str, size: int) -> str:
        (top / name).write_bytes(Path(source).read_bytes()[:size])
        return str(top / name)

    good = [written(f"good_{n}.root", 1000 * n, support.EVENTS) for n in range(3)]
    baskets = written("good_9.root", 9000, 6000, basket=3000)
    with uproot.open(baskets) as whole:
        second = whole["Events"]["x"].member("fBasketSeek")[1]
    (top / "page.root").write_text("<html>404 Not Found</html>\n" * 50)
    return Files(
        good,
        empty=written("empty.root", 0, 0),
        no_tree=written("no_tree.root", 0, 5, tree="Runs"),
        truncated=cut(baskets, "truncated.root", 300),
        cut_short=cut(baskets, "good_9.root", second + 1),
        not_root=str(top / "page.root"),
        missing=str(top / "no_such_file.root"),
    )


@pytest.fixture
def settled() -> Iterator[None]:
    """Check that a test leaves nothing but warm forkservers behind: no task, no file."""
    yield
    support.wait_for(lambda: not left_over())


@pytest.fixture(scope="module")
def nothing_left() -> Iterator[None]:
    """Check, when the last test of a module is over, that `shutdown` leaves nothing at all."""
    yield
    hepscale.shutdown()
    assert support.processes() == {}
    assert support.scratch() == []


def left_over() -> list[object]:
    servers = {name.partition("/")[0] for name in support.scratch() if "/" not in name}
    deeper = [name for name in support.scratch() if "/" in name]
    running = support.processes()
    return [*deeper, *(running.values() if len(running) > len(servers) else ())]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packed runs need few packages, and forget what earlier ones have missed."""
    packed.without_coffea(monkeypatch)
    packed.forget()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that says what runs with ``status=True`` have told."""
    monkeypatch.setenv("HEPSCALE_VIEW", "lines")
    return lambda: [
        line.partition("note: ")[2]
        for line in capsys.readouterr().err.splitlines()
        if "note: " in line and "Packing" not in line
    ]


@pytest.fixture(scope="session")
def venv(tmp_path_factory: pytest.TempPathFactory) -> wheels.Venv:
    """Return a venv that no test changes."""
    return wheels.make(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the script of an analysis that uses the venv, in a folder of the module's own."""
    return wheels.analysis(tmp_path_factory.mktemp("analysis"))
