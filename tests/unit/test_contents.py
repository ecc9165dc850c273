from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conda_pack.prefixes import replace_prefix

from hepscale.env import contents, native
from hepscale.env.contents import Entry, Relocation
from hepscale.errors import PackError

PREFIX = "/home/me/my env"
PLACEHOLDER = "/opt/placeholder_placeholder_placeholder"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(folder: Path, data: bytes, name: str = "file", **given: object) -> Entry:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Entry(f"lib/{name}", str(path), **given)  # type: ignore[arg-type]


def recorded(folder: Path, data: bytes = b"as installed") -> Entry:
    """Return a file with what its installer has noted, which is wrong on purpose: it is trusted."""
    entry = put(folder, data)
    stamp = os.stat(entry.source).st_mtime_ns
    return dataclasses.replace(
        entry, sha256=sha(b"noted"), recorded_bytes=len(data), installed_ns=stamp
    )


# -- digests -------------------------------------------------------------------------------------


def test_what_the_installer_noted_is_trusted(tmp_path: Path) -> None:
    entry = recorded(tmp_path)
    noted = put(tmp_path, b"noted", "other")
    assert contents.digest(entry) == contents.digest(dataclasses.replace(noted, target="lib/file"))
    # a file system with times in seconds
    os.utime(entry.source, ns=(1, 1))
    assert contents.digest(entry) == contents.digest(dataclasses.replace(noted, target="lib/file"))


@pytest.mark.parametrize("how", ["younger", "longer", "younger by a nanosecond"])
def test_edited_file_is_read(tmp_path: Path, how: str) -> None:
    entry = recorded(tmp_path)
    before = contents.digest(entry)
    if how == "longer":
        Path(entry.source).write_bytes(b"edited by someone")
        os.utime(entry.source, ns=(1, 1))
    else:
        later = entry.installed_ns + (1 if "nano" in how else 10**12)
        os.utime(entry.source, ns=(later, later))
    content = Path(entry.source).read_bytes()
    assert contents.digest(entry) != before
    plain = Entry(entry.target, sha256=sha(content), data=content)
    assert contents.digest(entry) == contents.digest(plain)


def test_size_that_was_not_noted_is_not_compared(tmp_path: Path) -> None:
    entry = recorded(tmp_path)
    before = contents.digest(entry)
    assert contents.digest(dataclasses.replace(entry, recorded_bytes=0)) == before


def test_digest_is_of_the_bytes_that_are_packed(tmp_path: Path) -> None:
    script = put(tmp_path, f"#!{PREFIX}/bin/python\n".encode(), treat="script", prefix=PREFIX)
    script = dataclasses.replace(script, target="bin/x", sha256=sha(b"noted"), installed_ns=2**62)
    data = contents.content(script).data
    assert data == b"#!/usr/bin/env python\n"
    assert contents.digest(script) == contents.digest(Entry("bin/x", data=data))


def test_digest_tells_name_mode_and_kind_apart(tmp_path: Path) -> None:
    entry = put(tmp_path, b"x")
    told = [
        contents.digest(one)
        for one in (
            entry,
            dataclasses.replace(entry, target="lib/other"),
            Entry("lib/file", link="x"),
            Entry("lib/file", data=b"y"),
            Entry("lib/file", data=b"x", executable=True),
            Entry("lib/fil", data=b"ex"),
        )
    ]
    assert len(set(told)) == len(told)
    assert contents.digest(Entry("lib/file", data=b"x")) == told[0]
    os.chmod(entry.source, 0o755)
    assert contents.digest(entry) == told[4]
    # only the owner's bit counts: the others depend on a umask
    os.chmod(entry.source, 0o677)
    assert contents.digest(entry) == told[0]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    entry = put(tmp_path, b"x", name)
    assert len(contents.digest(entry)) == len(contents.signature([entry])) == 64


# -- signatures ----------------------------------------------------------------------------------


def test_signature_changes_with_what_can_be_seen(tmp_path: Path) -> None:
    entry = put(tmp_path, b"x")
    before = contents.signature([entry])
    assert contents.signature([entry]) == before
    later = os.stat(entry.source).st_mtime_ns + 1
    seen = {before}
    for change in (
        lambda: os.utime(entry.source, ns=(later, later)),
        lambda: os.chmod(entry.source, 0o755),
        lambda: Path(entry.source).write_bytes(b"xy"),
    ):
        change()
        seen.add(contents.signature([entry]))
    assert len(seen) == 4


