"""A repository of two revisions, and a node that has it."""

from __future__ import annotations

import pytest
from publisher import publish
from shelf import Shelf

from hepscale.worker.cvmfs import RepositoryError
from hepscale.worker.cvmfs.cache import Cache
from hepscale.worker.cvmfs.repository import Repository

NAME = "demo.example.org"


class Here:
    """A repository of two revisions, the first of which is served, and a cache."""

    def __init__(self, folder) -> None:
        self.site = publish(folder / "web", NAME, {"f": b"first"}, tag="one")
        self.files = [self.signed()]
        self.site.publish({"f": b"second", "g": b"new"}, tag="two")
        self.files.append(self.signed())
        self.shelf = Shelf(folder / "web")
        self.cache = Cache(str(folder / "cache"))
        self.serve(1)

    def signed(self):
        names = (".cvmfspublished", ".cvmfswhitelist")
        return {name: (self.site.folder / name).read_bytes() for name in names}

    def serve(self, number):
        for name, content in self.files[number - 1].items():
            (self.site.folder / name).write_bytes(content)

    def repository(self, *, max_ttl_s=None, **settings):
        settings = self.site.settings(**settings)
        return Repository(settings, self.cache, self.shelf, max_ttl_s=max_ttl_s, variables={})

    def open(self, **settings):
        return self.repository(**settings).open()

    def refused(self, **settings):
        with pytest.raises(RepositoryError) as raised:
            self.open(**settings)
        return raised.value


def content(revision, path="/f"):
    return revision.read(revision.entry(path), 0, 100)
