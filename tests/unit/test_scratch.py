"""Scratch folders go with their owner, and only then."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import pytest

from hepscale.worker import scratch


def test_a_folder_is_private_and_locked(tmp_path):
    path, lock = scratch.make(str(tmp_path))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert os.path.basename(path).startswith(f"hepscale-{os.getuid()}-")
    assert os.listdir(path) == ["lock"]
    assert scratch.sweep(str(tmp_path)) == []
    os.close(lock)
    assert scratch.sweep(str(tmp_path)) == [path]
    assert os.listdir(tmp_path) == []


def test_sweep_leaves_what_is_not_ours(tmp_path):
    mine, lock = scratch.make(str(tmp_path))
    os.close(lock)
    others = [f"hepscale-{os.getuid() + 1}-abcdef", "hepscale-data", "something", "hepscale-"]
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
    (tmp_path / f"hepscale-{os.getuid()}-file").write_text("a file, not a folder")
    # without a lock it is not one of these
    (tmp_path / f"hepscale-{os.getuid()}-other").mkdir()
    (tmp_path / f"hepscale-{os.getuid()}-other" / "file").touch()
    left = sorted(os.listdir(tmp_path))
    left.remove(os.path.basename(mine))
    assert scratch.sweep(str(tmp_path)) == [mine]
    assert sorted(os.listdir(tmp_path)) == left


def test_sweep_removes_what_its_owner_could_not(tmp_path):
    """Into which somebody wrote when it was about to be removed, and then did not leave it."""
    (tmp_path / f"hepscale-{os.getuid()}-empty").mkdir()
    assert scratch.sweep(str(tmp_path)) == []
    assert os.listdir(tmp_path) == []


def test_sweep_removes_what_is_in_a_folder(tmp_path):
    path, lock = scratch.make(str(tmp_path))
    inner = os.path.join(path, "task", "tmp")
    os.makedirs(inner)
    outside = tmp_path / "data.root"
    outside.write_text("not to be touched")
    os.symlink(outside, os.path.join(inner, "link"))
    os.close(lock)
    assert scratch.sweep(str(tmp_path)) == [path]
    assert outside.read_text() == "not to be touched"


def test_after_its_owner_was_killed(tmp_path):
    code = (
        "import sys; from hepscale.worker import scratch;"
        "path, lock = scratch.make(sys.argv[1]); print(path, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        path = owner.stdout.readline().decode().strip()
        assert os.path.isdir(path)
        assert scratch.sweep(str(tmp_path)) == []
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert scratch.sweep(str(tmp_path)) == [path]


def test_a_lock_that_was_passed_on_holds_until_its_last_owner_ends(tmp_path):
    path, lock = scratch.make(str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        pass_fds=(lock,),
    ) as heir:
        os.close(lock)
        assert scratch.sweep(str(tmp_path)) == []
        heir.stdin.close()
    assert scratch.sweep(str(tmp_path)) == [path]


def test_a_place_that_cannot_be_used(tmp_path):
    assert scratch.sweep(str(tmp_path / "nowhere")) == []
    with pytest.raises(FileNotFoundError):
        scratch.make(str(tmp_path / "nowhere"))