def test_signature_changes_with_what_is_to_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = put(tmp_path, b"x")
    changes = {
        "target": "lib/other",
        "treat": "script",
        "prefix": "/x",
        "placeholder": "/y",
        "private": ("/z",),
        "relink": True,
        "data": b"x",
        "executable": True,
        "link": "there",
    }
    told = {contents.signature([entry]), contents.signature([]), contents.signature([entry] * 2)}
    told |= {
        contents.signature([dataclasses.replace(entry, **{name: value})])
        for name, value in changes.items()
    }
    monkeypatch.setattr(contents, "_TREATED_AS", b"another")
    told.add(contents.signature([entry]))
    assert len(told) == 3 + len(changes) + 1


@pytest.mark.parametrize("ask", ["signature", "digest", "content", "is_executable", "size_bytes"])
def test_file_that_is_gone(tmp_path: Path, ask: str) -> None:
    entry = Entry("lib/x", str(tmp_path / "gone"), sha256=sha(b"x"))
    with pytest.raises(PackError) as caught:
        getattr(contents, ask)([entry] if ask == "signature" else entry)
    assert caught.value.items == (str(tmp_path / "gone"),)
    assert "No such file or directory" in caught.value.fact
    assert caught.value.fix


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="Is a directory"):
        contents.content(Entry("lib/x", str(tmp_path)))
    with pytest.raises(PackError, match="Is a directory"):
        contents.digest(Entry("lib/x", str(tmp_path)))


def test_sizes(tmp_path: Path) -> None:
    assert contents.size_bytes(put(tmp_path, b"12345")) == 5
    assert contents.size_bytes(Entry("x", data=b"123")) == 3
    assert contents.size_bytes(Entry("x", link="somewhere")) == 0


# -- scripts -------------------------------------------------------------------------------------

