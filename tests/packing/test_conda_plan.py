"""What is planned to be packed of a conda prefix that is there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import conda
import conda_packages
import pytest
from conda_packages import UNWANTED

import hepscale
from hepscale.env import api, layers
from hepscale.env.contents import Content, Entry, content
from hepscale.env.plan import Plan


@pytest.fixture(scope="module")
def live(channel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("live")
    conda_packages.installed(channel, top, top / "prefix")
    return top / "prefix"


def planned(folder: Path, source: str, prefix: Path) -> Plan:
    script = folder / "analysis.py"
    script.write_text(source)
    return api.planned(hepscale.analyze(script, python=prefix / "bin/python"))


def targets(plan: Plan) -> set[str]:
    return {entry.target for part in plan.parts for entry in part.entries}


def test_parts_of_python_that_are_imported(live: Path, tmp_path: Path) -> None:
    few = targets(planned(tmp_path, "import tool", live))
    assert few.isdisjoint(UNWANTED)
    assert targets(planned(tmp_path, "import tkinter\nimport tool", live)) - few == {
        *(one for one in UNWANTED if "tk" in one or "turtle" in one),
        "conda-meta/tk-8.6-0.json",
        "lib/tk8.6/tk.tcl",
    }
    idle = {one for one in UNWANTED if "idle" in one}
    assert targets(planned(tmp_path, "import idlelib\nimport tool", live)) - few == idle


def test_libraries_and_data_count_as_imported_with_what_needs_them(
    live: Path, tmp_path: Path
) -> None:
    need = planned(tmp_path, "import sharer", live).need
    assert set(need.imported) == {"sharer", "libshare", "under", "data-files", "empty"}
    assert need.others == ()


def test_library_of_the_prefix_goes_before_another_of_its_name(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    made = {"libx.so.1": "", "other/libx.so.1": "", "module.so": str(other)}
    for name, rpath in made.items():
        needs = ("libx.so.1",) if rpath else ()
        (tmp_path / name).write_bytes(conda_packages.library("libx.so.1", *needs, rpath=rpath))
    given = [
        Entry("lib/libx.so.1", str(tmp_path / "libx.so.1")),
        Entry("lib/module.so", str(tmp_path / "module.so")),
    ]
    entries, _ = layers.libraries(given)
    assert [one.target for one in entries] == ["lib/libx.so.1", "lib/module.so"]


def test_package_that_pip_has_replaced(live: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, "import replaced", live)
    assert plan.need.index.distributions["replaced"].kind == "wheel"
    named = {one for one in targets(plan) if "replaced" in one}
    assert f"{conda.SITE}/replaced.py" in named
    assert not any("0.9" in one for one in named)
    assert "share/lone/data.txt" not in targets(plan)


def contents_of(plan: Plan) -> list[tuple[str, Content]]:
    return [
        (entry.target, content(entry))
        for part in plan.parts
        for entry in sorted(part.entries, key=lambda one: one.target)
        if not entry.link
    ]


def naming(found: list[tuple[str, Content]], *places: Path) -> list[str]:
    return [name for name, one in found if any(str(place).encode() in one.data for place in places)]


@pytest.mark.parametrize("how", ["link to it", "link to what it was", "moved"])
def test_prefix_that_has_another_name(channel: Path, live: Path, tmp_path: Path, how: str) -> None:
    called = tmp_path / "called"
    plan = planned(tmp_path, "import sharer, tool", live)
    wanted = [one for _, one in contents_of(plan)]
    if how == "link to it":
        called.symlink_to(live)
    elif how == "moved":
        shutil.copytree(live, called, symlinks=True)
    else:
        real = tmp_path / "real"
        real.mkdir()
        (tmp_path / "link").symlink_to(real)
        conda_packages.installed(channel, tmp_path, tmp_path / "link/prefix")
        called = real / "prefix"
    found = contents_of(planned(tmp_path, "import sharer, tool", called))
    assert naming(found, live, tmp_path) == []
    assert [one for _, one in found] == wanted


def test_venv_of_a_conda_python(live: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    options = ["--without-pip", "--system-site-packages"]
    subprocess.run([live / "bin/python", "-m", "venv", *options, venv], check=True)
    found = contents_of(planned(tmp_path, "import sharer, tool", venv))
    name = "lib/libshare.json"
    relocations = [one.relocation for called, one in found if called == name]
    assert relocations == [(name, conda.PLACEHOLDER, "text")]
    assert naming(found, live, tmp_path) == []
