"""What cells and scripts import: each form and each failure is a file in ``fixtures/imports``."""

from __future__ import annotations

import random
import re
import warnings
from pathlib import Path

import pytest

from hepscale.env.imports import Import, examine
from hepscale.env.sources import Note, Unit, from_file

FIXTURES = Path(__file__).parents[1] / "fixtures" / "imports"

# Line, dots and name, members; "guarded" or "dynamic"; "lazy".
SCRIPTS = {
    "bad_indent.py": ["1 numpy", "3 hist", "5 uproot guarded", "6 vector guarded", "7 awkward"],
    "bom.py": ["1 numpy", "2 hist"],
    "broken_block.py": [
        "2 vector (arr) guarded lazy",
        "5 uproot guarded lazy",
        "5 hist guarded lazy",
        "11 numpy lazy",
    ],
    "by_name.py": [
        "1 importlib",
        "2 importlib (import_module)",
        "4 first",
        "5 second.third",
        "6 by_keyword",
        "7 pack.age.near",
        "8 pack.far",
        "9 .own",
        "10 ..own",
        "11 .own",
        "12 fourth",
        "14 fifth guarded",
        "17 sixth guarded",
        "19 seventh lazy",
    ],
    "computed.py": ["1 importlib", *(f"{line} dynamic" for line in (4, 5, 6, 7, 8, 10))],
    "cookie.py": ["2 numpy", "3 hist"],
    "empty_script.py": [],
    "escapes.py": ["1 numpy"],
    "exported.py": ["8 uproot", "8 hist", "9 vector", "12 numpy", "12 matplotlib"],
    "guarded.py": [
        "2 first guarded",
        "4 second guarded",
        "6 third guarded",
        "8 always",
        "10 module_not_found guarded",
        "14 any_exception guarded",
        "18 bare guarded",
        "22 in_the_end guarded",
        "25 nested guarded",
        "27 not_guarded",
        "29 not_guarded_either",
    ],
    "helper.py": ["1 helped"],
    "in_functions.py": [
        "1 early",
        "2 uproot lazy",
        "5 vector (arr) lazy",
        "9 hist",
        "12 mplhep lazy",
        "15 late lazy",
    ],
    "merge_conflict.py": ["1 numpy", "3 hist", "5 boost_histogram", "7 uproot"],
    "no_except.py": ["2 numpy guarded", "3 hist"],
    "not_a_text_encoding.py": ["2 numpy"],
    "null_bytes.py": ["1 numpy", "3 hist"],
    "other_places.py": [
        "1 importlib.util",
        "2 os",
        "3 sys",
        "6 tomllib guarded",
        "8 tomli guarded",
        "10 winreg guarded",
        "12 google.colab guarded",
        "14 cupy guarded",
        "16 not_guarded",
    ],
    "plain.py": [
        "1 numpy",
        "2 matplotlib.pyplot",
        "2 awkward",
        "3 hist (Hist axis)",
        "4 math (*)",
    ],
    "python2.py": [
        "1 numpy",
        "3 hist",
        "5 uproot guarded lazy",
        "8 awkward guarded",
        "12 vector (arr obj)",
    ],
    "relative.py": ["1 . (cuts)", "2 .cuts (select)", "3 ...tools.io (load)"],
    "resources.py": [
        "1 importlib.resources",
        "2 pkgutil",
        "3 importlib.resources (files)",
        "5 mypackage.data",
        "6 other",
        "7 third",
    ],
    "search_path.py": ["1 os", "2 sys", "3 pathlib (Path)"],
    "string_of_code.py": ["1 numpy", "9 hist"],
    "suppressed.py": [
        "1 contextlib",
        "2 contextlib (suppress)",
        "5 first guarded",
        "7 second guarded",
        "9 not_guarded",
    ],
    "type_checking.py": [
        "1 typing",
        "2 typing (TYPE_CHECKING)",
        "3 typing (TYPE_CHECKING)",
        "8 yes_1",
        "12 yes_2",
        "14 yes_3",
        "20 yes_4",
        "22 yes_5",
        "26 yes_6",
    ],
    "unclosed.py": ["1 numpy", "3 hist", "4 vector (arr)", "5 uproot"],
    "unclosed_string.py": ["1 numpy", "3 hist"],
    "unknown_encoding.py": ["2 numpy"],
    "wrong_encoding.py": ["1 numpy", "3 hist"],
}
CELLS = {
    "await.ipy": ["1 numpy", "4 hist"],
    "bash.ipy": [],
    "capture.ipy": ["2 numpy"],
    "cd.ipy": [],
    "comment.ipy": [],
    "crlf.ipy": ["2 numpy", "4 hist"],
    "empty.ipy": [],
    "error_and_magics.ipy": ["1 numpy", "4 uproot", "5 vector"],
    "help.ipy": ["5 numpy"],
    "help_cell_magic.ipy": [],
    "html.ipy": [],
    "imports_by_magic.ipy": ["1 numpy", "1 matplotlib", "2 one", "2 two.three"],
    "indented.ipy": ["2 numpy", "4 hist"],
    "install.ipy": ["14 os", "16 numpy"],
    "install_alone.ipy": [],
    "ipython_prompts.ipy": ["1 numpy", "2 hist"],
    "javascript.ipy": [],
    "load_ext.ipy": ["3 numpy", "5 hist"],
    "magic_in_string.ipy": ["8 numpy"],
    "magics_in_blocks.ipy": ["2 numpy", "6 uproot"],
    "nested_magics.ipy": ["4 numpy"],
    "no_name.ipy": [],
    "only_magic.ipy": [],
    "own_language.ipy": [],
    "own_magic.ipy": ["2 numpy guarded"],
    "prompts.ipy": ["1 numpy", "3 hist"],
    "prun.ipy": ["2 numpy"],
    "run.ipy": ["4 package.module"],
    "run_alone.ipy": [],
    "separators.ipy": ["1 numpy", "4 hist"],
    "shell.ipy": ["4 numpy", "8 hist"],
    "statements.ipy": ["1 numpy", "2 hist", "3 vector", "4 uproot", "5 awkward"],
    "time.ipy": ["2 numpy", "3 hist"],
    "timeit.ipy": ["1 numpy", "2 hist"],
    "writefile.ipy": [],
}
ERRORS = {
    "bad_indent.py": (3, "expected an indented block"),
    "broken_block.py": (7, "invalid syntax"),
    "error_and_magics.ipy": (2, "'(' was never closed"),
    "merge_conflict.py": (2, "invalid syntax"),
    "no_except.py": (3, "expected 'except' or 'finally' block"),
    "null_bytes.py": (2, "null bytes"),
    "python2.py": (2, "Missing parentheses in call to 'print'"),
    "string_of_code.py": (8, "invalid syntax"),
    "unclosed.py": (2, "'[' was never closed"),
    "unclosed_string.py": (2, "unterminated triple-quoted string"),
}
OTHER_NOTES = {
    "bash.ipy": ["3 pip3 install hist"],
    "computed.py": [
        "4 import_module(...)",
        "5 __import__(...)",
        "6 import_module(...)",
        "7 import_module(...)",
        "8 importorskip(...)",
        "10 import_module(...)",
    ],
    "error_and_magics.ipy": ["3 pip install hist"],
    "exported.py": ["10 pip install mplhep"],
    "install.ipy": [
        "1 pip install -q 'hist[plot]>=2'",
        "2 pip install mplhep==0.3",
        "3 conda install -c conda-forge vector -y",
        "4 conda install uproot",
        "4 mamba install -y awkward",
        "5 python -m pip install --user coffea",
        "6 pip install git+https://***@example.org/x.git",
        "8 uv pip install y",
        "9 python3 -m pip install z",
        "10 pip install w",
        "15 micromamba install v",
        "17 pip install u",
    ],
    "install_alone.ipy": ["1 pip install hist"],
    "magics_in_blocks.ipy": ["4 pip install hist"],
    "nested_magics.ipy": ["5 pip install hist"],
    "own_language.ipy": ["1 %%our_language"],
    "run.ipy": ["5 %run {name}.py", "6 %run $name"],
}


