"""The archive of an environment: what is in it, and that it runs where nothing else is."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import as_root
import pytest
import wheels
from bare import told

import hepscale
from hepscale import env_report
from hepscale.env import interpreter

PACKED = interpreter.this().site_below


@dataclass(frozen=True)
class Done:
    """An archive that was written, and its content unpacked by tar."""

    packed: hepscale.env.environment.Packed
    folder: Path

    def run(self, command: str, *hidden: str) -> str:
        """Run a command in an activated shell that knows nothing else."""
        line = ["bash", "-c", f"source {shlex.quote(str(self.folder))}/bin/activate && {command}"]
        if hidden:
            mounts = " && ".join(f"mount -t tmpfs none {shlex.quote(one)}" for one in hidden)
            line = ["unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh", *line]
        return told(line)


@pytest.fixture(scope="module")
def done(venv: wheels.Venv, script: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Pack the analysis's environment and unpack it elsewhere."""
    folder = tmp_path_factory.mktemp("packed")
    packed = hepscale.pack(script, folder / "env.tar.gz", python=venv.python)
    # the tests' folder may lie below what is hidden
    elsewhere = Path(tempfile.mkdtemp(prefix="elsewhere-", dir=folder))
    subprocess.run(["tar", "-C", elsewhere, "-xf", packed.path], check=True)
    return Done(packed, elsewhere)


def members(path: Path) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as archive:
        return {
            one.name: (one, archive.extractfile(one).read() if one.isfile() else b"")
            for one in archive
        }


def test_what_is_told_is_true(done: Done) -> None:
    packed = done.packed
    content = packed.path.read_bytes()
    assert packed.sha256 == hashlib.sha256(content).hexdigest()
    assert packed.size_bytes == len(content)
    assert not packed.unchanged
    with tarfile.open(packed.path) as archive:
        listed = archive.getmembers()
    assert packed.files == len(listed)
    assert packed.unpacked_bytes == sum(one.size for one in listed)
    assert {"bolt", "lamp", "python", "shade"} <= set(packed.spec.distributions)
    assert "idle" not in packed.spec.distributions
    assert set(packed.spec.modules) == {"helper", "projector", "tool"}
    assert Counter(one.name for one in listed).most_common(1)[0][1] == 1


