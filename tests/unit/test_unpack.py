"""`unpack.py` after `stage0.sh`, with a real Python in the layers: everything up to the worker."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import unpacking
from as_root import mounted
from support import wait_for
from unpacked import INTERPRETER, LAYERS, PACKAGES, PYTHON, heals
from unpacking import FOLDER, flipped, zstd

import hepscale
from hepscale.worker import unpack


@pytest.fixture
def layers():
    return dict(LAYERS)


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
        assert process.wait(30) == 0, process.stderr.read()
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
