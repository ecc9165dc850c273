"""Machines that refuse user namespaces to all programs but Bubblewrap.

There AppArmor does so, by program; here a filter, by the system call: Bubblewrap makes its own.
"""

from __future__ import annotations

import subprocess

import publisher
import pytest
import sandboxes
import support
from cvmfs_mounts import needed, open_to_all
from publisher import File
from web import served

from hepscale.config import load_settings
from hepscale.executor import cvmfs
from hepscale.worker import bubblewrap

NAME = "demo.example.org"
SEEN = """
import os
result = {
    "home": os.path.isdir("/root"),
    "user": os.getuid(),
    "rights": [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")],
    "named": [name for name in os.environ if "BWRAP" in name],
}
open("/tmp/left", "w").write("12345")
"""
NOTHING = {"home": False, "user": sandboxes.NOBODY, "rights": ["0" * 16] * 5, "named": []}


@pytest.fixture
def refused():
    return [*sandboxes.as_nobody(), *sandboxes.refusing_users()]


def without(monkeypatch, folder, program=None):
    """Have no Bubblewrap, or one that is a stub."""
    folder.mkdir()
    folder.chmod(0o755)
    if program is not None:
        (folder / "bwrap").write_text(program)
        (folder / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize("kind", ["userns", "auto"])
def test_a_sandbox_keeps_all_its_promises(place, refused, kind):
    with sandboxes.server(place, refused, name=f"behind-{kind}", kind=kind) as one:
        assert one.ready["interposer"]["kind"] == "userns"
        assert one.ready["interposer"]["why"] == ""
        for name in "ab":
            ended, found = one.run(name, SEEN)
            assert (ended["left"], found) == ({"files": 1, "bytes": 5}, NOTHING)
        assert sandboxes.alive(str(one.folder))
    assert not sandboxes.alive(str(one.folder))


def test_on_a_worker_that_ends_it_ends_too(place, refused):
    with subprocess.Popen(["sleep", "100"]) as worker:
        one = sandboxes.Server(place, refused, name="worker", worker=worker.pid)
        assert one.connect()["kind"] == "userns"
        assert one.run("a", SEEN)[1] == NOTHING
        worker.kill()
    support.wait_for(lambda: not sandboxes.alive(str(one.folder)))
    support.wait_for(lambda: not one.folder.exists())
    one.close()


def test_kill_9_of_bubblewrap_ends_all(place, refused):
    one = sandboxes.Server(place, refused, name="killed")
    one.connect()
    one.begin("a", "import time; time.sleep(100)")
    one.process.kill()
    support.wait_for(lambda: not sandboxes.alive(str(one.folder)))
    support.wait_for(lambda: not one.folder.exists())
    one.close()


REFUSED = "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1"
# it starts what it should, which has no rights: as AppArmor has it of late
POWERLESS = f"""
while [ "$1" != -- ]; do shift; done; shift
{bubblewrap.BEHIND}=1 exec "$@"
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (None, ""),
        (f"#!/bin/sh\n{REFUSED}\n", "bwrap: setting up uid map: Permission denied"),
        ("#!/bin/sh\nexit 3\n", "bwrap: exit code 3"),
        ("no program\n", "bwrap: Exec format error"),
        ("#!/bin/sh\necho usage\n", "bwrap: it does not run what it is told to"),
        (f"#!/bin/sh\n{POWERLESS}", "bwrap: unshare: Operation not permitted"),
    ],
    ids=["absent", "refused", "failing", "no program", "another", "powerless"],
)
def test_one_that_may_not_either(place, refused, monkeypatch, tmp_path, program, said):
    folder = place.shared / tmp_path.name
    without(monkeypatch, folder, program)
    within = ["/usr/bin/setpriv", *refused[1:]]
    with sandboxes.server(place, within, name=f"server-{tmp_path.name}", kind="auto") as one:
        inside = one.ready["interposer"]
        assert inside["kind"] == "none"
        assert "unshare: Operation not permitted" in inside["why"]
        assert said in inside["why"]
        assert inside["why"].count("bwrap") == bool(said)
        assert one.run("a", "import os; result = os.path.isdir('/root')")[1]


def told(given, url):
    settings = load_settings(cvmfs={**given, "servers": f"{url}/@fqrn@"})
    return cvmfs.for_workers(settings.cvmfs)


def test_repositories_are_mounted(place, refused):
    needed()
    folder, key = place.shared / "web", place.shared / "demo.pub"
    made = publisher.publish(folder / NAME, NAME, {"README": File(content=b"read me\n")})
    key.write_text(made.key)
    given = {"repositories": [NAME], "how": "client", "keys": key, "proxies": "DIRECT"}
    given["cache"] = str(place.shared / "cache")
    with (
        served(folder) as url,
        open_to_all(),
        sandboxes.server(
            place,
            refused,
            name="mounts",
            cvmfs=told(given, url),
        ) as one,
    ):
        assert one.ready["interposer"]["cvmfs"] == {NAME: "client"}
        assert one.run("a", f"result = open('/cvmfs/{NAME}/README').read()")[1] == "read me\n"
