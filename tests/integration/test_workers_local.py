"""Workers of this machine: real ones, which come, and go with whoever started them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import managers
import pytest
import support
from click.testing import CliRunner
from managers import workers_running

from hepscale import EngineError, Workers
from hepscale.cli import main
from hepscale.config import load_settings
from hepscale.workers import groups, records, supervisor
from hepscale.workers.version import worker_version

pytestmark = managers.needs_worker


@pytest.fixture(autouse=True)
def nothing_runs():
    yield
    support.wait_for(lambda: not workers_running() and not support.scratch())
    assert records.every(load_settings()) == []


def protocol():
    return worker_version().protocol


def test_start_and_stop(listener, tmp_path):
    workers = Workers(count=2, cores=3, memory_mb=500)
    assert (workers.alive(), workers.said()) == (0, "")
    workers.stop()
    with workers:
        workers.start(listener.address, protocol=protocol())
        for _ in range(2):
            assert listener.accept().startswith(f"workqueue {protocol()} ")
        assert workers.alive() == len(workers_running()) == 2
        with pytest.raises(EngineError, match="started already"):
            workers.start(listener.address)
        (group,) = records.every(load_settings())
        assert (group.address, group.batch, group.count) == (listener.address, "local", 2)
        assert stat.S_IMODE(group.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((group.folder / "record.json").stat().st_mode) == 0o600
    assert workers.alive() == 0
    assert workers_running() == {}
    # and again
    with workers:
        workers.start(listener.address)
        listener.accept()


def test_two_at_a_time(listener):
    with Workers() as one, Workers() as other:
        one.start(listener.address)
        other.start(listener.address)
        for _ in range(2):
            listener.accept()
        other.stop()
        assert (one.alive(), other.alive()) == (1, 0)


def test_an_exception_ends_them(listener):
    def fail():
        with Workers() as workers:
            workers.start(listener.address)
            listener.accept()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert workers_running() == {}


def test_a_worker_that_is_ended_is_counted(listener):
    with Workers(count=2) as workers:
        workers.start(listener.address)
        for _ in range(2):
            listener.accept()
        first, second = workers_running()
        os.kill(first, signal.SIGTERM)
        support.wait_for(lambda: workers.alive() == 1)
        os.kill(second, signal.SIGTERM)
        # it writes when it ends
        assert "connected to manager" in support.wait_for(workers.said)
        support.wait_for(lambda: workers.alive() == 0)
        assert workers.news() == ""


def test_in_place_of_a_worker_that_is_killed_another_is_started(listener, monkeypatch):
    monkeypatch.setattr(groups, "_SUPERVISE", hasty(young_s=0))
    with Workers(count=2) as workers:
        workers.start(listener.address)
        for _ in range(2):
            listener.accept()
        before = set(workers_running())
        killed = min(before)
        (workspace,) = Path(os.environ["HEPSCALE_SCRATCH_DIR"]).glob(f"*/worker-*-{killed}")
        # what a task left, and still writes there
        writes = "while :; do mkdir -p left; echo x >left/file; done"
        writer = subprocess.Popen(["/bin/sh", "-c", writes], cwd=workspace)
        os.kill(killed, signal.SIGKILL)
        listener.accept()
        support.wait_for(lambda: workers.alive() == 2)
        (group,) = records.every(load_settings())
        assert {one.pid for one in records.here(group).workers} == set(workers_running())
        assert len(set(workers_running()) - before) == 1
        assert "A worker of this machine was killed" in workers.news()
        assert workers.news() == ""
        # it is no descendant of the supervisor
        writer.kill()
        writer.wait()
        support.wait_for(lambda: not workspace.exists())


def test_workers_that_are_killed_again_and_again(listener, monkeypatch):
    monkeypatch.setattr(groups, "_SUPERVISE", hasty(young_s=0))
    with Workers() as workers:
        workers.start(listener.address)
        for _ in range(1 + supervisor._MOST_REPLACED):
            listener.accept()
            (pid,) = workers_running()
            os.kill(pid, signal.SIGKILL)
        error = support.wait_for(lambda: news(workers))
        assert "killed by signal 9" in error.items[0]
        assert "no more are started" in error.items[-1]
        support.complete(error)
        support.wait_for(lambda: support.scratch() == [])


def test_workers_whose_parent_is_killed(listener):
    with Workers(count=2) as workers:
        workers.start(listener.address)
        for restart in range(1, 5):
            for _ in range(2):
                listener.accept()
            (group,) = records.every(load_settings())
            os.kill(group.supervisor.pid, signal.SIGKILL)
            support.wait_for(lambda: not workers_running())
            if restart < 4:
                # when the last of them is no zombie any more
                assert f"{restart} of 3 times" in support.wait_for(workers.news)
                assert workers.news() == ""
        error = support.wait_for(lambda: news(workers))
        assert error.items == ("their parent, 4 times",)
        support.complete(error)
    groups.scratch.sweep(os.environ["HEPSCALE_SCRATCH_DIR"])


def news(workers):
    try:
        workers.news()
    except EngineError as error:
        return error
    return None


def hasty(young_s):
    """Return what starts a supervisor that replaces workers which were killed soon."""
    patch = f"import hepscale.workers.supervisor as s; s._YOUNG_S = {young_s};"
    path, rest = groups._SUPERVISE.split(";", 1)
    return f"{path};{patch}{rest}"


def test_with_a_password_a_worker_first_asks_for_it(listener, tmp_path):
    path = managers.password_file(tmp_path)
    with Workers() as workers:
        workers.start(listener.address, path)
        # a challenge, before it says what it is
        assert not listener.accept().startswith("workqueue")
        (command,) = workers_running().values()
        assert str(path) in command
        assert "secret of this test" not in command


def test_they_end_when_idle(listener):
    with Workers(idle_s=1) as workers:
        workers.start(listener.address)
        listener.accept()
        support.wait_for(lambda: not workers.alive())
        support.wait_for(lambda: support.scratch() == [])


OWNER = """
import os, sys, time
from hepscale import Workers
workers = Workers(count=2)
workers.start(sys.argv[1])
if len(sys.argv) > 2 and not os.fork():
    # it holds the other end of the supervisor's pipe
    time.sleep(600)
    os._exit(0)
