"""Settings: which level wins, what is refused and how, and where files are looked for."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import time
from pathlib import Path

import as_root
import pytest
from click.testing import CliRunner
from coffea.processor.executor import ExecutorBase

import hepscale
from hepscale import HepScaleExecutor
from hepscale.cli import main
from hepscale.config import Settings, files, load_settings, resolve
from hepscale.config.model import RUN_OPTIONS
from hepscale.errors import ConfigError

CLUSTER = """
[site.my-cluster]
engine = "workqueue"
scratch_dir = "/scratch"
http_proxy = "http://me:secret@proxy:3128"

[site.my-cluster.workers]
batch = "slurm"
options = ["--partition=short"]

[site.my-cluster.cvmfs]
repositories = ["cms.cern.ch"]
"""


class Layout:
    """Folders in which files with settings are looked for, all of them empty."""

    def __init__(self, top: Path) -> None:
        self.etc = top / "etc.toml"
        self.prefix = top / "prefix" / "etc" / "hepscale" / "hepscale.toml"
        self.user = top / "home" / ".config" / "hepscale" / "hepscale.toml"
        self.pyproject = top / "home" / "project" / "pyproject.toml"
        self.project = top / "home" / "project" / "hepscale.toml"

    def write(self, place: str, text: str) -> Path:
        path: Path = getattr(self, place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


@pytest.fixture
def layout(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("HEPSCALE_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_CONFIG_HOME")
    found = Layout(tmp_path)
    found.project.parent.mkdir(parents=True)
    monkeypatch.setattr(files, "system_file", found.etc)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(found.project.parent)
    return found


def refused(*args, **arguments):
    with pytest.raises(ConfigError) as caught:
        load_settings(*args, **arguments)
    error = caught.value
    assert error.fact
    assert error.cause
    assert error.fix
    return error


# -- which level wins ----------------------------------------------------------------------------


def _give(level, value, layout, monkeypatch):
    """Set `keep_runs` and `workers.count` at a level; return arguments for it."""
    lines = f"keep_runs = {value}\nworkers.count = {value}\n"
    if level == "pyproject":
        lines = f"[project]\nname = 'x'\n[tool.hepscale]\n{lines}"
    if level == "profile":
        # in the weakest file: the choice is what makes it strong
        lines = f"[site.here]\n{lines}"
        layout.write("etc", (layout.etc.read_text() if layout.etc.exists() else "") + lines)
        monkeypatch.setenv("HEPSCALE_SITE", "here")
    elif level == "environment":
        monkeypatch.setenv("HEPSCALE_KEEP_RUNS", str(value))
        monkeypatch.setenv("HEPSCALE_WORKERS_COUNT", str(value))
    elif level == "argument":
        return {"keep_runs": value, "workers": {"count": value}}
    else:
        layout.write(level, lines)
    return {}


LEVELS = ["etc", "prefix", "user", "pyproject", "project", "profile", "environment", "argument"]


@pytest.mark.parametrize(("weak", "strong"), [*itertools.combinations(LEVELS, 2)])
def test_the_stronger_of_two_levels_wins(layout, monkeypatch, weak, strong):
    arguments = _give(weak, 21, layout, monkeypatch)
    assert load_settings(**arguments).keep_runs == 21
    arguments |= _give(strong, 42, layout, monkeypatch)
    settings = load_settings(**arguments)
    assert (settings.keep_runs, settings.workers.count) == (42, 42)
    assert settings.keep_environments == 8


def test_tables_are_put_together_key_by_key(layout, monkeypatch):
    layout.write(
        "user",
        'workers = {batch = "slurm", cores = 4, disk_mb = 7}\n'
        'cvmfs.proxies = "DIRECT"\ncvmfs.quota_mb = 2\n',
    )
    layout.write("project", "workers.cores = 2\ncvmfs.quota_mb = 3\n")
    monkeypatch.setenv("HEPSCALE_WORKERS_MEMORY_MB", "4000")
    monkeypatch.setenv("HEPSCALE_CVMFS_RETRIES", "4")
    settings = load_settings(workers={"count": 9, "disk_mb": None})
    workers = settings.workers
    assert workers.disk_mb == 7
    assert (workers.batch, workers.cores, workers.memory_mb, workers.count) == ("slurm", 2, 4000, 9)
    cvmfs = settings.cvmfs
    assert (cvmfs.proxies, cvmfs.quota_mb, cvmfs.retries) == ("DIRECT", 3, 4)


def test_defaults_are_those_of_one_machine(layout):
    settings = load_settings()
    assert (settings.engine, settings.workers.batch, settings.workers.count) == (
        "local",
        "local",
        0,
    )
    assert settings.send_credentials is True
    assert resolve().origins == {}


@pytest.mark.parametrize(
    ("given", "ports"), [("9123", (9123, 9123)), ('"9123"', (9123, 9123)), ('"90-99"', (90, 99))]
)
def test_ports(layout, given, ports):
    layout.write("project", f"port = {given}\n")
    assert load_settings().port == ports


def test_variables_of_lists_and_switches(layout, monkeypatch):
    monkeypatch.setenv("HEPSCALE_WORKERS_OPTIONS", "--partition=short --comment 'a b'")
    monkeypatch.setenv("HEPSCALE_WORKERS_SETUP", "module load x\nulimit -n 4096")
    monkeypatch.setenv("HEPSCALE_SEND_CREDENTIALS", "no")
    monkeypatch.setenv("HEPSCALE_PORT", "9000-9100")
    settings = load_settings()
    assert settings.workers.options == ("--partition=short", "--comment", "a b")
    assert settings.workers.setup == ("module load x", "ulimit -n 4096")
    assert settings.send_credentials is False
    assert settings.port == (9000, 9100)


def test_an_empty_variable_is_none(layout, monkeypatch):
    layout.write("project", "keep_runs = 3\n")
    monkeypatch.setenv("HEPSCALE_KEEP_RUNS", "")
    assert load_settings().keep_runs == 3


# -- profiles ------------------------------------------------------------------------------------


def test_one_word_moves_to_a_cluster(layout, monkeypatch):
    layout.write("etc", CLUSTER)
    layout.write("project", 'engine = "local"\nworkers.count = 50\n')
    assert load_settings().engine == "local"
    settings = load_settings("my-cluster")
    assert (settings.site, settings.engine) == ("my-cluster", "workqueue")
    assert settings.scratch_dir == Path("/scratch")
    assert (settings.workers.batch, settings.workers.count) == ("slurm", 50)
    assert [one.name for one in settings.cvmfs.repositories] == ["cms.cern.ch"]
    monkeypatch.setenv("HEPSCALE_SITE", "my-cluster")
    assert load_settings() == settings
    assert load_settings("").engine == "local"


def test_the_example_of_the_readme(layout, monkeypatch):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    layout.write("user", text.partition("```toml\n")[2].partition("```")[0])
    monkeypatch.setenv("USER", "me")
    settings = load_settings("my-cluster")
    assert (settings.engine, settings.scratch_dir) == ("workqueue", Path("/scratch/me"))
    assert (settings.keep_runs, settings.workers.count) == (20, 50)
    assert load_settings().workers.count == 0


@pytest.mark.parametrize("place", ["user", "project", "pyproject"])
def test_a_file_chooses(layout, place):
    layout.write("etc", CLUSTER)
    head = "[tool.hepscale]\n" if place == "pyproject" else ""
    layout.write(place, f'{head}site = "my-cluster"\n')
    assert load_settings().engine == "workqueue"
    assert load_settings(site="").engine == "local"


def test_a_file_chooses_among_its_own(layout):
    path = layout.write("project", 'site.use = "my-cluster"\n' + CLUSTER)
    assert load_settings().engine == "workqueue"
    assert str(resolve().origin("site")) == f"{path}:1"
    layout.write("project", 'site = "my-cluster"\n' + CLUSTER)
    assert 'site.use = "NAME"' in refused().fix


def test_a_profile_is_put_together_from_all_files(layout):
    layout.write("etc", CLUSTER)
    layout.write("user", '[site.my-cluster.workers]\noptions = ["--account=me"]\n')
    workers = load_settings("my-cluster").workers
    assert (workers.batch, workers.options) == ("slurm", ("--account=me",))


def test_unknown_profile_names_the_nearest(layout, monkeypatch):
    layout.write("etc", CLUSTER)
    error = refused("my-clustr")
    assert "'my-clustr'" in error.fact
    assert error.fix == "site='my-cluster'"
    monkeypatch.setenv("HEPSCALE_SITE", "my-clustr")
    assert refused().items == ("HEPSCALE_SITE",)
    monkeypatch.delenv("HEPSCALE_SITE")
    path = layout.write("project", '\nsite = "zzz"\n')
    error = refused()
    assert error.items == (f"{path}:2",)
    assert "my-cluster" in error.cause
    assert str(layout.user) in error.fix


@pytest.mark.parametrize("name", [3, {"a": 1}, ["my-cluster"]])
def test_a_profile_has_a_name(layout, name):
    layout.write("etc", CLUSTER)
    assert "[site.NAME]" in refused(name).cause


def test_settings_of_no_site(layout):
    path = layout.write("user", '[site]\nengine = "local"\n')
    error = refused()
    assert error.items == (f"{path}:2",)
    assert "[site.NAME]" in error.cause


# -- what is refused -----------------------------------------------------------------------------


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


# -- where files are looked for ------------------------------------------------------------------


def test_project_is_found_from_a_folder_below(layout, monkeypatch):
    layout.write("project", 'run_dir = "runs"\nscratch_dir = "~/scratch/$WHO"\n')
    monkeypatch.setenv("WHO", "me")
    below = layout.project.parent / "notebooks" / "z"
    below.mkdir(parents=True)
    (below / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    monkeypatch.chdir(below)
    settings = load_settings()
    assert settings.run_dir == layout.project.parent / "runs"
    assert settings.scratch_dir == Path.home() / "scratch" / "me"
    (below / "hepscale.toml").write_text("keep_runs = 3\n")
    settings = load_settings()
    assert settings.keep_runs == 3
    assert settings.run_dir != layout.project.parent / "runs"


def test_nothing_of_the_user_is_read_without_a_home(layout, monkeypatch):
    opened = []
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.chdir("/")
    monkeypatch.setattr(files, "_read", lambda path, level: opened.append(path))
    settings = load_settings()
    known = [layout.etc, layout.prefix, Path("/pyproject.toml"), Path("/hepscale.toml")]
    assert opened == known
    assert not str(settings.cache_dir).startswith("/.cache")


def test_home_can_be_elsewhere(layout, monkeypatch, tmp_path):
    layout.write("user", "keep_runs = 3\n")
    assert load_settings().keep_runs == 3
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
    assert load_settings().keep_runs == 8


def test_folder_that_is_gone(layout, monkeypatch, tmp_path):
    layout.write("project", "keep_runs = 3\n")
    (tmp_path / "home" / "project" / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "home" / "project" / "gone")
    (tmp_path / "home" / "project" / "gone").rmdir()
    assert load_settings(scratch_dir="/tmp", run_dir="/tmp", cache_dir="/tmp").keep_runs == 8


@pytest.mark.root
def test_a_file_that_anybody_could_have_put_there(layout):
    as_root.needed("giving a file to somebody else")
    path = layout.write("project", "keep_runs = 3\n")
    os.chown(path, 65534, 65534)
    assert load_settings().keep_runs == 3
    path.parent.chmod(0o1777)
    assert load_settings().keep_runs == 8
    os.chown(path, 0, 0)
    assert load_settings().keep_runs == 3


def test_edits_are_seen_at_once(layout):
    now_ns = time.time_ns()
    for value in range(1, 5):
        path = layout.write("project", f"keep_runs = {value}\n")
        # as a file system does whose clock is coarse
        os.utime(path, ns=(now_ns, now_ns))
        assert load_settings().keep_runs == value


def test_a_file_is_read_once(layout, monkeypatch):
    path = layout.write("project", "keep_runs = 3\n")
    os.utime(path, (1e9, 1e9))
    assert load_settings().keep_runs == 3
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read again"))
    assert load_settings().keep_runs == 3


# -- what is shown -------------------------------------------------------------------------------


def show(*args):
    done = CliRunner().invoke(main, ["config", "show", *args])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_show_says_where_values_came_from(layout, monkeypatch):
    etc = layout.write("etc", CLUSTER)
    project = layout.write("pyproject", '[tool.other]\nname = "a"\n[tool.hepscale]\nname = "b"\n')
    monkeypatch.setenv("HEPSCALE_KEEP_RUNS", "3")
    shown = json.loads(show("--json", "--site", "my-cluster"))
    assert shown["files"] == [str(etc), str(project)]
    assert shown["sites"] == ["my-cluster"]
    settings = shown["settings"]

    def said(name):
        return tuple(settings[name].values())

    assert said("site") == ("my-cluster", "argument", "argument")
    assert said("engine") == ("workqueue", "site", f"{etc}:3 [site.my-cluster]")
    assert said("workers.batch") == ("slurm", "site", f"{etc}:8 [site.my-cluster]")
    assert said("cvmfs.repositories") == (["cms.cern.ch"], "site", f"{etc}:12 [site.my-cluster]")
    assert said("name") == ("b", "project", f"{project}:4")
    assert said("keep_runs") == (3, "environment", "HEPSCALE_KEEP_RUNS")
    assert said("idle_s") == (300.0, "default", "default")


def test_show_is_a_table_without_passwords(layout, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    etc = layout.write("etc", CLUSTER)
    table = show("--site", "my-cluster")
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.strip()}
    assert rows["engine"] == ["workqueue", f"{etc}:3", "[site.my-cluster]"]
    assert rows["port"] == ["-", "default"]
    assert rows["http_proxy"][0] == "http://***@proxy:3128"
    assert "secret" not in table + show("--json", "--site", "my-cluster")
    assert rows["Files:"] == [str(etc)]
    assert rows["Sites:"] == ["my-cluster"]


def test_show_breaks_no_path(layout, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    etc = layout.write("etc", CLUSTER)
    folder = f"/data/{'deep/' * 20}runs"
    monkeypatch.setenv("HEPSCALE_RUN_DIR", folder)
    lines = [line.split() for line in show("--site", "my-cluster").splitlines()]
    assert ["engine", "workqueue"] in lines
    assert [f"{etc}:3", "[site.my-cluster]"] in lines
    assert ["run_dir", folder] in lines
    assert ["HEPSCALE_RUN_DIR"] in lines
    assert ["port", "-", "default"] in lines


def test_show_of_a_profile_that_is_not_there(layout):
    done = CliRunner().invoke(main, ["config", "show", "--site", "zzz"])
    assert done.exit_code == 1
    assert "There is no site 'zzz'" in done.output


def test_doctor_says_what_was_read(layout):
    from hepscale import doctor

    def fact():
        return next(one.fact for one in doctor.check_all() if one.name == "settings")

    assert fact() == "no file has any"
    path = layout.write("user", 'site.use = "my-cluster"\n' + CLUSTER)
    assert fact() == f"{path}; site my-cluster"
    layout.write("user", "keep_runs = 'many'\n")
    assert f"{path}:1" in fact()


# -- the executor --------------------------------------------------------------------------------


def test_executor_takes_what_it_was_not_given(layout, tmp_path, monkeypatch):
    there = tmp_path / "there"
    layout.write("user", f'[site.disk]\nrun_dir = "{there}"\nkeep_runs = 2\n' + CLUSTER)
    assert HepScaleExecutor()._settings().run_dir != there
    assert HepScaleExecutor(site="disk")._settings().run_dir == there
    assert HepScaleExecutor(site="disk", run_dir="here")._settings().run_dir == Path.cwd() / "here"
    assert HepScaleExecutor(site="disk", run_dir="here")._settings().keep_runs == 2
    monkeypatch.setenv("HEPSCALE_SITE", "disk")
    assert HepScaleExecutor().copy(retries=1)._settings().run_dir == there
    with pytest.raises(ConfigError, match="no site 'dsk'") as caught:
        HepScaleExecutor(site="dsk")
    assert caught.value.fix == "site='disk'"
