from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hepscale.env.contents import Entry, Relocation
from hepscale.env.store import Store, drop_damaged
from hepscale.errors import ConfigError, PackError

CONTENT = "c" * 64
OLD_S = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(store: Store, content: str = CONTENT, data: bytes = b"x", kind: Any = "packages") -> Any:
    entry = Entry("file", data=data)
    return store.make(kind, content, [entry], "tar.gz")


def record(*layers: Any) -> dict[str, Any]:
    return {"layers": [{"kind": one.kind, "content": one.content} for one in layers]}


def age(path: Path, seconds: float = OLD_S) -> None:
    for one in (path, *path.rglob("*")):
        os.utime(one, (time.time() - seconds,) * 2)


def files(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.rglob("*") if one.is_file())


# -- layers --------------------------------------------------------------------------------------


def test_layer_is_made_once(store: Store, tmp_path: Path) -> None:
    assert store.layer("packages", CONTENT) is None
    assert not store.folder.exists()
    (tmp_path / "conf").write_text("in /here\n")
    entries = [
        Entry("a", data=b"12345"),
        Entry("b", str(tmp_path / "conf"), treat="text", prefix="/here", placeholder="/there"),
    ]
    layer = store.make("packages", CONTENT, entries, "tar.zst")
    assert layer == store.layer("packages", CONTENT)
    assert layer.path == store.folder / f"layers/packages-{CONTENT}.tar.zst"
    assert layer.size_bytes == layer.path.stat().st_size
    assert layer.relocations == (Relocation("b", "/there", "text"),)
    assert isinstance(layer.relocations[0], Relocation)
    assert (layer.kind, layer.content) == ("packages", CONTENT)
    before = layer.path.stat().st_ino
    # whoever comes second gets what there is, of whatever format
    assert store.make("packages", CONTENT, [Entry("gone", "/gone")], "tar.gz") == layer
    assert layer.path.stat().st_ino == before
    assert store.layer("interpreter", CONTENT) is None
    assert store.layer("packages", "d" * 64) is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "{", '{"name": 5}', '{"name": "gone", "size_bytes": 1}', "\0\xff"],
)
def test_description_that_is_damaged(store: Store, text: str) -> None:
    layer = make(store)
    about = store.folder / f"layers/packages-{CONTENT}.json"
    about.write_text(text)
    assert store.layer("packages", CONTENT) is None
    assert make(store) == layer


@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_archive_of_another_size(store: Store, damage: bytes | None) -> None:
    layer = make(store)
    if damage is None:
        layer.path.unlink()
    else:
        layer.path.write_bytes(damage)
    assert store.layer("packages", CONTENT) is None
    assert make(store) == layer
    assert layer.path.stat().st_size == layer.size_bytes


