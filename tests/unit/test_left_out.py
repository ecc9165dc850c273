"""What is installed and not packed, as workers watch for it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from site_folder import Prefix

from hepscale.env import interpreter
from hepscale.env.left_out import left_out, local_names
from hepscale.env.local import LocalModule
from hepscale.env.plan import Need

# some distributions have them in packages of their own
LIBRARY = {*filter(find_spec, ("idlelib", "test", "turtledemo"))}


@pytest.fixture
def index(tmp_path):
    prefix = Prefix(tmp_path)
    prefix.install("whole", {"whole/__init__.py": "", "whole/inner.py": "", "beside.py": ""})
    prefix.install("first", {"space/first/__init__.py": ""})
    prefix.install("second", {"space/deep/second.py": "", "space/first/plugins/own.py": ""})
    prefix.install("third", {"space/deep/third/__init__.py": ""})
    return prefix.load()


def absent(index, *packed, closure="full", excluded=(), standard=(), local=()):
    modules = tuple(LocalModule(name, ()) for name in local)
    here = interpreter.this()
    need = Need(here, index, packed[:1], packed[1:], excluded, frozenset(standard), modules)
    return {*left_out(need, closure)} - ({"tkinter", "turtle"} if not standard else set())


def test_top_level_names(index):
    assert absent(index, "first", "second", "third") == LIBRARY | {"whole", "beside"}
    assert absent(index, "whole", "first", closure="imports") == LIBRARY | {"space"}


def test_parts_of_shared_packages(index):
    names = absent(index, "whole", "first")
    # what is imported first of a part that is missed is the outermost package that is not there
    assert names - LIBRARY == {
        "space.deep",
        "space.deep.second",
        "space.deep.third",
        "space.first.plugins.own",
    }
    assert absent(index, "whole", "first", "second") - LIBRARY == {"space.deep.third"}


def test_not_what_is_unwanted_or_local(index):
    packed = ("whole", "first", "second")
    assert absent(index, *packed, excluded=("third",)) == LIBRARY
    assert absent(index, *packed, local=("space", "test")) == LIBRARY - {"test"}


def test_library_that_is_asked_for(index):
    packed = ("whole", "first", "second", "third")
    assert absent(index, *packed, standard=("test", "turtle")) == LIBRARY & {"idlelib"}


def test_local_names(tmp_path):
    for name in ("cuts.py", "data.csv", "two words.py", "fast.cpython-311.so", "x.tar.gz"):
        (tmp_path / name).touch()
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    (tmp_path / "data").mkdir()
    assert local_names(str(tmp_path)) == {"cuts", "fast", "package"}
    assert local_names(str(tmp_path / "nowhere")) == set()
