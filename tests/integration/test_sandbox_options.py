"""Settings of sandboxes, and machines where none can be had."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import sandboxes
from sandboxes import WRITE

import hepscale

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
    [
        (sandboxes.REFUSES, "Operation not permitted"),
        (sandboxes.KILLS, "the system ended what"),
    ],
    ids=["refuses", "kills"],
)
def test_a_seccomp_filter_is_a_reason(place, action, said):
    with sandboxes.server(place, sandboxes.filtered(action), name="filter", kind="auto") as one:
        inside = one.ready["interposer"]
        assert inside["kind"] == "none"
        assert said in inside["why"]
        assert "a seccomp filter is in force" in inside["why"]
        assert one.run("a", "result = 1")[1] == 1


@pytest.mark.parametrize("kind", ["userns", "auto"])
def test_it_stays_warm(place, kind):
    """What it has imported for sandboxes is no code of the user's, with which it would end."""
    with sandboxes.server(place, name=f"warm-{kind}", kind=kind) as one:
        assert one.run("a", "result = 1")[1] == 1
        first = one.ready["pid"]
        one.socket.close()
        one.lines.close()
        assert one.connect() is not None
        assert one.run("b", "result = 2")[1] == 2
        assert one.ready["pid"] == first
