"""Fetching from servers and through proxies, of which some are dead, slow, or lie."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import ssl
import threading
import time

import pytest
import squids
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from objects import BASE, serving, silent
from ports import closed

from hepscale.worker.cvmfs import ObjectError, RepositoryError, fetch
from hepscale.worker.cvmfs.fetch import Damaged, Fetcher

FILES = {".cvmfspublished": b"Cabc\n", **{f"data/00/{i}": b"%d" % i for i in range(50)}}
QUICK_S = 0.3


@pytest.fixture
def server():
    with serving(dict(FILES)) as one:
        yield one


@pytest.fixture
def other():
    with serving(dict(FILES)) as one:
        yield one


@pytest.fixture
def fetcher():
    with contextlib.ExitStack() as made:

        def make(servers, proxies="DIRECT", **options):
            options = {"timeout_s": QUICK_S, "direct_timeout_s": QUICK_S, "retries": 0, **options}
            one = Fetcher(servers, proxies, **options)
            made.callback(one.close)
            return one

        yield make


def url(address):
    return f"http://{address}{BASE}"


def taken(blocks):
    return b"".join(blocks)


# -- directly --------------------------------------------------------------------------------------


def test_one_connection_serves_many_requests(fetcher, server):
    one = fetcher([server.url])
    for i in range(50):
        assert one.get(f"data/00/{i}") == b"%d" % i
    assert server.connections == 1


def test_a_connection_that_was_closed_meanwhile_is_made_anew(fetcher, server):
    def leave(handler, path):
        handler.answer(b"good")
        # without having said so
        handler.close_connection = True
        return True

    server.fault = leave
    one = fetcher([server.url])
    assert [one.get("data/00/1") for _ in range(3)] == [b"good"] * 3
    assert server.connections == 3


def test_threads_share_a_fetcher(fetcher, server):
    one = fetcher([server.url])
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(one.get(f"data/00/{i}") for i in range(20)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([b"%d" % i for i in range(20)] * 8)
    assert server.connections <= 8


@pytest.mark.parametrize("dead", [closed, silent])
def test_a_dead_first_server(fetcher, server, dead):
    def goes(address):
        one = fetcher([url(address), server.url])
        assert one.get(".cvmfspublished") == b"Cabc\n"
        began = time.monotonic()
        assert one.get("data/00/1") == b"1"
        assert time.monotonic() - began < QUICK_S

    if dead is silent:
        with silent() as address:
            goes(address)
    else:
        goes(closed())


def test_the_first_server_is_tried_again(fetcher, server, other):
    server.fault = lambda handler, path: handler.answer(b"", 500) or True
    one = fetcher([server.url, other.url], server_reset_s=0.2)
    assert one.get("data/00/1") == b"1"
    server.fault = None
    assert one.get("data/00/2") == b"2"
    assert server.asked == {"data/00/1": 1}
    time.sleep(0.25)
    assert one.get("data/00/3") == b"3"
    assert server.asked == {"data/00/1": 1, "data/00/3": 1}


def test_what_the_first_server_has_not_got_the_second_may_have(fetcher, server, other):
    del server.files["data/00/7"]
    one = fetcher([server.url, other.url])
    assert one.get("data/00/7") == b"7"
    # no reason to leave it
    assert one.get("data/00/8") == b"8"
    assert other.asked == {"data/00/7": 1}


def test_nobody_has_it(fetcher, server, other):
    one = fetcher([server.url, other.url], retries=3)
    with pytest.raises(ObjectError, match=r"404") as raised:
        one.stream("data/00/none", taken)
    assert raised.value.filename == f"{server.url}/data/00/none"
    assert (server.asked.total(), other.asked.total()) == (1, 1)
    with pytest.raises(
        RepositoryError, match="No server of the repository gives data/00/none"
    ) as told:
        one.get("data/00/none")
    assert "404" in told.value.cause


def test_all_are_tried_once_more(fetcher, server):
    failures = iter([True, True, False])
    server.fault = lambda handler, path: next(failures) and (handler.answer(b"", 503) or True)
    assert fetcher([server.url], retries=2).get("data/00/1") == b"1"
    assert server.asked.total() == 3


def test_nobody_answers_at_all(fetcher):
    with silent() as address:
        one = fetcher([url(address), url(closed())], retries=5)
        began = time.monotonic()
        with pytest.raises(ObjectError, match=r"no answer in time.*refused"):
            one.stream("data/00/1", taken)
        assert QUICK_S <= time.monotonic() - began < 3 * QUICK_S


@pytest.mark.parametrize(
    "fault",
    [
        lambda handler, path: (
            handler.answer(b"?", length=1000) or handler.connection.shutdown(2) or True
        ),
        lambda handler, path: handler.answer(b"?", length=1000) or time.sleep(2 * QUICK_S) or True,
        lambda handler, path: handler.connection.shutdown(2) or True,
        lambda handler, path: handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n") or True,
    ],
    ids=["cut short", "hangs", "closes", "speaks otherwise"],
)
def test_a_server_that_breaks_off(fetcher, server, other, fault):
    server.fault = fault
    one = fetcher([server.url, other.url])
    assert one.stream("data/00/1", taken) == b"1"


def test_a_server_that_drips(fetcher, server, other):
    def drip(handler, path):
        handler.answer(b"", length=1000)
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(QUICK_S / 4)
        return True

    server.fault = drip
    one = fetcher([server.url, other.url])
    began = time.monotonic()
    assert one.stream("data/00/1", taken) == b"1"
    assert time.monotonic() - began < 5 * QUICK_S


def test_a_small_file_has_a_limit(fetcher, server):
    server.files["large"] = bytes(1000)
    one = fetcher([server.url])
    assert len(one.get("large", most=1000)) == 1000
    with pytest.raises(RepositoryError) as raised:
        one.get("large", most=999)
    assert "more than 999 bytes" in raised.value.cause


def test_what_does_not_verify(fetcher, server, other):
    attempts = []

    def take(blocks):
        attempts.append(b"".join(blocks))
        if len(attempts) < 3:
            raise Damaged("not good")
        return "made"

    one = fetcher([server.url, other.url])
    assert one.stream("data/00/1", take) == "made"
    said = [headers.get("Cache-Control") for headers in server.headers]
    assert said == [None, "no-cache"]
    assert other.asked.total() == 1


def test_what_verifies_nowhere(fetcher, server, other):
    def take(blocks):
        b"".join(blocks)
        raise Damaged("the digest is wrong")

    with pytest.raises(ObjectError, match="the digest is wrong"):
        fetcher([server.url, other.url], retries=3).stream("data/00/1", take)
    assert (server.asked.total(), other.asked.total()) == (2, 2)


def test_what_the_taker_raises_is_not_taken_for_the_networks(fetcher, server, other):
    def take(blocks):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as raised:
        fetcher([server.url, other.url]).stream("data/00/1", take)
    assert not isinstance(raised.value, ObjectError)
    assert other.asked.total() == 0


def test_fresh(fetcher, server):
    one = fetcher([server.url])
    one.get(".cvmfspublished", fresh=True)
    assert server.headers[0]["Cache-Control"] == "no-cache"


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


@pytest.mark.parametrize("dead", [closed, silent])
def test_a_dead_first_proxy(fetcher, server, other, dead):
    def goes(address):
        one = fetcher([server.url], f"http://{address};http://{other.address};DIRECT")
        assert one.get("data/00/1") == b"1"
        began = time.monotonic()
        assert one.get("data/00/2") == b"2"
        assert time.monotonic() - began < QUICK_S
        assert (other.asked.total(), server.asked.total()) == (2, 0)

    if dead is silent:
        with silent() as address:
            goes(address)
    else:
        goes(closed())


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
    one = fetcher([url("dead.invalid"), server.url], f"http://{other.address};DIRECT")
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
    "proxies", ["auto://x", "http://", "http://h:port", "https://h:1", "p;DIRECT;ftp://h"]
)
def test_a_proxy_that_cannot_be_understood(proxies):
    with pytest.raises(RepositoryError, match="cannot be understood"):
        Fetcher(["http://h"], proxies)


def test_no_server_is_an_error():
    with pytest.raises(RepositoryError, match="no server"):
        Fetcher([], "DIRECT")
    with pytest.raises(RepositoryError, match="cannot be understood"):
        Fetcher(["/srv/cvmfs"], "DIRECT")


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
