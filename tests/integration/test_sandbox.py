"""What a sandbox promises, each tried from inside by a small program; and runs in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import analysis
import as_root
import pytest
import sandboxes
import support
from sandboxes import WRITE

import hepscale
from hepscale import Interposer


@pytest.fixture(scope="module", params=["self", "nobody", "chroot"])
def server(request, place):
    within = ()
    if request.param == "nobody":
        within = sandboxes.as_nobody()
    elif request.param == "chroot":
        within = sandboxes.in_chroot(place.folder)
    with sandboxes.server(place, within, name=request.param) as one:
        one.user = sandboxes.NOBODY if request.param == "nobody" else os.getuid()
        one.count = 0
        yield one


def ask(server, source, **options):
    """Run a program inside and return its result, whatever it leaves."""
    server.count += 1
    ended, result = server.run(f"task{server.count}", source, **options)
    assert ended["status"] == "done", ended
    return ended, result


def test_it_is_there(server):
    found = server.ready["interposer"]
    assert found == {"kind": "userns", "why": "", "cvmfs": {}, "notices": []}


def test_the_task_keeps_its_user_and_has_no_privilege(server):
    source = """
import os
told = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
result = (os.getuid(), os.geteuid(), os.getgid(),
          {told[one] for one in told if one.startswith("Cap")}, told["NoNewPrivs"])
"""
    _, (uid, euid, gid, capabilities, no_new) = ask(server, source)
    group = sandboxes.NOBODY if uid else os.getgid()
    assert (uid, euid, gid) == (server.user, server.user, group)
    assert (capabilities, no_new) == ({"0" * 16}, "1")


def test_what_it_sees(server):
    source = """
import os
def names(path):
    return set(os.listdir(path)) if os.path.isdir(path) else None
result = {path: names(path) for path in ("/", "/home", "/root", "/sys", "/dev", "/tmp", "/run",
                                         os.path.dirname(os.getcwd()))}
result["processes"] = {int(one) for one in os.listdir("/proc") if one.isdigit()}
result["self"] = os.getpid()
result["environment"] = os.path.exists("/hepscale/environment/bin/python3")
"""
    _, seen = ask(server, source)
    assert {"usr", "etc", "bin", "lib", "proc", "dev", "tmp", "cvmfs", "hepscale"} <= seen["/"]
    assert not {"home", "root", "sys", "run", "srv", "mnt", "boot", "work"} & seen["/"]
    assert seen["/home"] is seen["/root"] is seen["/sys"] is seen["/run"] is None
    assert seen["/dev"] <= {
        *("null", "zero", "full", "random", "urandom", "tty"),
        *("fd", "stdin", "stdout", "stderr", "shm"),
    }
    assert {"null", "urandom", "shm"} <= seen["/dev"]
    assert seen["/tmp"] == set()
    # of the forkserver's folder, and those of the tasks before, only its own
    (own,) = seen[str(server.folder)]
    assert own == f"task{server.count}"
    assert seen["processes"] == {1, seen["self"]}
    assert seen["environment"]


def test_it_cannot_reach_the_processes_of_others(server):
    source = f"""
import os
result = []
for pid in {(os.getpid(), server.process.pid)!r}:
    try:
        os.kill(pid, 0)
        result.append(pid)
    except ProcessLookupError:
        pass
"""
    assert ask(server, source)[1] == []


def test_it_writes_in_its_folder_and_in_private_ones(server):
    _, found = ask(server, WRITE % ([".", "/tmp", "/var/tmp", "/dev/shm"],))
    assert set(found.values()) == {"written"}


def test_it_writes_nowhere_else(server):
    places = ["/", "/usr", "/etc", "/usr/bin", "/dev", "/var", "/proc", "/hepscale", "/cvmfs"]
    places += ["/hepscale/environment", str(sandboxes.FOLDER.parent), str(server.folder)]
    _, found = ask(server, WRITE % (places,))
    # also the folders on the way to its own, in a private one: what it wrote would be lost there
    assert set(found.values()) <= {30, 13, 2}
    assert not (server.folder / "written").exists()


def test_it_does_not_change_settings_of_the_kernel(server):
    source = """
