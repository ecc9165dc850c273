"""`stage0.sh` and its store: where it lies, its lock, and what others have left there."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from as_root import mounted
from starting import FAKE, make_ready, reaches_python
from support import wait_for

from hepscale.worker import proc


@pytest.fixture
def layers():
    """A Python that is a script."""
    return dict(FAKE)


# -- the store -------------------------------------------------------------------------------------


def test_file_in_place_of_the_store(place):
    place.store.write_text("something else")
    place.refused(83, str(place.store))
    place.store.unlink()
    reaches_python(place)


def test_file_above_the_store(place):
    place.store.write_text("something else")
    place.store = place.store / "below"
    place.refused(83, str(place.store))


@pytest.mark.root
def test_read_only_folder(place):
    with mounted(place.folder / "ro", "ro") as folder:
        place.store = folder
        place.refused(83, "Read-only file system")
        place.store = folder / "below"
        place.refused(83, "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        reaches_python(place)


@pytest.mark.root
def test_folder_without_permission_to_run_programs(place):
    with mounted(place.folder / "noexec", "noexec") as folder:
        place.store = folder
        place.refused(87, "noexec", "ermission denied")


@pytest.mark.root
@pytest.mark.parametrize("room", ["size=20k", "size=10m,nr_inodes=4", "size=10m,nr_inodes=2"])
def test_full_disk(place, room):
    with mounted(place.folder / "small", room) as folder:
        (folder / "note").touch()
        place.store = folder / "below" if "inodes=2" in room else folder
        done = place.start()
        assert done.returncode == 82, done.stderr
        assert "There is no room to unpack" in done.stderr
        assert "df -h " in done.stderr
        assert os.listdir(folder) in (["note"], ["below", "note"])
        subprocess.run(["mount", "-o", "remount,size=10m,nr_inodes=99", str(folder)], check=True)
        place.store = folder / "below"
        reaches_python(place)


@pytest.mark.root
def test_disk_filled_by_a_killed_start(place):
    with mounted(place.folder / "small", "size=600k") as folder:
        place.store = folder
        leftover = folder / f".new-{'a' * 64}-{os.uname().nodename}-{dead_pid()}"
        leftover.mkdir()
        with open(leftover / "ballast", "wb", buffering=0) as out, suppress(OSError):
            while True:
                out.write(bytes(1000))
        done = place.start()
        assert (done.returncode, done.stderr) == (0, "")
        assert not leftover.exists()


# -- what others have left -------------------------------------------------------------------------

HOST = os.uname().nodename


def dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_leftovers_of_the_dead_are_removed_those_of_the_living_are_not(place):
    dead, kept = dead_pid(), []
    for kind in ("new", "old"):
        begun = f".{kind}-{'b' * 64}"
        # what another machine has begun is none of ours
        kept += [f"{begun}-{HOST}-{os.getpid()}", f"{begun}-another-{dead}"]
        (place.store / f"{begun}-{HOST}-{dead}" / "lib").mkdir(parents=True)
    for name in kept:
        (place.store / name / "lib").mkdir(parents=True)
    place.start()
    assert sorted(name for name in place.left() if "b" * 64 in name) == sorted(kept)


@pytest.mark.parametrize("gone", [".hepscale-ready", "bin/python3"])
def test_half_removed_environment_is_not_used(place, gone):
    make_ready(place)
    (place.prefix / gone).unlink()
    (place.prefix / "rest").touch()
    done = place.start()
    assert done.stdout.startswith("unpacking with ")
    assert not place.prefix.exists()


def lock_of(place, owner):
    lock = place.store / f".lock-{'a' * 64}"
    lock.mkdir(parents=True)
    if owner is not None:
        (lock / "owner").write_text(owner)
    return lock


@pytest.mark.parametrize("who", ["dead", "another with its number", "nobody"])
def test_lock_of_a_dead_owner_is_taken_over(plain, who):
    owner = {
        "dead": f"{dead_pid()} {HOST} 17\n",
        "another with its number": f"{os.getpid()} {HOST} 17\n",
        "nobody": None,
    }[who]
    lock = lock_of(plain, owner)
    begun = time.monotonic()
    done = plain.start()
    assert done.stdout.startswith("unpacking with ")
    # now it is ours; the script does not give it back
    assert not (lock / "owner").read_text().startswith(owner or "x")
    assert time.monotonic() - begun < 4


def test_lock_of_a_dead_owner_is_taken_by_one(plain):
    dead = dead_pid()
    lock = lock_of(plain, f"{dead} {HOST} 17\n")
    # somebody is about to, and dies
    (lock / f"after-{dead}").mkdir()
    begun = time.monotonic()
    assert plain.start().stdout.startswith("unpacking with ")
    assert 1 < time.monotonic() - begun < 4


def test_lock_of_a_zombie_is_taken_over(plain):
    process = subprocess.Popen(["true"])
    wait_for(lambda: ") Z " in Path(f"/proc/{process.pid}/stat").read_text())
    lock_of(plain, f"{process.pid} {HOST} -\n")
    assert plain.start().stdout.startswith("unpacking with ")
    process.wait()


@pytest.mark.parametrize("owner", ["1 elsewhere 17\n"])
def test_lock_is_waited_for_not_forever(plain, owner):
    lock = lock_of(plain, owner)
    begun = time.monotonic()
    done = plain.start(HEPSCALE_UNPACK_WAIT_S="1")
    assert done.stdout.startswith("unpacking with ")
    assert 1 < time.monotonic() - begun < 5
    assert (lock / "owner").read_text() == owner


def test_who_waits_starts_as_soon_as_it_is_ready(place):
    lock_of(place, f"{os.getpid()} {HOST} -\n")
    with place.started("x") as process:
        time.sleep(0.4)
        assert process.poll() is None
        expected = make_ready(place)
        out, err = process.communicate(timeout=5)
        assert (out.splitlines(), err) == ([*expected, "x"], "")


def test_who_waits_unpacks_when_the_owner_dies(place):
    owner = subprocess.Popen(["sleep", "60"])
    lock_of(place, f"{owner.pid} {HOST} -\n")
    with place.started() as process:
        time.sleep(0.4)
        assert process.poll() is None
        owner.kill()
        owner.wait()
        out, err = process.communicate(timeout=5)
        assert out.startswith("unpacking with "), err


def program_of(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_end_by_a_signal_leaves_nothing(plain, number):
    plain.program("gzip", f"{plain.real('gzip')} -dc | head -c 9000; sleep 600\n")
    with plain.started() as process:
        # not before: between fork and exec a shell may lose an interrupt
        wait_for(lambda: "sleep" in map(program_of, proc.family(process.pid)))
        assert plain.left()
        os.killpg(process.pid, number)
        process.communicate(timeout=5)
        assert process.returncode == 128 + number
    assert plain.left() == []
