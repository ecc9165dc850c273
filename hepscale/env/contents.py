"""What stands in a pack, file by file: the same bytes wherever and whenever they were installed.

Most files are packed as they are. Those that an installer wrote for one place (scripts, what conda
fills a prefix into, the interpreter itself) are made neutral first, and what has to be filled in
again where the pack is unpacked is noted as a relocation.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from conda_pack.core import PREFIX_PLACEHOLDER, rewrite_conda_meta

from hepscale.env import native
from hepscale.errors import PackError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Content",
    "Entry",
    "Relocation",
    "Treatment",
    "content",
    "digest",
    "is_executable",
    "signature",
    "size_bytes",
]

Treatment = Literal["", "script", "record", "program", "text", "binary", "conda-meta"]

# how installers let a script find its Python: by its path, which may be too long or have a blank
_PYTHON = rb"/(python[\d.]*t?)"
_SHEBANG = re.compile(rb"\A#!\s*/\S*" + _PYTHON + rb"(?=\s)[ \t]*(.*?)\s*\n")
_SHELL = re.compile(
    rb"\A#!/bin/sh\n'''exec' \"?/[^\"\n]*" + _PYTHON + rb"\"? ?(.*) \"\$0\" \"\$@\"(?:\n' | #)'''\n"
)
# a token, a user and a password in the address of a channel
_CREDENTIALS = re.compile(r"(?<=://)[^/@]+@|/t/[^/]+(?=/)")


# goes up when the same file is treated in another way than before
_TREATED_AS = b"1"


class Relocation(NamedTuple):
    """In the file `target` the text `placeholder` stands for the prefix; `mode` as conda's."""

    target: str
    placeholder: str
    mode: Literal["text", "binary"]