import os
result = []
for name in ("kernel/hostname", "vm/overcommit_memory", "kernel/pid_max"):
    path = "/proc/sys/" + name
    try:
        open(path, "r+").write("x")
        result.append(path)
    except OSError as error:
        assert error.errno in (13, 30), error
"""
    assert ask(server, source)[1] == []


def test_it_does_not_change_the_permissions_of_what_is_outside(server):
    """Not of its interpreter either, which it reaches past its mounts, nor of devices."""
    source = """
import os
result = {}
for path in ("/proc/self/exe", "/proc/self/fd/0", "/dev/null"):
    try:
        os.chmod(path, os.stat(path).st_mode & 0o7777)
        result[path] = "changed"
    except OSError as error:
        result[path] = error.errno
with open("/dev/null", "w") as stream:
    stream.write("still")
"""
    _, found = ask(server, source)
    assert set(found.values()) <= {30, 1}


def test_no_link_of_it_leads_others_outside(server, place):
    """The forkserver shortens what a task has printed, and nothing else."""
    victim = place.shared / f"{server.folder.name}-victim"
    victim.write_bytes(bytes(2_000_000))
    victim.chmod(0o666)
    source = f"""
import os, time
for name in ("stdout", "stderr"):
    os.unlink(name)
    os.symlink({str(victim)!r}, name)
time.sleep(0.3)
result = 1
"""
    ask(server, source)
    assert victim.stat().st_size == 2_000_000


@pytest.mark.parametrize("said", ["5", "[5]", "{}", "[" * 100_000, None])
def test_nonsense_that_it_leaves_harms_nobody_else(server, said):
    source = f"""
import os
said = {said!r}
os.mkfifo("modules") if said is None else open("modules", "w").write(said)
result = 1
"""
    server.count += 1
    server.run(f"task{server.count}", source)
    assert ask(server, "result = 2")[1] == 2


def test_empty_files_are_limited_too(server):
    source = """
try:
    for number in range(100_000):
        open(f"/tmp/{number}", "w").close()
except OSError as error:
    result = error.errno
"""
    assert ask(server, source, memory_mb=60)[1] == 28


def test_a_namespace_of_its_own_gives_it_no_power_over_what_is_outside(server):
    source = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
USER, MOUNTS, CONTROL_GROUPS, REMOUNT_BIND = 0x10000000, 0x20000, 0x2000000, 0x1020
def tried(name, *arguments):
    return getattr(libc, name)(*arguments) and ctypes.get_errno()
reading, writing = os.pipe()
if os.fork() == 0:
    tried("unshare", USER)
    tried("unshare", MOUNTS)
    tried("unshare", CONTROL_GROUPS)
    done = [tried("mount", None, b"/usr", None, REMOUNT_BIND, None), tried("umount2", b"/usr", 2),
            *(tried("mount", b"x", b"/tmp", kind, 0, None) for kind in (b"cgroup2", b"sysfs"))]
    os.write(writing, bytes(done))
    os._exit(0)
result = list(os.read(reading, 4))
"""
    _, found = ask(server, source)
    assert len(found) == 4
    assert set(found) <= {1, 22}


def test_what_it_left_is_told_and_gone(server):
    source = """
import os
os.makedirs("/tmp/a/b")
for path, size in (("/tmp/one", 10), ("/tmp/a/b/two", 200), ("/dev/shm/three", 3)):
    with open(path, "wb") as stream:
        stream.write(bytes(size))
result = 1
"""
    ended, _ = ask(server, source)
    assert ended["left"] == {"files": 3, "bytes": 213}
    ended, found = ask(server, "import os; result = os.listdir('/tmp') + os.listdir('/dev/shm')")
    assert (ended["left"], found) == ({"files": 0, "bytes": 0}, [])


def test_programs_run_in_it(server):
    source = """
import subprocess
result = subprocess.run("echo out; ls /home", shell=True, capture_output=True, text=True)
result = (result.stdout, result.returncode != 0)
"""
    assert ask(server, source)[1] == ("out\n", True)


def test_a_signal_that_it_sends_itself_ends_it(server):
    server.count += 1
    source = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    ended, _ = server.run(f"task{server.count}", source)
    assert (ended["status"], ended["detail"]) == ("died", "signal 9 (SIGKILL)")


