"""What `unpack.py` changes of files that name the folder they were made in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import conda_pack.prefixes
import pytest
import unpacking
from unpacked import INTERPRETER, LAYERS, PACKAGES, PYTHON
from unpacking import FOLDER

from hepscale.worker import relocate, unpack


@pytest.fixture
def layers():
    return dict(LAYERS)


PLACEHOLDER = "/opt/placehold" * 18
PREFIXES = Path(conda_pack.prefixes.__file__).read_bytes()


def relocatable(records, **files):
    inside = {
        "hepscale/relocate-packages.json": json.dumps(records).encode(),
        "hepscale/prefixes.py": PREFIXES,
    }
    return unpacking.packages({**inside, **{f"bin/{name}": data for name, data in files.items()}})


def test_relocation(place):
    python = unpacking.python_files()
    old = PLACEHOLDER.encode()
    # the program that runs unpack.py, with its prefix in it as conda's has
    program = python[f"bin/{PYTHON}"] + b"\0" + old + b"/lib:" + old + b"/x\0tail"
    place.contents[INTERPRETER] = unpacking.compressed({**python, f"bin/{PYTHON}": program})
    script = f"#!{PLACEHOLDER}/bin/python3\nprint('{PLACEHOLDER}')\n".encode()
    records = [
        (f"bin/{PYTHON}", PLACEHOLDER, "binary"),
        ("bin/script", PLACEHOLDER, "text"),
        ("bin/other", PLACEHOLDER, "text"),
        ("bin/data", PLACEHOLDER, "binary"),
    ]
    data = b"a\0" + old + b"\0b"
    place.contents[PACKAGES] = relocatable(records, script=script, other=b"none", data=data)
    place.write(relocate=str(len(records)))
    place.works()
    final = str(place.prefix).encode()
    assert place.prefix.joinpath("bin/script").read_bytes() == script.replace(old, final)
    assert place.prefix.joinpath("bin/script").stat().st_mode & 0o777 == 0o755
    assert place.prefix.joinpath("bin/other").read_bytes() == b"none"
    padding = bytes(len(old) - len(final))
    found = place.prefix.joinpath("bin", PYTHON).read_bytes()
    assert len(found) == len(program)
    assert found.endswith(b"\0" + final + b"/lib:" + final + b"/x" + padding * 2 + b"\0tail")
    assert place.prefix.joinpath("bin/data").read_bytes() == b"a\0" + final + padding + b"\0b"
    assert list(place.prefix.rglob("*.hepscale-new")) == []


def test_prefix_that_is_too_long(plain):
    long = "/opt/short"
    plain.contents[PACKAGES] = relocatable([("bin/x", long, "binary")], x=long.encode() + b"\0")
    plain.write(relocate="1")
    size = len(str(plain.prefix))
    plain.refused(89, f"has {size} bytes, 10 fit into bin/x", str(plain.prefix), "shorter path")
    plain.contents[PACKAGES] = relocatable([("bin/x", long, "text")], x=long.encode() + b"\0")
    plain.write(relocate="1")
    plain.works()
    assert plain.prefix.joinpath("bin/x").read_bytes() == str(plain.prefix).encode() + b"\0"


def test_layers_that_do_not_belong_together(plain):
    plain.write(relocate="1")
    plain.refused(88, "The layers do not belong to this environment.", "hepscale")


@pytest.fixture
def prefix(tmp_path):
    """An unpacked prefix with one file to be relocated."""
    (tmp_path / "hepscale").mkdir()
    (tmp_path / "hepscale" / "prefixes.py").write_bytes(PREFIXES)
    (tmp_path / "hepscale" / "relocate-packages.json").write_text(
        json.dumps([["x", "/old", "text"]])
    )
    (tmp_path / "x").write_text("/old/lib")
    return tmp_path


def test_relocated_files_keep_their_mode(prefix):
    (prefix / "x").chmod(0o440)
    relocate.relocate(str(prefix), "/new place", 1)
    assert (prefix / "x").read_text() == "/new place/lib"
    assert (prefix / "x").stat().st_mode & 0o777 == 0o440


@pytest.mark.parametrize(
    ("records", "count", "text"),
    [
        ([["x", "/old", "text"]], 2, "1 files to be relocated instead of 2"),
        ([["y", "/old", "text"]], 1, "No such file"),
        ([["x", "/old", "odd"]], 1, "odd"),
        ([["x", "/old"]], 1, "unpack"),
        (17, 1, "not iterable"),
    ],
)
def test_records_that_do_not_fit(prefix, records, count, text):
    (prefix / "hepscale" / "relocate-packages.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match=text):
        relocate.relocate(str(prefix), "/new", count)


@pytest.mark.parametrize("content", [None, "{", "import no_such_module", "x = 1"])
def test_functions_that_are_missing(prefix, content):
    (prefix / "hepscale" / "prefixes.py").unlink()
    if content is not None:
        (prefix / "hepscale" / "prefixes.py").write_text(content)
    with pytest.raises(ValueError, match=r"prefixes|no_such_module|replace_prefix|never closed"):
        relocate.relocate(str(prefix), "/new", 1)


def test_codes_are_those_of_stage0():
    script = (FOLDER / "stage0.sh").read_text()
    told = set(map(int, re.findall(r"\b(8\d)\b", script.partition("\n\n")[0])))
    assert told == set(range(80, 90))
    assert set(unpack._ADVICE) < told
