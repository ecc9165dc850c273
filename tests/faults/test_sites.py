"""Workers of a batch system, in another root and behind another network, that are cut off."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import crew as crews
import elsewhere
import packed
import ports
import pytest
import queues
import slurm
import support
from crew import meanwhile

import hepscale
from hepscale import Workers
from hepscale.executor.engines import manager as managers

pytestmark = [queues.needs_worker, pytest.mark.root, pytest.mark.usefixtures("few")]


def test_a_slurm_job_is_cancelled(crew, monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, slurm.running(Path(folder)) as here:
        monkeypatch.setenv("SLURM_CONF", str(here.config))
        monkeypatch.setenv("HEPSCALE_CACHE_DIR", f"{folder}/cache")

        def act():
            crews.busy_workers(2)
            before = {pid: crews.members(pid) for pid in crews.workers()}
            job = here.ask("squeue", "--noheader", "--array", "--format=%i").splitlines()[0]
            here.ask("scancel", job)
            support.wait_for(lambda: len(crews.workers()) == 1)
            for gone in {*before} - {*crews.workers()}:
                support.wait_for(lambda gone=gone: not crews.members(gone))

        with meanwhile(act):
            crew.run(count=150, workers=Workers("slurm", count=2))
        hepscale.shutdown()


# -- workers elsewhere -----------------------------------------------------------------------------


@pytest.fixture
def secret():
    # in a folder that a root of its own has too
    path = Path(os.environ["HEPSCALE_SCRATCH_DIR"]) / "password"
    path.touch(0o600)
    path.write_text("secret")
    yield path
    path.unlink()


def test_a_worker_in_a_bare_root(tmp_path, secret):
    place, port = tmp_path / "place", ports.free("")
    chroot = elsewhere.bare_root(tmp_path / "bare", secret.parent, tmp_path, engine=crews.engine)

    def where(item):
        return item, os.path.exists("/usr/bin/python3"), sys.prefix

    options = {"engine": crews.engine, "port": port, "password_file": secret}
    with elsewhere.worker(f"127.0.0.1:{port}", secret, place, *chroot, engine=crews.engine):
        found = packed.calculate(where, range(10), **options)
    assert [item for item, *_ in found] == [*range(10)]
    assert not any(python for _, python, _ in found)
    assert all(prefix.startswith(str(place)) for *_, prefix in found)


def test_a_network_is_cut_and_put_back(crew, tmp_path, secret, monkeypatch):
    monkeypatch.setattr(managers, "_SILENT_S", 1)
    monkeypatch.setattr(managers, "_ANSWER_S", 1)
    port = ports.free("")
    options = {"port": port, "password_file": secret, "workers": None, "seconds": 0.2}
    with elsewhere.network() as (within, host, link):

        def act():
            crew.wait(10)
            link("down")
            support.wait_for(lambda: not crews.manager().joined)
            link("up")

        address, place = f"{host}:{port}", tmp_path / "place"
        away = elsewhere.worker(address, secret, place, *within, engine=crews.engine)
        with away, meanwhile(act):
            crew.run(count=40, **options)
    assert sum(crew.times().values()) > 40
