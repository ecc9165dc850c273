"""Tasks under Parrot: the real one, where this machine has one that works, and its stand-in."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import time
from contextlib import suppress

import analysis
import packed
import parrots
import publisher
import pytest
import queues
import sandboxes
import support
from cvmfs_mounts import needed, open_to_all
from publisher import File, Link
from sandboxes import WRITE
from support import wait_for
from web import served

import hepscale
from hepscale import CvmfsConfig, Interposer, Workers
from hepscale.worker import proc, scratch

NAME = "demo.example.org"


@pytest.fixture
def engine():
    """Forkservers of a test's own have no engine."""


@pytest.fixture
def place():
    with sandboxes.place() as one:
        yield one
        # what waits for the next run has variables that name the folder
        hepscale.shutdown()
        wait_for(lambda: not sandboxes.alive(str(one.folder)))


@pytest.fixture(params=[pytest.param("real", marks=pytest.mark.parrot), "stand-in"])
def program(request, place):
    if request.param == "stand-in":
        return parrots.stand_in(place.shared)
    return parrots.real() or pytest.skip("no parrot_run here runs programs")


@pytest.fixture
def real():
    return parrots.real() or pytest.skip("no parrot_run here runs programs")


def test_tasks_under_it(place, program):
    """Also with threads, programs, a module written in C, and one after the other."""
    with sandboxes.server(place, kind="parrot", parrot=program) as one:
        assert one.ready["interposer"]["kind"] == "parrot"
        assert one.ready["pid"] != one.process.pid
        source = "import subprocess as s; result = s.check_output(['echo', 'a'])"
        for number in range(3):
            ended, found = one.run(f"program{number}", source)
            assert (ended["status"], found) == ("done", b"a\n")
        source = (
            "import threading as t, ctypes; result = []; a = t.Thread(None, result.append, '', "
        )
        ended, found = one.run("thread", source + "(1,)); a.start(); a.join()")
        assert (ended["status"], found) == ("done", [1])


def test_a_task_that_is_cancelled(place, program):
    with sandboxes.server(place, kind="parrot", parrot=program) as one:
        source = "import os, time; os.fork(); open('busy', 'w').close(); time.sleep(1000)"
        folder = one.begin("a", source)
        wait_for((folder / "busy").exists)
        one.send({"op": "kill", "id": "a"})
        assert one.event()["status"] == "cancelled"
        assert one.run("b", "result = 1")[1] == 1


@pytest.mark.parrot
def test_what_they_see(place, real):
    inputs, outputs = place.folder / "in", place.folder / "out"
    for folder in (inputs, outputs):
        folder.mkdir()
        (folder / "file").write_text("text")
    hidden = place.folder / "hidden"
    hidden.write_text("secret")
    allow = [str(inputs), f"{outputs}:rw"]
    with sandboxes.server(place, kind="parrot", parrot=real, allow=allow) as one:
        _, found = one.run("a", WRITE % ([".", "/tmp", "/var/tmp", "/dev/shm", str(outputs)],))
        assert set(found.values()) == {"written"}
        assert not {"written"} & {*os.listdir("/tmp"), *os.listdir("/var/tmp")}
        _, found = one.run("b", WRITE % (["/usr", "/etc", str(inputs), "/"],))
        assert set(found.values()) <= {errno.EACCES, errno.EROFS, errno.ENOENT}
        shown = [f"{inputs}/file", f"{outputs}/file", "/etc/passwd"]
        paths = [*shown, str(hidden), "/home", "/sys", "/root/.profile"]
        source = f"import os; result = [one for one in {paths!r} if os.path.exists(one)]"
        assert one.run("c", source)[1] == shown
    assert (outputs / "written").exists()


@pytest.mark.parametrize("who", ["parrot", "forkserver", "worker"])
def test_kill_at_random_moments(place, program, who):
    """What they leave is removed by whoever comes next."""
    chance = random.Random(who)
    for _ in range(3):
        worker = subprocess.Popen(["sleep", "1000"])
        one = sandboxes.Server(place, worker=worker.pid, kind="parrot", parrot=program)
        try:
            assert one.connect()["kind"] == "parrot"
            source = "import os, time; open('busy', 'w').close(); time.sleep(1000)"
            if program == parrots.real():
                # only a real one ends all that its tasks have begun
                source = source.replace("open", "os.fork() or os.setsid(); open", 1)
            folder = one.begin("task", source)
            wait_for((folder / "busy").exists)
            time.sleep(chance.uniform(0, 0.1))
            victims = {"parrot": one.process.pid, "worker": worker.pid}
            victims["forkserver"] = one.ready["pid"]
            with suppress(ProcessLookupError):
                os.kill(victims[who], signal.SIGKILL)
            one.process.wait(20)
        finally:
            worker.kill()
            worker.wait()
            one.close()
        wait_for(lambda: not sandboxes.alive(str(place.shared / "worker")))
        scratch.sweep(str(place.shared))
        assert {path.name for path in place.shared.iterdir()} <= {"worker", "parrot_run"}


