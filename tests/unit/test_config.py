"""Settings: which level wins, profiles, and what the executor makes of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from settings_files import CLUSTER, refused

from hepscale import HepScaleExecutor
from hepscale.config import load_settings, resolve
from hepscale.errors import ConfigError

# -- which level wins ------------------------------------------------------------------------------


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


# -- profiles --------------------------------------------------------------------------------------


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


# -- the executor ----------------------------------------------------------------------------------


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
