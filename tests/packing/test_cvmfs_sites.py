"""The demo with a correction and a package from CVMFS, on workers that nobody prepared for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import elsewhere
import packed
import ports
import publisher
import pytest
import queues
import squids
from coffea.nanoevents import NanoAODSchema
from coffea.processor import IterativeExecutor, Runner
from objects import Server, serving

import hepscale
from hepscale import CvmfsConfig, HepScaleExecutor
from hepscale.demo import ZMuMuProcessor
from hepscale.demo_events import generate
from hepscale.executor import placing

pytestmark = [queues.needs_worker, pytest.mark.root, pytest.mark.timeout(600)]

NAME = "hepscale.example.org"
SCALE = 1.02
PACKAGE = '''\
"""Muon momenta as they should be."""
import json

def corrected(pt):
    with open("/cvmfs/hepscale.example.org/corrections/muons.json") as file:
        return pt * json.load(file)["scale"]
'''
TREE = {
    "corrections": {"muons.json": json.dumps({"scale": SCALE}).encode()},
    "py": {"muon_scale": {"__init__.py": PACKAGE.encode()}},
}


class Corrected(ZMuMuProcessor):
    """The demo, with what a package below /cvmfs makes of momenta."""

    def process(self, events):
        from muon_scale import corrected

        events["Muon", "pt"] = corrected(events.Muon.pt)
        return super().process(events)


class Known(ZMuMuProcessor):
    """The same, worked out here."""

    def process(self, events):
        events["Muon", "pt"] = events.Muon.pt * SCALE
        return super().process(events)


def run(executor, fileset, instance):
    runner = Runner(executor=executor, schema=NanoAODSchema, chunksize=5_000, metadata_cache={})
    return runner(fileset, processor_instance=instance, treename="Events")


@pytest.fixture(scope="module")
def fileset(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("events"), events=20_000, files=2)


@pytest.fixture(scope="module")
def expected(fileset):
    found = run(IterativeExecutor(status=False), fileset, Known())
    plain = run(IterativeExecutor(status=False), fileset, ZMuMuProcessor())
    assert found["mass"] != plain["mass"]
    return found


@pytest.fixture
def secret():
    # in a folder that another root has too
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "password")
        path.touch(0o600)
        path.write_text("secret")
        yield path


@contextmanager
def published(folder: Path) -> Iterator[tuple[Server, Path]]:
    """Serve the repository to this machine only; yield the server and the key."""
    site = publisher.publish(folder / "site", NAME, TREE)
    (folder / "key.pub").write_text(site.key)
    with serving(site.files()) as server:
        yield server, folder / "key.pub"


@pytest.fixture
def analysis(monkeypatch, secret):
    """Run the demo with workers that come to a port; return its output."""
    packed.own(Corrected)
    monkeypatch.syspath_prepend(f"/cvmfs/{NAME}/py")
    port = ports.free("")

    def start(fileset, config):
        options = {"engine": "workqueue", "port": port, "password_file": secret}
        executor = HepScaleExecutor(cvmfs=config, closure="imports", status=False, **options)
        return run(executor, fileset, Corrected())

    yield start, port
    hepscale.shutdown()


def test_in_a_bare_root(tmp_path, fileset, expected, analysis, secret):
    start, port = analysis
    data = Path(next(iter(fileset.values()))[0]).parent
    place = tmp_path / "place"
    within = elsewhere.bare_root(tmp_path / "bare", secret.parent, place.parent, data)
    with published(tmp_path) as (server, key):
        config = CvmfsConfig([NAME], server.url, key, "DIRECT", cache=str(tmp_path / "cache"))
        with elsewhere.worker(f"127.0.0.1:{port}", secret, place, *within):
            assert start(fileset, config) == expected
    assert server.asked[".cvmfspublished"]


def test_behind_a_network_that_leads_to_a_squid_only(
    tmp_path, fileset, expected, analysis, secret, monkeypatch
):
    # that which is packed is tried in a bare root
    monkeypatch.setattr(placing, "default_environment", lambda engine: None)
    start, port = analysis
    cache, place = str(tmp_path / "cache"), tmp_path / "place"
    with (
        published(tmp_path) as (server, key),
        elsewhere.network() as (within, host, _),
        squids.running(tmp_path, host) as squid,
    ):
        config = CvmfsConfig([NAME], server.url, key, f"http://{squid}", cache=cache)
        # there the server is not
        look = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)"
        looked = subprocess.run(
            [*within, sys.executable, "-c", look, server.url], capture_output=True, check=False
        )
        assert b"URLError" in looked.stderr
        with elsewhere.worker(f"{host}:{port}", secret, place, *within):
            assert start(fileset, config) == expected
    assert server.asked[".cvmfspublished"]
    assert not os.path.exists(f"/cvmfs/{NAME}")
