"""Local modules of an analysis: which are found, and what is followed from them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from looking import Look, files, names
from site_folder import direct_url, finder, write
from sites import Site

from hepscale.env import analysis, interpreter, sources
from hepscale.errors import PayloadError


def test_package_comes_with_its_data_and_without_secrets(look: Look) -> None:
    more = [
        *("tool/__init__.py", "tool/data/weights.json", "tool/sub/__init__.py", "tool/notes.txt"),
        *("tool/.env", "tool/id_rsa", "tool/proxy.pem", "tool/.git/config", "tool/.ssh/key"),
        *("tool/x509up_u1000", "tool/__pycache__/x.pyc", "tool/.venv/lib/x.py", "beside.txt"),
    ]
    found = look({"analysis.py": "import tool\n", **dict.fromkeys(more, "")})
    assert files(found, "tool") == {
        "tool/__init__.py",
        "tool/data/weights.json",
        "tool/sub/__init__.py",
        "tool/notes.txt",
    }
    (tool,) = found.modules
    assert all(os.path.isabs(path) for path in tool.files)


FOLLOWED = {
    "import pkg": ["pkg"],
    "import pkg.one": ["pkg", "pkg.one"],
    "import pkg.one as x": ["pkg", "pkg.one"],
    "from pkg import one": ["pkg", "pkg.one"],
    "from pkg.one import name": ["pkg", "pkg.one"],
    "from pkg import name": ["pkg"],
    "from pkg import (one,\n    two)": ["pkg", "pkg.one", "pkg.two"],
    "from pkg import *": ["pkg", "pkg.one", "pkg.two", "pkg.deep", "pkg.deep.three"],
    "from pkg.deep import *": ["pkg", "pkg.deep", "pkg.deep.three"],
    "import pkg.deep.three": ["pkg", "pkg.deep", "pkg.deep.three"],
    "from pkg.deep.three import a, b": ["pkg", "pkg.deep", "pkg.deep.three"],
    "def f():\n    import pkg.two": ["pkg", "pkg.two"],
    "import importlib\nimportlib.import_module('pkg.two')": ["pkg", "pkg.two"],
}


@pytest.mark.parametrize("source", FOLLOWED)
def test_only_files_that_an_import_executes_are_followed(look: Look, source: str) -> None:
    package = {
        "pkg/__init__.py": "pkg",
        "pkg/one.py": "pkg.one",
        "pkg/two.py": "pkg.two",
        "pkg/deep/__init__.py": "pkg.deep",
        "pkg/deep/three.py": "pkg.deep.three",
    }
    # each says by a missing module that it was read
    told = {name: f"import no_{dotted.replace('.', '_')}\n" for name, dotted in package.items()}
    found = look({"analysis.py": source + "\n", **told})
    assert names(found)[2] == sorted(f"no_{one.replace('.', '_')}" for one in FOLLOWED[source])
    # all of it is sent
    assert files(found, "pkg") == set(package)


RELATIVE = {
    "from . import two": ["two"],
    "from .two import x": ["two"],
    "from . import two as t, deep": ["two", "deep"],
    "from .deep import three": ["deep", "three"],
    "from .deep.three import x": ["deep", "three"],
    "from .deep import *": ["deep", "three"],
    "from .. import beyond": [],
    "from ....far import beyond": [],
}


@pytest.mark.parametrize("line", RELATIVE)
def test_relative_imports_in_a_local_package(look: Look, line: str) -> None:
    found = look(
        {
            "analysis.py": "import pkg.one\n",
            "pkg/__init__.py": "",
            "pkg/one.py": f"{line}\n",
            "pkg/two.py": "import no_two\n",
            "pkg/deep/__init__.py": "import no_deep\n",
            "pkg/deep/three.py": "import no_three\n",
        }
    )
    assert names(found)[2] == sorted(f"no_{one}" for one in RELATIVE[line])
    assert names(found)[1] == ["pkg"]


def test_relative_imports_climb(look: Look) -> None:
    found = look(
        {
            "analysis.py": "import pkg.deep.three\n",
            "pkg/__init__.py": "",
            "pkg/two.py": "import no_two\n",
            "pkg/deep/__init__.py": "from ..two import x\n",
            "pkg/deep/three.py": "from .. import four\nfrom ...pkg import five\n",
            "pkg/four.py": "import no_four\n",
            "pkg/five.py": "import no_five\n",
        }
    )
    assert names(found)[2] == ["no_four", "no_two"]


def test_script_inside_a_package(look: Look) -> None:
    found = look(
        {
            "pkg/__init__.py": "import no_pkg\n",
            "pkg/sub/__init__.py": "",
            "pkg/sub/analysis.py": "from ..helper import x\nfrom . import beside\n",
            "pkg/sub/beside.py": "import no_beside\n",
            "pkg/helper.py": "import lamp\n",
        },
        "pkg/sub/analysis.py",
    )
    distributions, modules, missing = names(found)
    assert distributions == ["lamp", "shade"]
    assert modules == ["pkg"]
    assert missing == ["no_beside", "no_pkg"]
    assert "pkg/helper.py" in files(found, "pkg")


def test_modules_that_import_each_other(look: Look) -> None:
    found = look(
        {
            "analysis.py": "import a\n",
            "a.py": "import b, lamp\n",
            "b.py": "import a, c\n",
            "c.py": "import c\n",
        }
    )
    assert names(found) == (["lamp", "shade"], ["a", "b", "c"], [])
    reasons = {one.name: one.reasons for one in found.modules}
    assert reasons["a"] == ("analysis.py, line 1", "b.py, line 1")


def test_module_that_hides_others(look: Look) -> None:
    source = "import random, shade, lamp\n"
    found = look({"analysis.py": source, "random.py": "", "shade.py": ""})
    origins = {one.name: one.origin for one in found.imports}
    assert origins == {"random": "local", "shade": "local", "lamp": "installed"}
    assert names(found)[1] == ["random", "shade"]


def test_namespace_package(look: Look) -> None:
    found = look(
        {
            "analysis.py": "import space.one\nfrom space.deep import two\n",
            "space/one.py": "import lamp\n",
            "space/deep/two.py": "import idle\n",
            "space/other.py": "import no_other\n",
        }
    )
    assert names(found) == (["idle", "lamp", "shade"], ["space"], [])
    assert files(found, "space") == {"space/one.py", "space/deep/two.py", "space/other.py"}


def test_namespace_package_with_a_local_and_an_installed_part(look: Look, site: Site) -> None:
    site.put("second", {"space/second.py": ""}, requires=["shade"])
    site.put("third", {"space/third.py": ""})
    own = {"space/one.py": "import idle\n"}
    found = look({"analysis.py": "import space.one, space.second\n", **own})
    assert names(found) == (["idle", "second", "shade"], ["space"], [])
    found = look({"analysis.py": "from space import one, third\n", **own})
    assert names(found) == (["idle", "third"], ["space"], [])


def test_editable_project_is_part_of_both_closures(
    look: Look, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "project", {"tool.py": "import lamp\n", "pyproject.toml": ""})
    link = {"__editable__.tool-1.0.pth": f"{tmp_path}/project\n"}
    site.install("tool", link, direct_url=direct_url(tmp_path / "project"))
    path = (str(site.site), str(tmp_path / "project"))
    more = dataclasses.replace(site.interpreter, path=path)
    monkeypatch.setattr(interpreter, "this", lambda: more)
    found = look({"analysis.py": "import tool\n"})
    assert names(found) == (["lamp", "shade", "tool"], ["tool"], [])
    assert set(found.need.imported) == {"lamp", "tool"}


def test_another_interpreter_knows_nothing_of_this_process(
    look: Look, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"ours/only_here.py": "", "theirs/only_there.py": "import idle\n"})
    mapping = {"only_there": tmp_path / "theirs/only_there"}
    site.install("there", {"__editable___there_1_0_finder.py": finder(mapping)})
    monkeypatch.syspath_prepend(tmp_path / "ours")
    here = site.interpreter
    monkeypatch.setattr(interpreter, "of", lambda _: here)
    given = {"analysis.py": "import only_here, only_there\n"}
    assert names(look(given))[1] == ["only_here"]
    assert names(look(given, python="python")) == (["idle", "there"], ["only_there"], ["only_here"])


def test_what_runs_has_its_modules_from_where_this_process_has_them(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    write(tmp_path, {"first/helper.py": "import lamp\n", "own/helper.py": "import idle\n"})
    monkeypatch.syspath_prepend(tmp_path / "first")
    unit = sources.Unit("In [1]", "import helper", is_cell=True)
    for running, taken in ((True, ["lamp", "shade"]), (False, ["idle"])):
        found = sources.Sources((unit,), own, (), running=running)
        assert names(analysis.examine(found, "analysis"))[0] == taken


def test_folders_where_python_looks(
    look: Look, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"given/by_variable.py": "import lamp\n", "linked/by_pth.py": "import idle\n"})
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/nowhere:{tmp_path}/given")
    more = dataclasses.replace(site.interpreter, path=(str(site.site), str(tmp_path / "linked")))
    monkeypatch.setattr(interpreter, "this", lambda: more)
    found = look({"analysis.py": "import by_variable, by_pth, not_there\n"})
    assert names(found)[1:] == (["by_pth", "by_variable"], ["not_there"])
    assert names(found)[0] == ["idle", "lamp", "shade"]


def test_edit_is_seen(look: Look) -> None:
    sources = {"analysis.py": "import helper\n", "helper.py": "import lamp\n"}
    assert names(look(sources))[0] == ["lamp", "shade"]
    assert names(look({**sources, "helper.py": "import idle  # now\n"}))[0] == ["idle"]


def test_module_with_another_encoding(look: Look, tmp_path: Path) -> None:
    look({"analysis.py": ""})
    text = "# -*- coding: latin-1 -*-\nimport lamp\nname = 'caf\u00e9'\n"
    (tmp_path / "own/helper.py").write_bytes(text.encode("latin-1"))
    found = look({"analysis.py": "import helper\n"})
    assert names(found)[:2] == (["lamp", "shade"], ["helper"])


def test_package_that_is_too_large_to_be_sent(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look({"analysis.py": "", "tool/__init__.py": ""})
    with (tmp_path / "own/tool/events.root").open("wb") as stream:
        stream.truncate(200_000_000)
    with pytest.raises(PayloadError, match="tool holds 200 MB"):
        look({"analysis.py": "import tool\n"})
