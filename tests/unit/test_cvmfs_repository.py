"""Which revision is believed: what is refused, what the cache has kept, what is newer."""

from __future__ import annotations

import shutil
import zlib

import publisher
import pytest
from revisions import NAME, content

from hepscale.worker.cvmfs import ObjectError, repository


def test_a_revision_is_opened(here):
    revision = here.open()
    assert (revision.number, revision.root) == (1, here.site.revisions[0].root)
    assert (revision.offline, revision.notice, content(revision)) == (False, "", b"first")
    assert here.cache.remembered(NAME) == (revision.root.text, revision.time, 1)


def test_a_repository_that_is_not_there(here):
    here.shelf.closed = True
    assert here.refused().fact == "No server of the repository answers."


@pytest.mark.parametrize("what", ["certificate", "root catalog"])
def test_an_object_that_is_not_there(here, what):
    letter = {"certificate": "X", "root catalog": "C"}[what]
    shutil.rmtree(here.site.folder / "data")
    here.site.publish({})
    for path in (here.site.folder / "data").glob(f"*/*{letter}"):
        path.unlink()
    error = here.refused()
    assert error.fact == f"The {what} of {NAME} cannot be had."
    assert "no server has it" in error.item
    assert here.cache.remembered(NAME) is None


def test_the_certificate_is_that_of_its_name(here):
    """What the manifest names is what is verified, whatever the server has under that name."""
    here.site.damage(publisher.Name.parse(here.site.lines["X"], "X"))
    assert here.refused().fact == f"The certificate of {NAME} cannot be had."


def test_a_certificate_has_a_size(here):
    """It is fetched before anything that the server says has been verified."""
    many = b"-----BEGIN CERTIFICATE-----\n" * 100_000
    here.site.sign(X=here.site.store(many, "X").text)
    error = here.refused()
    assert error.fact == f"The certificate of {NAME} cannot be had."
    assert "more than 65536 bytes" in error.item


def test_a_file_has_the_size_that_its_catalog_says(here):
    revision = here.open()
    (name,) = (one.object for one in revision.chunks(revision.entry("/f")))
    here.site.path(name).write_bytes(zlib.compress(bytes(10_000_000)))
    with pytest.raises(ObjectError, match="more than 5 bytes"):
        content(revision)


def test_a_warm_cache_needs_no_server(here):
    assert content(here.open()) == b"first"
    here.shelf.closed = True
    revision = here.open()
    assert (revision.number, revision.offline, content(revision)) == (1, True, b"first")
    assert "No server" in revision.notice
    assert "Revision 1 is the one that the cache has kept." in revision.notice


def test_signatures_are_verified_offline_too(here):
    here.open()
    here.shelf.closed = True
    other = publisher.public_pem("other")
    assert "not signed with a master key that is given" in here.refused(keys=[other]).fact
    line = publisher.fingerprint(here.site.algorithm)
    assert "on the blacklist" in here.refused(blacklist=[line]).fact
    assert "revision" in here.refused(blacklist=[f"<{NAME} 2"]).fact
    here.cache.keep(NAME, "manifest", here.files[0][".cvmfspublished"].replace(b"S1", b"S9"))
    assert "does not fit the hash" in here.refused().fact


def test_what_was_kept_is_used_when_the_whitelist_has_run_out(here):
    here.site.whitelist(expires="20260101000000")
    assert here.refused().fact == f"The whitelist of {NAME} has run out."
    here.serve(1)
    here.open()
    here.serve(2)
    here.site.whitelist(expires="20260101000000")
    revision = here.open()
    assert (revision.number, revision.offline) == (1, False)
    assert revision.notice.startswith(
        f"The whitelist of {NAME} has run out: 2026-01-01 00:00 UTC. Rev"
    )
    here.cache.keep(NAME, "whitelist", (here.site.folder / ".cvmfswhitelist").read_bytes())
    here.shelf.closed = True
    assert "run out" in here.open().notice


def test_what_was_kept_is_used_when_a_server_offers_what_is_refused(here):
    here.open()
    here.serve(2)
    here.site.sign(key="other")
    revision = here.open()
    assert (revision.number, content(revision)) == (1, b"first")
    assert revision.notice.startswith(
        f"The signature of the manifest of {NAME} is wrong: revision 2. "
    )


def test_a_withdrawn_certificate_is_withdrawn_from_what_was_kept(here):
    here.open()
    here.site.whitelist(fingerprints=[publisher.fingerprint(here.site.algorithm, "other")])
    assert "is not on its whitelist" in here.refused().fact


