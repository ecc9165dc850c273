"""Packed environments when something goes wrong: nothing is lost, and the next run works."""

from __future__ import annotations

import os
import shutil
import signal
import threading

import packed
import pytest
from as_root import mounted
from packed import calculate, failing
from support import complete, processes, script, wait_for
from unpacking import flipped

import hepscale
from hepscale.env import api
from hepscale.errors import EngineError, PackError, RunInterrupted
from hepscale.executor.engines import local

pytestmark = pytest.mark.usefixtures("nothing_left", "fresh")


def prefix(item):
    import sys

    return sys.prefix


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a cache in which an environment is packed."""
    folder = tmp_path_factory.mktemp("source")
    with pytest.MonkeyPatch.context() as patch:
        packed.without_coffea(patch)
        for _ in packed.another_cache(folder, patch):
            calculate(prefix, [0])
    return folder


@pytest.fixture
def fresh(source, tmp_path, monkeypatch):
    """Work in a cache in which it is packed, but not unpacked."""
    packed.without_coffea(monkeypatch)
    yield from packed.another_cache(tmp_path / "cache", monkeypatch, source)


def works():
    """Run; check that it is in an environment of this cache and that nothing else lies there."""
    found = {*calculate(prefix)}
    assert found == {*map(str, packed.unpacked())}
    assert packed.left_over() == []
    assert len(found) == 1
    return found.pop()


def layer(kind):
    (path,) = [one for one in packed.layers() if one.name.startswith(kind)]
    return path


# -- layers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["interpreter", "packages"])
def test_layer_that_is_damaged(kind):
    path = layer(kind)
    good = path.read_bytes()
    path.write_bytes(flipped(good))
    error = failing(prefix)
    complete(error)
    assert isinstance(error, PackError)
    assert error.fact.startswith("A layer of the environment is damaged: ")
    assert error.items == (str(path),)
    assert error.fix == "run again: what was damaged is packed anew"
    assert packed.unpacked() == packed.left_over() == []
    assert processes() == {}
    works()
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    ("kind", "size"), [("interpreter", 1000), ("packages", None), ("packages", 0)]
)
def test_layer_that_is_gone_or_cut_short_is_packed_again(kind, size):
    path = layer(kind)
    good = path.read_bytes()
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)
    works()
    assert path.read_bytes() == good


def test_layer_that_is_damaged_behind_a_warm_worker():
    found = works()
    path = layer("packages")
    path.write_bytes(flipped(path.read_bytes()))
    # nobody has to read it
    assert works() == found


def test_environment_that_is_removed_behind_a_warm_worker():
    found = works()
    shutil.rmtree(found)

    def work(item):
        # what no task has imported yet
        import fractions

        return str(fractions.Fraction(item, 2))

    assert calculate(work) == ["0", "1", "1/2"]
    assert works() == found


# -- unpacking -------------------------------------------------------------------------------------


@pytest.mark.root
def test_folder_that_is_read_only():
    with mounted(packed.cache() / "unpacked", "ro"):
        error = failing(prefix)
        assert isinstance(error, PackError)
        assert "cannot be written" in error.fact
        assert "ls -ld" in error.fix
    works()


@pytest.mark.root
@pytest.mark.parametrize("part", [0.02, 0.93])
def test_folder_that_is_full(part):
    works()
    (whole,) = packed.unpacked()
    size = int(part * 512 * sum(one.lstat().st_blocks for one in whole.rglob("*")))
    hepscale.shutdown()
    shutil.rmtree(whole)
    with mounted(packed.cache() / "unpacked", f"size={size}") as folder:
        error = failing(prefix)
        assert isinstance(error, PackError)
        assert error.fact == f"There is no room to unpack the environment in {folder}."
        assert "df -h" in error.fix
        assert packed.unpacked() == packed.left_over() == []
    works()


def test_file_in_place_of_the_folder():
    (packed.cache() / "unpacked").write_text("")
    error = failing(prefix)
    assert isinstance(error, PackError)
    assert str(packed.cache() / "unpacked") in str(error)
    (packed.cache() / "unpacked").unlink()
    works()


def test_worker_that_is_killed_while_it_unpacks():
    found = []
    thread = threading.Thread(target=lambda: found.append(failing(prefix)))
    thread.start()
    wait_for(lambda: [*(packed.cache() / "unpacked").glob(".new-*")])
    (begun,) = (packed.cache() / "unpacked").glob(".new-*")
    os.kill(int(begun.name.rpartition("-")[2]), signal.SIGKILL)
    thread.join()
    (error,) = found
    complete(error)
    assert isinstance(error, EngineError)
    assert "SIGKILL" in str(error)
    assert begun.exists()
    # its tar has not noticed yet
    wait_for(lambda: not processes())
    works()


def test_interrupt_while_it_is_unpacked():
    def interrupt():
        wait_for(lambda: [*(packed.cache() / "unpacked").glob(".new-*")])
        (begun,) = (packed.cache() / "unpacked").glob(".new-*")
        unpacks = int(begun.name.rpartition("-")[2])
        os.kill(unpacks, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGINT)
        ended.wait(30)
        os.kill(unpacks, signal.SIGCONT)

    ended = threading.Event()
    thread = threading.Thread(target=interrupt)
    thread.start()
    error = failing(prefix)
    # the worker that unpacks is still stopped
    ended.set()
    thread.join()
    complete(error)
    assert isinstance(error, RunInterrupted)
    assert error.fact == "Stopped: 0 of 3 chunks are counted."
    # it goes on, and the next run finds it ready
    works()


def test_two_processes_with_the_same_new_environment(tmp_path):
    source = "import sys\n__import__(sys.argv[1]).twin()\n"
    cache = str(tmp_path / "nothing")
    with (
        script(tmp_path / "a.py", source, "packed", HEPSCALE_CACHE_DIR=cache) as first,
        script(tmp_path / "b.py", source, "packed", HEPSCALE_CACHE_DIR=cache) as second,
    ):
        one, other = first.finish(), second.finish()
    assert one == other
    assert [os.path.dirname(path) for path in one] == [f"{cache}/unpacked"]
    assert os.listdir(f"{cache}/unpacked") == [os.path.basename(one[0])]
    layers = os.listdir(f"{cache}/environments/layers")
    assert len([name for name in layers if ".tar." in name]) == 2
    assert not [name for name in layers if name.startswith(".")]


# -- what is kept ----------------------------------------------------------------------------------


def test_environment_in_use_is_not_pruned():
    found = works()
    (folder,) = packed.unpacked()
    before = folder.stat().st_ino
    assert api.store().prune(0, folder.parent).environments == 1
    assert packed.unpacked() == [folder]
    assert works() == found
    assert folder.stat().st_ino == before
    packed.hepscale.shutdown()
    api.store().prune(0, folder.parent)
    assert packed.unpacked() == []
    assert works() == found


def test_as_many_environments_are_kept_as_wanted(monkeypatch):
    def with_more(item):
        import iniconfig  # noqa: F401

        return prefix(item)

    monkeypatch.setenv("HEPSCALE_KEEP_ENVIRONMENTS", "1")
    packed.own(prefix)
    (first,) = {*calculate(prefix)}
    (second,) = {*calculate(with_more)}
    assert first != second
    # the first was in use until the second one began
    assert {*calculate(with_more)} == {second}
    assert [*map(str, packed.unpacked())] == [second]
    assert [os.path.basename(second)] == [*packed.records()]
    assert {*calculate(prefix)} == {first}


# -- versions --------------------------------------------------------------------------------------


def test_worker_of_another_version(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(local, "VERSION", "99.0")
        error = failing(prefix)
    complete(error)
    assert isinstance(error, EngineError)
    assert error.fact == "The worker has other versions than this process."
    here, worker = error.items
    assert here.startswith("here: HepScale 99.0, Python 3.")
    assert worker.startswith(f"worker: HepScale {packed.hepscale.__version__}, Python 3.")
    works()
