"""`stage0.sh`, tried with real shells: what it does before there is a Python, and the lock."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import statistics
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import unpacking
from as_root import mounted
from support import wait_for
from unpacking import Place, fake_interpreter, flipped

from hepscale.worker import proc

FAKE = {"inter preter.tar.gz": fake_interpreter()}


@pytest.fixture(params=unpacking.SHELLS)
def shell(request):
    return unpacking.need(request.param)


@pytest.fixture
def place(tmp_path, shell):
    """A place whose Python is a script, as far as this shell is."""
    return Place(tmp_path, shell, dict(FAKE))


@pytest.fixture
def plain(tmp_path):
    """The same with the machine's own shell, for tests that put programs of their own on PATH."""
    return Place(tmp_path, "sh", dict(FAKE))


def reaches_python(place, **environ):
    """Start, and check that the interpreter of the layer is unpacked and run."""
    done = place.start(**environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("unpacking with ")
    assert f"/.new-{'a' * 64}-" in done.stdout
    # a script cannot finish what unpack.py would
    shutil.rmtree(place.store)


def make_ready(place):
    """Make what an earlier start has left: an environment that is ready."""
    python = place.prefix / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
    python.chmod(0o755)
    (place.prefix / ".hepscale-ready").touch()
    return [str(python), "-I", str(place.worker)]


# -- the way of all starts but the first -----------------------------------------------------------


def test_what_is_ready_is_started_without_a_look_at_its_files(place):
    expected = make_ready(place)
    shutil.rmtree(place.layers)
    # no program can be run that would look, and no layer is there
    done = place.start("one two", "", "*", PATH="/nowhere")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [*expected, "one two", "", "*"]
    assert place.left() == []


def test_a_task_is_started_without_looking_for_packages(place):
    *python, worker = make_ready(place)
    done = place.start("--task", "7")
    assert done.stdout.splitlines() == [*python, "-S", f"{worker}/__main__.py", "--task", "7"]


def test_it_costs_milliseconds(place):
    make_ready(place)
    (place.prefix / "bin" / "python3").unlink()
    (place.prefix / "bin" / "python3").symlink_to(shutil.which("true"))
    spent_s = []
    for _ in range(15):
        begun = time.perf_counter()
        subprocess.run(place.command(), check=True)
        spent_s.append(time.perf_counter() - begun)
    assert statistics.median(spent_s) < 0.020, spent_s


def test_relative_paths(place):
    make_ready(place)
    place.store.rename(place.folder / "store")
    shell = place.command()[:-5]
    paths = ["its worker/stage0.sh", "environ ment", "all layers", "store", "its worker"]
    told = subprocess.run(
        [*shell, *paths], cwd=place.folder, capture_output=True, text=True, check=True
    )
    lines = told.stdout.splitlines()
    assert lines[0] == f"{place.folder}/store/{'a' * 64}/bin/python3"
    assert lines[2] == str(place.worker)


def test_wrong_use(place):
    done = subprocess.run(place.command()[:-1], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


# -- is it an environment for this machine? --------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda text: "", 'does not begin with "hepscale-environment"'),
        (lambda text: "hello\n" + text[40:], 'does not begin with "hepscale-environment"'),
        (
            lambda text: text.replace("ment 1\n", "ment 2\n"),
            "has format 2, this worker understands 1",
        ),
        (lambda text: text.replace("digest a", "digest ../a"), "digest is missing or not 64"),
        (lambda text: text.replace("digest a", "digest "), "digest is missing or not 64"),
        (lambda text: text.replace("interpreter", "packages"), "names no interpreter"),
        (lambda text: text.replace("layer inter", "layer house x 1 y\nlayer inter"), "kind house"),
        (lambda text: text[:-1], "last line is missing"),
        (lambda text: text.partition("relocate")[0], "last line is missing"),
    ],
)
def test_environment_file_that_is_not_understood(place, change, text):
    good = place.environment.read_text()
    assert change(good) != good
    place.environment.write_text(change(good))
    assert str(place.environment) in place.refused(88, text)
    place.environment.write_text(good)
    reaches_python(place)


def test_environment_file_that_is_missing(place):
    place.environment.unlink()
    place.refused(88, "it cannot be read")


def test_newer_format_is_refused_also_when_it_is_ready(place):
    make_ready(place)
    place.write(**{"hepscale-environment": "2"})
    done = place.start()
    assert (done.returncode, done.stdout) == (88, "")


def test_facts_of_a_later_version_are_passed_over(place):
    place.write(licence="a b c")
    reaches_python(place)


def test_wrong_machine(place):
    place.write(machine="riscv256")
    place.refused(85, f"This machine is {os.uname().machine}", "for riscv256")
    place.write(machine="-")
    reaches_python(place)


