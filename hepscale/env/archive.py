"""Environments that come as one file, HepScale's own or anybody's conda-pack archive."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import tarfile
import zlib
from typing import IO, TYPE_CHECKING, Any

from hepscale.env import contents, pack
from hepscale.env.environment import Environment
from hepscale.env.spec import Item, Spec
from hepscale.env.store import Layer
from hepscale.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from hepscale.env.store import Store

__all__ = ["is_archive", "spec", "take", "verify"]

_SUFFIXES = (".tar.gz", ".tgz", ".tar.zst")
_BLOCK_BYTES = 1 << 20
_DAMAGE = (OSError, EOFError, zlib.error)
_OWN = f"{pack.OWN_FOLDER}/environment.json"
_CONDA = re.compile(r"conda-meta/([^/]+)-([^-/]+)-[^-/]+\.json")
_WHEEL = re.compile(r".*-packages/([^/]+)-([^-/]+)\.(?:dist|egg)-info/(?:METADATA|PKG-INFO)")


def is_archive(what: str) -> bool:
    """Return whether this is the name of an archive."""
    return what.endswith(_SUFFIXES)


def take(path: Path, store: Store) -> Environment:
    """Return the environment that an archive holds.

    Raises
    ------
    InputError
        There is no such file, or it is no packed environment.
    """
    path = _existing(path)
    key = contents.signature([contents.Entry("archive", str(path))])
    known = store.recall(key)
    if known is None:
        known = {"sha256": _digest(path), "spec": spec(path).as_json()}
        store.remember(key, known)
    found = Spec.from_json(known["spec"])
    original = sha256 = known["sha256"]
    if path.name.endswith(".zst"):
        path, sha256 = _as_gzip(path, original, store)
    size = path.stat().st_size
    layer = Layer("interpreter", sha256, sha256, size, 0, 0, (), path)
    # so that what workers unpack of it stays as long as the environments that were used then
    listed = [{"kind": "archive", "content": original, "size_bytes": size}]
    store.add(sha256, {"closure": "archive", "spec": known["spec"], "layers": listed})
    return Environment(sha256, found.python, found.glibc, found.machine, (layer,), whole=True)


def spec(path: Path) -> Spec:
    """Return what an archive holds: from its own description, or from the packages' metadata.

    Raises
    ------
    InputError
        There is no such file, or it is no packed environment.
    """
    items: dict[str, Item] = {}
    path = _existing(path)
    try:
        with (
            path.open("rb") as file,
            _opened(path, file) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            for member in archive:
                name = member.name.removeprefix("./")
                if name == _OWN:
                    content = archive.extractfile(member)
                    assert content is not None
                    return Spec.from_json(json.load(content))
                found = _CONDA.fullmatch(name) or _WHEEL.fullmatch(name)
                if found:
                    items[found[1].lower().replace("_", "-")] = Item(found[2])
    except (*_DAMAGE, pack.zstd().ZstdError, tarfile.TarError, ValueError) as error:
        raise _no_environment(path, str(error)) from error
    if "python" not in items:
        raise _no_environment(path, "it holds no Python")
    return Spec(items["python"].version, distributions=items)


def verify(path: Path) -> None:
    """Read a whole ``.tar.gz``: its description stands at its beginning.

    Raises
    ------
    InputError
        It is damaged.
    """
    try:
        with gzip.open(path) as stream:
            while stream.read(_BLOCK_BYTES):
                pass
    except _DAMAGE as error:
        raise InputError(
            "The archive is damaged.",
            items=[f"{path}: {error}"],
            cause="it was cut short or changed while it was written or copied",
            fix=f"copy it again, or make it again: hepscale env pack analysis.ipynb -o {path}",
        ) from error


def _existing(path: Path) -> Path:
    path = path.absolute()
    if not path.is_file():
        raise InputError(
            "There is no such archive.",
            items=[str(path)],
            cause="the name is misspelt, or it is in another folder",
            fix=f"ls {path.parent}",
        )
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _as_gzip(path: Path, sha256: str, store: Store) -> tuple[Path, str]:
    """Return the archive as a ``.tar.gz``, which a worker without Python can unpack."""
    target = store.folder / "layers" / f"archive-{sha256}.tar.gz"
    known = store.recall(target.stem)
    if known is None or not target.exists() or target.stat().st_size != known["size_bytes"]:
        try:
            with path.open("rb") as file, _opened(path, file) as stream:
                pack.write_gzip(stream, target)
        except (*_DAMAGE, pack.zstd().ZstdError) as error:
            raise _no_environment(path, str(error)) from error
        known = {"sha256": _digest(target), "size_bytes": target.stat().st_size}
        store.remember(target.stem, known)
    return target, known["sha256"]


def _opened(path: Path, file: IO[bytes]) -> Any:
    return pack.zstd().open(file) if path.name.endswith(".zst") else gzip.open(file)


def _no_environment(path: Path, why: str) -> InputError:
    return InputError(
        "This is no packed environment.",
        items=[f"{path}: {why}"],
        cause="it is another archive, or was cut short",
        fix="hepscale env pack analysis.ipynb -o env.tar.gz",
    )
