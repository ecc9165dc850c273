"""Fetching through proxies, of which some are dead, slow, or lie; and through a real one."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import time

import pytest
import squids
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fetching import FILES, QUICK, QUICK_S, fetchers, url
from objects import BASE, serving, silent
from ports import closed

from hepscale.worker.cvmfs import RepositoryError, fetch
from hepscale.worker.cvmfs.fetch import Damaged, Fetcher


@pytest.fixture
def offered():
    return FILES


@pytest.fixture
def fetcher():
    with fetchers() as make:
        yield make


# -- through proxies -------------------------------------------------------------------------------


def test_a_proxy_is_asked_for_the_whole_address(fetcher, server, other):
    one = fetcher([url("stratum.invalid")], f"http://{other.address}")
    assert one.get("data/00/1") == b"1"
    assert other.lines == [f"http://stratum.invalid{BASE}/data/00/1"]
    assert other.headers[0]["Host"] == "stratum.invalid"


def test_a_proxy_with_a_password_and_without_a_scheme(fetcher, other):
    one = fetcher([url("stratum.invalid")], f"http://us%40er:pass@{other.address}")
    assert one.get("data/00/1") == b"1"
    assert other.headers[0]["Proxy-Authorization"] == "Basic dXNAZXI6cGFzcw=="
    one = fetcher([url("stratum.invalid")], other.address)
    assert one.get("data/00/1") == b"1"


def test_a_dead_first_proxy(fetcher, server, other):
    def goes(address):
        one = fetcher([server.url], f"http://{address};http://{other.address};DIRECT", **QUICK)
        assert one.get("data/00/1") == b"1"
        began = time.monotonic()
        assert one.get("data/00/2") == b"2"
        assert time.monotonic() - began < QUICK_S
        assert (other.asked.total(), server.asked.total()) == (2, 0)
        other.asked.clear()

    goes(closed())
    with silent() as dead:
        goes(dead.address)
        assert dead.connections == 1, "it is waited for once"


def test_members_of_a_group_come_before_the_next_group(fetcher, server, other):
    for _ in range(8):
        one = fetcher([server.url], f"http://{closed()}|http://{other.address};DIRECT")
        assert one.get("data/00/1") == b"1"
    assert server.asked.total() == 0


def test_an_address_that_is_given_twice_is_asked_once(fetcher, server, other):
    other.fault = lambda handler, path: handler.connection.shutdown(2) or True
    proxy = f"http://{other.address}"
    one = fetcher([server.url, server.url], f"{proxy}|{proxy};{proxy};DIRECT;DIRECT")
    assert one.get("data/00/1") == b"1"
    with pytest.raises(RepositoryError):
        one.get("data/00/none")
    assert (other.asked.total(), server.asked.total()) == (1, 2)


def test_one_member_of_a_group_is_chosen_by_lot_and_kept(fetcher, server, other):
    chosen = set()
    for _ in range(40):
        one = fetcher([url("h.invalid")], f"http://{server.address}|http://{other.address}")
        before = server.asked.total(), other.asked.total()
        for i in range(3):
            one.get(f"data/00/{i}")
        after = server.asked.total() - before[0], other.asked.total() - before[1]
        assert after in ((3, 0), (0, 3))
        chosen.add(after)
        if len(chosen) == 2:
            return
    pytest.fail("it always chose the same one")


def test_files_are_spread_over_a_group(fetcher, server, other):
    proxies = f"http://{server.address}|http://{other.address};DIRECT"
    one = fetcher([url("h.invalid")], proxies, shard=True)
    for i in range(50):
        assert one.get(f"data/00/{i}") == b"%d" % i
    asked = set(server.asked), set(other.asked)
    assert min(map(len, asked)) >= 10
    assert not asked[0] & asked[1]
    # all agree on who has which
    again = fetcher([url("h.invalid")], proxies, shard=True)
    for i in range(50):
        again.get(f"data/00/{i}")
    assert (set(server.asked), set(other.asked)) == asked


def test_the_main_group_is_tried_again(fetcher, server, other):
    other.fault = lambda handler, path: handler.connection.shutdown(2) or True
    one = fetcher([server.url], f"http://{other.address};DIRECT", proxy_reset_s=0.2)
    assert one.get("data/00/1") == b"1"
    other.fault = None
    assert one.get("data/00/2") == b"2"
    assert other.asked.total() == 1
    time.sleep(0.25)
    assert one.get("data/00/3") == b"3"
    assert other.asked.total() == 2


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_server_is_dead_behind_a_good_proxy(fetcher, server, other, status):
    """The proxy says so: it goes on being used, for the second server."""

    def behind(handler, path):
        return "dead.invalid" in handler.path and (handler.answer(b"", status) or True)

    other.fault = behind
    one = fetcher([url("dead.invalid"), server.url], f"http://{other.address};http://{closed()}")
    assert one.get("data/00/1") == b"1"
    assert one.get("data/00/2") == b"2"
    assert other.asked == {"data/00/1": 2, "data/00/2": 1}


def test_a_server_hangs_behind_a_good_proxy(fetcher, server, other):
    def behind(handler, path):
        return "dead.invalid" in handler.path and (time.sleep(2 * QUICK_S) or True)

    other.fault = behind
    servers = [url("dead.invalid"), server.url]
    one = fetcher(servers, f"http://{other.address};DIRECT", **QUICK)
    assert one.get("data/00/1") == b"1"
    assert one.get("data/00/2") == b"2"
    assert server.asked.total() == 0, "the proxy was not to blame"


def test_a_proxy_that_refuses(fetcher, server, other):
    other.fault = lambda handler, path: handler.answer(b"", 403) or True
    one = fetcher([server.url], f"http://{other.address};DIRECT")
    assert one.get("data/00/1") == b"1"


@pytest.mark.parametrize("proxies", ["", " ", ";", "|;|"])
def test_no_proxy_is_an_error(proxies):
    with pytest.raises(RepositoryError, match="No proxy") as raised:
        Fetcher(["http://h"], proxies)
    assert "DIRECT" in raised.value.fix


@pytest.mark.parametrize(
    "proxies",
    [
        *("auto://x", "http://", "http://h:port", "https://h:1", "p;DIRECT;ftp://h"),
        *("http://a http://b", "a\nb", "a\x7fb"),
    ],
)
def test_a_proxy_that_cannot_be_understood(proxies):
    with pytest.raises(RepositoryError, match="cannot be understood"):
        Fetcher(["http://h"], proxies)


def test_no_server_is_an_error():
    with pytest.raises(RepositoryError, match="no server"):
        Fetcher([], "DIRECT")
    for servers in ("/srv/cvmfs", "http://a/cvmfs/x, http://b/cvmfs/x"):
        with pytest.raises(RepositoryError, match="cannot be understood"):
            Fetcher([servers], "DIRECT")


# -- the real thing --------------------------------------------------------------------------------


@pytest.fixture
def squid(tmp_path):
    with squids.running(tmp_path) as address:
        yield address


def test_squid(fetcher, server, other, squid):
    proxies = f"http://{closed()};http://{squid}"
    one = fetcher([url(closed()), server.url], proxies, timeout_s=5)
    for _ in range(2):
        for i in range(10):
            assert one.get(f"data/00/{i}") == b"%d" % i
    assert server.asked == {f"data/00/{i}": 1 for i in range(10)}, "it was the squid's memory"
    assert server.lines[0] == f"{BASE}/data/00/0"
    # what does not verify is asked for again, past the squid's memory
    bad = server.files["data/00/bad"] = b"bad"
    assert one.get("data/00/bad") == bad
    server.files["data/00/bad"] = b"good"

    def take(blocks):
        if (data := b"".join(blocks)) != b"good":
            raise Damaged(repr(data))
        return data

    assert one.get("data/00/bad") == bad
    assert one.stream("data/00/bad", take) == b"good"


def test_https(fetcher, tmp_path, monkeypatch):
    certificate, key = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(dict(FILES), context) as server:
        address = f"https://{server.address}{BASE}"
        fetch.trusted.cache_clear()
        with pytest.raises(RepositoryError) as raised:
            fetcher([address]).get("data/00/1")
        assert "CERTIFICATE_VERIFY_FAILED" in raised.value.cause
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        fetch.trusted.cache_clear()
        one = fetcher([address])
        assert [one.get("data/00/1"), one.get("data/00/2")] == [b"1", b"2"]
    fetch.trusted.cache_clear()


def _certificate(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(1))
        .add_extension(alternatives, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return folder / "cert.pem", folder / "key.pem"
