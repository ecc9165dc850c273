"""Parrot: when it is used, and what it is told."""

from __future__ import annotations

import fnmatch
import json
import os
import signal
import stat
import sys
from pathlib import Path

import pytest
import sandboxes
from parrots import stand_in
from support import wait_for

from hepscale.worker import Unusable, parrot, sandbox

if not os.path.exists(sandboxes.SYSTEM_PYTHON):
    pytest.skip("this system has no Python of its own", allow_module_level=True)

WANTED = {"network": True, "writes": "folder", "allow": ()}


@pytest.fixture
def settings(tmp_path):
    return {"dir": str(tmp_path)}


def repository(**more):
    servers = ["http://a/cvmfs/r.example.org", "http://b/cvmfs/r,1"]
    one = {"name": "r.example.org", "servers": servers, "keys": ["PEM"]}
    told = {"repositories": [{**one, "root_hash": None, "tag": None}], "how": "auto"}
    told |= {"proxies": "http://squid:3128;DIRECT", "cache": None, "alien_cache": "/alien"}
    told |= {"variables": {"ARCH": "x"}, "timeout_s": 5.0, "direct_timeout_s": 9.6}
    return {**told, **more}


# -- when ------------------------------------------------------------------------------------------


def test_it_is_used_only_if_it_runs_programs(tmp_path, settings):
    assert parrot.why_not(stand_in(tmp_path), settings, WANTED) == ""
    # today's, on today's systems
    text = "sh: error while loading shared libraries: libc.so.6: cannot stat: Error 20"
    broken = stand_in(tmp_path, f"print({text!r}, file=sys.stderr); sys.exit(127)")
    assert parrot.why_not(broken, settings, WANTED) == f"{broken}: sh does not run under it: {text}"
    # a shell, but no program that loads libraries
    only_shell = stand_in(tmp_path, "command[0] == 'sh' or sys.exit(1)")
    assert f"{sys.executable} does not run under it: exit code 1" in parrot.why_not(
        only_shell, settings, WANTED
    )
    assert "no parrot_run" in parrot.why_not("", settings, WANTED)
    assert "No such file" in parrot.why_not(str(tmp_path / "none"), settings, WANTED)