SCRIPTS = {
    "venv": (f"#!{PREFIX.replace(' ', '-')}/bin/python\n", "#!/usr/bin/env python\n"),
    "version": ("#!/srv/x/bin/python3.11\n", "#!/usr/bin/env python3.11\n"),
    "free threads": ("#!/srv/x/bin/python3.13t\n", "#!/usr/bin/env python3.13t\n"),
    "system": ("#!/usr/bin/python3\n", "#!/usr/bin/env python3\n"),
    "blank": ("#! /usr/bin/python3 \n", "#!/usr/bin/env python3\n"),
    "options": ("#!/usr/bin/python3 -sP\n", "#!/usr/bin/env -S python3 -sP\n"),
    "by path": ("#!/usr/bin/env python\n", "#!/usr/bin/env python\n"),
    "shell": ("#!/bin/sh\nexec x\n", "#!/bin/sh\nexec x\n"),
    "long": (
        f"#!/bin/sh\n'''exec' \"{PREFIX}/bin/python\" \"$0\" \"$@\"\n' '''\n",
        "#!/usr/bin/env python\n",
    ),
    "long, of conda": (
        f"#!/bin/sh\n'''exec' \"{PREFIX}/bin/python3.11\" \"$0\" \"$@\" #'''\n",
        "#!/usr/bin/env python3.11\n",
    ),
    "long, with options": (
        f"#!/bin/sh\n'''exec' \"{PREFIX}/bin/python\" -I \"$0\" \"$@\"\n' '''\n",
        "#!/usr/bin/env -S python -I\n",
    ),
    "long, without quotes": (
        f"#!/bin/sh\n'''exec' /deep{'/deep' * 50}/bin/python3.11 \"$0\" \"$@\"\n' '''\n",
        "#!/usr/bin/env python3.11\n",
    ),
    "not at the top": ("x\n#!/usr/bin/python3\n", "x\n#!/usr/bin/python3\n"),
    "other program": ("#!/usr/bin/pythonista\n", "#!/usr/bin/pythonista\n"),
    "crlf": ("#!/usr/bin/python3\r\n", "#!/usr/bin/env python3\n"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_finds_its_python_by_path(tmp_path: Path, name: str) -> None:
    before, after = SCRIPTS[name]
    body = "import sys\nsys.exit(main())\n"
    entry = put(tmp_path, (before + body).encode(), treat="script", prefix=PREFIX)
    made = contents.content(dataclasses.replace(entry, target="bin/x"))
    assert made == (f"{after}{body}".encode(), None)


def test_program_of_the_prefix_is_found_by_path(tmp_path: Path) -> None:
    entry = put(tmp_path, b"#!/conda/bin/perl -w\nx\n", treat="script", prefix="/conda")
    made = contents.content(dataclasses.replace(entry, target="bin/x"))
    assert made == (b"#!/usr/bin/env -S perl -w\nx\n", None)


def test_module_with_a_shebang_is_left_alone(tmp_path: Path) -> None:
    entry = put(tmp_path, b"#!/usr/bin/python3\n", treat="script", prefix=PREFIX)
    assert contents.content(entry).data == b"#!/usr/bin/python3\n"


def test_prefix_in_the_text_of_a_script(tmp_path: Path) -> None:
    text = f"#!{PREFIX}/bin/x\nHOME = '{PREFIX}/share'\n"
    entry = put(tmp_path, text.encode(), treat="script", prefix=PREFIX)
    data, relocation = contents.content(entry)
    assert relocation == Relocation("lib/file", contents.PREFIX_PLACEHOLDER, "text")
    assert PREFIX.encode() not in data
    moved = replace_prefix(data, relocation.mode, relocation.placeholder, "/new place")
    assert moved.decode() == text.replace(PREFIX, "/new place")


@pytest.mark.skipif(not Path("/usr/bin/env").exists(), reason="there is no /usr/bin/env")
def test_rewritten_script_runs(tmp_path: Path) -> None:
    text = "#!/deep/bin/python -B -s\nimport sys\nprint(sys.flags.dont_write_bytecode, sys.argv)\n"
    entry = put(tmp_path, text.encode(), treat="script", prefix=PREFIX)
    script = tmp_path / "run"
    script.write_bytes(contents.content(dataclasses.replace(entry, target="bin/x")).data)
    script.chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    environ = {"PATH": f"{tmp_path}:{os.defpath}"}
    done = subprocess.run([script, "a b"], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == f"1 ['{script}', 'a b']\n"


# -- what conda has filled in --------------------------------------------------------------------


def test_text_with_a_prefix(tmp_path: Path) -> None:
    text = "prefix = {0}\nagain = {0}/lib:{0}\n"
    data = text.format(PREFIX).encode()
    entry = put(tmp_path, data, treat="text", prefix=PREFIX, placeholder=PLACEHOLDER)
    assert contents.content(entry) == (
        text.format(PLACEHOLDER).encode(),
        Relocation("lib/file", PLACEHOLDER, "text"),
    )


def test_program_with_a_prefix_is_as_it_was_before_conda(tmp_path: Path) -> None:
    original = b"\x7fELF\0" + b"|".join(
        [
            f"{PLACEHOLDER}/share\0".encode(),
            f"a {PLACEHOLDER}:{PLACEHOLDER}/lib\0".encode(),
            b"/unrelated\0\0\0\xff",
            f"{PLACEHOLDER}\0\0\0".encode(),
        ]
    )
    installed = replace_prefix(original, "binary", PLACEHOLDER, PREFIX)
    assert len(installed) == len(original)
    assert PLACEHOLDER.encode() not in installed
    entry = put(tmp_path, installed, treat="binary", prefix=PREFIX, placeholder=PLACEHOLDER)
    data, relocation = contents.content(entry)
    assert data == original
    assert relocation == Relocation("lib/file", PLACEHOLDER, "binary")
    for new in ("/x", PREFIX, "/a/longer/one/than/the/first"):
        moved = replace_prefix(data, "binary", PLACEHOLDER, new)
        assert moved == replace_prefix(original, "binary", PLACEHOLDER, new)


def test_program_that_nobody_said_could_be_moved(tmp_path: Path) -> None:
    data = f"\0{PREFIX}/lib\0".encode()
    entry = put(tmp_path, data, treat="script", prefix=PREFIX)
    assert contents.content(entry) == (data, None)


def test_nothing_is_noted_where_the_prefix_is_not_there(tmp_path: Path) -> None:
    for treat in ("text", "binary", "script"):
        entry = put(tmp_path, b"nothing\0" if treat == "binary" else b"nothing\n", treat=treat)
        for prefix in ("", PREFIX):
            made = contents.content(dataclasses.replace(entry, prefix=prefix))
            assert made.relocation is None
            assert made.data.startswith(b"nothing")


def test_record_of_conda(tmp_path: Path) -> None:
    record = {
        "name": "x",
        "url": "file:///home/me/channel/x.conda",
        "channel": "https://me:secret@conda.example.org/t/xy-0123456789abcdef/conda-forge",
        "extracted_package_dir": "/home/me/pkgs/x",
        "package_tarball_full_path": "/home/me/pkgs/x.conda",
        "link": {"source": "/home/me/pkgs/x", "type": 1},
        "indexed_timestamp": 5,
        "files": ["bin/x"],
        "paths_data": {
            "paths": [
                {"_path": "lib/x.py", "path_type": "hardlink", "sha256": "a", "size_in_bytes": 1},
                {
                    "_path": "etc/x",
                    "path_type": "hardlink",
                    "sha256": "b",
                    "sha256_in_prefix": "c",
                    "size_in_bytes": 2,
                    "prefix_placeholder": "/opt/placeholder",
                },
                {"_path": "bin/x", "path_type": "unix_python_entry_point", "sha256": "d"},
            ]
        },
    }
    entry = put(tmp_path, json.dumps(record).encode(), treat="conda-meta")
    data = contents.content(entry).data
    for word in (b"/home/me", b"secret", b"0123456789"):
        assert word not in data
    told = json.loads(data)
    assert (told["name"], told["files"]) == ("x", ["bin/x"])
    assert told["channel"] == "https://conda.example.org/conda-forge"
    # what depends on the place stays behind
    assert [sorted(one.values(), key=str) for one in told["paths_data"]["paths"]] == [
        [1, "a", "hardlink", "lib/x.py"],
        ["/opt/placeholder", "b", "etc/x", "hardlink"],
        ["bin/x", "unix_python_entry_point"],
    ]
    # and the order in which an installer has written it does not matter
    record = dict(reversed(list(record.items())))
    entry = put(tmp_path, json.dumps(record).encode(), treat="conda-meta")
    assert contents.content(entry).data == data


# -- records of wheels ---------------------------------------------------------------------------


def test_record_of_a_wheel(tmp_path: Path) -> None:
    kept = 'x/__init__.py,sha256=abc,5\n"x/a,b.py",sha256=def,1\nx-1.dist-info/RECORD,,\n'
    dropped = (
        "../../../bin/x,sha256=ghi,200\nx/__pycache__/__init__.cpython-311.pyc,,\n"
        "x-1.dist-info/direct_url.json,sha256=jkl,30\n"
    )
    entry = put(tmp_path, (kept + dropped).encode(), treat="record")
    assert contents.content(entry).data.decode() == f"{kept}../../../bin/x,,\n"


@pytest.mark.parametrize("data", [b"", b"\n\n", b"x\r\ny,,\r\n", b"caf\xe9.py,,\n", b'"open,,\n'])
def test_odd_record(tmp_path: Path, data: bytes) -> None:
    made = contents.content(put(tmp_path, data, treat="record"))
    assert made.relocation is None
    for word in (b"x", b"y", b"caf\xe9.py", b"open"):
        assert (word in data) == (word in made.data)


# -- what was built here -------------------------------------------------------------------------


def test_folders_of_this_machine(tmp_path: Path) -> None:
    entry = put(tmp_path, b"x = '/srv/py/lib'  # /srv/py\n", private=("/srv/py",))
    assert contents.content(entry) == (b"x = '/hepscale/py/lib'  # /hepscale/py\n", None)
    data = b"\0/home/me/pythons/3.11/lib\0/srv/py\0/s\0"
    entry = put(tmp_path, data, private=("/home/me/pythons/3.11", "/srv/py", "/none"))
    made = contents.content(entry).data
    # linkers let other strings share the end of one
    assert made == b"\0/hepscale////////3.11/lib\0/hep/py\0/s\0"
    assert len(made) == len(data)
    noted = dataclasses.replace(entry, sha256=sha(b"noted"), installed_ns=2**62)
    assert contents.digest(noted) == contents.digest(Entry(entry.target, data=made))


def test_interpreter_finds_its_libraries_and_runs(tmp_path: Path) -> None:
    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    entry = Entry("bin/python", base, treat="program", private=(sys.base_prefix,))
    data = contents.content(entry).data
    assert contents.is_executable(entry)
    copy = tmp_path / "python"
    copy.write_bytes(data)
    elf = native.read(copy)
    assert elf is not None
    assert elf.rpath == ("$ORIGIN/../lib",)
    assert contents.content(entry).data == data
