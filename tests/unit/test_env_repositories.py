"""Repositories of CVMFS that an analysis needs: found in its code, and not packed."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat.v4
import pytest
from click.testing import CliRunner
from rich.console import Console
from site_folder import write
from sites import Site

from hepscale import env_report
from hepscale.cli import main
from hepscale.env import analysis, interpreter, repositories, sources
from hepscale.env.analysis import Analysis
from hepscale.env.imports import examine
from hepscale.env.units import Unit

Look = Callable[..., Analysis]


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let repositories be mounted below a folder of the test."""
    top = tmp_path / "cvmfs"
    monkeypatch.setattr(repositories, "TOP", str(top))
    return top


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Write an analysis and analyse it, where ``shade`` is the only package that is installed."""
    site = Site(tmp_path / "prefix")
    site.put("shade", {"shade.py": ""})

    def look(files: dict[str, str], name: str = "analysis.py", **changed: Any) -> Analysis:
        here = dataclasses.replace(site.interpreter, **changed)
        monkeypatch.setattr(interpreter, "this", lambda: here)
        write(tmp_path / "own", files)
        return analysis.examine(sources.from_file(tmp_path / "own" / name), name)

    return look


def needed(found: Analysis) -> dict[str, tuple[str, ...]]:
    return {one.name: one.reasons for one in found.repositories}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("/cvmfs/cms.cern.ch", ["cms.cern.ch"]),
        ("/cvmfs/cms.cern.ch/x/y.json", ["cms.cern.ch"]),
        ("file:///cvmfs/a-b.c_d.org/x", ["a-b.c_d.org"]),
        ("source /cvmfs/a.org/setup.sh; ls /cvmfs/b.org:/cvmfs/a.org", ["a.org", "b.org"]),
        ("/cvmfs", []),
        ("/cvmfs/", []),
        ("/cvmfs/nodomain/x", []),
        ("http://server/cvmfs/cms.cern.ch", []),
        ("/backup/cvmfs/cms.cern.ch", []),
        ("see /cvmfs/cms.cern.ch.", ["cms.cern.ch"]),
    ],
)
def test_paths_in_texts(text, names):
    assert list(repositories.mentioned(text)) == names


def test_paths_in_code():
    source = """\
'''Reads /cvmfs/docstring.org/x.'''
import json
A = "/cvmfs/a.org/one.json"
B = f"/cvmfs/b.org/{A}/x"
def f(path="/cvmfs/a.org/two"):
    "As /cvmfs/docstring.org/x"
    return open(path), {"k": ["/cvmfs/c.org"]}, b"/cvmfs/bytes.org/x"
