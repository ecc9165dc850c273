"""`stage0.sh`, tried with real shells: what it does before there is a Python, and the lock."""

from __future__ import annotations

import gzip
import os
import shutil
import statistics
import subprocess
import time

import pytest
import unpacking
from starting import FAKE, make_ready, reaches_python
from unpacking import fake_interpreter, flipped


@pytest.fixture
def layers():
    """A Python that is a script."""
    return dict(FAKE)


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
