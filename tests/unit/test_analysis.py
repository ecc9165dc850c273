"""What an analysis needs, over small folders: nothing of them is imported."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat.v4
import pytest
from rich.console import Console
from site_folder import direct_url, finder, write
from sites import Site

from hepscale import env_report
from hepscale.env import analysis, interpreter, sources
from hepscale.env.analysis import Analysis
from hepscale.env.imports import Import
from hepscale.errors import ConfigError, PayloadError

Look = Callable[..., Analysis]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Let the running interpreter have few packages: ``lamp`` needs ``shade``, not so ``idle``."""
    site = Site(tmp_path / "prefix")
    site.put("lamp", {"lamp/__init__.py": "", "lamp/bulb.py": ""}, requires=["shade"])
    site.put("shade", {"shade.py": ""})
    site.put("idle", {"idle.py": ""})
    here = site.interpreter
    monkeypatch.setattr(interpreter, "this", lambda: here)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return site


@pytest.fixture
def look(site: Site, tmp_path: Path) -> Look:
    """Write files into a folder and analyse one of them."""

    def look(files: dict[str, str], name: str = "analysis.py", **options: Any) -> Analysis:
        write(tmp_path / "own", files)
        found = sources.from_file(tmp_path / "own" / name)
        return analysis.examine(found, name, **options)

    return look


def notebook(*cells: str) -> str:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in cells])
    text: str = nbformat.writes(book)
    return text


def names(found: Analysis) -> tuple[list[str], list[str], list[str]]:
    """Return distributions, local modules, and what is missing."""
    return (
        [one.name for one in found.distributions],
        [one.name for one in found.modules],
        [one.name for one in found.missing],
    )


def files(found: Analysis, module: str) -> set[str]:
    """Return a module's files, below the folder that it is in."""
    (one,) = [one for one in found.need.modules if one.name == module]
    return {below for below, _ in one.files}


# -- imports -------------------------------------------------------------------------------------


def test_each_import_has_its_place_and_origin(look: Look) -> None:
    source = (
        "import json, lamp.bulb as b\nimport helper\n"
        "try:\n    import gone\nexcept ImportError:\n    import shade\n"
        "def f():\n    from nowhere.deep import x\n"
    )
    found = look({"analysis.py": source, "helper.py": "import idle\n"})
    assert [dataclasses.astuple(one) for one in found.imports] == [
        ("json", "analysis.py, line 1", "sure", "standard", ""),
        ("lamp.bulb", "analysis.py, line 1", "sure", "installed", "lamp"),
        ("helper", "analysis.py, line 2", "sure", "local", "helper"),
        ("gone", "analysis.py, line 4", "guarded", "missing", ""),
        ("shade", "analysis.py, line 6", found.imports[4].how, "installed", "shade"),
        ("nowhere.deep", "analysis.py, line 8", "sure", "missing", ""),
        ("idle", "helper.py, line 1", "sure", "installed", "idle"),
    ]
    assert names(found) == (["idle", "lamp", "shade"], ["helper"], ["nowhere"])
    (missing,) = found.missing
    assert (missing.where, missing.how) == (("analysis.py, line 8",), "sure")
    assert "pip install nowhere" in missing.fix
    assert found.need.standard == {"json"}


def test_modules_that_an_installed_package_does_not_have(look: Look, site: Site) -> None:
    tricks = {"lazy/__init__.py": "import sys\nsys.modules['lazy.made'] = sys\n"}
    site.put("lazy", {**tricks, "lazy/below/__init__.py": ""})
    site.put("space-a", {"space/a/__init__.py": ""})
    site.put("native", {"native/__init__.py": "", "native/fast.cpython-39-x.so": ""})
    source = (
        "import lamp.bulb, lamp.blub\nfrom lamp.nothere.deep import x\n"
        # an attribute, or made by what is imported
        "from lamp import switch\nimport lazy.made\nimport lazy.below.made\n"
        "import space.a, space.b\nimport native.fast\nimport shade.attribute\n"
        "try:\n    import lamp.old\nexcept ImportError:\n    pass\n"
    )
    found = look({"analysis.py": source})
    assert [(one.where, one.text) for one in found.notes] == [
        ("analysis.py, line 1", "there is no module lamp.blub in lamp 1.0"),
        ("analysis.py, line 2", "there is no module lamp.nothere.deep in lamp 1.0"),
    ]
    assert found.notes[0].fix == "correct the name, or install a lamp that has it"


def test_installing_what_is_there_is_not_worth_a_note(look: Look) -> None:
    cells = [
        "!pip install lamp",
        "%pip install -q 'lamp>=0.5' shade",
        "!pip install lamp new",
        "!pip install 'lamp>2'",
        "!pip install -r requirements.txt",
    ]
    found = look({"a.ipynb": notebook(*cells)}, "a.ipynb")
    assert [one.where for one in found.notes] == [f"cell {n}, line 1" for n in (3, 4, 5)]


