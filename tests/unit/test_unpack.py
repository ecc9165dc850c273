"""`unpack.py` after `stage0.sh`, with a real Python in the layers: everything up to the worker."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import conda_pack.prefixes
import pytest
import unpacking
from as_root import mounted
from support import wait_for
from unpacking import FOLDER, Place, flipped, zstd

import hepscale
from hepscale.worker import relocate, unpack

INTERPRETER, PACKAGES = "inter preter.tar.gz", "pack ages.tar.zst"
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
LAYERS = {INTERPRETER: unpacking.interpreter(), PACKAGES: unpacking.packages()}


@pytest.fixture(params=unpacking.SHELLS)
def place(tmp_path, request):
    return Place(tmp_path, unpacking.need(request.param), dict(LAYERS))


@pytest.fixture
def plain(tmp_path):
    """The same with the machine's own shell, for tests that put programs of their own on PATH."""
    return Place(tmp_path, "sh", dict(LAYERS))


def test_the_worker_is_run_by_what_was_unpacked(place):
    done = place.start("one two", "", said="for the worker", TAR_OPTIONS="--no-such-option")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["prefix"] == str(place.prefix)
    assert told["argv"] == [str(place.worker), "one two", ""]
    assert told["isolated"] == 1
    # neither input nor variables are taken from the worker
    assert told["stdin"] == "for the worker"
    assert told["tar"] == "--no-such-option"
    assert place.left() == []
    assert (place.prefix / "share" / "note").read_bytes() == b"packed"
    assert (place.prefix / "share" / "note").stat().st_uid == os.getuid()
    assert (place.prefix / ".hepscale-ready").read_text() == place.environment.read_text()
    changed = os.stat(place.prefix / "share").st_ctime_ns
    assert place.works()["prefix"] == str(place.prefix)
    assert os.stat(place.prefix / "share").st_ctime_ns == changed


def test_the_process_stays_the_same(place):
    # who started it watches and ends this one
    for _ in range(2):
        with place.started() as process:
            out, err = process.communicate(timeout=30)
            assert err == ""
            assert json.loads(out)["pid"] == process.pid


def test_several_packages_layers_and_none(plain):
    plain.contents["more.tar.zst"] = unpacking.packages({"share/more": b"also"})
    plain.write()
    plain.works()
    assert (plain.prefix / "share" / "note").exists()
    assert (plain.prefix / "share" / "more").read_bytes() == b"also"
    plain.contents = {INTERPRETER: LAYERS[INTERPRETER]}
    plain.write(digest="b" * 64)
    shutil.rmtree(plain.store)
    plain.works()
    assert not (plain.prefix / "share").exists()


def test_layer_of_several_frames_and_of_pieces_larger_than_a_buffer(plain):
    raw = unpacking.archive({"share/zeros": bytes(9_000_000), "share/end": b"end"})
    frames = [raw[:5_000_000], b"", raw[5_000_000:]]
    plain.contents[PACKAGES] = b"".join(zstd.compress(frame) for frame in frames)
    plain.write()
    plain.works()
    assert (plain.prefix / "share" / "zeros").read_bytes() == bytes(9_000_000)
    assert (plain.prefix / "share" / "end").exists()


