"""Workers of batch systems: real Slurm, and stubs that take what the others would."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import batch_stub
import managers
import pytest
import slurm
import support
from click.testing import CliRunner
from managers import workers_running

from hepscale import EngineError, Workers
from hepscale.cli import main
from hepscale.config import load_settings
from hepscale.workers import groups, records
from hepscale.workers.version import worker_version

pytestmark = managers.needs_worker

KINDS = ("slurm", "condor", "sge", "pbs", "torque")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder whose path wants quoting, in which nothing is left."""
    monkeypatch.setenv("HEPSCALE_CACHE_DIR", str(tmp_path / "it's a cache"))
    yield
    assert records.every(load_settings()) == []
    support.wait_for(lambda: not workers_running())


@pytest.fixture
def stub(tmp_path, monkeypatch):
    def install(kind):
        folder = tmp_path / "bin"
        folder.mkdir()
        batch_stub.install(folder, kind)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        return folder / "jobs"

    return install


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_stubs(stub, listener, tmp_path, kind, count):
    jobs = stub(kind)
    with Workers(kind, count=count, setup=[f"touch '{tmp_path}/set up'"]) as workers:
        workers.start(listener.address, protocol=worker_version().protocol)
        for _ in range(count):
            assert listener.accept().startswith("workqueue ")
        assert (tmp_path / "set up").exists()
        assert workers.alive() == count == len(workers_running())
        os.kill(min(workers_running()), signal.SIGTERM)
        support.wait_for(lambda: workers.alive() == count - 1)
        # it writes when it ends; HTCondor brings that back, and the stub does not
        assert kind == "condor" or "connected to manager" in workers.said()
    support.wait_for(lambda: not workers_running())
    assert re.search("^(scancel|condor_rm|qdel) ", (jobs / "calls").read_text(), re.MULTILINE)
    assert list((tmp_path / "it's a cache/workers").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_stubs_with_a_password(stub, listener, tmp_path, kind):
    stub(kind)
    with Workers(kind) as workers:
        workers.start(listener.address, managers.password_file(tmp_path))
        # a challenge, before it says what it is
        assert not listener.accept().startswith("workqueue")


@pytest.mark.parametrize("kind", KINDS)
def test_refused(stub, listener, kind, tmp_path):
    (stub(kind) / "refuse").touch()
    with pytest.raises(EngineError, match="has refused the workers") as caught:
        Workers(kind).start(listener.address)
    assert "error: no account given" in str(support.complete(caught.value))
    assert list((tmp_path / "it's a cache/workers").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_batch_system(listener, kind, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/work_queue_worker").symlink_to(shutil.which("work_queue_worker"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(EngineError, match="was not found on PATH") as caught:
        Workers(kind).start(listener.address)
    support.complete(caught.value)


def test_a_server_that_fails_later(stub, listener):
    jobs = stub("sge")
    with Workers("sge") as workers:
        workers.start(listener.address)
        listener.accept()
        (jobs / "refuse").touch()
        with pytest.raises(EngineError, match="does not say"):
            workers.alive()
        with pytest.raises(EngineError, match="has not cancelled"):
            workers.stop()
        # it is not forgotten
        assert len(records.every(load_settings())) == 1
        (jobs / "refuse").unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_commands(stub, listener, kind):
    jobs = stub(kind)

    def command(*arguments):
        result = CliRunner().invoke(main, ["workers", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        return result.stdout

    line = {"slurm": "--account=x", "condor": "+Group = x"}.get(kind, "-A x")
    arguments = ["--batch", kind, "--count", 2, "--option", line, listener.address]
    dry = command("start", "--dry-run", *arguments)
    assert not (jobs / "calls").exists()
    identity = command("start", *arguments).partition(":")[0]
    for _ in range(2):
        listener.accept()
    (group,) = records.every(load_settings())
    said = re.findall(r"^# .*/([0-9a-f]{8})/worker\.sh$", dry, re.MULTILINE)
    dry = dry.replace(said[0], identity)
    for path in group.folder.glob("worker.*"):
        assert path.read_text() in dry
        assert line in dry
    called, _, arguments = (jobs / "calls").read_text().splitlines()[0].partition(" ")
    assert dry.splitlines()[-1] == f"{called} {arguments}"
    assert "2 of 2" in command("list")
    command("stop", "--all")


OWNER = """
import sys, time
from hepscale import Workers
Workers("slurm", count=2, idle_s=int(sys.argv[2])).start(sys.argv[1])
print("ready", flush=True)
time.sleep(600)
"""


def test_jobs_of_a_killed_owner_are_cancelled_by_the_next(stub, listener, tmp_path):
    stub("slurm")
    with support.script(tmp_path / "owner.py", OWNER, listener.address, 900) as owner:
        for _ in range(2):
            listener.accept()
        assert owner.process.stdout.readline() == "ready\n"
        owner.kill()
    assert len(workers_running()) == 2
    groups.sweep(load_settings())
    support.wait_for(lambda: not workers_running())


# -- Slurm -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    with tempfile.TemporaryDirectory(prefix="hepscale-slurm-") as folder:
        begun = time.monotonic()
        with slurm.running(Path(folder)) as made, pytest.MonkeyPatch.context() as patch:
            print(f"Slurm started in {time.monotonic() - begun:.1f} s")
            patch.setenv("SLURM_CONF", str(made.config))
            yield made
            begun = time.monotonic()
        print(f"Slurm ended in {time.monotonic() - begun:.1f} s")
        assert support.processes(f"SLURM_CONF={made.config}") == {}


def states(cluster):
    return sorted(cluster.ask("squeue", "--noheader", "--array", "--format=%T").split())


@pytest.mark.root
def test_slurm(cluster, listener):
    workers = Workers("slurm", count=2, cores=2, memory_mb=1000, setup=["export FROM_SETUP=yes"])
    with workers:
        workers.start(listener.address)
        for _ in range(2):
            assert listener.accept().startswith("workqueue ")
        assert states(cluster) == ["RUNNING", "RUNNING"]
        assert workers.alive() == 2
        for pid in workers_running():
            environ = Path(f"/proc/{pid}/environ").read_text().split("\0")
            assert {"FROM_SETUP=yes", "SLURM_CPUS_PER_TASK=2"} <= set(environ)
        begun = time.monotonic()
    support.wait_for(lambda: not workers_running())
    print(f"workers gone {time.monotonic() - begun:.1f} s after stop")
    support.wait_for(lambda: set(states(cluster)) <= {"CANCELLED"})


@pytest.mark.root
def test_slurm_lets_them_wait_and_cancels_them_too(cluster, listener):
    with Workers("slurm", count=3, cores=2, memory_mb=500) as workers:
        workers.start(listener.address)
        for _ in range(2):
            listener.accept()
        assert states(cluster) == ["PENDING", "RUNNING", "RUNNING"]
        assert workers.alive() == 3
        cluster.ask("scancel", "--state=RUNNING", "--user=root")
        listener.accept()
        support.wait_for(lambda: workers.alive() == 1)
        assert workers.said().count("connected to manager") == 2


@pytest.mark.root
def test_slurm_refuses(cluster, listener):
    with pytest.raises(EngineError, match="Slurm has refused the workers") as caught:
        Workers("slurm", options=["--partition=none"]).start(listener.address)
    assert "invalid partition specified: none" in str(support.complete(caught.value))


@pytest.mark.root
def test_slurm_workers_end_when_their_manager_has_gone(cluster, tmp_path):
    with managers.Listener() as listener:
        with support.script(tmp_path / "owner.py", OWNER, listener.address, 3) as owner:
            for _ in range(2):
                listener.accept()
            assert owner.process.stdout.readline() == "ready\n"
            owner.kill()
        begun = time.monotonic()
    support.wait_for(lambda: not workers_running())
    print(f"workers gone {time.monotonic() - begun:.1f} s after their manager")
    groups.sweep(load_settings())
