"""Packed environments on machines that have no Python of their own.

What is imported only is tried in such a root by `test_cvmfs_sites`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import bare
import pytest
from coffea.nanoevents import NanoAODSchema
from coffea.processor import Runner

import hepscale
from hepscale import HepScaleExecutor
from hepscale.demo import ZMuMuProcessor
from hepscale.demo_events import generate
from hepscale.executor import placing
from hepscale.executor.engines.local import LocalEngine

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def fileset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("events")
    return generate(folder, events=20_000, files=2)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give workers folders of their own, and end them before these go."""
    for name in ("scratch", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HEPSCALE_SCRATCH_DIR", str(tmp_path / "scratch"))
    yield tmp_path
    hepscale.shutdown()


def run(fileset: dict[str, list[str]], **options: object) -> dict[str, object]:
    executor = HepScaleExecutor(cores=2, status=False, **options)
    runner = Runner(executor=executor, schema=NanoAODSchema, chunksize=5_000, metadata_cache={})
    return runner(fileset, processor_instance=ZMuMuProcessor(), treename="Events")


def run_within(
    within: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    fileset: dict[str, list[str]],
    **options: object,
) -> dict[str, object]:
    monkeypatch.setattr(placing, "LocalEngine", partial(LocalEngine, within=within))
    return run(fileset, environment="packed", **options)


def test_the_demo_runs_in_a_chroot_without_python(
    place: Path, fileset: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(fileset)
    data = Path(next(iter(fileset.values()))[0]).parent
    cache = Path(os.environ["XDG_CACHE_HOME"])
    within = bare.chroot(place / "chroot", place / "scratch", cache, data)
    assert run_within(within, monkeypatch, fileset) == expected


def test_the_demo_runs_where_home_and_python_are_hidden(
    place: Path, fileset: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(fileset)
    within = bare.without(*bare.ours())
    assert run_within(within, monkeypatch, fileset) == expected