def test_the_forkserver_runs_in_it(plain, tmp_path):
    """The real worker, whose first message says what the manager compares."""
    shutil.rmtree(plain.worker)
    shutil.copytree(FOLDER, plain.worker, ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "server"
    folder.mkdir()
    settings = {"dir": str(folder), "manager_pid": os.getpid(), "idle_s": 60, "preload": []}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    process = subprocess.Popen(
        plain.command(str(tmp_path / "settings.json")),
        env=plain.environ(),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
    )
    with process:
        wait_for(lambda: (folder / "s").exists() or process.poll() is not None)
        with unpacking.connected(folder) as client, client.makefile("r") as lines:
            ready = json.loads(lines.readline())
        process.stdin.close()
        assert process.wait(10) == 0, process.stderr.read()
    assert ready == {
        "ev": "ready",
        "pid": process.pid,
        "hepscale": hepscale.__version__,
        "python": sys.version.split()[0],
        "interposer": {"kind": "none", "why": "", "cvmfs": {}, "notices": []},
        "glibc": os.confstr("CS_GNU_LIBC_VERSION").split()[1],
        "prefix": str(plain.prefix),
    }


# -- damage ----------------------------------------------------------------------------------------


def heals(place):
    place.contents = dict(LAYERS)
    place.write()
    place.works()


DAMAGES = {"flipped": flipped, "truncated": lambda data: data[:-9]}


@pytest.mark.parametrize("damage", DAMAGES)
def test_packages_that_changed_on_their_way(plain, damage):
    content = DAMAGES[damage](LAYERS[PACKAGES])
    (plain.layers / PACKAGES).write_bytes(content)
    # as if the size were not looked at
    text = plain.environment.read_text()
    plain.environment.write_text(text.replace(f" {len(LAYERS[PACKAGES])} ", f" {len(content)} "))
    plain.refused(81, str(plain.layers / PACKAGES), "its digest is ")
    heals(plain)


@pytest.mark.parametrize("content", [LAYERS[PACKAGES][:-9], b"x" * 999])
def test_packages_that_were_damaged_when_their_digest_was_taken(plain, content):
    plain.contents[PACKAGES] = content
    plain.write()
    plain.refused(81, str(plain.layers / PACKAGES))


def test_layer_that_cannot_be_read(tmp_path):
    # a disk's error comes in mid-reading, in the thread that reads ahead
    with pytest.raises(unpack.UnpackError, match="Is a directory") as caught:
        list(unpack._hashed(str(tmp_path), hashlib.sha256()))
    assert caught.value.code == 81


@pytest.mark.parametrize("name", [INTERPRETER, PACKAGES])
def test_wrong_digest(plain, name):
    digest = hashlib.sha256(LAYERS[name]).hexdigest()
    text = plain.environment.read_text()
    plain.environment.write_text(text.replace(digest, "0" * 64))
    plain.refused(81, str(plain.layers / name), f"{digest[:12]}..., not 000000000000...")


def test_packages_that_are_no_archive(plain):
    plain.contents[PACKAGES] = zstd.compress(os.urandom(100_000))
    plain.write()
    plain.refused(86, "does not look like a tar archive")


def test_tar_that_breaks_after_the_interpreter(plain):
    log = plain.folder / "calls"
    script = f"[ ! -e '{log}' ] || exit 3\ntouch '{log}'\nexec {plain.real('tar')} \"$@\"\n"
    plain.program("tar", script)
    plain.refused(86, "The tar of this machine does not work.", "it ended with 3")


def test_tar_that_has_gone_after_the_interpreter(plain):
    plain.program("tar", f'rm "$0"\nexec {plain.real("tar")} "$@"\n')
    few = plain.folder / "few"
    few.mkdir()
    for name in ("uname", "mkdir", "rm", "mv", "date", "sleep", "wc", "gzip"):
        (few / name).symlink_to(shutil.which(name))
    plain.refused(86, "No such file or directory: 'tar'", PATH=f"{plain.bin}:{few}")
    heals(plain)


@pytest.mark.parametrize("missing", ["hepscale/backports", f"lib/{PYTHON}/hashlib.py"])
def test_interpreter_layer_that_lacks_something(plain, missing):
    if sys.version_info >= (3, 14) and "backports" in missing:
        missing = f"lib/{PYTHON}/compression"
    files = {name: data for name, data in unpacking.python_files().items() if missing not in name}
    plain.contents[INTERPRETER] = unpacking.compressed(files)
    plain.write()
    plain.refused(87, "No module named ")


@pytest.mark.root
@pytest.mark.parametrize("room_mb", [6, 16])
def test_full_disk(place, room_mb):
    """Once in the interpreter, once in the packages."""
    large = {f"share/{n}": os.urandom(100_000) for n in range(100)}
    place.contents[PACKAGES] = unpacking.packages(large)
    place.write()
    with mounted(place.folder / "small", f"size={room_mb}m") as folder:
        place.store = folder
        place.refused(82, "There is no room to unpack", "df -h ")
        subprocess.run(["mount", "-o", "remount,size=99m", str(folder)], check=True)
        place.works()


@pytest.mark.root
def test_folder_that_becomes_read_only(plain):
    with mounted(plain.folder / "ro", "size=99m") as folder:
        plain.store = folder
        remount = f"mount -o remount,ro '{folder}'"
        script = f"[ ! -d '{folder}'/.new-*/bin ] || {remount}\nexec {plain.real('tar')} \"$@\"\n"
        plain.program("tar", script)
        done = plain.start()
        assert done.returncode == 83, done.stderr
        assert "Read-only file system" in done.stderr
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        (plain.bin / "tar").unlink()
        plain.works()


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
    part = f"head -c 5000000 | {plain.real('tar')} \"$@\" 2>/dev/null; touch '{mark}'; sleep 60"
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
        f"touch '{mark}'; exec sleep 60\n",
    )
    with plain.started() as process:
        wait_for(mark.exists)
        process.send_signal(number)
        assert process.wait(5) == 128 + number
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


# -- relocation ------------------------------------------------------------------------------------

PLACEHOLDER = "/opt/placehold" * 18
PREFIXES = Path(conda_pack.prefixes.__file__).read_bytes()


def relocatable(records, **files):
    inside = {
        "hepscale/relocate-packages.json": json.dumps(records).encode(),
        "hepscale/prefixes.py": PREFIXES,
    }
    return unpacking.packages({**inside, **{f"bin/{name}": data for name, data in files.items()}})


