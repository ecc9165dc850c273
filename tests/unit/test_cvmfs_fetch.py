"""Fetching from servers, of which some are dead, slow, or lie."""

from __future__ import annotations

import threading
import time

import pytest
from fetching import FILES, QUICK, QUICK_S, fetchers, url
from objects import silent
from ports import closed

from hepscale.worker.cvmfs import ObjectError, RepositoryError
from hepscale.worker.cvmfs.fetch import Damaged


@pytest.fixture
def offered():
    return FILES


@pytest.fixture
def fetcher():
    with fetchers() as make:
        yield make


def taken(blocks):
    return b"".join(blocks)


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


def test_a_dead_first_server(fetcher, server):
    def goes(address):
        one = fetcher([url(address), server.url], **QUICK)
        assert one.get(".cvmfspublished") == b"Cabc\n"
        began = time.monotonic()
        assert one.get("data/00/1") == b"1"
        assert time.monotonic() - began < QUICK_S

    goes(closed())
    with silent() as dead:
        goes(dead.address)
        assert dead.connections == 1, "it is waited for once"


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
    with silent() as dead:
        one = fetcher([url(dead.address), url(closed())], retries=5, **QUICK)
        began = time.monotonic()
        with pytest.raises(ObjectError, match=r"no answer in time.*refused"):
            one.stream("data/00/1", taken)
        assert QUICK_S <= time.monotonic() - began < 3 * QUICK_S
        assert dead.connections == 1


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
    one = fetcher([server.url, other.url], **QUICK)
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
    one = fetcher([server.url, other.url], **QUICK)
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
