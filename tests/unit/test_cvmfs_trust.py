"""Whom a client believes: each thing that must be refused, with a message of its own."""

from __future__ import annotations

import datetime as dt
import pickle
import random
from binascii import b2a_base64
from contextlib import suppress

import publisher
import pytest
from cryptography.hazmat.primitives import serialization

from hepscale.worker.cvmfs import RepositoryError
from hepscale.worker.cvmfs.keys import certificate, public_keys
from hepscale.worker.cvmfs.names import Algorithm
from hepscale.worker.cvmfs.trust import (
    check_certificate,
    check_manifest,
    master_keys,
    read_blacklist,
    read_manifest,
    read_whitelist,
)

NAME = "demo.example.org"


@pytest.fixture(params=list(Algorithm), ids=lambda one: one.name)
def site(tmp_path, request):
    return publisher.publish(tmp_path, NAME, {"a": b"1"}, algorithm=request.param)


def believe(site, *, keys=None, blacklist=(), now=None):
    """Verify all that is signed, and return the manifest."""
    manifest = read_manifest((site.folder / ".cvmfspublished").read_bytes(), NAME)
    listed = (site.folder / ".cvmfswhitelist").read_bytes()
    whitelist = read_whitelist(listed, NAME, master_keys(NAME, keys or [site.key]))
    whitelist.check_date(NAME, now)
    black = read_blacklist(blacklist, NAME)
    pem = publisher.certificate().public_bytes(serialization.Encoding.PEM)
    check_manifest(manifest, NAME, check_certificate(pem, NAME, whitelist, black))
    black.check_revision(NAME, manifest.number)
    return manifest


def refusal(site, **options):
    with pytest.raises(RepositoryError) as raised:
        believe(site, **options)
    error = raised.value
    assert error.fact
    assert error.item
    assert error.cause
    assert error.fix
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    return error.fact


def edit(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def test_what_is_rightly_signed_is_believed(site):
    manifest = believe(site)
    assert (manifest.root, manifest.number) == (site.last.root, 1)
    assert (manifest.time, manifest.history.suffix) == (site.last.time, "H")


def test_one_of_several_master_keys_is_enough(site):
    others = [publisher.public_pem("other"), site.key]
    assert believe(site, keys=others) == believe(site, keys=["".join(others)])


def test_a_changed_line(site):
    edit(site.folder / ".cvmfspublished", b"S1\n", b"S2\n")
    assert refusal(site) == f"The manifest of {NAME} does not fit the hash it carries."


def test_a_changed_signature(site):
    path = site.folder / ".cvmfspublished"
    content = bytearray(path.read_bytes())
    content[-7] ^= 16
    path.write_bytes(content)
    assert refusal(site) == f"The signature of the manifest of {NAME} is wrong."


def test_a_signature_by_somebody_else(site):
    site.sign(key="other")
    assert refusal(site) == f"The signature of the manifest of {NAME} is wrong."


@pytest.mark.parametrize("size", [0, 255, 257])
def test_a_signature_of_another_length(site, size):
    path = site.folder / ".cvmfspublished"
    content = path.read_bytes()
    path.write_bytes(content[:-256] + bytes(max(0, size - 256)) + content[-256:][:size])
    assert refusal(site) == f"The signature of the manifest of {NAME} is wrong."


def test_the_wrong_master_key(site):
    fact = refusal(site, keys=[publisher.public_pem("other")])
    assert fact == f"The whitelist of {NAME} was not signed with a master key that is given."


def test_a_whitelist_that_has_run_out(site):
    site.whitelist(expires="20260101000000")
    assert refusal(site) == f"The whitelist of {NAME} has run out."


def test_a_whitelist_holds_until_its_hour(site):
    site.whitelist(expires="20260101123456")
    noon = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
    believe(site, now=noon)
    assert "run out" in refusal(site, now=noon + dt.timedelta(minutes=1))


def test_the_whitelist_of_another_repository(site):
    site.whitelist(name="other.example.org")
    assert refusal(site) == f"The whitelist is not that of {NAME}."


def test_a_whitelist_that_was_changed(site):
    edit(site.folder / ".cvmfswhitelist", b"E2054", b"E2055")
    assert refusal(site) == f"The whitelist of {NAME} does not fit the hash it carries."


@pytest.mark.parametrize("line", ["Vpkcs7", "Wcachain"])
def test_a_whitelist_of_another_kind(site, line):
    site.whitelist(more=[line])
    assert "in a way that is not known here" in refusal(site)


def test_a_certificate_that_is_not_listed(site):
    wrong = publisher.fingerprint(site.algorithm, "other")
    site.whitelist(fingerprints=[wrong])
    assert refusal(site) == f"The certificate that signs {NAME} is not on its whitelist."


def test_remarks_on_a_whitelist(site):
    listed = publisher.fingerprint(site.algorithm)
    site.whitelist(fingerprints=["# old ones", "AA:BB", f"{listed}\t# current"])
    believe(site)


def test_a_fingerprint_is_made_by_the_algorithm_that_it_names(site):
    for algorithm in Algorithm:
        site.whitelist(fingerprints=[publisher.fingerprint(algorithm)])
        believe(site)
    site.whitelist(fingerprints=[publisher.fingerprint(Algorithm.SHA1) + "-RMD160"])
    assert "not on its whitelist" in refusal(site)


def test_a_blacklisted_fingerprint(site):
    line = f"{publisher.fingerprint(Algorithm.SHA1)}  # stolen"
    assert (
        refusal(site, blacklist=[line]) == f"The certificate that signs {NAME} is on the blacklist."
    )


def test_a_blacklisted_revision(site):
    assert (
        refusal(site, blacklist=[f"<{NAME} 2"]) == f"This revision of {NAME} is on the blacklist."
    )
    believe(site, blacklist=["", "# remark", "<other.example.org 9", f"<{NAME} 1"])


@pytest.mark.parametrize("line", [f"<{NAME}", "AA:BB", f"{NAME} 5", f"<{NAME} five"])
def test_a_line_of_the_blacklist_that_says_nothing(line):
    with pytest.raises(RepositoryError, match="line of the blacklist cannot be read"):
        read_blacklist([line], NAME)


def test_the_manifest_of_another_repository(site):
    site.sign(N="other.example.org")
    assert refusal(site) == f"The manifest is not that of {NAME}."
    site.sign(N=None)
    assert refusal(site) == f"The manifest is not that of {NAME}."


def test_a_manifest_of_another_top(site):
    site.sign(R="0" * 32)
    assert refusal(site) == f"The manifest of {NAME} is not that of the top of a repository."


@pytest.mark.parametrize(
    "lines",
    [{"C": None}, {"D": None}, {"S": None}, {"X": None}, {"C": "12"}, {"S": "x"}, {"D": ""}],
)
def test_a_manifest_with_a_line_that_is_missing_or_wrong(site, lines):
    site.sign(**lines)
    assert refusal(site) == f"The manifest of {NAME} cannot be read."


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>Blocked by the firewall</html>\n", b"S1\n", b"S1\n--\n", b"S1\n--\nab\n"],
)
@pytest.mark.parametrize("name", [".cvmfspublished", ".cvmfswhitelist"])
def test_something_else_in_the_place_of_a_file(site, name, content):
    (site.folder / name).write_bytes(content)
    what = "manifest" if name == ".cvmfspublished" else "whitelist"
    assert refusal(site) == f"The {what} of {NAME} cannot be read."


