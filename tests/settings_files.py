"""Folders with files of settings, and what is refused of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hepscale.config import load_settings
from hepscale.errors import ConfigError

CLUSTER = """
[site.my-cluster]
engine = "workqueue"
scratch_dir = "/scratch"
http_proxy = "http://me:secret@proxy:3128"

[site.my-cluster.workers]
batch = "slurm"
options = ["--partition=short"]

[site.my-cluster.cvmfs]
repositories = ["cms.cern.ch"]
"""


class Layout:
    """Folders in which files with settings are looked for, all of them empty."""

    def __init__(self, top: Path) -> None:
        self.etc = top / "etc.toml"
        self.prefix = top / "prefix" / "etc" / "hepscale" / "hepscale.toml"
        self.user = top / "home" / ".config" / "hepscale" / "hepscale.toml"
        self.pyproject = top / "home" / "project" / "pyproject.toml"
        self.project = top / "home" / "project" / "hepscale.toml"

    def write(self, place: str, text: str) -> Path:
        path: Path = getattr(self, place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


def refused(*args, **arguments):
    with pytest.raises(ConfigError) as caught:
        load_settings(*args, **arguments)
    error = caught.value
    assert error.fact
    assert error.cause
    assert error.fix
    return error
