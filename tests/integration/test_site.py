"""A run with the settings of a site: one word of the notebook is another, nothing else."""

from __future__ import annotations

import os
import sys
from textwrap import dedent

import packed
import pytest
from analysis import tally
from support import as_json, ranges, run, script, tally_of

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def there(tmp_path, monkeypatch):
    """Write a profile that has folders of its own; no variable is stronger than it."""
    monkeypatch.delenv("HEPSCALE_RUN_DIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    file = tmp_path / "config" / "hepscale" / "hepscale.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'[site.there]\nrun_dir = "{tmp_path / "there"}"\nkeep_runs = 1\n')
    return tmp_path / "there"


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_a_run_uses_the_profile(files, there, monkeypatch, how):
    assert run(tally, files.fileset) == tally_of(ranges(files.good))
    assert not there.exists()
    if how == "variable":
        monkeypatch.setenv("HEPSCALE_SITE", "there")
    for _ in range(2):
        out = run(tally, files.fileset, site="there" if how == "argument" else None)
        assert out == tally_of(ranges(files.good))
    assert len(os.listdir(there)) == 1


def test_a_script_uses_the_file_of_its_project(files, there, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.hepscale]\nsite = "there"\n')
    (tmp_path / "work").mkdir()
    source = dedent(f"""
        import json
        from analysis import tally
        from support import as_json, run
        print(json.dumps(as_json(run(tally, {files.fileset!r}))))
    """)
    with script(tmp_path / "work" / "a.py", source) as started:
        assert started.finish() == as_json(tally_of(ranges(files.good)))
    assert len(os.listdir(there)) == 1


def test_an_environment_is_packed_where_the_profile_says(there, tmp_path, monkeypatch):
    packed.without_coffea(monkeypatch)
    cache = tmp_path / "cache"
    file = tmp_path / "config" / "hepscale" / "hepscale.toml"
    file.write_text(f'[site.there]\ncache_dir = "{cache}"\n')
    before = packed.layers(), packed.unpacked()
    (prefix,) = packed.calculate(lambda item: sys.prefix, [0], site="there")
    assert os.path.dirname(prefix) == f"{cache}/unpacked"
    assert len([*(cache / "environments" / "layers").glob("[ip]*.tar.*")]) == 2
    assert (packed.layers(), packed.unpacked()) == before