def test_closure_with_reasons_and_sizes(look: Look) -> None:
    found = look({"analysis.py": "import lamp\nimport helper\n", "helper.py": "x = 1\n"})
    lamp, shade = found.distributions
    assert lamp.reasons == ("analysis.py, line 1: import lamp",)
    assert "required by lamp" in shade.reasons
    (helper,) = found.modules
    assert helper.reasons == ("analysis.py, line 2",)
    assert helper.size_bytes == 6
    assert found.size_bytes == lamp.size_bytes + shade.size_bytes + 6
    assert (found.need.imported, found.need.others) == (("lamp",), ("shade",))
    assert [one.at_import for one in found.distributions] == [True, False]


def test_notebook_with_a_broken_cell(look: Look) -> None:
    cells = ["import lamp", "x = (", "%%time\nimport helper", "!pip install other", "import shade"]
    found = look({"a.ipynb": notebook(*cells), "helper.py": "def f(:\n"}, "a.ipynb")
    assert names(found) == (["lamp", "shade"], ["helper"], [])
    assert [one.where for one in found.notes] == [
        "cell 2, line 1",
        "cell 4, line 1",
        "helper.py, line 1",
    ]
    assert [one.where for one in found.imports] == [
        "cell 1, line 1",
        "cell 3, line 2",
        "cell 5, line 1",
    ]


def test_computed_names_are_told_of_in_local_modules_too(look: Look) -> None:
    source = "import importlib\nimportlib.import_module('lamp')\nimport helper\n"
    found = look({"analysis.py": source, "helper.py": "name = input()\n__import__(name)\n"})
    assert names(found)[0] == ["lamp", "shade"]
    (note,) = found.notes
    assert note.where == "helper.py, line 2"


def test_what_is_only_for_type_checkers_is_not_taken(look: Look) -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lamp, helper, gone\n"
    found = look({"analysis.py": source, "helper.py": ""})
    assert names(found) == ([], [], [])


def test_nothing_to_analyse(look: Look) -> None:
    found = look({"analysis.py": ""})
    assert names(found) == ([], [], [])
    assert found.size_bytes == 0
    assert found.need.standard == frozenset()


# -- local modules -------------------------------------------------------------------------------


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


# -- what is asked for ---------------------------------------------------------------------------


def test_extra(look: Look) -> None:
    given = {"analysis.py": "", "helper.py": "import idle\n"}
    found = look(given, extra=["helper", "lamp.bulb"])
    assert names(found) == (["idle", "lamp", "shade"], ["helper"], [])
    reasons = {one.name: one.reasons for one in (*found.distributions, *found.modules)}
    assert reasons["helper"] == reasons["lamp"] == ("asked for",)
    with pytest.raises(ConfigError, match="'lampp' is not installed") as caught:
        look(given, extra=["lampp"])
    assert "installed is lamp" in caught.value.items


def test_exclude(look: Look) -> None:
    given = {"analysis.py": "import lamp, idle\n"}
    assert names(look(given, exclude=["shade", "idle"]))[0] == ["lamp"]
    assert names(look(given, exclude=["lamp"]))[0] == ["idle"]
    assert look(given, exclude=["lamp"]).missing == ()
    with pytest.raises(ConfigError, match="'lampp' is not installed"):
        look(given, exclude=["lampp"])


def test_local_code_cannot_be_excluded(look: Look) -> None:
    given = {"analysis.py": "import helper\n", "helper.py": ""}
    with pytest.raises(ConfigError, match="'helper' is local code") as caught:
        look(given, exclude=["helper"])
    assert caught.value.items[0].endswith("own/helper.py")


def test_roots(look: Look) -> None:
    given = {"analysis.py": "", "helper.py": ""}
    roots = [Import("lamp", "the processor", "sure"), Import("helper", "the processor", "sure")]
    found = look(given, roots=roots)
    assert names(found) == (["lamp", "shade"], ["helper"], [])
    assert found.distributions[0].reasons == ("the processor: import lamp",)
    assert found.modules[0].reasons == ("the processor",)


def test_json_says_the_same(look: Look) -> None:
    found = look({"analysis.py": "import lamp, helper, gone\nx = (\n", "helper.py": ""})
    told = json.loads(json.dumps(env_report.analysis_json(found)))
    assert told["schema"] == 1
    assert (told["source"], told["python"]) == ("analysis.py", found.python)
    for name in ("imports", "distributions", "modules", "missing", "notes"):
        assert told[name] == json.loads(
            json.dumps([dataclasses.asdict(one) for one in getattr(found, name)])
        )


def test_report_begins_with_what_the_user_imports(look: Look, site: Site) -> None:
    site.put("tool", {"tool.py": "import part\n"}, requires=["part", "unused"])
    site.put("part", {"part.py": "x = 1\n" * 999})
    site.put("unused", {"unused.py": "x = 1\n"})
    found = look({"analysis.py": "import tool, lamp\n"}, extra=["idle"])
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(env_report.report(found))
    words = [line.split()[0] for line in console.export_text().splitlines() if line.strip()]
    shown = words[words.index("Distributions") :]
    assert [word for word in shown if word not in {"name", "Distributions"}] == [
        *("tool", "lamp", "idle"),
        *("Imported", "part"),
        *("Required", "unused", "shade", "6"),
    ]