def test_an_older_revision_is_not_gone_back_to(here):
    here.serve(2)
    here.open()
    here.serve(1)
    revision = here.open()
    assert (revision.number, revision.offline, content(revision)) == (2, False, b"second")
    assert revision.notice.startswith(f"A server offers an older revision of {NAME}")
    assert here.cache.remembered(NAME)[2] == 2


def test_a_cache_of_the_cvmfs_software_remembers_its_root_only(here, tmp_path):
    """It keeps neither manifest nor whitelist, and may be all that there is."""
    revision = here.open()
    content(revision)
    shutil.rmtree(tmp_path / "cache" / ".hepscale" / "kept")
    here.shelf.closed = True
    again = here.open()
    assert (again.number, again.offline, content(again)) == (1, True, b"first")
    assert "no signature could be verified" in again.notice
    here.refused(tag="one")
    here.refused(blacklist=[f"<{NAME} 2"])
    here.shelf.closed = False
    here.site.sign(key="other")
    assert here.refused().fact == f"The signature of the manifest of {NAME} is wrong."


def test_what_a_proxy_keeps_too_long_is_asked_for_anew(here):
    here.serve(2)
    here.open()
    here.shelf.stale = here.files[0]
    revision = here.open()
    assert (revision.number, revision.notice) == (2, "")


def test_the_refusal_is_told_when_the_server_has_gone_meanwhile(here, monkeypatch):
    here.site.sign(key="other")
    stream = here.shelf.stream

    def once(path, take, *, fresh=False):
        here.shelf.closed = fresh
        return stream(path, take, fresh=fresh)

    monkeypatch.setattr(here.shelf, "stream", once)
    assert here.refused().fact == f"The signature of the manifest of {NAME} is wrong."


# -- a newer revision ------------------------------------------------------------------------------


def test_a_newer_revision_is_found_after_its_time(here):
    opened = here.repository(max_ttl_s=0)
    first = opened.open()
    assert opened.refresh() is None
    here.serve(2)
    second = opened.refresh()
    assert (second.number, content(second), content(second, "/g")) == (2, b"second", b"new")
    # who still has files of the old one open goes on with it
    assert (content(first), first.entry("/g")) == (b"first", None)
    assert opened.refresh() is None
    assert opened.trouble is None


def test_nothing_is_asked_before_its_time(here):
    opened = here.repository(max_ttl_s=600)
    assert opened.open().ttl_s == 240
    asked = len(here.shelf.asked)
    assert opened.refresh() is None
    assert len(here.shelf.asked) == asked
    here.serve(2)
    assert opened.refresh(now=True).number == 2


def test_ttl_is_the_smaller_one(here):
    assert here.repository(max_ttl_s=30).open().ttl_s == 30
    here.site.publish({}, ttl_s=7)
    assert here.repository(max_ttl_s=30).open().ttl_s == 7


def test_the_old_revision_stays_where_the_new_one_is_refused(here):
    opened = here.repository(max_ttl_s=0)
    opened.open()
    here.serve(2)
    here.site.sign(key="other")
    assert opened.refresh() is None
    assert opened.trouble.fact == f"The signature of the manifest of {NAME} is wrong."
    here.shelf.closed = True
    assert opened.refresh() is None
    assert opened.trouble.fact == "No server of the repository answers."
    here.shelf.closed = False
    here.serve(2)
    assert opened.refresh().number == 2
    here.serve(1)
    assert opened.refresh() is None
    assert "older revision" in opened.trouble.fact


def test_a_repository_is_online_again(here):
    here.open()
    here.shelf.closed = True
    opened = here.repository(max_ttl_s=0)
    revision = opened.open()
    assert revision.offline
    here.shelf.closed = False
    assert opened.refresh() is None
    assert (revision.offline, revision.notice) == (False, "")


def test_after_a_failure_the_next_try_is_soon(here, monkeypatch):
    here.site.publish({}, ttl_s=9000)
    here.open()
    here.shelf.closed = True
    clock = [0.0]
    monkeypatch.setattr(repository.time, "monotonic", lambda: clock[0])
    opened = here.repository()
    assert opened.open().offline
    here.shelf.closed = False
    here.site.publish({"x": b""})
    clock[0] = 179
    assert opened.refresh() is None
    clock[0] = 181
    assert opened.refresh().entry("/x")
