"""Files to be fetched, and what fetches them."""

from __future__ import annotations

import contextlib

from objects import BASE

from hepscale.worker.cvmfs.fetch import Fetcher

FILES = {".cvmfspublished": b"Cabc\n", **{f"data/00/{i}": b"%d" % i for i in range(50)}}
# for what does not answer; all others are given the usual time
QUICK_S = 1.0
QUICK = {"timeout_s": QUICK_S, "direct_timeout_s": QUICK_S}


@contextlib.contextmanager
def fetchers():
    """Give a function that makes fetchers; they are closed at the end."""
    with contextlib.ExitStack() as made:

        def make(servers, proxies="DIRECT", **options):
            one = Fetcher(servers, proxies, **{"retries": 0, **options})
            made.callback(one.close)
            return one

        yield make


def url(address):
    return f"http://{address}{BASE}"