class Content(NamedTuple):
    """The bytes of a file of a pack, and what is to be filled in there, if anything."""

    data: bytes
    relocation: Relocation | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a pack.

    Attributes
    ----------
    target
        Its path below the prefix, with ``/``.
    source
        The file that it is made from, or the link; empty where `link` or `data` says it all.
    sha256, recorded_bytes, installed_ns
        What an installer noted of the source, its digest as hex digits and its size (0: it did
        not), and when: trusted as long as the source has that size and is not younger.
    treat
        What is done to the source's bytes: nothing; "script" (a shebang that finds its interpreter
        by PATH), "record" (a wheel's RECORD without what installing added), "program" (it finds
        its libraries in ``lib/``), "text" and "binary" (conda's kinds of files that hold the
        prefix), "conda-meta" (conda's record of a package, without where it came from).
    prefix
        The place that `treat` looks for.
    placeholder
        What conda had in its stead.
    private
        Folders of this machine that the file names because it was built there, to no use.
    relink
        Whether it is a library that would not look for others in ``lib/``; see
        :func:`hepscale.env.native.rpath_patches`.
    link
        A symbolic link to this.
    data
        The content of a file that was made up.
    executable
        Whether `data` is a program; that of a source is read from its mode.
    """

    target: str
    source: str = ""
    sha256: str = ""
    recorded_bytes: int = 0
    installed_ns: int = 0
    treat: Treatment = ""
    prefix: str = ""
    placeholder: str = ""
    private: tuple[str, ...] = ()
    relink: bool = False
    link: str = ""
    data: bytes = b""
    executable: bool = False


def signature(entries: Iterable[Entry]) -> str:
    """Return what changes when any of these files may have changed, without reading them.

    Returns
    -------
    str
        64 hex digits, from the files' names, sizes, modes and times: of this machine only.

    Raises
    ------
    PackError
        A file is not there any more.
    """
    total = hashlib.sha256(_TREATED_AS)
    for entry in entries:
        seen = ""
        if entry.source and not entry.link:
            found = _stat(entry.source)
            seen = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_mode}"
        line = (
            f"{entry.target}\0{entry.source}\0{seen}\0{entry.treat}\0{entry.prefix}\0"
            f"{entry.placeholder}\0{entry.private}\0{entry.relink}\0{entry.link}\0{entry.executable}\n"
        )
        total.update(line.encode("utf-8", "surrogateescape"))
        total.update(entry.data)
    return total.hexdigest()


def digest(entry: Entry) -> str:
    """Return what identifies a file of a pack: its name, its kind and its bytes, as 64 hex digits.

    Raises
    ------
    PackError
        The source cannot be read.
    """
    mode, code = "f", entry.sha256
    if entry.link:
        mode, code = "l", entry.link
    elif not entry.source or _is_changed(entry) or not code or _edited(entry):
        code = _hash(entry)
    if is_executable(entry):
        mode = "x"
    line = f"{entry.target}\0{mode}\0{code}\n"
    return hashlib.sha256(line.encode("utf-8", "surrogateescape")).hexdigest()


def is_executable(entry: Entry) -> bool:
    """Return whether the file is a program."""
    if entry.link or not entry.source:
        return entry.executable
    return bool(_stat(entry.source).st_mode & 0o100)


def size_bytes(entry: Entry) -> int:
    """Return how many bytes a file has before it is treated."""
    if entry.link or not entry.source:
        return len(entry.data)
    return _stat(entry.source).st_size


def content(entry: Entry) -> Content:
    """Return the bytes that are packed.

    Raises
    ------
    PackError
        The source cannot be read.
    """
    if not entry.source:
        return Content(entry.data)
    data = _read(entry.source)
    if entry.treat == "record":
        return Content(_without_installation(data))
    if entry.treat == "conda-meta":
        return Content(_without_place(entry.source))
    if entry.relink:
        data = _relinked(entry, data)
    if entry.treat == "program":
        data = _with_rpath(data)
    for place in entry.private:
        data = _neutral(data, place)
    if entry.treat == "text" or (entry.treat == "script" and entry.target.startswith("bin/")):
        data = _found_by_path(data, entry.prefix)
    if not entry.prefix or entry.prefix.encode() not in data:
        return Content(data)
    placeholder = entry.placeholder or PREFIX_PLACEHOLDER
    if entry.treat == "binary":
        return _binary(entry, data, placeholder)
    if b"\0" in data:
        # nobody said that this program could be moved: it stays as it was built
        return Content(data)
    data = data.replace(entry.prefix.encode(), placeholder.encode())
    return Content(data, Relocation(entry.target, placeholder, "text"))


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise _gone(path, error) from error


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _gone(path, error) from error


def _gone(path: str, error: OSError) -> PackError:
    return PackError(
        f"A file that is to be packed cannot be read: {error.strerror or error}.",
        items=[path],
        cause="it was removed or updated meanwhile, or its permissions changed",
        fix="pip check, then pack again",
    )


def _is_changed(entry: Entry) -> bool:
    """Return whether other bytes are packed than the source has."""
    return bool(entry.treat or entry.relink or entry.private)


def _edited(entry: Entry) -> bool:
    found = _stat(entry.source)
    same = entry.recorded_bytes in {0, found.st_size}
    return not same or found.st_mtime_ns > entry.installed_ns


def _hash(entry: Entry) -> str:
    if entry.source and not _is_changed(entry):
        try:
            with open(entry.source, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise _gone(entry.source, error) from error
    return hashlib.sha256(content(entry).data).hexdigest()


def _without_installation(data: bytes) -> bytes:
    """Return a RECORD without bytecode, and without the digests of what is rewritten."""
    text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    for row in csv.reader(text):
        if not row or "__pycache__/" in row[0] or row[0].endswith("/direct_url.json"):
            continue
        writer.writerow([row[0], "", ""] if row[0].startswith("..") else row)
    return out.getvalue().encode("utf-8", "surrogateescape")


def _without_place(source: str) -> bytes:
    """Return a record of conda without where the package came from and how it was put there."""
    _, record = rewrite_conda_meta(source)
    for name in ("link", "indexed_timestamp", "requested_spec", "requested_specs"):
        record.pop(name, None)
    for name in ("url", "channel"):
        place = str(record.get(name) or "")
        record[name] = "" if place.startswith(("file:", "/")) else _CREDENTIALS.sub("", place)
    paths = record.get("paths_data", {}).get("paths", ())
    for path in paths:
        made_here = path.get("path_type") not in {"hardlink", "softlink"}
        path.pop("sha256_in_prefix", None)
        if made_here or path.get("prefix_placeholder"):
            path.pop("size_in_bytes", None)
        if made_here:
            path.pop("sha256", None)
    return json.dumps(record, indent=1, sort_keys=True).encode()


def _relinked(entry: Entry, data: bytes) -> bytes:
    changed = bytearray(data)
    for at, patch in native.rpath_patches(entry.source):
        changed[at : at + len(patch)] = patch
    return bytes(changed)


def _with_rpath(data: bytes) -> bytes:
    with tempfile.TemporaryDirectory(prefix="hepscale-") as folder:
        copy = Path(folder) / "program"
        copy.write_bytes(data)
        native.set_rpath(copy)
        return copy.read_bytes()


def _neutral(data: bytes, place: str) -> bytes:
    """Replace a folder by one that says nothing; in a program by one of the same length.

    The last part stays: linkers let other strings, the version say, share the end of this one.
    """
    found = os.fsencode(place)
    above, slash, last = found.rpartition(b"/")
    other = b"/hepscale"
    if b"\0" in data:
        other = other.ljust(len(above), b"/")[: len(above)]
    return data.replace(found, other + slash + last)


def _found_by_path(data: bytes, prefix: str) -> bytes:
    """Let a script find its interpreter by PATH."""

    def by_path(match: re.Match[bytes]) -> bytes:
        name, options = match.groups()
        return b"#!/usr/bin/env " + (b"-S %b %b" % (name, options) if options else name) + b"\n"

    shebangs = [_SHEBANG, _SHELL]
    if prefix:
        within = re.escape(os.fsencode(prefix)) + rb"/bin/([^\s/]+)[ \t]*(.*?)\s*\n"
        shebangs.append(re.compile(rb"\A#!\s*" + within))
    for shebang in shebangs:
        data = shebang.sub(by_path, data)
    return data


def _binary(entry: Entry, data: bytes, placeholder: str) -> Content:
    """Undo what an installer did: put the placeholder back where the prefix and padding stand."""
    found, other = entry.prefix.encode(), placeholder.encode()
    room = len(other) - len(found)

    def replace(match: re.Match[bytes]) -> bytes:
        text = match.group(1)
        padding = room * text.count(found)
        if padding < 0 or len(match.group(2)) <= padding:
            return match.group()
        return text.replace(found, other) + match.group(2)[padding:]

    restored = re.sub(rb"(" + re.escape(found) + rb"[^\0]*)(\0+)", replace, data)
    return Content(restored, Relocation(entry.target, placeholder, "binary"))