@pytest.mark.parrot
def test_its_own_files_go_with_it(place, real, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(place.shared))
    with sandboxes.server(place, kind="parrot", parrot=real) as one:
        assert one.run("a", "result = 1")[1] == 1
        pid = one.process.pid
        assert proc.children(pid) == [one.ready["pid"]]
    assert [path.name for path in place.shared.iterdir()] == ["worker"]


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture
def on_path(program, monkeypatch):
    monkeypatch.setenv("PATH", f"{os.path.dirname(program)}:{os.environ['PATH']}")


@queues.needs_worker
def test_workers_of_work_queue(few, on_path):
    def work(item):
        return os.environ["HEPSCALE_TASK"][:0], os.getuid(), 2 * item

    options = {"engine": "workqueue", "workers": Workers(count=1)}
    found = packed.calculate(work, range(4), interposer="parrot", **options)
    assert found == [("", os.getuid(), 2 * item) for item in range(4)]
    assert set(hepscale.last_run().state.interposers) == {"parrot"}


def test_the_result_is_the_same(files, on_path):
    """Absolute paths of a fileset have to be named: what is shown cannot be changed later."""
    fileset = {"data": files.good}
    boxed = Interposer("parrot", allow=[os.path.dirname(files.good[0])])
    found = support.run(analysis.tally, fileset, interposer=boxed, status=True)
    assert set(hepscale.last_run().state.interposers) == {"parrot"}
    hepscale.shutdown()
    assert found == support.run(analysis.tally, fileset, interposer="none")


@pytest.fixture
def repository(real, tmp_path):
    """Serve one; yield what is said of it."""
    if not parrots.serves(real):
        pytest.skip("the parrot_run here was built without CVMFS")
    tree = {
        "README": File(content=b"read me\n"),
        "large": os.urandom(300_000),
        "py": {"cvmfs_tool.py": b"ANSWER = 42\n"},
        "link": Link("$(DEMO_ARCH)/README"),
    }
    site = publisher.publish(tmp_path / "web" / NAME, NAME, tree)
    (tmp_path / "demo.pub").write_text(site.key)
    with served(tmp_path / "web") as url:
        yield {
            "repositories": [NAME],
            "servers": f"{url}/@fqrn@",
            "keys": tmp_path / "demo.pub",
            "proxies": "DIRECT",
            "cache": str(tmp_path / "cache"),
            "variables": {"DEMO_ARCH": "x86_64"},
        }


def read(item):
    import hashlib
    import sys

    top = "/cvmfs/demo.example.org"
    sys.path.append(f"{top}/py")
    import cvmfs_tool

    with open(f"{top}/README") as one, open(f"{top}/large", "rb") as large:
        found = one.read(), hashlib.sha256(large.read()).hexdigest()
    return *found, os.readlink(f"{top}/link"), sorted(os.listdir(top)), cvmfs_tool.ANSWER


@pytest.mark.parrot
@queues.needs_worker
def test_repositories_from_it(few, repository, tmp_path):
    """On workers and here, and then from our own client, which has its cache beside."""
    needed()
    found = set()
    for how, engine in (("parrot", "workqueue"), ("parrot", "local"), ("client", "local")):
        options = {"workers": Workers(count=1)} if engine == "workqueue" else {}
        options["interposer"] = "parrot" if how == "parrot" else "userns"
        with open_to_all():
            config = CvmfsConfig(**repository, how=how)
            results = packed.calculate(read, cvmfs=config, engine=engine, **options)
            assert hepscale.last_run().state.repositories == {NAME: how}
            hepscale.shutdown()
        found |= set(map(repr, results))
    (result,) = found
    assert "'x86_64/README'" in result


@pytest.mark.parrot
def test_a_repository_that_it_refuses(few, repository, tmp_path):
    """Its own words are the reason."""
    (tmp_path / "other.pub").write_text(publisher.public_pem("other"))
    config = CvmfsConfig(**{**repository, "keys": tmp_path / "other.pub"}, how="parrot")
    error = packed.failing(read, cvmfs=config)
    assert f"Attaching {NAME} failed" in str(error)


def test_auto_takes_namespaces(files, on_path):
    support.run(analysis.tally, {"data": files.good[:1]}, interposer="auto", status=True)
    assert "parrot" not in hepscale.last_run().state.interposers


@queues.needs_worker
def test_one_that_runs_nothing(few, place, monkeypatch):
    """As today's on today's systems: its own words are the reason, and "auto" does without it."""

    def work(item):
        return item

    text = "libc.so.6: cannot stat shared object: Error 20"
    parrots.stand_in(place.shared, f"sys.exit({text!r})")
    monkeypatch.setenv("PATH", f"{place.shared}:{os.environ['PATH']}")
    options = {"engine": "workqueue", "workers": Workers(count=1)}
    error = packed.failing(work, interposer="parrot", **options)
    assert f"{place.shared}/parrot_run: sh does not run under it: {text}" in str(error)
    packed.calculate(work, interposer="auto", **options)
    assert "parrot" not in hepscale.last_run().state.interposers
