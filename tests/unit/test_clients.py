"""The client of CVMFS that a machine has: where it is found, and what it is told."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess

import pytest

from hepscale.worker import clients


def cvmfs(**more):
    one = {"name": "r.example.org", "servers": ["http://a/r", "http://b/r"], "keys": ["PEM\n"]}
    told = {"cache": None, "alien_cache": None, "quota_mb": 4000, "timeout_s": 5.0}
    told |= {"direct_timeout_s": 10.0, "retries": 1, "max_ttl_s": 90.0, "variables": {"ARCH": "x"}}
    told |= {"repositories": [{**one, "root_hash": None, "tag": "v1"}], "how": "auto"}
    return {**told, "proxies": "http://squid:3128;DIRECT", **more}


def client(folder, content, name="cvmfs2"):
    """Make a program that stands for the client of CVMFS, a script for bash."""
    program = folder / name
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/bin/bash\n{content}\n")
    program.chmod(0o755)
    return program


# what it is told, then why it mounts nothing
TELLS = """
. "$(echo "$3" | sed 's/^config=//; s/,disable_watchdog$//')"
echo "$CVMFS_SERVER_URL $CVMFS_HTTP_PROXY $CVMFS_REPOSITORY_TAG $ARCH ${CVMFS_ROOT_HASH-none}"
echo "$CVMFS_MAX_TTL $CVMFS_QUOTA_LIMIT ${CVMFS_ALIEN_CACHE-none}" "$CVMFS_CACHE_PRIMARY"
cat "$CVMFS_PUBLIC_KEY" "$CVMFS_BLACKLIST"
echo "$CVMFS_CACHE_BASE"
echo "Sun Nov 22 16:49:50 2026 (r.example.org) invalid whitelist signature" >> "$CVMFS_USYSLOG"
exit 16
"""


def refused(told, folder):
    """Let the client that is found refuse to mount; return why, and what it has said."""
    target = folder / "target"
    target.mkdir(parents=True)
    found = clients.find(str(folder))
    with pytest.raises(clients.Refused) as caught:
        found.mount(told["repositories"][0], told, str(folder), str(target))
    log = folder / "cvmfs2-r.example.org" / "log"
    return str(caught.value), log.read_text().splitlines() if log.exists() else []


def test_what_the_client_of_cvmfs_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{client(tmp_path / 'bin', TELLS).parent}:{os.environ['PATH']}")
    told = cvmfs(cache=f"{tmp_path}/cache")
    told["repositories"][0]["blacklist"] = ["<r.example.org 7"]
    why, said = refused(told, tmp_path / "a")
    assert why.endswith("invalid whitelist signature")
    assert said[:-1] == [
        "http://a/r;http://b/r http://squid:3128;DIRECT v1 x none",
        "2 4000 none ",
        "PEM",
        "<r.example.org 7",
        f"{tmp_path}/cache/cvmfs2/0",
    ]
    # one that can be written is filled
    _, said = refused(cvmfs(alien_cache=str(tmp_path), cache=f"{tmp_path}/own"), tmp_path / "b")
    assert said[1] == f"2 -1 {tmp_path} "


def test_a_cache_that_only_a_site_writes_is_below_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{client(tmp_path / 'bin', TELLS).parent}:{os.environ['PATH']}")
    monkeypatch.setattr(clients.os, "access", lambda path, mode: mode != os.W_OK)
    _, said = refused(cvmfs(alien_cache=str(tmp_path), cache=f"{tmp_path}/own"), tmp_path / "a")
    assert said[1].endswith(" none both")
    config = tmp_path / "a" / "cvmfs2-r.example.org" / "config"
    assert {
        f"CVMFS_CACHE_site_ALIEN={tmp_path}",
        "CVMFS_CACHE_both_LOWER=site",
        "CVMFS_CACHE_both_LOWER_READONLY=yes",
        f"CVMFS_CACHE_own_BASE={tmp_path}/own/cvmfs2/0",
    } <= {*config.read_text().splitlines()}


def test_clients_of_two_workers_have_caches_of_their_own(tmp_path, monkeypatch):
    """The client waits for the end of another that has the same one."""
    monkeypatch.setenv("PATH", f"{client(tmp_path / 'bin', TELLS).parent}:{os.environ['PATH']}")
    told = cvmfs(cache=f"{tmp_path}/cache")
    with contextlib.ExitStack() as held:
        room, lock = clients._room(told, str(tmp_path), "r.example.org")
        held.callback(os.close, lock)
        assert room == f"{tmp_path}/cache/cvmfs2/0"
        # that of our own client, which refuses what others may open
        assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
        _, said = refused(told, tmp_path / "a")
        assert said[-2] == f"{tmp_path}/cache/cvmfs2/1"
        # they share a folder with that of another repository
        room, lock = clients._room(told, str(tmp_path), "other.example.org")
        held.callback(os.close, lock)
        assert room == f"{tmp_path}/cache/cvmfs2/0"
    _, said = refused(told, tmp_path / "b")
    assert said[-2] == f"{tmp_path}/cache/cvmfs2/0"


def test_a_cache_into_which_others_may_write_is_not_believed(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    room, lock = clients._room(cvmfs(cache=str(cache)), f"{tmp_path}/mine", "r.example.org")
    os.close(lock)
    assert room == f"{tmp_path}/mine/0"


def test_a_cache_that_cannot_be_locked_is_a_reason(tmp_path, monkeypatch):
    """As on a file system without locks."""
    monkeypatch.setenv("PATH", f"{client(tmp_path / 'bin', TELLS).parent}:{os.environ['PATH']}")
    before = len(os.listdir("/proc/self/fd"))

    def flock(_descriptor, _how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(clients.fcntl, "flock", flock)
    why, _ = refused(cvmfs(cache=f"{tmp_path}/cache"), tmp_path / "a")
    assert why == f"{tmp_path}/cache/cvmfs2/0: No locks available"
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_cannot_be_made_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{client(tmp_path / 'bin', TELLS).parent}:{os.environ['PATH']}")
    (tmp_path / "cache" / "cvmfs2").mkdir(parents=True, mode=0o700)
    (tmp_path / "cache").chmod(0o700)
    (tmp_path / "cache" / "cvmfs2" / "0").touch()
    why, _ = refused(cvmfs(cache=f"{tmp_path}/cache"), tmp_path / "a")
    assert why == f"{tmp_path}/cache/cvmfs2/0: File exists"


def test_it_does_not_get_the_libraries_of_tasks(tmp_path, monkeypatch):
    """Of a release in another repository: they are others than those that it was built with."""
    folder = client(tmp_path / "bin", f'echo "${{LD_LIBRARY_PATH-none}}"\n{TELLS}').parent
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for at, (given, kept) in enumerate(
        {"/cvmfs/a:/opt/lib": "/opt/lib", "/cvmfs/a": "none"}.items()
    ):
        monkeypatch.setenv("LD_LIBRARY_PATH", given)
        _, said = refused(cvmfs(cache=f"{tmp_path}/cache"), tmp_path / str(at))
        assert said[0] == kept


# the beginning of a cvmfsexec that is a single file, as its makedist writes it
UNPACKS = """
BASE="$(cd `dirname $0` && pwd)/.cvmfsexec"
if [ $0 -nt $BASE ]; then
rm -rf $BASE
mkdir $BASE
tail -n+$(awk '/^__TAR_BELOW__/ {print NR + 1; exit 0; }' $0) $0 | tar -xzf - -C $BASE
fi
exec $BASE/cvmfsexec "$@"
__TAR_BELOW__"""


@pytest.mark.parametrize("form", ["folder", "link", "file", "unpacked", "none"])
def test_the_client_that_cvmfsexec_brings_along(tmp_path, monkeypatch, form):
    whole, place, folder = tmp_path / "whole", tmp_path / "bin", tmp_path / "mine"
    # that of this machine would come first
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda one: None if one == "cvmfs2" else which(one))
    place.mkdir()
    folder.mkdir()
    client(whole, "echo 4.51", "cvmfsexec")
    client(whole, f'echo "$LD_LIBRARY_PATH $CVMFS_LIBRARY_PATH"\n{TELLS}', "dist/usr/bin/cvmfs2")
    (whole / "dist/usr/lib64").mkdir(parents=True)
    dist = whole / "dist"
    if form == "folder":
        place = whole
    elif form == "link":
        (place / "cvmfsexec").symlink_to(whole / "cvmfsexec")
    elif form == "none":
        client(place, "echo 4.51", "cvmfsexec")
    else:
        client(place, UNPACKS, "cvmfsexec")
        packed = subprocess.run(
            ["tar", "-czf", "-", "-C", whole, "."], capture_output=True, check=True
        ).stdout
        with (place / "cvmfsexec").open("ab") as stream:
            stream.write(packed)
        dist = (place if form == "unpacked" else folder / "cvmfsexec") / ".cvmfsexec" / "dist"
        if form == "unpacked":
            subprocess.run([place / "cvmfsexec", "-v"], check=True, stdout=subprocess.DEVNULL)
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")
    found = clients.find(str(folder))
    if form == "none":
        assert found is None
        return
    assert found.program == str(dist / "usr/bin/cvmfs2")
    _, said = (
        refused(cvmfs(cache=f"{tmp_path}/own"), tmp_path / "a") if form != "file" else (None, None)
    )
    libraries = f"{dist}/usr/lib64"
    assert said is None or said[0] == f"{libraries}:{dist}/lib64 {libraries}"
    if form == "file":
        assert not (place / ".cvmfsexec").exists()
