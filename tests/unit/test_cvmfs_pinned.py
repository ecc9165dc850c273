"""Repositories that are pinned to a revision."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import publisher
import pytest
from objects import serving
from revisions import NAME, content

import hepscale
from hepscale.worker.cvmfs import ObjectError, RepositoryError


def test_pinned_by_root_hash(here):
    root = here.site.revisions[0].root.text
    here.serve(2)
    opened = here.repository(root_hash=root, keys=[], max_ttl_s=0)
    revision = opened.open()
    assert (revision.number, content(revision)) == (1, b"first")
    assert opened.refresh(now=True) is None
    # neither manifest nor whitelist nor certificate
    assert not [path for path in here.shelf.asked if not path.startswith("data/")]
    here.shelf.closed = True
    assert content(here.open(root_hash=root)) == b"first"
    assert "blacklist" in here.refused(root_hash=root, blacklist=[f"<{NAME} 2"]).fact
    assert here.cache.remembered(NAME) is None


def test_a_root_hash_that_is_none(here):
    assert here.refused(root_hash="12").item == "12"
    assert "root catalog" in here.refused(root_hash="00" * 20).fact


def test_pinned_by_tag(here):
    here.serve(2)
    opened = here.repository(tag="one", max_ttl_s=0)
    revision = opened.open()
    assert (revision.number, content(revision)) == (1, b"first")
    assert opened.refresh(now=True) is None
    assert here.cache.remembered(NAME)[2] == 2
    assert here.open(tag="trunk").number == 2
    here.shelf.closed = True
    offline = here.open(tag="one")
    assert (offline.number, offline.offline, content(offline)) == (1, True, b"first")
    assert "blacklist" in here.refused(tag="one", blacklist=[f"<{NAME} 2"]).fact


def test_a_tag_that_is_not_there(here):
    here.serve(2)
    error = here.refused(tag="tow")
    assert error.fact == f"{NAME} has no tag 'tow'."
    assert "two, trunk, one" in error.item.replace("trunk, two", "two, trunk")
    here.site.sign(H=None)
    assert here.refused(tag="two").item == "it has no tags"


def test_a_tag_is_that_of_a_verified_manifest(here):
    here.serve(2)
    here.site.sign(key="other")
    assert here.refused(tag="one").fact == f"The signature of the manifest of {NAME} is wrong."


def test_a_history_that_is_damaged(here):
    here.serve(2)
    here.site.damage(publisher.Name.parse(here.site.lines["H"], "H"))
    assert here.refused(tag="one").fact == f"The history of {NAME} cannot be had."


def test_settings_that_cannot_be_used(here):
    with pytest.raises(RepositoryError, match="blacklist"):
        here.repository(blacklist=["nonsense"])
    assert "No public key" in here.refused(keys=[]).fact
    assert "A public key" in here.refused(keys=["nonsense"]).fact


def test_a_cache_that_keeps_nothing_is_told(here, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(here.cache, "keep", full)
    revision = here.open()
    assert (revision.number, revision.offline) == (1, False)
    assert "No space left" in revision.notice


def test_object_errors_are_of_the_file(here):
    revision = here.open()
    here.shelf.closed = True
    with pytest.raises(ObjectError):
        content(revision)


READ = """
import sys
sys.path[:0] = [sys.argv[1]]
import json
from worker.cvmfs.cache import Cache
from worker.cvmfs.fetch import Fetcher
from worker.cvmfs.repository import Repository

settings = json.loads(sys.argv[2])
fetcher = Fetcher(settings["servers"], "DIRECT")
revision = Repository(settings, Cache(sys.argv[3]), fetcher, variables={}).open()
entry = revision.entry("/f")
print(revision.number, revision.read(entry, 0, entry.size).decode())
fetcher.close()
"""


def test_over_http_by_a_python_without_packages(here, tmp_path):
    with serving(here.site.files()) as server:
        settings = json.dumps(here.site.settings(server.url))
        package = str(Path(hepscale.__file__).parent)
        command = [sys.executable, "-I", "-S", "-X", "dev", "-c", READ, package, settings]
        done = subprocess.run(
            [*command, str(tmp_path / "new")], capture_output=True, text=True, timeout=30
        )
    assert (done.stdout, done.stderr) == ("1 first\n", "")
    assert set(server.asked.values()) == {1}
    # manifest, whitelist, certificate, root catalog, file
    assert len(server.asked) == 5
