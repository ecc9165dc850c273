"""Settings that are refused, and how."""

from __future__ import annotations

import dataclasses

import pytest
from coffea.processor.executor import ExecutorBase
from settings_files import refused

import hepscale
from hepscale import HepScaleExecutor
from hepscale.config import Settings, load_settings
from hepscale.config.model import RUN_OPTIONS
from hepscale.errors import ConfigError


@pytest.mark.parametrize(
    ("place", "text", "name", "meant", "line"),
    [
        ("user", "a = 1\n", "a", "", 1),
        ("project", '\n# x\nengin = "local"\n', "engin", "engine", 3),
        ("pyproject", "[tool.hepscale]\nscratch-dir = 'x'\n", "scratch-dir", "scratch_dir", 2),
        ("etc", "[workers]\nbatch = 'local'\ncore = 2\n", "core", "cores", 3),
        ("prefix", "workers = {core = 2}\n", "core", "cores", 1),
        ("etc", "site.use = 'x'\n[site.x]\nengin = 'local'\n", "engin", "engine", "3 [site.x]"),
        ("etc", "site.use = 'x'\n[site.x]\nsite = 'y'\n", "site", "", "3 [site.x]"),
    ],
)
def test_unknown_key_names_the_nearest(layout, place, text, name, meant, line):
    path = layout.write(place, text)
    error = refused()
    assert repr(name) in error.fact
    assert error.items == (f"{path}:{line}",)
    assert repr(meant) in error.cause if meant else "engine" in error.cause
    assert f"write {meant} in place of {name}" in error.fix or not meant


def test_key_of_a_table_and_option_of_a_run(layout):
    layout.write("project", "[site.x]\ncores = 4\n")
    error = refused("x")
    assert "'workers.cores'" in error.cause
    assert error.fix == "HepScaleExecutor(cores=...), or write workers.cores in place of cores"
    layout.write("project", "environment = 'packed'\n")
    assert refused().fix == "HepScaleExecutor(environment=...)"
    layout.write("project", "count = 4\n")
    assert refused().fix == "write workers.count in place of count"


def test_options_of_a_run_are_those_of_the_executor():
    options = {one.name for one in dataclasses.fields(HepScaleExecutor)}
    inherited = {one.name for one in dataclasses.fields(ExecutorBase)}
    assert options - inherited - {*Settings.model_fields} == RUN_OPTIONS


@pytest.mark.parametrize(
    ("make", "meant"),
    [
        (lambda: HepScaleExecutor(engine="workqeue"), "workqueue"),
        (lambda: HepScaleExecutor(closure="import"), "imports"),
        (lambda: hepscale.pack("a.py", "a.tar.gz", closure="import"), "imports"),
        (lambda: hepscale.Workers("slrum"), "slurm"),
        (lambda: hepscale.Workers("Slurm"), "slurm"),
        (lambda: load_settings(workers={"batch": "slrum"}), "slurm"),
    ],
)
def test_misspelt_choice_names_the_nearest(layout, make, meant):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.cause.startswith(f"it is spelt {meant!r}; known are: ")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("HEPSCALE_SCRATCHDIR", "HEPSCALE_SCRATCH_DIR"),
        ("HEPSCALE_ENGIN", "HEPSCALE_ENGINE"),
        ("HEPSCALE_WORKERS_CORE", "HEPSCALE_WORKERS_CORES"),
        ("HEPSCALE_WORKERS", "HEPSCALE_WORKERS_"),
    ],
)
def test_unknown_variable_names_the_nearest(layout, monkeypatch, name, meant):
    monkeypatch.setenv(name, "x")
    error = refused()
    assert repr(name) in error.fact
    assert f"write {meant}" in error.fix


@pytest.mark.parametrize("name", ["VIEW", "TEST_DATA", "TEST_STRICT", "UNPACK_WAIT_S", "SOMETHING"])
def test_variables_that_are_no_settings(layout, monkeypatch, name):
    monkeypatch.setenv(f"HEPSCALE_{name}", "1")
    assert load_settings() == load_settings("")


def test_unknown_argument_names_the_nearest(layout):
    assert "'engine'" in refused(engin="local").cause
    assert "'cores'" in refused(workers={"core": 1}).cause


@pytest.mark.parametrize(
    ("text", "name", "cause"),
    [
        ("engine = 'dask'", "engine", "local, workqueue, taskvine"),
        ("engine = 3", "engine", "local"),
        ("keep_runs = 'many'", "keep_runs", "integer"),
        ("keep_runs = 0", "keep_runs", "greater than or equal to 1"),
        ("keep_runs = true", "keep_runs", "neither true nor false"),
        ("idle_s = -1.0", "idle_s", "greater than 0"),
        ("name = 3", "name", "string"),
        ("port = '1-2-3'", "port", "9000-9100"),
        ("port = 70000", "port", "65535"),
        ("port = '9100-9000'", "port", "the lower one first"),
        ("send_credentials = 'perhaps'", "send_credentials", "boolean"),
        ("run_dir = 3", "run_dir", "path"),
        ("scratch_dir = '/scratch/$NOT_SET_AT_ALL'", "scratch_dir", "not set"),
        ("run_dir = '~nobody-of-this-name/runs'", "run_dir", "home"),
        ("workers = 3", "workers", "[workers]"),
        ("cvmfs = 'cms.cern.ch'", "cvmfs", "[cvmfs]"),
        ("workers.batch = 'lsf'", "workers.batch", "slurm"),
        ("workers.cores = 0", "workers.cores", "greater"),
        ("workers.options = 3", "workers.options", "tuple"),
        ('workers.options = "--comment=\'"', "workers.options", "closing quotation"),
        ("workers.setup = [1]", "workers.setup", "string"),
    ],
)
def test_value_that_cannot_be_used(layout, text, name, cause):
    path = layout.write("project", f"# settings\n{text}\n")
    error = refused()
    assert error.fact.startswith(f"{name}=")
    assert error.items == (f"{path}:2",)
    assert cause in error.cause
    assert name in error.fix


def test_variable_and_argument_that_cannot_be_used(layout, monkeypatch):
    monkeypatch.setenv("HEPSCALE_WORKERS_COUNT", "few")
    error = refused()
    assert error.fact == "HEPSCALE_WORKERS_COUNT='few' cannot be used."
    assert error.fix.startswith("unset HEPSCALE_WORKERS_COUNT")
    assert refused(workers={"count": -1}).fact == "workers.count=-1 cannot be used."


@pytest.mark.parametrize("text", [b"engine = ", b"[site\n", b"name = '\xff'\n", b"a = 1\na = 2\n"])
def test_broken_file(layout, text):
    path = layout.write("user", "")
    path.write_bytes(text)
    error = refused()
    assert error.fact == f"{path} is not TOML."
    assert str(path) in error.fix


def test_file_that_cannot_be_read(layout):
    layout.user.mkdir(parents=True)
    assert refused().fact == f"{layout.user} cannot be read."


def test_pyproject_of_something_else(layout):
    layout.write("pyproject", "[tool.ruff\n")
    layout.write("user", "keep_runs = 3\n")
    assert load_settings().keep_runs == 3
    layout.write("pyproject", "[project]\ndependencies = ['hepscale']\n")
    assert load_settings().keep_runs == 3
    layout.write("pyproject", "tool.hepscale = 3\n")
    assert "[tool.hepscale]" in refused().fix
