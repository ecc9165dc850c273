"""Where code is read from: scripts, notebooks, and what these run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import support
from support import python

from hepscale.env.imports import examine
from hepscale.env.sources import Note, Sources, Unit, from_file
from hepscale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable


FIXTURES = Path(__file__).parents[1] / "fixtures" / "imports"


def labels(sources: Sources) -> list[str]:
    return [unit.label for unit in sources.units]


def names(units: Iterable[Unit]) -> list[str]:
    return [one.name for unit in units for one in examine(unit).imports]


def refused(path: Path | str) -> InputError:
    with pytest.raises(InputError) as caught:
        from_file(path)
    error: InputError = support.complete(caught.value)
    assert error.items == (str(path),)
    return error


def test_a_script_is_one_unit() -> None:
    path = FIXTURES / "plain.py"
    assert from_file(str(path)) == Sources(
        (Unit("plain.py", path.read_text(), str(path)),), FIXTURES, ()
    )


def test_cells_of_a_notebook_are_numbered_as_they_are_run() -> None:
    path = FIXTURES / "analysis.ipynb"
    sources = from_file(path)

    def cell(number: int, source: str, *, certain: bool = True) -> Unit:
        return Unit(f"cell {number}", source, str(path), is_cell=True, certain=certain)

    assert sources == Sources(
        (
            cell(1, "import numpy as np\nimport hist"),
            cell(2, "%%time\nimport uproot"),
            cell(3, "x =\nimport awkward"),
            cell(4, "import demonstrated\nx =", certain=False),
            cell(5, "import vector"),
        ),
        FIXTURES,
        (),
    )
    found = [examine(unit) for unit in sources.units]
    assert [(one.where, one.name, one.how) for each in found for one in each.imports] == [
        ("cell 1, line 1", "numpy", "sure"),
        ("cell 1, line 2", "hist", "sure"),
        ("cell 2, line 2", "uproot", "sure"),
        ("cell 3, line 2", "awkward", "sure"),
        ("cell 4, line 1", "demonstrated", "guarded"),
        ("cell 5, line 1", "vector", "sure"),
    ]
    assert [note.where for each in found for note in each.notes] == ["cell 3, line 1"]


def test_a_notebook_of_2013_is_upgraded() -> None:
    sources = from_file(FIXTURES / "format3.ipynb")
    assert [unit.source for unit in sources.units] == ["%pylab inline\nimport hist"]
    assert names(sources.units) == ["numpy", "matplotlib", "hist"]


@pytest.mark.parametrize("name", ["no_kernel.ipynb", "bare_cells.ipynb"])
def test_metadata_may_be_missing(name: str) -> None:
    assert names(from_file(FIXTURES / name).units) == ["numpy"]


def test_a_byte_order_mark_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "bom.ipynb"
    path.write_bytes(b"\xef\xbb\xbf" + (FIXTURES / "no_kernel.ipynb").read_bytes())
    assert names(from_file(path).units) == ["numpy"]


def test_cells_of_other_languages_are_numbered_but_not_read() -> None:
    sources = from_file(FIXTURES / "polyglot.ipynb")
    assert labels(sources) == ["cell 1", "cell 2", "cell 3"]
    assert names(sources.units) == ["numpy", "hist"]


@pytest.mark.parametrize("name", ["no_code.ipynb", "empty_script.py"])
def test_code_that_is_not_there_is_told(name: str) -> None:
    sources = from_file(FIXTURES / name)
    assert names(sources.units) == []
    assert sources.notes == (
        Note(name, "there is no code in it", "save the file, if its code is new"),
    )


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("empty_file.ipynb", "it is empty"),
        ("not_json.ipynb", "Expecting value"),
        ("not_a_notebook.ipynb", "it is JSON, but not a notebook"),
        ("list.ipynb", "it is JSON, but not a notebook"),
        ("cells_of_another_kind.ipynb", "it is JSON, but not a notebook"),
        ("source_of_numbers.ipynb", "it is JSON, but not a notebook"),
        ("newer.ipynb", "its format, 5, is newer than this release knows"),
        ("not_utf8.ipynb", "'utf-8' codec can't decode"),
    ],
)
def test_a_notebook_that_cannot_be_read(name: str, cause: str) -> None:
    error = refused(FIXTURES / name)
    assert error.fact == "The notebook cannot be read."
    assert cause in error.cause


def test_json_may_be_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "deep.ipynb").write_text("[" * 100_000)
    assert refused(tmp_path / "deep.ipynb").fact == "The notebook cannot be read."


@pytest.mark.parametrize(
    ("name", "language"), [("other_kernel.ipynb", "R"), ("other_kernelspec.ipynb", "julia")]
)
def test_a_notebook_of_another_language(name: str, language: str) -> None:
    assert refused(FIXTURES / name).fact == f"The notebook's language is {language}, not Python."


def test_files_that_are_not_there_or_not_code(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing.py").fact == "There is no such file."
    (tmp_path / "folder.py").mkdir()
    assert refused(tmp_path / "folder.py").cause == "it is a folder"
    (tmp_path / "code.C").touch()
    assert "(.ipynb) or a script (.py)" in refused(tmp_path / "code.C").fact
    (tmp_path / "unreadable.py").symlink_to("/proc/self/mem")
    assert refused(tmp_path / "unreadable.py").fact == (
        "The file cannot be read: Input/output error."
    )


@pytest.mark.parametrize(
    ("name", "line", "text"),
    [
        ("wrong_encoding.py", 2, "codec can't decode byte 0xfc"),
        ("unknown_encoding.py", 1, "unknown encoding: klingon"),
        ("not_a_text_encoding.py", 1, "not a text encoding"),
    ],
)
def test_a_wrong_encoding_is_told_and_the_rest_read(name: str, line: int, text: str) -> None:
    sources = from_file(FIXTURES / name)
    (note,) = sources.notes
    assert note.where == f"{name}, line {line}"
    assert text in note.text
    assert note.fix == "save the file as UTF-8; Python refuses it as it is"
    assert "numpy" in names(sources.units)


def test_the_folder_is_that_of_the_script_and_of_the_link_to_a_notebook(tmp_path: Path) -> None:
    for name in ("plain.py", "no_kernel.ipynb"):
        (tmp_path / name).symlink_to(FIXTURES / name)
    assert from_file(tmp_path / "plain.py").folder == FIXTURES
    assert from_file(tmp_path / "no_kernel.ipynb").folder == tmp_path


def test_scripts_that_are_run_are_read_too() -> None:
    folder = FIXTURES / "scripts"
    sources = from_file(folder / "analysis.ipynb")
    assert labels(sources) == [
        *(f"cell {number}" for number in range(1, 7)),
        "helper.py",
        "deep.py",
        "cell 1 of other.ipynb",
        "cell 2 of other.ipynb",
        "deeper.ipy",
    ]
    found = {unit.label: unit for unit in sources.units}
    assert found["deep.py"].path == str(folder / "tools" / "deep.py")
    assert names(sources.units) == ["sys", "helped", "deep", "other", "deeper"]
    (note,) = examine(found["deeper.ipy"]).notes
    assert note.where == "deeper.ipy, line 1"
    missing, broken = sources.notes
    assert missing == Note(
        "cell 2, line 1",
        "%run missing.py: there is no such script, its imports are not known",
        f"put it beside the notebook: ls {folder}",
    )
    assert broken.where == "cell 4, line 1"
    assert broken.text.startswith("broken.ipynb: The notebook cannot be read.")
    assert sources.paths == (folder / "tools", FIXTURES)


def test_what_uncertain_code_runs_is_uncertain(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("import helped\n")
    source = {"nbformat": 4, "cells": [{"cell_type": "code", "source": "%run helper.py"}]}
    source["cells"][0]["metadata"] = {"tags": ["raises-exception"]}  # type: ignore[index]
    (tmp_path / "a.ipynb").write_text(json.dumps(source))
    assert [unit.certain for unit in from_file(tmp_path / "a.ipynb").units] == [False, False]


def test_nothing_is_run(tmp_path: Path) -> None:
    code = "import helper\n!touch ran\n%run helper.py\nopen('ran', 'w')\n__import__('helper')\n"
    (tmp_path / "helper.py").write_text("open('ran', 'w')\nimport uproot\n")
    cell = {"cell_type": "code", "source": code}
    (tmp_path / "a.ipynb").write_text(json.dumps({"nbformat": 4, "cells": [cell]}))
    program = """
import sys
from hepscale.env.imports import examine
from hepscale.env.sources import from_file
for unit in from_file("a.ipynb").units:
    print(*(one.name for one in examine(unit).imports))
assert not {"helper", "uproot"} & set(sys.modules)
"""
    assert python("-c", program, cwd=tmp_path).split() == ["helper", "helper", "uproot"]
    assert not (tmp_path / "ran").exists()