def fixture(name: str) -> Unit:
    """Return the unit that a file is: a script, or the text of one cell."""
    if name.endswith(".py"):
        return from_file(FIXTURES / name).units[0]
    source = (FIXTURES / name).read_bytes().decode()
    return Unit(name, source, str(FIXTURES / name), is_cell=True)


def line_of(where: str, label: str) -> str:
    assert where.startswith(f"{label}, line ")
    return where.rpartition(" ")[2]


def told(unit: Unit) -> list[str]:
    """Return the imports of a unit, each on one line."""
    lines = []
    for one in examine(unit).imports:
        name = "." * one.level + one.name
        members = f"({' '.join(one.members)})" if one.members else ""
        flags = ("" if one.how == "sure" else one.how, "lazy" if one.lazy else "")
        words = (line_of(one.where, unit.label), name, members, *flags)
        lines.append(" ".join(filter(None, words)))
    return lines


def cell(source: str) -> Unit:
    return Unit("cell 1", source, is_cell=True)


@pytest.mark.parametrize("name", [*SCRIPTS, *CELLS])
def test_imports_are_found_where_the_user_sees_them(name: str) -> None:
    assert told(fixture(name)) == (SCRIPTS | CELLS)[name]


@pytest.mark.parametrize("name", [*SCRIPTS, *CELLS])
def test_the_user_is_told_what_matters_and_nothing_else(name: str) -> None:
    unit = fixture(name)
    notes = list(examine(unit).notes)
    if name in ERRORS:
        line, text = ERRORS[name]
        note = notes.pop(0)
        assert line_of(note.where, name) == str(line)
        assert text in note.text
        assert note.fix == "correct or remove the line"
    expected = OTHER_NOTES.get(name, [])
    assert len(notes) == len(expected)
    for note, one in zip(notes, expected, strict=True):
        line, _, text = one.partition(" ")
        assert line_of(note.where, name) == line
        assert text in note.text
        assert note.fix


