from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from support import python

import hepscale
from hepscale import demo, doctor, notebook_run
from hepscale.cli import main
from hepscale.errors import InputError, RunInterrupted


@pytest.fixture
def invoke():
    return lambda *args: CliRunner().invoke(main, [str(arg) for arg in args])


def test_version(invoke):
    result = invoke("--version")
    assert (result.exit_code, hepscale.__version__ in result.stdout) == (0, True)


def test_as_a_module(tmp_path):
    said = python("-m", "hepscale", "--version", cwd=tmp_path)
    assert said == f"hepscale, version {hepscale.__version__}\n"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from click.testing import CliRunner; from hepscale.cli import main;"
        "r = CliRunner().invoke(main, ['--help']); print(r.stdout);"
        "assert r.exit_code == 0;"
        "heavy = {'coffea', 'numpy', 'rich', 'nbclient', 'pydantic'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "run", "doctor"):
        assert command in done.stdout


@pytest.mark.parametrize("status", ["ok", "warn", "fail"])
def test_doctor(invoke, monkeypatch, status):
    check = doctor.Check("thing", status, "a fact", "" if status == "ok" else "a fix")
    monkeypatch.setattr(doctor, "check_all", lambda: [check])
    result = invoke("doctor")
    assert result.exit_code == (1 if status == "fail" else 0)
    assert "a fact" in result.stdout
    assert ("a fix" in result.stdout) == (status != "ok")
    result = invoke("doctor", "--json")
    assert result.exit_code == (1 if status == "fail" else 0)
    assert json.loads(result.stdout) == [
        {"name": "thing", "status": status, "fact": "a fact", "fix": check.fix}
    ]


def test_doctor_for_real(invoke):
    names = [check["name"] for check in json.loads(invoke("doctor", "--json").stdout)]
    assert {"Python", "coffea", "cores", "memory", "/dev/shm", "widgets"} <= set(names)


def test_our_errors_have_no_traceback(invoke, monkeypatch):
    def fail(*args, **kwargs):
        raise InputError("A fact.", items=["an item"], cause="a cause", fix="a fix")

    monkeypatch.setattr(notebook_run, "run_file", fail)
    result = invoke("run", "x.ipynb")
    assert result.exit_code == 1
    assert result.stderr == "Error: A fact.\n  an item\nLikely cause: a cause\nNext: a fix\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunInterrupted("The run was stopped.")])
def test_interrupts_have_the_exit_code_that_shells_expect(invoke, monkeypatch, error):
    def stop(*args, **kwargs):
        raise error

    monkeypatch.setattr(demo, "run_demo", stop)
    result = invoke("demo")
    assert result.exit_code == 130
    assert result.stderr == (f"{error}\n" if str(error) else "Interrupted.\n")


def test_other_errors_are_not_hidden(invoke, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(demo, "run_demo", fail)
    assert isinstance(invoke("demo").exception, ZeroDivisionError)


def test_demo_options(invoke, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(demo, "run_demo", lambda console, **given: seen.update(given))
    assert invoke("demo").exit_code == 0
    assert (seen["events"], seen["cores"], "seed" in seen) == (1_000_000, None, False)
    given = ("--events", 10, "--out", tmp_path, "--cores", 3, "--seed", 0, "--engine", "workqueue")
    invoke("demo", *given)
    assert seen == {
        "events": 10, "out": tmp_path, "cores": 3, "seed": 0, "engine": "workqueue",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "nowhere.ipynb"], "no such file"),
        (["run", "analysis.C"], "takes a notebook"),
        (["demo", "--events", 0], "too few"),
        (["demo", "--seed", -1], "seed=-1"),
    ],
)
def test_bad_arguments(invoke, tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    result = invoke(*args)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert says in result.stderr
    assert "Next: " in result.stderr
