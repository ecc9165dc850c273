"""Settings: where files are looked for, and what is shown of them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import as_root
import pytest
from as_root import NOBODY
from click.testing import CliRunner
from settings_files import CLUSTER

from hepscale.cli import main
from hepscale.config import files, load_settings

# -- where files are looked for --------------------------------------------------------------------


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
    os.chown(path, NOBODY, NOBODY)
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


# -- what is shown ---------------------------------------------------------------------------------


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