def test_one_that_hangs_and_what_it_has_begun(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(parrot, "_PROBE_S", 0.5)
    mark = str(tmp_path / "mark")
    program = stand_in(tmp_path, f"subprocess.run(['sh', '-c', 'sleep 600; :', {mark!r}])")
    assert "hangs under it" in parrot.why_not(program, settings, WANTED)
    wait_for(lambda: not sandboxes.alive(mark))


def test_nobody_waits_for_what_has_left_its_session(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(parrot, "_PROBE_S", 0.5)
    mark = str(tmp_path / "mark")
    stray = f"subprocess.Popen(['sh', '-c', 'sleep 600; :', {mark!r}], start_new_session=True)"
    program = stand_in(tmp_path, f"{stray}; sys.exit(1)")
    assert "hangs under it" in parrot.why_not(program, settings, WANTED)
    left = sandboxes.alive(mark)
    assert left
    for pid in left:
        os.killpg(pid, signal.SIGKILL)


def test_its_own_words_are_not_lost_in_a_traceback(tmp_path, settings):
    text = "Attaching r.example.org failed: Failed to initialize root file catalog (16)"
    body = f"print(*2 * [{text!r}], sep='\\n', file=sys.stderr); command[0] == 'sh' or int('?')"
    said = parrot.why_not(stand_in(tmp_path, body), settings, WANTED)
    assert f"run under it: {text}; Traceback" not in said
    assert f"{text}; ValueError" in said


def test_it_does_not_promise_what_it_cannot_keep(tmp_path, settings):
    good = stand_in(tmp_path)
    cuts = "neither cuts the network"
    assert cuts in parrot.why_not(good, settings, {**WANTED, "network": False})
    assert cuts in parrot.why_not(good, settings, {**WANTED, "writes": "outputs"})
    assert "a space is in it" in parrot.why_not(good, settings, {**WANTED, "allow": ["/a b"]})
    served = {**settings, "cvmfs": repository()}
    pinned = repository()
    pinned["repositories"][0]["tag"] = "v1"
    assert "cannot pin" in parrot.why_not(good, {**settings, "cvmfs": pinned}, WANTED)
    other = {**settings, "cvmfs": repository(how="client")}
    assert "from Parrot only" in parrot.why_not(good, other, WANTED)
    # it serves no repository, whatever it says
    assert "No such file or directory: '/cvmfs/r.example.org'" in parrot.why_not(
        good, served, WANTED
    )
    without = stand_in(tmp_path, cvmfs=False)
    assert "was built without CVMFS" in parrot.why_not(without, served, WANTED)


def test_one_that_is_missing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unusable, match="no parrot_run on the PATH") as caught:
        sandbox.arrange({"dir": str(tmp_path), "interposer": {"kind": "parrot"}})
    assert 'interposer="userns"' in caught.value.fix


# -- what it is told -------------------------------------------------------------------------------


def test_its_command(tmp_path, settings):
    command, environ = parrot.command("/bin/parrot_run", settings, WANTED)
    mounts, own = str(tmp_path / "parrot-mounts"), str(tmp_path / "parrot-own")
    begin = ["/bin/parrot_run", "--no-set-foreground", "-t", own, "-m", mounts]
    assert (command, environ) == ([*begin, "--"], {})
    assert stat.S_IMODE((tmp_path / "parrot-tmp").stat().st_mode) == 0o700
    told = {**settings, "cvmfs": repository()}
    told["cvmfs"]["repositories"][0]["blacklist"] = ["<r.example.org 7"]
    command, environ = parrot.command("/bin/parrot_run", told, WANTED)
    proxies = "http://squid:3128;DIRECT"
    assert command == [*begin, "-p", proxies, "--"]
    key = tmp_path / "parrot-keys" / "r.example.org-0.pub"
    assert key.read_text() == "PEM"
    blacklist = tmp_path / "parrot-keys" / "r.example.org-blacklist"
    assert blacklist.read_text() == "<r.example.org 7\n"
    # a comma in a value: of libcvmfs, and then of Parrot
    url = r"http://a/cvmfs/r.example.org;http://b/cvmfs/r\\,1"
    assert environ == {
        "ARCH": "x",
        "PARROT_CVMFS_REPO": f"r.example.org:pubkey={key},blacklist={blacklist},url={url},"
        "timeout=5,timeout_direct=10",
        "PARROT_CVMFS_ALIEN_CACHE": "/alien",
        "HTTP_PROXY": proxies,
    }


def test_its_cache_is_beside_that_of_our_client(tmp_path, settings):
    """It opens its cache to others, and believes what it finds there."""
    cache = tmp_path / "cache"
    told = {**settings, "cvmfs": repository(alien_cache=None, cache=str(cache))}
    _, environ = parrot.command("/bin/parrot_run", told, WANTED)
    assert environ["PARROT_CVMFS_ALIEN_CACHE"] == str(cache / "parrot")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    cache.chmod(0o777)
    _, environ = parrot.command("/bin/parrot_run", told, WANTED)
    assert "PARROT_CVMFS_ALIEN_CACHE" not in environ


def resolved(lines, path):
    """Return what a mount list of Parrot makes of a path: the last line counts that fits."""
    for line in reversed(lines):
        prefix, target, *rights = line.split()
        below = path == prefix or path.startswith(prefix.rstrip("/") + "/")
        # it knows "\x" as x, which Python does not
        if below or ("\\" not in prefix and fnmatch.fnmatchcase(path, prefix)):
            there = path if target == "LOCAL" else target + path[len(prefix.rstrip("/")) :]
            return target if target == "ENOENT" else there, *rights
        if "\\" in prefix and path == prefix.replace("\\", ""):
            return path, *rights
    return path, "rwx"


@pytest.mark.parametrize("is_worker", [True, False])
def test_its_mount_list(is_worker):
    """Of a forkserver below /tmp, which is private, and an environment below /root."""
    folder = Path("/tmp/hepscale-t/w/hepscale/n" if is_worker else "/tmp/hepscale-t/f")
    settings = {"dir": str(folder), "since": "1" if is_worker else None}
    settings["prefix"] = "/root/env"
    wanted = {**WANTED, "allow": ["/data/in", "/data/out:rw"]}
    lines = list(parrot._mounts(settings, "/private", wanted))
    assert resolved(lines, "/tmp/x") == ("/private/x",)
    assert resolved(lines, "/var/tmp") == resolved(lines, "/dev/shm") == ("/private",)
    for path in ("/home/u", "/root/.ssh/id", "/sys/kernel", "/data/other", "/chirp/host", "/x"):
        assert resolved(lines, path) == ("ENOENT",), path
    for path in ("/usr/lib/x", "/etc/passwd", "/root/env/bin", "/data/in/x", "/cvmfs/x", "/"):
        assert resolved(lines, path) == (path, "rx"), path
    assert resolved(lines, "/data/out/x") == ("/data/out/x", "rwx")
    assert resolved(lines, "/hepscale/environment/bin") == (f"{sys.prefix}/bin", "rx")
    # one may pass, and neither look around nor come to what is beside
    for path in ("/root", "/data", "/dev"):
        assert resolved(lines, path) == (path, "x"), path
    assert resolved(lines, "/tmp/hepscale-t") == ("/tmp/hepscale-t", "x" if is_worker else "wx")
    task = folder.parent.parent / "t.1/x" if is_worker else folder / "task/x"
    assert resolved(lines, str(task)) == (str(task), "rwx")
    if not is_worker:
        spool = f"/tmp/hepscale-t/hepscale-{os.getuid()}-s/payload"
        assert resolved(lines, spool) == (spool, "rx")


def test_it_starts_the_forkserver_again(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call) or exec_ends())
    # it would wait for a child of this process, and kill it
    monkeypatch.setattr(parrot, "end_with_child", lambda: calls.append("watched"))

    def exec_ends():
        raise SystemExit

    good = stand_in(tmp_path)
    settings = {"dir": str(tmp_path), "interposer": {"kind": "parrot", "parrot": good}}
    with pytest.raises(SystemExit):
        sandbox.arrange(settings)
    watched, (path, command, environ) = calls
    assert watched == "watched"
    assert (path, command[0], command[-len(sys.orig_argv) :][0]) == (good, good, sys.executable)
    monkeypatch.setenv("HEPSCALE_WORLD", environ["HEPSCALE_WORLD"])
    found = sandbox.arrange(settings)
    assert (found.kind, found.nursery, settings["manager_pid"]) == ("parrot", None, os.getppid())
    assert json.dumps(found.told())
