"""Proxies and tokens: where they are looked for, and when they end."""

from __future__ import annotations

import base64
import json
import os
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hepscale.executor import credentials

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(autouse=True)
def nothing(monkeypatch, tmp_path):
    for name in ("X509_USER_PROXY", "BEARER_TOKEN_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    # nobody's files in /tmp
    monkeypatch.setattr(os, "getuid", lambda: 123_456_789)


def proxy(path, *ends):
    """Write a proxy: a certificate that ends at each of these times, and a key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a physicist")])
    chain = [
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=9))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        for end in ends
    ]
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(b"".join([chain[0], secret, *chain[1:]]))
    return path


def token(path, **claims):
    middle = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    path.write_text(f"head.{middle}.signature\n")
    return path


def test_nobody_has_any():
    assert credentials.find() == []


def test_proxy(tmp_path, monkeypatch):
    end = NOW + timedelta(hours=12)
    path = proxy(tmp_path / "proxy", NOW + timedelta(days=3), end)
    monkeypatch.setenv("X509_USER_PROXY", str(path))
    (found,) = credentials.find()
    assert (found.variable, found.path, found.expires) == ("X509_USER_PROXY", path, end)
    assert list(credentials.warnings([found])) == []


def test_token_in_the_places_of_wlcg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    end = NOW + timedelta(minutes=30)
    path = token(tmp_path / "bt_u123456789", exp=end.timestamp())
    (found,) = credentials.find()
    assert (found.variable, found.path, found.expires) == ("BEARER_TOKEN_FILE", path, end)
    (text,) = credentials.warnings([found])
    assert "expires soon" in text
    assert "htgettoken" in text
    other = token(tmp_path / "other", exp=1)
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(other))
    (found,) = credentials.find()
    assert found.path == other
    assert "has expired (1970-01-01 00:00 UTC)" in next(credentials.warnings([found]))


@pytest.mark.parametrize("content", ["", "no token", "a.b.c", "a.e30.c"])
def test_files_that_do_not_say_when_they_end(tmp_path, monkeypatch, content):
    (tmp_path / "file").write_text(content)
    for name in ("X509_USER_PROXY", "BEARER_TOKEN_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    found = credentials.find()
    assert [one.expires for one in found] == [None, None]
    assert list(credentials.warnings(found)) == []


def test_variable_that_leads_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("X509_USER_PROXY", str(tmp_path / "nowhere"))
    assert credentials.find() == []