def test_every_fixture_is_used() -> None:
    files = {path.name for path in FIXTURES.iterdir() if path.suffix in {".py", ".ipy"}}
    assert files == {*SCRIPTS, *CELLS}
    assert {*ERRORS, *OTHER_NOTES} <= files


def test_a_computed_name_is_an_import_without_a_name() -> None:
    found = examine(Unit("a.py", "def f():\n    __import__(x)\n"))
    assert (found.imports, found.notes) == (
        (Import("", "a.py, line 2", "dynamic", lazy=True),),
        (
            Note(
                "a.py, line 2",
                "the name of the module that __import__(...) imports is computed",
                'extra_packages=["NAME"], unless something else imports it',
            ),
        ),
    )


def test_installing_is_told_with_the_command_to_type() -> None:
    (note,) = examine(cell("import x\n!pip install hist; ls")).notes
    assert note == Note(
        "cell 1, line 2",
        "pip install hist: not run for a pack, which takes what is installed already",
        "pip install hist",
    )


def test_passwords_are_not_repeated() -> None:
    for note in examine(fixture("install.ipy")).notes:
        assert "secret" not in note.text + note.fix


def test_scripts_to_be_run_are_named() -> None:
    assert [(one.name, one.where) for one in examine(fixture("run.ipy")).scripts] == [
        ("helper.py", "run.ipy, line 1"),
        ("a helper", "run.ipy, line 2"),
        ("other.ipynb", "run.ipy, line 3"),
        ("a script.py", "run.ipy, line 7"),
    ]
    for name, line in (("run_alone.ipy", 1), ("exported.py", 11), ("statements.ipy", 8)):
        (script,) = examine(fixture(name)).scripts
        assert (script.name, script.where) == ("helper.py", f"{name}, line {line}")


def test_folders_that_the_code_adds_to_the_path_are_named() -> None:
    assert examine(fixture("search_path.py")).folders == (
        "..",
        "../src",
        "one",
        "two",
        str(FIXTURES / "beside"),
        str(FIXTURES),
    )
    assert examine(fixture("cd.ipy")).folders == ("../lib", "with space")
    unknown = "sys.path.append(__file__)\nsys.path.append(" + "'a' / " * 40 + "'b')"
    assert examine(Unit("x", unknown)).folders == ()


def test_all_imports_of_uncertain_code_are_guarded_and_its_errors_are_not_told() -> None:
    source = "import numpy\nx =\n!pip install y\n__import__(name)"
    found = examine(Unit("cell 1", source, is_cell=True, certain=False))
    assert [one.how for one in found.imports] == ["guarded", "dynamic"]
    assert [note.where for note in found.notes] == ["cell 1, line 3", "cell 1, line 4"]


@pytest.mark.parametrize(
    "nested",
    [
        "(" * 300 + "1" + ")" * 300,
        "-" * 20_000 + "1",
        "+".join(["1"] * 20_000),
        "x" + ".f()" * 3000,
        "not " * 90 + "x",
    ],
)
def test_deep_nesting_is_survived(nested: str) -> None:
    for is_cell in (True, False):
        unit = Unit("deep", f"import numpy\nx = {nested}\nimport hist", is_cell=is_cell)
        assert told(unit) == ["1 numpy", "3 hist"]
        for note in examine(unit).notes:
            assert note.where == "deep, line 2"
            assert "nested" in note.text


def test_deep_conditions_and_magics_are_survived() -> None:
    condition = "not " * 80 + "TYPE_CHECKING and " + "(x or " * 60 + "y" + ")" * 60
    assert told(cell(f"if {condition}:\n    import numpy\nimport hist")) == ["3 hist"]
    assert told(cell("%%time\n" * 500 + "import numpy")) == []
    assert told(cell("%time " * 500 + "import numpy")) == []
    assert told(cell("%%time\n" * 3 + "import numpy")) == ["4 numpy"]


def test_hundreds_of_magics_and_errors_in_one_cell() -> None:
    lines = "!ls\nimport numpy\n%time import hist\nprint 'x'\n" * 100
    found = told(cell(lines))
    assert len(found) == 200
    assert found[-2:] == ["398 numpy", "399 hist"]


def test_text_that_is_no_unicode() -> None:
    assert told(cell("import numpy\nx = '\ud800'\n!ls \udcff\nimport hist")) == [
        "1 numpy",
        "4 hist",
    ]


def test_nothing_that_can_be_typed_raises() -> None:
    rng = random.Random(3)
    texts = [fixture(name).source for name in [*SCRIPTS, *CELLS]]
    junk = ["", "(", "'''", '"', "\\\n", "%", "!", "?", "\t", "  ", "\n", "}", "\f", "\r", "@"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(600):
            text = rng.choice(texts) + "\n" + rng.choice(texts)
            for _ in range(rng.randint(1, 4)):
                start = rng.randint(0, len(text))
                text = text[:start] + rng.choice(junk) + text[start + rng.randint(0, 8) :]
            found = examine(Unit("x", text, is_cell=rng.random() < 0.7))
            most = len(re.split("\r\n|\r|\n", text))
            for one in (*found.imports, *found.notes, *found.scripts):
                assert 1 <= int(line_of(one.where, "x")) <= most
