"""Our own client of CVMFS is started, also by a Python that was built for an older system."""

from __future__ import annotations

import os

import pytest
from ports import closed

from hepscale.worker import Unusable, repositories

NAME = "demo.example.org"


def test_it_is_told_of_settings_of_any_size(tmp_path, monkeypatch):
    """Pythons that run anywhere are built for a C library without `memfd_create`."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(repositories, "_DEVICE", os.devnull)
    before = os.listdir("/proc/self/fd")
    one = {"name": NAME, "servers": [f"http://{closed()}/{NAME}"], "keys": ["x" * 200_000]}
    told = {
        "repositories": [{**one, "root_hash": None, "tag": None}],
        "proxies": "DIRECT",
        "cache": str(tmp_path / "cache"),
        "alien_cache": None,
        "quota_mb": None,
        "timeout_s": 1.0,
        "direct_timeout_s": 1.0,
        "retries": 0,
        "max_ttl_s": None,
        "variables": {},
    }
    with pytest.raises(Unusable, match="PEM"):
        repositories._run_ours(told, NAME, repositories.Provided())
    told["repositories"][0] |= {"keys": [], "root_hash": "0" * 40}
    with pytest.raises(Unusable, match="No server"):
        repositories._run_ours(told, NAME, repositories.Provided())
    assert len(os.listdir("/proc/self/fd")) == len(before)
