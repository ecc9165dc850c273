"""Settings of CVMFS: what is read of them, what is refused, and what repositories they name."""

from __future__ import annotations

from pathlib import Path

import pytest

import hepscale
from hepscale import CvmfsConfig
from hepscale.config import CvmfsSettings, load_settings
from hepscale.errors import ConfigError
from hepscale.executor import cvmfs

NAME = "hepscale.example.org"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda text: (tmp_path / "hepscale.toml").write_text(text)


def test_settings_of_a_file(project, tmp_path, monkeypatch):
    monkeypatch.setenv("KEYS", "mine")
    project(
        f"""
        [cvmfs]
        servers = "http://a/@fqrn@;http://b/@fqrn@"
        keys = ["keys/one.pub", "/etc/keys"]
        proxies = "DIRECT"
        config = "own.conf"
        variables.ARCH = "x"
        [[cvmfs.repositories]]
        name = "{NAME}"
        keys = "$KEYS/other.pub"
        """
    )
    found = load_settings(cvmfs=CvmfsConfig(retries=3, proxies="http://p").table()).cvmfs
    assert found.servers == ("http://a/@fqrn@", "http://b/@fqrn@")
    assert found.keys == (tmp_path / "keys/one.pub", Path("/etc/keys"))
    assert found.repositories[0].keys == (tmp_path / "mine/other.pub",)
    assert (found.config, found.variables) == (tmp_path / "own.conf", {"ARCH": "x"})
    assert (found.proxies, found.retries) == ("http://p", 3)
    monkeypatch.setenv("HEPSCALE_CVMFS_REPOSITORIES", "cms.cern.ch, sft.cern.ch")
    again = load_settings().cvmfs
    assert [one.name for one in again.repositories] == ["cms.cern.ch", "sft.cern.ch"]
    assert again.model_dump(mode="json")["repositories"] == ["cms.cern.ch", "sft.cern.ch"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('proxies = ""', 'say "DIRECT"'),
        ('servers = "server/cvmfs"', "is no URL"),
        ('repositories = ["cms"]', "cms.cern.ch is one"),
        ('repositories = ["a.b/../c"]', "no name of a repository"),
        ('repositories = ["a.b", "a.b"]', "twice"),
        ('repositories = [{name = "a.b", server = "x"}]', "Extra inputs"),
        (f'repositories = [{{name = "a.b", tag = "x", root_hash = "{40 * "a"}"}}]', "one of them"),
        ('repositories = [{name = "a.b", root_hash = "abc"}]', "40 hex digits"),
        ('cache = "cache"', "begins with /"),
        ('how = "fuse"', "client"),
        ('how = "clint"', "spelt 'client'"),
        ("retries = -1", "greater than or equal to 0"),
        ("timeout_s = 0", "greater than 0"),
        ("quota_mb = -2", "greater than or equal to -1"),
        ("proxi = 'DIRECT'", "spelt 'proxies'"),
        ('keys = "$NOT_SET_AT_ALL/x"', "not set"),
    ],
)
def test_settings_that_cannot_be_used(project, text, words):
    project(f"[cvmfs]\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert words in caught.value.cause
    assert caught.value.items[0].endswith("hepscale.toml:2")


def test_the_executor_takes_it(project):
    executor = hepscale.HepScaleExecutor(cvmfs=CvmfsConfig(repositories=[NAME]))
    assert [one.name for one in executor._settings().cvmfs.repositories] == [NAME]
    with pytest.raises(ConfigError, match=r"cvmfs\.how"):
        hepscale.HepScaleExecutor(cvmfs=CvmfsConfig(how="fuse"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"CvmfsConfig\("):
        hepscale.HepScaleExecutor(cvmfs={"repositories": [NAME]})  # type: ignore[arg-type]


def test_repositories_by_name_keep_what_is_said_of_them():
    config = CvmfsSettings(repositories=[{"name": NAME, "tag": "x"}, "b.c"], proxies="DIRECT")
    found = cvmfs.named(config, [NAME, "d.e", NAME])
    assert [(one.name, one.tag) for one in found.repositories] == [(NAME, "x"), ("d.e", None)]
    assert found.proxies == "DIRECT"
    with pytest.raises(ConfigError, match="A repository cannot be used"):
        cvmfs.named(config, ["../x"])


def test_repositories_that_tasks_may_not_find():
    config = CvmfsSettings(repositories=[NAME])
    used = [NAME, "cms.cern.ch", "sft.cern.ch"]
    (text,) = cvmfs.unreachable(used, config, lambda path: path == "/cvmfs/sft.cern.ch/.")
    assert "/cvmfs/cms.cern.ch, which is neither configured nor mounted" in text
    assert 'repositories=["cms.cern.ch"]' in text
    assert cvmfs.unreachable(used, config, lambda path: True) == []