def test_declared_inputs_are_seen_and_cannot_be_changed(server, place):
    hidden = place.shared / f"{server.folder.name}-inputs"
    hidden.mkdir()
    (hidden / "declared").write_text("here")
    (hidden / "other").write_text("there")
    (hidden / "link").symlink_to(hidden / "declared")
    source = f"""
import os
result = []
for name in ("declared", "link", "other"):
    for mode in ("r", "a"):
        try:
            result.append(open(os.path.join({str(hidden)!r}, name), mode).close())
        except OSError as error:
            result.append(error.errno)
"""
    declared = [str(hidden / "declared"), str(hidden / "link")]
    _, found = ask(server, source, reads=declared)
    assert found[0] is found[2] is None
    assert {found[1], found[3]} <= {13, 30}
    # it is made in the private folder of a task, if anywhere
    assert found[4] == 2
    assert (hidden / "other").read_text() == "there"


# -- runs ------------------------------------------------------------------------------------------


def test_the_result_is_the_same(files, told, tmp_path, monkeypatch):
    """With files by absolute and by relative names, and what is sent along."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "good_1.root").write_bytes(Path(files.good[1]).read_bytes())
    (tmp_path / "correction").write_text("2")
    fileset = {"data": [files.good[0], "data/good_1.root"]}

    def process(events):
        scale = int(Path("correction").read_text())
        Path(f"/tmp/left-{os.getpid()}-{id(events)}").write_bytes(bytes(scale))
        return {"scaled": scale * int(events.x.to_numpy().sum()), **analysis.tally(events)}

    found = {}
    for kind in ("userns", "none"):
        options = {"files": ["correction"], "interposer": kind, "status": True}
        found[kind] = support.run(process, fileset, **options)
        if kind == "userns":
            state = hepscale.last_run().state
            assert set(state.interposers) == {"userns"}
            assert state.left_files * 2 == state.left_bytes > 0
    for left in Path("/tmp").glob("left-*"):
        left.unlink()
    assert found["userns"] == found["none"]
    assert found["none"]["events"] == 2 * support.EVENTS
    assert told() == []


def test_a_hidden_path_is_explained(files, tmp_path):
    (tmp_path / "scale").write_text("2")
    path = str(tmp_path / "scale")

    def process(events):
        return {"sum": int(Path(path).read_text())}

    error = support.failing(process, {"data": files.good[:1]}, interposer="userns")
    assert isinstance(error, FileNotFoundError)
    assert f"{path} is outside of what the sandbox shows" in str(error)
    assert f'allow=["{path}"]' in error.fix
    boxed = Interposer("userns", allow=[path])
    assert support.run(process, {"data": files.good[:1]}, interposer=boxed) == {"sum": 12}


_ALONE = """
import sys
sys.path[:0] = {path!r}
import analysis, support, hepscale, json
if __name__ == "__main__":
    try:
        result = support.run(analysis.tally, {fileset!r}, interposer={kind!r}, status=True)
        state = hepscale.last_run().state
        print(json.dumps([result["events"], state.interposers, state.lasting]))
    except hepscale.EngineError as error:
        print(json.dumps([str(error)]))
    hepscale.shutdown()
"""


@pytest.mark.parametrize("kind", ["auto", "userns"])
def test_runs_where_there_is_none(files, kind):
    as_root.needed("becoming somebody else")
    path = [str(Path(__file__).parents[1]), str(Path(hepscale.__file__).parents[1])]
    source = _ALONE.format(path=path, fileset={"data": files.good[:1]}, kind=kind)
    script = Path(os.environ["HEPSCALE_SCRATCH_DIR"]).parent / f"alone-{kind}.py"
    script.write_text(source)
    command = [*sandboxes.without_namespaces(), sys.executable, str(script)]
    environ = {**sandboxes.without_parrot(script.parent), "HEPSCALE_VIEW": "lines"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    if kind == "auto":
        events, interposers, lasting = said
        assert (events, set(interposers)) == (support.EVENTS, {"none"})
        (text,) = lasting
        assert text.startswith("Tasks run without a sandbox: ")
        # once in each of coffea's two runs
        assert done.stderr.count("note: Tasks run without a sandbox") == 2
    else:
        assert "The sandbox 'userns' cannot be had on" in said[0]
        assert "user.max_user_namespaces" in said[0]
