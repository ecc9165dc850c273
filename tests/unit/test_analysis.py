"""What an analysis needs, over small folders: nothing of them is imported."""

from __future__ import annotations

import dataclasses
import io
import json

import nbformat.v4
import pytest
from looking import Look, names
from rich.console import Console
from sites import Site

from hepscale import env_report
from hepscale.env.imports import Import
from hepscale.errors import ConfigError


def notebook(*cells: str) -> str:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in cells])
    text: str = nbformat.writes(book)
    return text


# -- imports ---------------------------------------------------------------------------------------


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


# -- what is asked for -----------------------------------------------------------------------------


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
