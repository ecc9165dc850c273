"""Files to be fetched, and what fetches them."""

from __future__ import annotations

import contextlib

from objects import BASE

from hepscale.worker.cvmfs.fetch import Fetcher

FILES = {".cvmfspublished": b"Cabc\n", **{f"data/00/{i}": b"%d" % i for i in range(50)}}
QUICK_S = 0.3


@contextlib.contextmanager
def fetchers():
    """Give a function that makes fetchers; they are closed at the end."""
    with contextlib.ExitStack() as made:

        def make(servers, proxies="DIRECT", **options):
            options = {"timeout_s": QUICK_S, "direct_timeout_s": QUICK_S, "retries": 0, **options}
            one = Fetcher(servers, proxies, **options)
            made.callback(one.close)
            return one

        yield make


def url(address):
    return f"http://{address}{BASE}"