print("ready", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
{end}
"""


def started(tmp_path, listener, *arguments, end=""):
    source = OWNER.replace("{end}", end)
    return support.script(tmp_path / "owner.py", source, listener.address, *arguments)


def ready(owner, listener):
    for _ in range(2):
        listener.accept()
    assert owner.process.stdout.readline() == "ready\n"


@pytest.mark.parametrize("forked", [(), ("forked",)])
def test_kill_9_of_the_owner_ends_them(tmp_path, listener, forked):
    with started(tmp_path, listener, *forked) as owner:
        ready(owner, listener)
        before = time.monotonic()
        children = set(support.processes()) - {owner.pid}
        os.kill(owner.pid, signal.SIGKILL)
        support.wait_for(lambda: not workers_running())
        print(f"gone after {time.monotonic() - before:.2f} s")
        support.wait_for(lambda: not support.scratch())
        for pid in children & set(support.processes()):
            os.kill(pid, signal.SIGKILL)
        owner.process.communicate()
    # the record is what is left of them, until somebody looks
    (group,) = records.every(load_settings())
    assert group.owner.pid == owner.pid
    with Workers() as workers:
        workers.start(listener.address)
        assert [one.owner.pid for one in records.every(load_settings())] == [os.getpid()]


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "1 / 0", "workers = None"])
def test_an_owner_that_ends_by_itself_ends_them(tmp_path, listener, end):
    with started(tmp_path, listener, end=end) as owner:
        ready(owner, listener)
        (tmp_path / "go").touch()
        owner.process.communicate(timeout=20)
        assert workers_running() == {}


def test_a_fork_does_not_stop_them(listener):
    with Workers() as workers:
        workers.start(listener.address)
        listener.accept()
        if not (pid := os.fork()):
            workers.stop()
            os._exit(0)
        os.waitpid(pid, 0)
        assert workers.alive() == 1


def test_what_is_left_of_a_killed_worker_ends_with_the_supervisor(tmp_path, listener, monkeypatch):
    """A stub that leaves a process of its own session, as a task may."""
    stub = tmp_path / "work_queue_worker"
    marker = tmp_path / "left"
    stub.write_text(
        "#!/bin/sh\nsetsid sleep 300 &\n"
        f"echo $! >{marker}_\nmv {marker}_ {marker}\nexec sleep 300\n"
    )
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with Workers() as workers:
        workers.start(listener.address)
        support.wait_for(marker.exists)
        pid = int(marker.read_text())
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_program_that_is_none(tmp_path, listener, monkeypatch):
    stub = tmp_path / "work_queue_worker"
    stub.write_text("no program\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="cannot be started on this machine") as caught:
        Workers(count=2).start(listener.address)
    assert "Exec format error" in str(support.complete(caught.value))
    with pytest.raises(EngineError, match="does not run") as caught:
        Workers().start(listener.address, protocol=9)
    support.complete(caught.value)


def test_another_protocol(listener):
    with pytest.raises(EngineError, match=r"speaks protocol \d+, the manager 99") as it:
        Workers().start(listener.address, protocol=99)
    support.complete(it.value)


VERSIONED = f"""#!{sys.executable} -I
import socket, sys
if "--version" in sys.argv:
    print("work_queue_worker version 7.15.11 FINAL (released 2026)")
else:
    with socket.create_connection((sys.argv[-2], int(sys.argv[-1]))) as manager:
        manager.sendall({{hello!r}})
"""


@pytest.mark.parametrize("hello", [b"workqueue 11 vm Linux x86_64 7.15.11\n", b"", b"nonsense\n"])
def test_version_of_a_worker(tmp_path, hello):
    stub = tmp_path / "work_queue_worker"
    stub.write_text(VERSIONED.format(hello=hello))
    stub.chmod(0o755)
    if hello.startswith(b"workqueue"):
        found = worker_version(stub)
        assert (found.path, found.release, found.protocol) == (stub, "7.15.11", 11)
    else:
        with pytest.raises(EngineError, match="does not run"):
            worker_version(stub)


# -- the command line ------------------------------------------------------------------------------


def command(*arguments, code=0):
    result = CliRunner().invoke(main, ["workers", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout if not code else result.stderr


def test_commands(listener):
    assert command("list") == "There are no workers.\n"
    said = command("start", "--count", 2, "--memory", 300, listener.address)
    identity = said.partition(":")[0]
    for _ in range(2):
        listener.accept()
    (running,) = set(workers_running().values())
    assert "--cores 1 --memory 300 " in running
    listed = command("list").splitlines()
    assert len(listed) == 2
    assert {identity, "local", listener.address, "2 of 2"} <= set(
        map(str.strip, listed[1].split("  "))
    )
    assert "are no workers 'x'" in command("stop", "x", code=1)
    assert "--all" in command("stop", code=2)
    assert command("stop", identity) == f"{identity}: stopped\n"
    assert workers_running() == {}
    command("start", listener.address)
    command("start", listener.address)
    assert command("stop", "--all").count("stopped") == 2
    assert command("list") == "There are no workers.\n"


def test_list_forgets_what_has_ended(listener):
    command("start", "--idle", 1, listener.address)
    listener.accept()
    assert "1 of 1" in command("list")
    support.wait_for(lambda: command("list") == "There are no workers.\n")


def test_dry_run_prints_what_is_run(listener, tmp_path):
    path = managers.password_file(tmp_path)
    arguments = ["--cores", 2, "--disk", 900, "--memory", 800, "--password", path, listener.address]
    text = command("start", "--dry-run", *arguments)
    assert workers_running() == {}
    command("start", *arguments)
    listener.accept()
    (pid,) = workers_running()
    ran = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    assert shlex.split(text.splitlines()[1]) == ran
    command("stop", "--all")


def test_a_worker_that_comes_again_is_listed(listener):
    said = command("start", listener.address)
    identity = said.partition(":")[0]
    listener.accept()
    (pid,) = workers_running()
    os.kill(pid, signal.SIGKILL)
    # it is replaced after a while
    support.wait_for(lambda: "0 of 1" in command("list"))
    listener.accept()
    support.wait_for(lambda: "1 of 1" in command("list"))
    assert {pid} != set(workers_running())
    command("stop", identity)
    assert workers_running() == {}


def test_a_record_of_another_machine(listener, monkeypatch):
    said = command("start", listener.address)
    listener.accept()
    (group,) = records.every(load_settings())
    record = group.folder / "record.json"
    kept = record.read_text()
    record.write_text(json.dumps({**json.loads(kept), "host": "elsewhere"}))
    assert "run on another machine" in command("stop", "--all", code=1)
    assert "?" in command("list")
    record.write_text(kept)
    command("stop", said.partition(":")[0])
