"""What a sandbox promises, each tried from inside by a small program; and runs in one."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import analysis
import pytest
import sandboxes
import support

import hepscale
from hepscale import Interposer

# tries to write in many places; says where it could
WRITE = """
import os
result = {}
for folder in %r:
    try:
        open(os.path.join(folder, "written"), "w").close()
        result[folder] = "written"
    except OSError as error:
        result[folder] = error.errno
"""


@pytest.fixture(scope="module")
def place():
    if not os.path.exists(sandboxes.SYSTEM_PYTHON):
        pytest.skip("this system has no Python of its own")
    one = sandboxes.Place()
    yield one
    one.remove()


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


# -- settings --------------------------------------------------------------------------------------


def test_network(place):
    listener = socket.create_server(("127.0.0.1", 0))
    source = f"""
import socket
try:
    socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}), 5).close()
    result = "reached"
except OSError as error:
    result = error.errno
own = socket.create_server(("127.0.0.1", 0))
socket.create_connection(own.getsockname(), 5).close()
result = [result, [one for _, one in socket.if_nameindex()]]
"""
    with listener, sandboxes.server(place, name="net") as one:
        assert one.run("a", source)[1][0] == "reached"
    with sandboxes.server(place, name="no-net", network=False) as one:
        # it has a loopback of its own, on which nobody listens
        assert one.run("a", source)[1] == [111, ["lo"]]


def test_allow(place):
    seen, changed = place.shared / "seen", place.shared / "changed"
    for folder in (seen, changed):
        folder.mkdir()
        (folder / "file").write_text("x")
    source = WRITE % ([str(seen), str(changed), "/sys"],)
    source += (
        f"result['read'] = open({str(seen / 'file')!r}).read(); result['sys'] = os.listdir('/sys')"
    )
    allow = [str(seen), f"{changed}:rw", "/sys", "/no/such/folder"]
    with sandboxes.server(place, name="allow", allow=allow) as one:
        _, found = one.run("a", source)
    assert found.pop("sys")
    assert found == {str(seen): 30, str(changed): "written", "/sys": 30, "read": "x"}
    assert (changed / "written").exists()


def test_a_task_that_sees_the_socket_of_its_forkserver_is_not_heard(place):
    """It could have another task run, in a folder of its choice."""
    source = """
import os, socket
client = socket.socket(socket.AF_UNIX)
os.chdir("..")
client.connect("s")
client.settimeout(10)
result = client.recv(1)
"""
    with sandboxes.server(place, name="heard", allow=[str(place.shared)]) as one:
        assert one.run("a", source)[1] == b""


def test_the_folders_of_the_machine_in_place_of_private_ones(place):
    """What lies there is neither the task's memory nor what it left."""
    with sandboxes.server(place, name="machine", allow=["/tmp:rw"]) as one:
        source = "open('/var/tmp/x', 'w').write('12'); import os; result = os.listdir('/tmp')"
        ended, found = one.run("a", source, memory_mb=100)
        assert (ended["status"], ended["left"]) == ("done", {"files": 1, "bytes": 2})
        assert set(found) & set(os.listdir("/tmp"))
        assert ended["memory_mb"] < 50


def test_only_outputs(place):
    source = WRITE % ([".", "tmp", "/tmp"],)
    with sandboxes.server(place, name="outputs", writes="outputs") as one:
        ended, found = one.run("a", source)
        assert (ended["status"], found) == ("done", {".": 30, "tmp": "written", "/tmp": "written"})
        # what it has imported is told all the same
        assert one.run("b", "import wave; result = 1")[1] == 1


def test_older_kernels_make_mounts_read_only_one_by_one(place):
    """Without mount_setattr; the change is made in a copy of what is shipped."""
    path = place.shared / "worker" / "syscalls.py"
    text = path.read_text()
    try:
        path.write_text(text.replace("_MOUNT_SETATTR = 442", "_MOUNT_SETATTR = 4420"))
        with sandboxes.server(place, name="older") as one:
            _, found = one.run("a", WRITE % (["/usr", "/etc", "/cvmfs"],))
            assert set(found.values()) == {30}
            _, mounts = one.run("b", "result = open('/proc/self/mountinfo').read()")
    finally:
        path.write_text(text)
    flags = {line.split()[4]: line.split()[5].split(",") for line in mounts.splitlines()}
    assert {"ro", "nosuid", "nodev"} <= set(flags["/cvmfs"])


# -- where it cannot be had ------------------------------------------------------------------------


def test_a_required_one_that_cannot_be_had_is_an_error(place):
    one = sandboxes.Server(place, sandboxes.without_namespaces(), name="refused")
    assert one.connect() is None
    assert one.close() == hepscale.worker.UNUSABLE
    said = Path(one.log.name).read_text()
    assert "The sandbox 'userns' cannot be had on" in said
    assert "user namespaces are switched off (user.max_user_namespaces)" in said
    assert "Next: " in said


def test_auto_does_without(place):
    within = sandboxes.without_namespaces()
    with sandboxes.server(place, within, name="auto", kind="auto") as one:
        inside = one.ready["interposer"]
        assert inside["kind"] == "none"
        assert "user.max_user_namespaces" in inside["why"]
        ended, found = one.run("a", "import os; result = os.path.isdir('/sys')")
        assert (found, ended["left"]) == (True, {"files": 0, "bytes": 0})


def test_a_covered_proc_is_a_reason(place):
    cover = 'mount -t tmpfs none /proc/sys && exec "$@"'
    within = ["unshare", "--mount", "sh", "-ec", cover, "sh", *sandboxes.as_nobody()]
    with sandboxes.server(place, within, name="covered", kind="auto") as one:
        assert one.ready["interposer"]["kind"] == "none"
        assert "a part of /proc is covered here" in one.ready["interposer"]["why"]


@pytest.mark.parametrize(
    ("action", "said"),
    [(0x50000 | errno.EPERM, "Operation not permitted"), (0x80000000, "the system ended what")],
    ids=["refuses", "kills"],
)
def test_a_seccomp_filter_is_a_reason(place, action, said):
    with sandboxes.server(place, sandboxes.filtered(action), name="filter", kind="auto") as one:
        inside = one.ready["interposer"]
        assert inside["kind"] == "none"
        assert said in inside["why"]
        assert "a seccomp filter is in force" in inside["why"]
        assert one.run("a", "result = 1")[1] == 1


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
    sandboxes.need_root()
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