OLD = [
    ("getconf", "echo 'glibc 2.17'"),
    ("ldd", "echo 'ldd (Debian GLIBC 2.17-18+deb) 2.17'; echo 'Copyright 9.99'"),
    ("ld.so", "echo 'ld.so (Debian GLIBC 2.17-9) stable release version 2.17.'; echo 'of 9.99'"),
]


@pytest.mark.parametrize(("program", "script"), OLD)
def test_glibc_too_old(plain, program, script):
    for name, _ in OLD:
        plain.program(name, "exit 1\n")
    plain.program(program, script + "\n")
    plain.write(glibc="2.34")
    plain.refused(84, "glibc 2.17", "2.34")
    for fitting in ("2.17", "2.9", "1.99", "-"):
        plain.write(glibc=fitting)
        reaches_python(plain)
    for too_new in ("2.18", "2.100", "3.0"):
        plain.write(glibc=too_new)
        plain.refused(84, too_new)


def test_glibc_that_nobody_tells(plain):
    for name, _ in OLD:
        plain.program(name, "echo 'undefined'\n")
    plain.write(glibc="2.99")
    reaches_python(plain)


def test_own_glibc_is_found_by_itself(plain):
    plain.write(glibc="2.999")
    here = os.confstr("CS_GNU_LIBC_VERSION").split()[1]
    plain.refused(84, f"This machine has glibc {here}, the environment needs 2.999.")


# -- tools and layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["tar", "gzip"])
def test_tool_that_is_missing(plain, tmp_path, missing):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("uname", "mkdir", "rm", "mv", "date", "sleep", "wc", "tar", "gzip"):
        if name != missing:
            (few / name).symlink_to(shutil.which(name))
    plain.refused(86, f"This machine has no {missing}.", PATH=str(few))
    (few / missing).symlink_to(shutil.which(missing))
    reaches_python(plain, PATH=str(few))


@pytest.mark.parametrize("broken", ["tar", "gzip"])
def test_tool_that_is_broken(plain, broken):
    plain.program(broken, "echo 'Illegal instruction' >&2\nexit 1\n")
    plain.refused(86, f"The {broken} of this machine does not work.", "Illegal instruction")
    (plain.bin / broken).unlink()
    reaches_python(plain)


def test_options_of_the_surroundings_are_not_used(place):
    reaches_python(place, TAR_OPTIONS="--no-such-option", GZIP="--no-such-option")


@pytest.mark.parametrize("name", ["inter preter.tar.gz", "pack ages.tar.zst"])
def test_layer_that_is_missing(place, name):
    place.contents["pack ages.tar.zst"] = b"not looked into by a script"
    place.write()
    (place.layers / name).unlink()
    place.refused(80, str(place.layers / name))
    place.write()
    reaches_python(place)


@pytest.mark.parametrize("name", ["inter preter.tar.gz", "pack ages.tar.zst"])
def test_layer_that_is_truncated(place, name):
    place.contents["pack ages.tar.zst"] = b"not looked into by a script"
    place.write()
    content = place.contents[name]
    (place.layers / name).write_bytes(content[:-7])
    size = len(content)
    place.refused(81, f"{size - 7} bytes instead of {size}", str(place.layers / name))
    place.write()
    reaches_python(place)


@pytest.mark.parametrize("damage", [flipped, lambda data: data[:-20], lambda data: b"x" * 1000])
def test_interpreter_archive_that_is_damaged_though_its_size_is_right(place, damage):
    (name,) = place.contents
    good, place.contents[name] = place.contents[name], damage(place.contents[name])
    place.write()
    place.refused(81, str(place.layers / name), "it cannot be unpacked")
    place.contents[name] = good
    place.write()
    reaches_python(place)


def test_damage_that_only_the_checksum_at_the_end_shows(place):
    (name,) = place.contents
    stored = gzip.compress(gzip.decompress(place.contents[name]), 0)
    place.contents[name] = flipped(stored)
    place.write()
    place.refused(81, "it cannot be unpacked")


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (
            "#!/bin/sh\necho \"libc.so.6: version 'GLIBC_2.38' not found\" >&2\nexit 1\n",
            "GLIBC_2.38",
        ),
        ("#!/no/such/loader\n", "not found"),
        (None, "not found"),
    ],
)
def test_python_that_does_not_start(place, script, text):
    (name,) = place.contents
    archive = unpacking.archive({"ballast": b"x"})
    place.contents[name] = fake_interpreter(script) if script else gzip.compress(archive)
    place.write()
    place.refused(87, text)


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
    plain.program("gzip", f"{plain.real('gzip')} -dc | head -c 9000; sleep 60\n")
    with plain.started() as process:
        # not before: between fork and exec a shell may lose an interrupt
        wait_for(lambda: "sleep" in map(program_of, proc.family(process.pid)))
        assert plain.left()
        os.killpg(process.pid, number)
        process.communicate(timeout=5)
        assert process.returncode == 128 + number
    assert plain.left() == []
