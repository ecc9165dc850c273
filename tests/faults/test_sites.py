"""Workers of a batch system, in another root and behind another network, that are cut off."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import bare
import crew as crews
import packed
import pytest
import queues
import slurm
import support
from crew import meanwhile

import hepscale
from hepscale import Workers
from hepscale.executor.engines import manager as managers
from hepscale.workers.version import PROGRAMS

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
            support.wait_for(lambda: len(crews.workers()) == 1, 30)
            for gone in {*before} - {*crews.workers()}:
                support.wait_for(lambda gone=gone: not crews.members(gone), 5)

        with meanwhile(act):
            crew.run(count=150, workers=Workers("slurm", count=2))
        hepscale.shutdown()


# -- workers elsewhere -----------------------------------------------------------------------------


def free_port():
    with socket.create_server(("", 0)) as found:
        return found.getsockname()[1]


@contextmanager
def worker(address, password, folder, *within):
    """Run a worker by the command `within`; it keeps its files in `folder`."""
    folder.mkdir()
    options = ["--cores", "1", "--disk", "2000", "--memory", "2000", "--max-backoff", "1"]
    secure = ["--ssl"] if crews.engine == "taskvine" or queues.has_ndcctools() else []
    options += ["--password", str(password), *secure, *address.split(":")]
    command = [*within, "env", f"TMPDIR={folder}", PROGRAMS[crews.engine], *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


@pytest.fixture
def secret():
    # in a folder that a root of its own has too
    path = Path(os.environ["HEPSCALE_SCRATCH_DIR"]) / "password"
    path.touch(0o600)
    path.write_text("secret")
    yield path
    path.unlink()


def test_a_worker_in_a_bare_root(tmp_path, secret):
    place, port = tmp_path / "place", free_port()
    chroot = bare.chroot(tmp_path / "bare", secret.parent, tmp_path)
    # the worker, and what it is linked to
    program = shutil.which(PROGRAMS[crews.engine])
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for one in (program, *(word for word in said.split() if word.startswith("/"))):
        if not (bare.minbase() / one.lstrip("/")).exists():
            # by its real folder: a folder in place of the link /lib would hide all that is there
            real = Path(one).parent.resolve() / Path(one).name
            target = Path(f"{tmp_path}/bare/changes{real}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(one, target)

    def where(item):
        return item, os.path.exists("/usr/bin/python3"), sys.prefix

    options = {"engine": crews.engine, "port": port, "password_file": secret}
    with worker(f"127.0.0.1:{port}", secret, place, *chroot):
        found = packed.calculate(where, range(10), **options)
    assert [item for item, *_ in found] == [*range(10)]
    assert not any(python for _, python, _ in found)
    assert all(prefix.startswith(str(place)) for *_, prefix in found)


@contextmanager
def network():
    """Make a network of its own: the command that runs others in it, our address, the cut."""
    name, ours, theirs = (f"{one}{os.getpid()}" for one in ("hs-", "hsa", "hsb"))

    def ip(*words):
        subprocess.run(["ip", *words], check=True)

    address = f"10.213.{os.getpid() % 250}"
    ip("netns", "add", name)
    try:
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        ip("address", "add", f"{address}.1/24", "dev", ours)
        ip("link", "set", ours, "up")
        ip("-n", name, "address", "add", f"{address}.2/24", "dev", theirs)
        ip("-n", name, "link", "set", theirs, "up")
        within = ("ip", "netns", "exec", name)
        yield within, f"{address}.1", lambda state: ip("link", "set", ours, state)
    finally:
        ip("netns", "delete", name)


def test_a_network_is_cut_and_put_back(crew, tmp_path, secret, monkeypatch):
    monkeypatch.setattr(managers, "_SILENT_S", 1)
    monkeypatch.setattr(managers, "_ANSWER_S", 1)
    port = free_port()
    options = {"port": port, "password_file": secret, "workers": None, "seconds": 0.2}
    with network() as (within, host, link):

        def act():
            crew.wait(10)
            link("down")
            support.wait_for(lambda: not crews.manager().joined, 20)
            link("up")

        with worker(f"{host}:{port}", secret, tmp_path / "place", *within), meanwhile(act):
            crew.run(count=40, **options)
    assert sum(crew.times().values()) > 40
