"""``hepscale env``: what it prints, and its exit codes."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import nbformat.v4
import pytest
import wheels
from click.testing import CliRunner, Result

import hepscale
from hepscale.cli import main
from hepscale.env import api, environment

SCHEMA = Path(hepscale.__file__).parents[1] / "docs/env-analyze.schema.json"
Invoke = Callable[..., Result]


@pytest.fixture
def invoke(venv: wheels.Venv, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run ``hepscale env``, where it takes one for the venv's Python."""
    monkeypatch.setenv("COLUMNS", "300")

    def run(command: str, *args: object) -> Result:
        given = ["--python", venv.python] if command in {"analyze", "pack"} else []
        return CliRunner().invoke(main, ["env", command, *map(str, [*given, *args])])

    return run


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPSCALE_CACHE_DIR", str(tmp_path / "cache"))


def build(script: Path, venv: wheels.Venv) -> str:
    """Pack an environment as a run does, and return its digest."""
    plan = api.planned(hepscale.analyze(script, python=venv.python))
    return environment.build(plan, api.store()).digest


def rows(text: str) -> list[list[str]]:
    """Return the cells of a table's rows."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]


# -- analyze -------------------------------------------------------------------------------------


def validated(result: Result) -> Any:
    told = json.loads(result.stdout)
    checker = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    checker.validate(told)
    return told


def notebook(folder: Path) -> Path:
    """Write a notebook with one of everything that an analysis can tell."""
    cells = [
        "import lamp, json",
        "%%time\nimport nowhere_to_be_found",
        "def broken(:",
        "!pip install another",
        "import importlib\nname = 'a' + 'b'\nimportlib.import_module(name)",
        "try:\n    import gone\nexcept ImportError:\n    import helper",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in cells])
    (folder / "helper.py").write_text("from tool import shape\n")
    (folder / "tool").mkdir()
    (folder / "tool/__init__.py").touch()
    (folder / "tool/shape.py").write_text("import shade\n")
    path = folder / "analysis.ipynb"
    nbformat.write(book, path)
    return path


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


def test_json_of_a_script(invoke: Invoke, script: Path, venv: wheels.Venv) -> None:
    result = invoke("analyze", script, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    told = validated(result)
    assert told["source"] == str(script)
    assert told["prefix"] == str(venv.prefix)
    assert {"bolt", "lamp", "shade"} <= {one["name"] for one in told["distributions"]}
    (tool,) = [one for one in told["modules"] if one["name"] == "tool"]
    below = sorted(str(Path(one).relative_to(script.parent)) for one in tool["files"])
    assert below == ["tool/__init__.py", "tool/data/n.txt", "tool/shape.py"]
    assert tool["size_bytes"] == sum(Path(one).stat().st_size for one in tool["files"])
    sizes = [one["size_bytes"] for one in told["distributions"] + told["modules"]]
    assert told["size_bytes"] == sum(sizes) > 1000
    (shade,) = [one for one in told["distributions"] if one["name"] == "shade"]
    assert "required by lamp" in shade["reasons"]
    found = {one["name"]: (one["origin"], one["provider"]) for one in told["imports"]}
    assert found["lamp"] == ("installed", "lamp")
    assert found["ssl"] == ("standard", "")
    assert found["helper"] == ("local", "helper")
    assert found["tool.shape"] == ("local", "tool")


def test_json_of_a_notebook_with_everything(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("analyze", notebook(tmp_path), "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    told = validated(result)
    (missing,) = told["missing"]
    assert missing["name"] == "nowhere_to_be_found"
    assert missing["where"] == ["cell 2, line 2"]
    assert missing["how"] == "sure"
    assert "pip install nowhere-to-be-found" in missing["fix"]
    found = {one["name"]: (one["where"], one["how"], one["origin"]) for one in told["imports"]}
    assert found["lamp"] == ("cell 1, line 1", "sure", "installed")
    assert found["nowhere_to_be_found"] == ("cell 2, line 2", "sure", "missing")
    assert found["gone"] == ("cell 6, line 2", "guarded", "missing")
    assert found["helper"][2] == "local"
    assert found["shade"] == ("tool/shape.py, line 1", "sure", "installed")
    places = [one["where"] for one in told["notes"]]
    assert [place.partition(",")[0] for place in places] == ["cell 3", "cell 4", "cell 5"]
    assert {one["name"] for one in told["modules"]} == {"helper", "tool"}


@pytest.mark.parametrize("path", ["schema", "imports/0/how", "distributions/0", "modules/0/files"])
def test_schema_refuses_what_is_not_so(invoke: Invoke, script: Path, path: str) -> None:
    told = validated(invoke("analyze", script, "--json"))
    changed = copy.deepcopy(told)
    *above, last = path.split("/")
    place: Any = changed
    for key in above:
        place = place[int(key) if key.isdigit() else key]
    place[int(last) if last.isdigit() else last] = {"more": 1}
    checker = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    (error,) = list(checker.iter_errors(changed))[:1]
    assert list(error.absolute_path)[: len(above)] == [
        int(key) if key.isdigit() else key for key in above
    ]
    del changed[path.partition("/")[0]]
    assert not checker.is_valid(changed)
    assert not checker.is_valid({**told, "more": 1})


def test_table_of_a_script(invoke: Invoke, script: Path) -> None:
    result = invoke("analyze", script)
    assert (result.exit_code, result.stderr) == (0, "")
    found = rows(result.stdout)
    assert ["lamp", "lamp", "analysis.py, line 2"] in found
    assert ["helper", "local code", "analysis.py, line 5"] in found
    assert ["tool", "3", "0.1", "analysis.py, line 6; tool/shape.py, line 4"] in found
    assert ["Not found"] not in found
    (shade,) = [line for line in found if line[:2] == ["shade", "1.0"]]
    assert "required by lamp" in shade[3]
    named = validated(invoke("analyze", script, "--json"))["distributions"]
    assert result.stdout.splitlines()[-1].startswith(f"{len(named)} distributions, ")


def test_table_of_a_notebook_with_everything(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("analyze", notebook(tmp_path))
    assert result.exit_code == 1
    found = rows(result.stdout)
    assert ["nowhere_to_be_found", "not found", "cell 2, line 2"] in found
    assert ["gone", "not found", "cell 6, line 2", "guarded"] in found
    assert found.index(["Not found"]) < found.index(["Notes"])
    assert any(line[0].startswith("cell 3") and "syntax" in line[1].lower() for line in found)


def test_names_in_brackets_are_shown(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "[bold].py"
    path.write_text("x = [\n")
    assert "[bold].py" in invoke("analyze", path).stdout


@pytest.mark.parametrize(
    ("args", "fact"),
    [
        (["nowhere.py"], "There is no such file."),
        (["analysis.C"], "Imports are read from a notebook (.ipynb) or a script (.py)."),
        (["a.py", "--with", "no-such-thing"], "'no-such-thing' is not installed"),
        (["a.py", "--without", "no-such-thing"], "'no-such-thing' is not installed"),
        (["a.py", "--python", "/nowhere/python"], "/nowhere/python cannot be used"),
    ],
)
def test_what_cannot_be_analysed(
    invoke: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    fact: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text("import lamp\n")
    result = invoke("analyze", *args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: {fact}")
    assert "Next: " in result.stderr


def test_with_and_without(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("import lamp\n")
    options = ["--with", "idle", "--without", "shade"]
    names = {
        one["name"]: one
        for one in validated(invoke("analyze", path, "--json", *options))["distributions"]
    }
    assert set(names) == {"idle", "lamp"}
    assert names["idle"]["reasons"] == ["asked for"]


# -- pack ----------------------------------------------------------------------------------------


def test_pack(invoke: Invoke, script: Path, tmp_path: Path) -> None:
    target = tmp_path / "env.tar.zst"
    result = invoke("pack", script, "-o", target)
    assert result.exit_code == 0
    said = r"[\d.]+ MB, \d+ MB unpacked; \d distributions, Python 3\.\d+\.\d+\n"
    assert re.fullmatch(re.escape(f"{target}: ") + said, result.stdout)
    assert "Packing env.tar.zst" in result.stderr
    assert target.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
    result = invoke("pack", script, "-o", target)
    assert (result.exit_code, result.stderr.strip()) == (0, "")
    assert result.stdout.endswith(" (unchanged)\n")


def test_pack_without_a_name(
    invoke: Invoke, script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("pack", script, "--format", "tar.zst")
    assert (result.exit_code, result.stdout.partition(":")[0]) == (0, "env.tar.zst")
    assert [one.name for one in tmp_path.iterdir()] == ["env.tar.zst"]


def test_pack_warns_of_what_is_missing(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "analysis.py").write_text("import cuts_nowhere\n__import__(input())\n")
    result = invoke("pack", tmp_path / "analysis.py", "-o", tmp_path / "env.tar.zst")
    assert result.exit_code == 0
    assert (
        "Warning: not found: cuts_nowhere; other things to know: 1. hepscale env analyze"
        in result.stderr
    )


def test_pack_into_a_file_of_another_format(invoke: Invoke, script: Path, tmp_path: Path) -> None:
    result = invoke("pack", script, "--format", "tar.zst", "-o", tmp_path / "env.tar.gz")
    assert result.exit_code == 1
    assert "is no name for an archive of the format tar.zst" in result.stderr


def test_pack_into_a_folder_that_is_none(invoke: Invoke, script: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = invoke("pack", script, "-o", tmp_path / "file/env.tar.gz")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Error: The archive cannot be written: " in result.stderr
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def test_options_that_are_not_known(invoke: Invoke, script: Path) -> None:
    assert invoke("pack", script, "--format", "zip").exit_code == 2
    assert invoke("pack", script, "--closure", "some").exit_code == 2
    assert invoke("prune", "--keep", "-1").exit_code == 2
    with pytest.raises(hepscale.ConfigError, match="There is no format 'zip'"):
        hepscale.pack(script, format="zip")
    with pytest.raises(hepscale.ConfigError, match="There is no closure 'some'"):
        hepscale.pack(script, closure="some")


# -- diff, list, prune ---------------------------------------------------------------------------


@pytest.mark.usefixtures("empty")
def test_list_and_prune(invoke: Invoke, script: Path, venv: wheels.Venv, tmp_path: Path) -> None:
    assert invoke("list").stdout.splitlines() == [
        "There are no environments yet.",
        "An archive of hepscale env pack is listed once something has run in it.",
    ]
    assert invoke("prune").stdout == "0 environments removed, 0 MB freed\n"
    other = tmp_path / "other.py"
    other.write_text("import shade\n")
    first, second = build(script, venv), build(other, venv)
    header, *found, last = rows(invoke("list").stdout)
    assert last[0].startswith("An archive")
    assert header[0] == "environment"
    assert [line[0] for line in found] == [second[:12], first[:12]]
    python = ".".join(map(str, sys.version_info[:3]))
    assert found[0][2:5] == [python, "1", "full"]
    assert all(float(line[5]) > 5 for line in found)
    # what is used again comes first
    assert build(script, venv) == first
    assert rows(invoke("list").stdout)[1][0] == first[:12]
    result = invoke("prune", "--keep", "1")
    assert (result.exit_code, result.stdout[:21]) == (0, "1 environment removed")
    assert [line[0] for line in rows(invoke("list").stdout)[1:-1]] == [first[:12]]
    assert invoke("prune").stdout.startswith("1 environment removed")
    assert invoke("list").stdout.splitlines() == [
        "There are no environments yet.",
        "An archive of hepscale env pack is listed once something has run in it.",
    ]


@pytest.mark.usefixtures("empty")
def test_diff(invoke: Invoke, script: Path, venv: wheels.Venv, tmp_path: Path) -> None:
    other = wheels.analysis(tmp_path / "own")
    first = build(script, venv)
    other.write_text(other.read_text().replace("import bolt\n", "").replace("bolt.", "# "))
    (other.parent / "helper.py").write_text("HELP = 'no'\n")
    second = build(other, venv)
    result = invoke("diff", first[:1], first)
    assert (result.exit_code, result.stdout) == (0, "The two hold the same.\n")
    result = invoke("diff", first, second[:10])
    assert result.exit_code == 1
    header, bolt, *found = rows(result.stdout)
    assert header == ["what", "before", "after"]
    assert bolt == ["distribution bolt", "1.0", "-"]
    helper = next(line for line in found if line[0] == "local module helper")
    assert re.fullmatch(r"\([0-9a-f]{8}\)", helper[1])
    assert helper[1] != helper[2]
    # the same, of archives
    packed = [tmp_path / "first.tar.zst", tmp_path / "second.tar.zst"]
    for path, target in zip([script, other], packed, strict=True):
        assert invoke("pack", path, "-o", target).exit_code == 0
    assert rows(invoke("diff", *packed).stdout) == [header, bolt, *found]
    assert invoke("diff", packed[0], first).exit_code == 0


@pytest.mark.usefixtures("empty")
def test_what_cannot_be_compared(invoke: Invoke, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(b"\x1f\x8b" + b"\0" * 100)
    for what, fact in [
        ("0123456", "No environment begins with '0123456'."),
        (broken, "This is no packed environment."),
        (tmp_path / "nowhere.tar.zst", "There is no such archive."),
        (tmp_path / "nowhere.py", "There is no such file."),
    ]:
        result = invoke("diff", what, what)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"Error: {fact}")
        assert "Next: " in result.stderr


def test_help_of_each_command(invoke: Invoke) -> None:
    told = CliRunner().invoke(main, ["env", "--help"]).stdout
    for command in ("analyze", "pack", "run", "diff", "list", "prune"):
        assert command in told
        assert CliRunner().invoke(main, ["env", command, "--help"]).exit_code == 0


def test_nothing_of_the_analysis_is_run(tmp_path: Path, venv: wheels.Venv) -> None:
    (tmp_path / "local.py").write_text("raise SystemExit('imported')\n")
    path = tmp_path / "analysis.py"
    path.write_text("import local, lamp\nraise SystemExit('run')\n")
    code = "from hepscale.cli import main; main()"
    command = [sys.executable, "-c", code, "env", "analyze", str(path), "--json"]
    done = subprocess.run(
        [*command, "--python", str(venv.python)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [one["name"] for one in json.loads(done.stdout)["modules"]] == ["local"]