def test_analysis_runs_in_it(done: Done, script: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.py"
    shutil.copy(script, copy)
    assert done.run(f"python {copy}") == wheels.TOLD
    assert done.run('python -c "import sys; print(sys.prefix)"') == f"{done.folder}\n"


def test_scripts_find_their_python(done: Done) -> None:
    told = f"lamp 1.0 green warm {done.folder}\n60\n"
    assert done.run("lamp") == told
    assert done.run("lamp-old") == told
    assert done.run("which lamp python") == f"{done.folder}/bin/lamp\n{done.folder}/bin/python\n"


def test_conda_unpack_works_and_may_be_repeated(done: Done) -> None:
    done.run("conda-unpack && conda-unpack")
    assert done.run("lamp").startswith("lamp 1.0")


def test_metadata_are_complete(done: Done) -> None:
    code = (
        "from importlib.metadata import entry_points, files, requires\n"
        "print(requires('lamp'), [str(one.load()) for one in entry_points(name='lamp')] != [])\n"
        "print(*sorted(str(one) for one in files('lamp') if not one.locate().exists()))\n"
    )
    required = "['shade', 'bolt; python_version < \"3\"']"
    assert done.run(f"python -c {shlex.quote(code)}") == f"{required} True\n\n"


def private(venv: wheels.Venv, script: Path) -> list[str]:
    """Return folders that nothing of may be in an archive."""
    found = interpreter.of(venv.python)
    places = {str(venv.prefix.parent), str(venv.prefix), str(venv.project), str(script.parent)}
    places |= {found.base_prefix, os.path.expanduser("~"), sys.prefix}
    # with a Python of the system it is not a private place
    return sorted(places - {"/usr", "/usr/local", "/"})


def test_nothing_of_the_machine_is_in_it(done: Done, venv: wheels.Venv, script: Path) -> None:
    names = members(done.packed.path)
    tells = "|".join(map(re.escape, private(venv, script)))
    # builders have such folders too, in places of theirs
    names_one = re.compile(rf"(?<![\w.-])({tells})/".encode()).search
    for name, (member, content) in names.items():
        assert (member.uname, member.gname, member.uid, member.gid) == ("", "", 0, 0)
        assert member.mtime == 315_532_800
        assert not names_one(member.linkname.encode()), name
        assert not names_one(content), name


def test_what_is_left_out(done: Done) -> None:
    names = members(done.packed.path)
    parts = {part for name in names for part in name.split("/")}
    assert parts.isdisjoint({"__pycache__", "direct_url.json", ".git", ".ssh", "pyvenv.cfg"})
    assert parts.isdisjoint({"idle.py", "idle-1.0.dist-info", "other.py", "pip"})
    assert parts.isdisjoint({"test", "tests", "idlelib", "tkinter", "turtledemo"})
    assert not any(name.endswith((".pyc", ".pth")) for name in names)
    assert not any(content == b"SECRET" for _, content in names.values())
    assert {f"{PACKED}/tool/data/n.txt", f"{PACKED}/helper.py"} < names.keys()
    record = names[f"{PACKED}/lamp-1.0.dist-info/RECORD"][1].decode()
    assert "__pycache__" not in record
    assert "direct_url" not in record
    assert "../../../bin/lamp,,\n" in record
    assert f"{PACKED}/projector/beam.py" in names


def test_metadata_of_an_editable_project(done: Done) -> None:
    assert f"{PACKED}/projector-1.0.dist-info/METADATA" in members(done.packed.path)
    assert done.packed.spec.distributions["projector"].version == "1.0"


@pytest.mark.root
def test_it_needs_nothing_of_the_machine(
    done: Done, venv: wheels.Venv, script: Path, tmp_path: Path
) -> None:
    as_root.needed("hiding folders")
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("this machine lets root have no namespaces")
    found = interpreter.of(venv.python)
    hidden = {str(Path.home()), str(venv.prefix.parent), str(script.parent), found.base_prefix}
    hidden -= {"/usr"}
    copy = Path(tempfile.mkdtemp(prefix="bare-", dir="/var/tmp"))
    try:
        assert not any(copy.is_relative_to(one) for one in hidden)
        bare = Done(done.packed, copy / "own")
        shutil.copytree(done.folder, bare.folder, symlinks=True)
        shutil.copy(script, copy / "analysis.py")
        # the innermost first, which the outer one hides as well
        places = sorted(hidden, key=len, reverse=True)
        looks = f"! test -e {shlex.quote(found.base_executable)}"
        if found.base_prefix in hidden:
            assert bare.run(looks, *places) == ""
        assert bare.run(f"python {copy}/analysis.py", *places) == wheels.TOLD
        assert bare.run("lamp && conda-unpack && lamp-old", *places).startswith("lamp 1.0 green")
        loaded = "print(*{line.split()[-1] for line in open('/proc/self/maps') if '.so' in line})"
        told = bare.run(f'python -c "import bolt, ssl, sqlite3; {loaded}"', *places).split()
        names = {os.path.basename(one) for one in told if one.startswith(f"{bare.folder}/")}
        assert {"libssl.so.3", "libsqlite3.so.0"} & names or found.base_prefix == "/usr"
    finally:
        shutil.rmtree(copy)


def test_report_and_archive_agree(done: Done, venv: wheels.Venv, script: Path) -> None:
    told = env_report.analysis_json(hepscale.analyze(script, python=venv.python))
    named = {one["name"] for one in told["distributions"]}
    assert named == set(done.packed.spec.distributions) - {"python"}
    assert told["missing"] == []
