"""Repositories of CVMFS in the sandboxes of a forkserver: whoever its user is, and none at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import publisher
import pytest
import sandboxes
from cvmfs_mounts import needed, open_to_all
from publisher import File
from web import served

import hepscale
from hepscale.config import load_settings
from hepscale.executor import cvmfs

NAME = "demo.example.org"
# stands for the client of CVMFS, and can do what it can: its user is not root, its rights are
CLIENT = """\
#!/usr/bin/python3 -IS
import ctypes, os, sys, time
target = sys.argv[5]
library = ctypes.CDLL(None, use_errno=True)
if library.mount(b"none", target.encode(), b"tmpfs", 0, None):
    sys.exit("mount: " + os.strerror(ctypes.get_errno()))
open(f"{target}/README", "w").write("read me\\n")
time.sleep(1000)
"""
READ = f"result = open('/cvmfs/{NAME}/README').read()"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Serve a repository; yield what is said of it."""
    folder = tmp_path_factory.mktemp("web")
    site = publisher.publish(folder / NAME, NAME, {"README": File(content=b"read me\n")})
    key = folder / "demo.pub"
    key.write_text(site.key)
    with served(folder) as url:
        yield {"servers": f"{url}/@fqrn@", "keys": key, "proxies": "DIRECT"}


@pytest.mark.parametrize("how", ["client", "cvmfs2"])
@pytest.mark.parametrize("user", ["self", "nobody"])
def test_they_are_there_for_every_user(place, table, monkeypatch, user, how):
    needed()
    within = sandboxes.as_nobody() if user == "nobody" else ()
    if how == "cvmfs2" and shutil.which(how) is None:
        folder = place.shared / "bin"
        folder.mkdir(exist_ok=True)
        (folder / how).write_text(CLIENT)
        (folder / how).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    given = {**table, "repositories": [NAME], "cache": str(place.shared / f"cache-{user}")}
    told = cvmfs.for_workers(load_settings(cvmfs={**given, "how": how}).cvmfs)
    with (
        open_to_all(),
        sandboxes.server(place, within, name=f"{user}-{how}", cvmfs=told) as one,
    ):
        assert one.ready["interposer"]["cvmfs"] == {NAME: how}
        assert one.run("a", READ)[1] == "read me\n"
        assert one.run("b", f"import os; result = os.statvfs('/cvmfs/{NAME}').f_flag & 1")[1]


@pytest.mark.parametrize("kind", ["auto", "userns"])
def test_without_fuse_no_repository_can_be_mounted(place, kind):
    """Unlike a sandbox, which a run that needs none can have there."""
    within = sandboxes.without_fuse()
    with sandboxes.server(place, within, name=f"boxed-{kind}", kind=kind) as one:
        assert one.ready["interposer"]["kind"] == "userns"
    told = {"repositories": [{"name": "demo.example.org"}], "how": "auto"}
    one = sandboxes.Server(place, within, name=f"no-fuse-{kind}", kind=kind, cvmfs=told)
    assert one.connect() is None
    assert one.close() == hepscale.worker.UNUSABLE
    said = Path(one.log.name).read_text()
    assert "/dev/fuse: No such file or directory" in said
    if kind == "auto":
        assert "The repository demo.example.org is not there" in said
