"""What is known of installed modules: read from their bytecode, or kept from the last time."""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import py_compile
from pathlib import Path

import pytest
from sites import Site, reached

# -- bytecode files ------------------------------------------------------------------------------


def compiled(source: Path) -> Path:
    path = py_compile.compile(str(source), doraise=True)
    assert path
    return Path(path)


def test_valid_bytecode_stands_for_the_source(site: Site) -> None:
    site.put("top", {"top.py": "import first"})
    site.put("first", {"first.py": ""})
    site.put("other", {"other.py": ""})
    source = site.site / "top.py"
    compiled(source)
    status = source.stat()
    source.write_text("import other"[:12])
    assert source.stat().st_size == status.st_size
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert set(reached(site, "top")) == {"top", "first"}
    os.utime(source, (1_800_000_000, 1_800_000_000))
    assert set(reached(site, "top")) == {"top", "other"}


@pytest.mark.parametrize("damage", ["magic", "cut", "empty", "noise", "other", "checked"])
def test_other_bytecode_does_not(site: Site, damage: str) -> None:
    site.put("top", {"top.py": "import first"})
    site.put("first", {"first.py": ""})
    source = site.site / "top.py"
    path = compiled(source)
    data = path.read_bytes()
    if damage == "magic":
        wrong = compile("import other", "x", "exec")
        path.write_bytes(b"\0\0\r\n" + data[4:16] + marshal.dumps(wrong))
    elif damage == "checked":
        wrong = compile("import other", "x", "exec")
        mark = importlib.util.source_hash(b"import other")
        path.write_bytes(data[:4] + b"\3\0\0\0" + mark + marshal.dumps(wrong))
    else:
        rest = {"cut": data[:-9], "empty": b"", "noise": data[:16] + b"\xff" * 40}
        path.write_bytes(rest.get(damage, data[:16] + b"N"))
    site.put("other", {"other.py": ""})
    assert set(reached(site, "top")) == {"top", "first"}


def test_a_module_without_source_is_read(site: Site) -> None:
    site.put("found", {"found.py": ""})
    site.add({"top.py": "import found"})
    source = site.site / "top.py"
    data = compiled(source).read_bytes()
    source.unlink()
    site.put("top", {"top.pyc": data})
    assert set(reached(site, "top")) == {"top", "found"}


# -- the cache -----------------------------------------------------------------------------------


def test_the_cache_holds_until_a_distribution_is_installed_anew(site: Site, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    site.put("top", {"top/__init__.py": "from . import a, b", "top/a.py": "import first"})
    site.put("first", {"first.py": ""})
    site.put("second", {"second.py": ""})
    before = reached(site, "top", cache=cache)
    assert set(before) == {"top", "first"}
    # proof that the cache was read: this is not what a distribution does after its installation
    site.add({"top/a.py": "import second"})
    assert reached(site, "top", cache=cache) == before
    site.put("top", {"top/__init__.py": "from . import a, b", "top/a.py": "import second"})
    assert set(reached(site, "top", cache=cache)) == {"top", "second"}
    assert len(list(cache.iterdir())) == 3


def test_what_is_installed_later_is_found_with_the_cache(site: Site, tmp_path: Path) -> None:
    source = "def __getattr__(name):\n    if name == 'Thing':\n        import large\n"
    site.put("top", {"top.py": "from later import Thing\nimport later.sub"})
    assert set(reached(site, "top", cache=tmp_path)) == {"top"}
    site.put("later", {"later/__init__.py": source, "later/sub.py": "import latest"})
    site.put("latest", {"latest.py": ""})
    assert set(reached(site, "top", cache=tmp_path)) == {"top", "later", "latest"}


def test_all_that_is_known_of_a_module_survives_the_cache(site: Site, tmp_path: Path) -> None:
    source = "def __getattr__(name):\n    if name == 'Thing':\n        from . import sub\n"
    site.put("top", {"top/__init__.py": source, "top/sub.py": "import native\ndef f(): import s"})
    site.put("native", {"native.abi3.so": b""})
    site.put("large", {"large.py": ""}, large=True)
    site.put("s", {"s.py": ""})
    options = {"cache": tmp_path, "requires": lambda name: ["large"] if name == "native" else []}
    first = reached(site, "top.Thing", **options)
    assert set(first) == {"top", "native", "large", "s"}
    assert reached(site, "top.Thing", **options) == first


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "\udcff",
        '{"format": 1}',
        '{"format": 1, "stamp": STAMP, "modules": []}',
        '{"format": 1, "stamp": STAMP, "modules": {"top": 1}}',
        '{"format": 1, "stamp": STAMP, "modules": {"top": ["a"]}}',
        '{"format": 1, "stamp": STAMP, "modules": {"top": [1, 2, 3, 4, 5]}}',
        '{"format": 1, "stamp": [], "modules": {"top": null}}',
        '{"format": 0, "stamp": STAMP, "modules": {"top": null}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_cache_is_made_anew(site: Site, tmp_path: Path, text: str) -> None:
    site.put("top", {"top.py": "import found"})
    site.put("found", {"found.py": ""})
    cache = tmp_path / "cache"
    expected = reached(site, "top", cache=cache)
    (file,) = cache.glob("top-*.json")
    good = file.read_text()
    stamp = json.dumps(json.loads(good)["stamp"])
    file.write_text(text.replace("STAMP", stamp), errors="surrogateescape")
    assert reached(site, "top", cache=cache) == expected
    assert file.read_text() == good


def test_a_cache_that_cannot_be_written_is_no_error(site: Site, tmp_path: Path) -> None:
    site.put("top", {"top.py": "import found"})
    site.put("found", {"found.py": ""})
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        assert set(reached(site, "top", cache=cache)) == {"top", "found"}
    # a folder where the file should be
    expected = reached(site, "top", cache=tmp_path / "cache")
    for file in list((tmp_path / "cache").iterdir()):
        file.unlink()
        (file / "in-the-way").mkdir(parents=True)
    assert reached(site, "top", cache=tmp_path / "cache") == expected
    assert not [one for one in (tmp_path / "cache").iterdir() if one.name.startswith(".")]