def test_relocation(place):
    python = unpacking.python_files()
    old = PLACEHOLDER.encode()
    # the program that runs unpack.py, with its prefix in it as conda's has
    program = python[f"bin/{PYTHON}"] + b"\0" + old + b"/lib:" + old + b"/x\0tail"
    place.contents[INTERPRETER] = unpacking.compressed({**python, f"bin/{PYTHON}": program})
    script = f"#!{PLACEHOLDER}/bin/python3\nprint('{PLACEHOLDER}')\n".encode()
    records = [
        (f"bin/{PYTHON}", PLACEHOLDER, "binary"),
        ("bin/script", PLACEHOLDER, "text"),
        ("bin/other", PLACEHOLDER, "text"),
        ("bin/data", PLACEHOLDER, "binary"),
    ]
    data = b"a\0" + old + b"\0b"
    place.contents[PACKAGES] = relocatable(records, script=script, other=b"none", data=data)
    place.write(relocate=str(len(records)))
    place.works()
    final = str(place.prefix).encode()
    assert place.prefix.joinpath("bin/script").read_bytes() == script.replace(old, final)
    assert place.prefix.joinpath("bin/script").stat().st_mode & 0o777 == 0o755
    assert place.prefix.joinpath("bin/other").read_bytes() == b"none"
    padding = bytes(len(old) - len(final))
    found = place.prefix.joinpath("bin", PYTHON).read_bytes()
    assert len(found) == len(program)
    assert found.endswith(b"\0" + final + b"/lib:" + final + b"/x" + padding * 2 + b"\0tail")
    assert place.prefix.joinpath("bin/data").read_bytes() == b"a\0" + final + padding + b"\0b"
    assert list(place.prefix.rglob("*.hepscale-new")) == []


def test_prefix_that_is_too_long(plain):
    long = "/opt/short"
    plain.contents[PACKAGES] = relocatable([("bin/x", long, "binary")], x=long.encode() + b"\0")
    plain.write(relocate="1")
    size = len(str(plain.prefix))
    plain.refused(89, f"has {size} bytes, 10 fit into bin/x", str(plain.prefix), "shorter path")
    plain.contents[PACKAGES] = relocatable([("bin/x", long, "text")], x=long.encode() + b"\0")
    plain.write(relocate="1")
    plain.works()
    assert plain.prefix.joinpath("bin/x").read_bytes() == str(plain.prefix).encode() + b"\0"


def test_layers_that_do_not_belong_together(plain):
    plain.write(relocate="1")
    plain.refused(88, "The layers do not belong to this environment.", "hepscale")


@pytest.fixture
def prefix(tmp_path):
    """An unpacked prefix with one file to be relocated."""
    (tmp_path / "hepscale").mkdir()
    (tmp_path / "hepscale" / "prefixes.py").write_bytes(PREFIXES)
    (tmp_path / "hepscale" / "relocate-packages.json").write_text(
        json.dumps([["x", "/old", "text"]])
    )
    (tmp_path / "x").write_text("/old/lib")
    return tmp_path


def test_relocated_files_keep_their_mode(prefix):
    (prefix / "x").chmod(0o440)
    relocate.relocate(str(prefix), "/new place", 1)
    assert (prefix / "x").read_text() == "/new place/lib"
    assert (prefix / "x").stat().st_mode & 0o777 == 0o440


@pytest.mark.parametrize(
    ("records", "count", "text"),
    [
        ([["x", "/old", "text"]], 2, "1 files to be relocated instead of 2"),
        ([["y", "/old", "text"]], 1, "No such file"),
        ([["x", "/old", "odd"]], 1, "odd"),
        ([["x", "/old"]], 1, "unpack"),
        (17, 1, "not iterable"),
    ],
)
def test_records_that_do_not_fit(prefix, records, count, text):
    (prefix / "hepscale" / "relocate-packages.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match=text):
        relocate.relocate(str(prefix), "/new", count)


@pytest.mark.parametrize("content", [None, "{", "import no_such_module", "x = 1"])
def test_functions_that_are_missing(prefix, content):
    (prefix / "hepscale" / "prefixes.py").unlink()
    if content is not None:
        (prefix / "hepscale" / "prefixes.py").write_text(content)
    with pytest.raises(ValueError, match=r"prefixes|no_such_module|replace_prefix|never closed"):
        relocate.relocate(str(prefix), "/new", 1)


def test_codes_are_those_of_stage0():
    script = (FOLDER / "stage0.sh").read_text()
    told = set(map(int, re.findall(r"\b(8\d)\b", script.partition("\n\n")[0])))
    assert told == set(range(80, 90))
    assert set(unpack._ADVICE) < told