# /cvmfs/comment.org/x
"""
    assert examine(Unit("analysis.py", source)).repositories == (
        ("a.org", "analysis.py, line 3"),
        ("b.org", "analysis.py, line 4"),
        ("a.org", "analysis.py, line 5"),
        ("c.org", "analysis.py, line 7"),
    )


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        ("x = 1\n!source /cvmfs/a.org/setup.sh && run", 2),
        ("%%bash\nls\n. /cvmfs/a.org/setup.sh\n", 3),
        ("%run /cvmfs/a.org/script.py", 1),
        ("%cd /cvmfs/a.org", 1),
        ("%%time\nopen('/cvmfs/a.org/x')", 2),
        ("def broken(:\n\nopen('/cvmfs/a.org/x')", 3),
    ],
)
def test_paths_in_cells(cell, line):
    found = examine(Unit("cell 1", cell, is_cell=True)).repositories
    assert found == (("a.org", f"cell 1, line {line}"),)


def test_scripts_and_local_modules_are_looked_at_too(look, mounts):
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("%run more.py\nimport helper")]
    )
    found = look(
        {
            "analysis.ipynb": nbformat.writes(book),
            "more.py": f"open('{mounts}/script.org/x')\n",
            "helper.py": f"\nX = '{mounts}/local.org/x'\n",
        },
        "analysis.ipynb",
    )
    assert needed(found) == {
        "local.org": ("helper.py, line 2",),
        "script.org": ("more.py, line 1",),
    }
    assert repositories.repositories(found) == ("local.org", "script.org")


def test_imports_from_a_repository_are_followed_and_not_packed(look, mounts, monkeypatch):
    write(
        mounts / "a.org/py",
        {
            "tool/__init__.py": "from . import inner\n",
            "tool/inner.py": "import shade\nfrom .deep import x\n",
            "tool/deep/__init__.py": f"P = '{mounts}/b.org/x'\n",
            "tool/unused.py": "import nowhere\n",
            "single.py": "import json\n",
        },
    )
    monkeypatch.setenv("PYTHONPATH", str(mounts / "a.org/py"))
    found = look({"analysis.py": "import tool\nimport single\nimport tool.absent\n"})
    assert [(one.name, one.origin, one.provider) for one in found.imports] == [
        ("tool", "cvmfs", "a.org"),
        ("single", "cvmfs", "a.org"),
        ("tool.absent", "cvmfs", "a.org"),
        ("json", "standard", ""),
        ("shade", "installed", "shade"),
    ]
    assert needed(found) == {
        "a.org": (
            "analysis.py, line 1: import tool",
            "analysis.py, line 2: import single",
            "analysis.py, line 3: import tool.absent",
        ),
        "b.org": (f"{mounts}/a.org/py/tool/deep/__init__.py, line 1",),
    }
    assert [one.name for one in found.distributions] == ["shade"]
    assert not found.modules
    assert not found.missing


def test_folders_that_the_code_adds_are_looked_in(look, mounts):
    write(mounts / "a.org/py", {"tool.py": ""})
    text = f"import sys\nsys.path.insert(0, '{mounts}/a.org/py')\nimport tool\n"
    found = look({"analysis.py": text})
    assert needed(found) == {
        "a.org": ("analysis.py, line 2", "analysis.py, line 3: import tool"),
    }
    assert not found.missing


def test_what_is_here_comes_first(look, mounts, monkeypatch):
    write(mounts / "a.org/py", {"helper.py": "", "shade.py": ""})
    monkeypatch.setenv("PYTHONPATH", str(mounts / "a.org/py"))
    found = look({"analysis.py": "import helper, shade\n", "helper.py": ""})
    assert [one.origin for one in found.imports] == ["local", "installed"]
    assert not found.repositories


def test_distributions_of_a_repository(look, mounts):
    there = Site(mounts / "a.org/prefix")
    there.put("lamp", {"lamp/__init__.py": ""}, requires=["bolt"])
    there.put("bolt", {"bolt.py": ""})
    site = there.interpreter.sites[0]
    here = Site(Path(there.root).parents[2] / "prefix").interpreter.sites[0]
    found = look(
        {"analysis.py": "import lamp\nimport shade\n"}, sites=(site, here), path=(site, here)
    )
    assert [(one.name, one.origin, one.provider) for one in found.imports] == [
        ("lamp", "cvmfs", "a.org"),
        ("shade", "installed", "shade"),
    ]
    assert needed(found) == {"a.org": ("analysis.py, line 1: import lamp", "required by lamp")}
    assert [one.name for one in found.distributions] == ["shade"]
    assert found.need.imported == ("shade",)


def test_interpreter_of_a_repository(look, mounts):
    python = f"{mounts}/lcg.org/bin/python3"
    found = look({"analysis.py": ""}, executable=python)
    assert needed(found) == {"lcg.org": (f"Python: {python}",)}


def test_links_into_a_repository(mounts, tmp_path):
    write(mounts / "a.org", {"x/y.py": ""})
    (tmp_path / "view").symlink_to(mounts / "a.org/x")
    assert repositories.repository_of(str(tmp_path / "view/y.py")) == "a.org"
    assert repositories.repository_of(str(tmp_path / "own/y.py")) == ""


def test_report(look, mounts):
    found = look({"analysis.py": f"open('{mounts}/a.org/x')\n"})
    out = io.StringIO()
    Console(file=out, width=200).print(env_report.report(found))
    assert "Repositories of CVMFS" in out.getvalue()
    assert "/cvmfs/a.org  analysis.py, line 1" in out.getvalue()


def test_a_module_that_may_be_in_a_repository(look, mounts):
    code = f"import sys\nsys.path.append('{mounts}/a.org/x')\nimport lamp\n"
    (missing,) = look({"analysis.py": code}).missing
    assert missing.fix == f"pip install lamp; nothing if it is in {mounts}/a.org, not mounted here"
    (mounts / "a.org").mkdir(parents=True)
    (missing,) = look({"analysis.py": code}).missing
    assert missing.fix == "pip install lamp"


def test_json(tmp_path):
    (tmp_path / "analysis.py").write_text("open('/cvmfs/cms.cern.ch/x')\n")
    done = CliRunner().invoke(main, ["env", "analyze", str(tmp_path / "analysis.py"), "--json"])
    assert json.loads(done.stdout)["repositories"] == [
        {"name": "cms.cern.ch", "reasons": ["analysis.py, line 1"]}
    ]