def test_damage_that_only_the_digest_shows(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    good, bad, gone = (make(store, name * 64) for name in "abc")
    content = bytearray(bad.path.read_bytes())
    content[len(content) // 2] ^= 1
    bad.path.write_bytes(content)
    gone.path.unlink()
    assert drop_damaged([good, bad, gone]) == (bad.path,)
    assert f"{bad.path} is damaged" in caplog.text
    assert store.layer("packages", "a" * 64) == good
    assert store.layer("packages", "b" * 64) is None
    assert make(store, "b" * 64) == bad


def test_failure_leaves_nothing_and_the_next_attempt_works(store: Store) -> None:
    with pytest.raises(PackError):
        store.make("packages", CONTENT, [Entry("x", "/gone")], "tar.gz")
    assert os.listdir(store.folder / "layers") == []
    assert store.layer("packages", CONTENT) is None
    assert make(store).size_bytes > 0


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "store")
    for act in (
        lambda: make(store),
        lambda: store.remember("s", 1),
        lambda: store.add("d", {"layers": []}),
    ):
        with pytest.raises(PackError, match="of environments cannot be written") as caught:
            act()
        assert caught.value.items == (str(store.folder),)
        assert "HEPSCALE_CACHE_DIR" in caught.value.fix
    assert store.recall("s") is None
    assert store.environments() == []
    assert store.prune(0) == store.prune(0)


# -- what was known ------------------------------------------------------------------------------


def test_memory(store: Store) -> None:
    assert store.recall("a") is None
    store.remember("a", {"x": [1, None, "caf\u00e9", "\udce9"]})
    store.remember("b", 2)
    assert store.recall("a") == {"x": [1, None, "caf\u00e9", "\udce9"]}
    store.remember("a", 1)
    assert (store.recall("a"), store.recall("b")) == (1, 2)
    assert files(store.folder) == ["a.json", "b.json"]


@pytest.mark.parametrize("text", ["", "{", "3", "[]", '{"other": 1}', "\0"])
def test_damaged_memory(store: Store, text: str) -> None:
    store.remember("a", 1)
    (store.folder / "seen/a.json").write_text(text)
    assert store.recall("a") is None


def test_memory_that_cannot_be_written_leaves_no_file(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.remember("a", 1)
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(json, "dump", full)
        with pytest.raises(PackError, match="No space left on device"):
            store.remember("b", 2)
    assert files(store.folder) == ["a.json"]


# -- environments --------------------------------------------------------------------------------


def test_environments_are_listed_by_their_last_use(store: Store) -> None:
    assert store.environments() == []
    for at, name in enumerate("abc"):
        store.add(name * 64, {"layers": [], "at": at})
        age(store.folder / "environments" / f"{name * 64}.json", OLD_S - at)
    assert [(digest[0], one["at"]) for digest, _, one in store.environments()] == [
        ("c", 2),
        ("b", 1),
        ("a", 0),
    ]
    store.add("a" * 64, {"layers": [], "at": 3})
    assert [digest[0] for digest, *_ in store.environments()] == ["a", "c", "b"]
    (store.folder / "environments" / f"{'b' * 64}.json").write_text("{")
    assert [digest[0] for digest, *_ in store.environments()] == ["a", "c"]


def test_environment_by_the_beginning_of_its_digest(store: Store) -> None:
    store.add("abcd1" + "0" * 59, {"layers": [], "at": 1})
    store.add("abcd2" + "0" * 59, {"layers": [], "at": 2})
    assert store.environment("abcd2")["at"] == 2
    assert store.environment("abcd1" + "0" * 59)["at"] == 1
    for begin, fact, items in [
        ("abcd", "More than one environment begins with 'abcd'.", 2),
        ("abce", "No environment begins with 'abce'.", 0),
        ("", "More than one environment begins with ''.", 2),
    ]:
        with pytest.raises(ConfigError) as caught:
            store.environment(begin)
        assert (caught.value.fact, len(caught.value.items)) == (fact, items)
        assert caught.value.fix == "hepscale env list"
    store.prune(1)
    assert store.environment("a") in ({"layers": [], "at": 1}, {"layers": [], "at": 2})


# -- prune ---------------------------------------------------------------------------------------


def test_prune_removes_layers_that_no_kept_environment_has(store: Store) -> None:
    shared, first, second = make(store, "a" * 64), make(store, "b" * 64), make(store, "c" * 64)
    store.add("1" * 64, record(shared, first))
    age(store.folder)
    store.add("2" * 64, record(shared, second))
    store.remember("s", 1)
    done = store.prune(1)
    assert done.environments == 1
    assert done.size_bytes >= first.size_bytes
    assert [digest for digest, *_ in store.environments()] == ["2" * 64]
    assert store.layer("packages", "b" * 64) is None
    assert store.layer("packages", "a" * 64) == shared
    assert store.layer("packages", "c" * 64) == second
    assert store.recall("s") == 1
    again = store.prune(1)
    assert (again.environments, again.size_bytes) == (0, 0)


def test_prune_keeps_what_somebody_is_about_to_use(store: Store) -> None:
    made, taken = make(store, "a" * 64), make(store, "b" * 64)
    age(store.folder)
    fresh = make(store, "c" * 64)
    assert store.layer("packages", "b" * 64) == taken
    store.prune(0)
    assert store.layer("packages", "a" * 64) is None
    assert not made.path.exists()
    assert (taken.path.exists(), fresh.path.exists()) == (True, True)


def test_prune_of_what_a_killed_process_has_left(store: Store) -> None:
    make(store)
    left = store.folder / "layers" / f".packages-{CONTENT}.tar.gz.abcd"
    left.write_bytes(bytes(1000))
    store.prune(8)
    assert left.exists()
    age(left)
    assert store.prune(8).size_bytes >= 1000
    assert not left.exists()


def test_prune_of_everything(store: Store) -> None:
    store.add("1" * 64, record(make(store)))
    store.remember("s", 1)
    age(store.folder)
    done = store.prune(0)
    assert done.environments == 1
    assert store.recall("s") is None
    assert [name for name in files(store.folder) if not name.startswith("packages-")] == []
    assert make(store).path.exists()


@contextlib.contextmanager
def used_by_another_process(folder: Path) -> Iterator[None]:
    """Hold an unpacked environment as a worker does."""
    code = (
        "import fcntl, sys\nmark = open(sys.argv[1])\nfcntl.flock(mark, fcntl.LOCK_SH)\n"
        "print(flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, folder / ".hepscale-ready"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()


def test_prune_of_unpacked_environments(store: Store, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    store.add("1" * 64, {"layers": []})
    for name in ("1" * 64, "2" * 64, "3" * 64, "4" * 64):
        (unpacked / name / "bin").mkdir(parents=True)
        (unpacked / name / "bin/python").write_bytes(bytes(1000))
        (unpacked / name / ".hepscale-ready").touch()
    # one that was being removed when that was stopped, and one that is being unpacked
    (unpacked / ("4" * 64) / ".hepscale-ready").unlink()
    (unpacked / ".new-5").mkdir()
    with used_by_another_process(unpacked / ("2" * 64)):
        done = store.prune(1, unpacked)
        assert sorted(os.listdir(unpacked)) == [".new-5", "1" * 64, "2" * 64]
        assert done.environments == 0
        assert 2000 <= done.size_bytes < 50_000
        assert (unpacked / ("2" * 64) / "bin/python").exists()
        store.prune(0, unpacked)
        assert sorted(os.listdir(unpacked)) == [".new-5", "2" * 64]
    store.prune(0, unpacked)
    assert os.listdir(unpacked) == [".new-5"]


def test_prune_where_nothing_was_unpacked(store: Store, tmp_path: Path) -> None:
    assert store.prune(0, tmp_path / "nowhere").size_bytes == 0


# -- locks ---------------------------------------------------------------------------------------


def test_lock_keeps_other_processes_out_until_its_owner_is_gone(store: Store) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom hepscale.env.store import Store\n"
        "with Store(Path(sys.argv[1])).lock('x'):\n    print(flush=True)\n    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(store.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with store.lock("y"), (store.folder / "locks/x").open() as stream:
            with pytest.raises(BlockingIOError):
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            process.kill()
            process.wait()
            with store.lock("x"):
                pass


def test_lock_is_free_after_an_error(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.lock("x"):
        raise ZeroDivisionError
    with (store.folder / "locks/x").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