def test_keys_of_all_forms():
    key = publisher.private_key("master").public_key()
    numbers = key.public_numbers()
    for form in ("SubjectPublicKeyInfo", "PKCS1"):
        pem = key.public_bytes(
            serialization.Encoding.PEM, getattr(serialization.PublicFormat, form)
        )
        assert public_keys(pem.decode()) == [(numbers.n, numbers.e)]
    release = publisher.certificate().public_bytes(serialization.Encoding.PEM).decode()
    assert (
        public_keys(release)[0].modulus
        == publisher.private_key("release").public_key().public_numbers().n
    )


def test_keys_that_are_none():
    pem = publisher.public_pem()
    lines = pem.splitlines()
    for text in ("", "garbage", "\n".join([lines[0], *lines[2:]]), pem.replace("M", "N", 1)):
        with pytest.raises(RepositoryError, match="A public key of"):
            master_keys(NAME, [text])
    with pytest.raises(RepositoryError, match="No public key"):
        master_keys(NAME, [])


def test_certificates_that_are_cut_short_or_garbled():
    der = publisher.certificate().public_bytes(serialization.Encoding.DER)

    def pem(content):
        return (
            f"-----BEGIN CERTIFICATE-----\n{b2a_base64(content).decode()}-----END CERTIFICATE-----"
        )

    assert certificate(pem(der))[0] == der
    for end in range(len(der)):
        with pytest.raises(ValueError):
            certificate(pem(der[:end]))
    chance = random.Random(3)
    for _ in range(3000):
        garbled = bytearray(der)
        garbled[chance.randrange(len(der))] = chance.randrange(256)
        with suppress(ValueError):
            certificate(pem(garbled))


FILLED = b"\xff" * (256 - 3 - 6)


@pytest.mark.parametrize(
    ("block", "is_right"),
    [
        (b"\0\1" + FILLED + b"\0digest", True),
        (b"\0\2" + FILLED + b"\0digest", False),
        (b"\0\1" + FILLED[:-1] + b"\0\0digest", False),
        (b"\0\1" + FILLED[:-1] + b"\xfe\0digest", False),
        (b"\0\1" + FILLED[:8] + b"\0digest" + bytes(256 - 17), False),
        (b"\0\1" + FILLED[:8] + bytes(256 - 17) + b"\0digest", False),
        (b"\0\1" + FILLED + b"\0digesx", False),
    ],
)
def test_what_is_in_a_signature_is_all_compared(block, is_right):
    """Whoever may choose a part of it can make signatures without the private key."""
    private = publisher.private_key("master").private_numbers()
    number = int.from_bytes(block, "big")
    signature = pow(number, private.d, private.public_numbers.n).to_bytes(256, "big")
    [key] = public_keys(publisher.public_pem())
    assert key.signed(b"digest", signature) == is_right
    more = int.from_bytes(signature, "big") + private.public_numbers.n
    assert not more.bit_length() <= 2048 or not key.signed(b"digest", more.to_bytes(256, "big"))


def test_a_text_that_leaves_no_room_for_padding():
    private = publisher.private_key("master").private_numbers()
    text = b"x" * (256 - 3 - 7)
    number = int.from_bytes(b"\0\1" + b"\xff" * 7 + b"\0" + text, "big")
    signature = pow(number, private.d, private.public_numbers.n).to_bytes(256, "big")
    [key] = public_keys(publisher.public_pem())
    assert not key.signed(text, signature)
