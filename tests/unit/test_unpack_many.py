"""`unpack.py` while it is killed, and while others do the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import ExitStack

import pytest
from support import wait_for
from unpacked import LAYERS, heals
from unpacking import FOLDER

from hepscale.worker import unpack


@pytest.fixture
def layers():
    return dict(LAYERS)


# -- killed at any time ----------------------------------------------------------------------------


def kill_all(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def kill_first(process):
    """Kill the process that was started; its children find out for themselves."""
    process.kill()
    process.wait()


@pytest.mark.parametrize("kill", [kill_all, kill_first])
@pytest.mark.parametrize("layer", [1, 2])
def test_killed_while_a_layer_is_unpacked(plain, layer, kill):
    log = plain.count_tar()
    mark = plain.folder / "mark"
    part = f"head -c 5000000 | {plain.real('tar')} \"$@\" 2>/dev/null; touch '{mark}'; sleep 600"
    if layer == 2:
        part = f"[ -d '{plain.store}'/.new-*/bin ] || exec {plain.real('tar')} \"$@\"\n{part}"
    plain.program("tar", part + "\n")
    with plain.started() as process:
        wait_for(mark.exists)
        kill(process)
        assert [name[:5] for name in plain.left()] == [".lock", ".new-"]
        assert not plain.prefix.exists()
        plain.count_tar()
        plain.works()
    assert log.read_text().count("called") == 2


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_when_it_is_published(plain, moment):
    """Between the marker and the renaming, and between the renaming and the lock's release."""
    real = plain.worker / "real.py"
    (plain.worker / "unpack.py").rename(real)
    name = {"before": "os.rename", "after": "shutil.rmtree"}[moment]
    (plain.worker / "unpack.py").write_text(
        "import os, shutil\n"
        f"{name} = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        f"exec(open({str(real)!r}).read())\n"
    )
    done = plain.start()
    assert done.returncode == -signal.SIGKILL
    assert plain.prefix.exists() == (moment == "after")
    found = next(plain.store.glob(".new-*" if moment == "before" else "a*"))
    assert (found / ".hepscale-ready").exists()
    shutil.copy(FOLDER / "unpack.py", plain.worker)
    if moment == "after":
        # which is in nobody's way
        assert [name[:5] for name in plain.left()] == [".lock"]
        shutil.rmtree(plain.store / plain.left()[0])
    plain.works()


def test_killed_at_any_time(plain):
    delay_s = 0.0
    while True:
        delay_s += 0.05
        with plain.started() as process:
            time.sleep(delay_s)
            if process.poll() is not None:
                break
            kill_all(process)
        assert plain.prefix.exists() == (plain.prefix / ".hepscale-ready").exists()
    assert delay_s > 0.1
    for name in plain.left():
        # only of those who were killed after publishing
        assert name.startswith(".lock-")
        shutil.rmtree(plain.store / name)
    plain.works()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ended_while_packages_are_unpacked(plain, number):
    mark = plain.folder / "mark"
    plain.program(
        "tar",
        f"[ -d '{plain.store}'/.new-*/bin ] || exec {plain.real('tar')} \"$@\"\n"
        f"touch '{mark}'; exec sleep 600\n",
    )
    with plain.started() as process:
        wait_for(mark.exists)
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        assert process.stderr.read() == ""
    assert plain.left() == []
    (plain.bin / "tar").unlink()
    heals(plain)


# -- several at the same time ----------------------------------------------------------------------


def together(place, starters):
    with ExitStack() as stack:
        running = [stack.enter_context(place.started(str(n))) for n in range(starters)]
        told = []
        for process in running:
            out, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (0, "")
            told.append(json.loads(out))
    assert {one["prefix"] for one in told} == {str(place.prefix)}
    assert [one["argv"][1] for one in told] == [str(n) for n in range(starters)]
    assert place.left() == []


@pytest.mark.parametrize("starters", [2, 8])
def test_several_starters_unpack_once(plain, starters):
    log = plain.count_tar()
    together(plain, starters)
    assert log.read_text() == "called\n" * 2


def test_several_starters_find_what_a_killed_one_left(plain):
    log = plain.count_tar()
    (plain.prefix / "bin").mkdir(parents=True)
    (plain.store / f".new-{'a' * 64}-{os.uname().nodename}-999999999" / "lib").mkdir(parents=True)
    lock = plain.store / f".lock-{'a' * 64}"
    lock.mkdir()
    (lock / "owner").write_text(f"999999999 {os.uname().nodename} 5\n")
    together(plain, 5)
    assert log.read_text() == "called\n" * 2


def test_starters_without_a_lock_do_no_harm(plain):
    log = plain.count_tar()
    script = (plain.worker / "stage0.sh").read_text()
    without = script.replace('\ntake_lock "$@"\n', "\n")
    assert without != script
    (plain.worker / "stage0.sh").write_text(without)
    (plain.prefix / "bin").mkdir(parents=True)
    together(plain, 3)
    assert log.read_text() == "called\n" * 6


@pytest.fixture
def folders(tmp_path):
    """An environment that is complete, and the folder where it is to be published."""
    return complete(tmp_path / "new", "ours"), tmp_path / ("a" * 64)


def complete(folder, whose):
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python3").touch(mode=0o755)
    (folder / ".hepscale-ready").touch()
    (folder / whose).touch()
    return folder


@pytest.mark.parametrize("there", ["nothing", "a rest", "a marker alone"])
def test_publishing(folders, there):
    new, final = folders
    if there != "nothing":
        (final / "lib").mkdir(parents=True)
    if there == "a marker alone":
        (final / ".hepscale-ready").touch()
    unpack._publish(str(new), str(final))
    assert os.listdir(final.parent) == [final.name]
    assert sorted(os.listdir(final)) == [".hepscale-ready", "bin", "ours"]


def test_publishing_what_somebody_else_has_published(folders):
    new, final = folders
    complete(final, "theirs")
    unpack._publish(str(new), str(final))
    assert os.listdir(final.parent) == [final.name]
    assert (final / "theirs").exists()


def test_publishing_at_the_same_time(folders, monkeypatch):
    """Somebody else is done between the look at a rest and its removal."""
    new, final = folders
    final.mkdir()
    (final / "lib").touch()
    rename, renamed = os.rename, []

    def late(source, target):
        renamed.append(source)
        if len(renamed) == 2:
            shutil.rmtree(final)
            complete(final, "theirs")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    unpack._publish(str(new), str(final))
    assert os.listdir(final.parent) == [final.name]
    assert (final / "theirs").exists()
