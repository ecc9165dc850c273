"""The cache of layers and environments on this machine, by content, shared between processes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hepscale.env import pack
from hepscale.env.contents import Relocation
from hepscale.errors import ConfigError, PackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hepscale.env.contents import Entry

__all__ = ["Layer", "LayerKind", "Pruned", "Store", "drop_damaged"]

log = logging.getLogger(__name__)

LayerKind = Literal["interpreter", "packages", "code"]
# nobody can be about to add a layer to an environment that was not used for so long
_SETTLED_S = 60.0
# what was known of files is found out again in seconds
_FORGOTTEN_S = 60 * 86400.0


@dataclass(frozen=True, slots=True)
class Layer:
    """An archive in the store.

    Attributes
    ----------
    kind
        What it holds.
    content
        Digest of the files in it: their names, modes and bytes.
    sha256
        Digest of the archive itself, which a worker compares.
    size_bytes, unpacked_bytes
        Of the archive and of its files.
    files
        Number of files.
    relocations
        What is to be filled in where it is unpacked.
    path
        The archive.
    """

    kind: LayerKind
    content: str
    sha256: str
    size_bytes: int
    unpacked_bytes: int
    files: int
    relocations: tuple[Relocation, ...]
    path: Path


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed from the store: number of environments and bytes.

    ``recent_bytes`` belong to no environment that is kept and stay: somebody may be about to make
    one of them.
    """

    environments: int
    size_bytes: int
    recent_bytes: int = 0


def drop_damaged(layers: Iterable[Layer]) -> tuple[Path, ...]:
    """Remove those archives that are not what they were; they are packed anew when needed."""
    dropped = []
    for layer in layers:
        with contextlib.suppress(OSError):
            with layer.path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != layer.sha256:
                log.warning("%s is damaged and is removed", layer.path)
                layer.path.unlink(missing_ok=True)
                dropped.append(layer.path)
    return tuple(dropped)


class Store:
    """Layers by content, environments by digest, and what was known of files by signature.

    Parameters
    ----------
    folder
        It is made when something is first put there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # -- layers --------------------------------------------------------------------------------

    def layer(self, kind: LayerKind, content: str) -> Layer | None:
        """Return a layer that is there, or None."""
        about = self._about(kind, content)
        found = _load(about)
        try:
            path = self.folder / "layers" / found["name"]
            if path.stat().st_size != found["size_bytes"]:
                return None
            relocations = tuple(Relocation(*one) for one in found["relocations"])
            # not the archive: who sends it on takes one with another time for another one
            with contextlib.suppress(OSError):
                os.utime(about)
            return Layer(
                kind,
                content,
                found["sha256"],
                found["size_bytes"],
                found["unpacked_bytes"],
                found["files"],
                relocations,
                path,
            )
        except (KeyError, TypeError, OSError):
            return None

    def make(
        self,
        kind: LayerKind,
        content: str,
        entries: Iterable[Entry],
        form: str,
        tell: Callable[[int], None] = lambda _: None,
    ) -> Layer:
        """Return the layer with this content, packing `entries` if it is not there yet.

        Raises
        ------
        PackError
            A file cannot be read, or the store cannot be written.
        """
        with self.lock(f"{kind}-{content}"):
            found = self.layer(kind, content)
            if found is not None:
                return found
            path = self.folder / "layers" / f"{kind}-{content}.{form}"
            written = pack.write_layer(f"{kind}-{content[:12]}", entries, path, form, tell)
            self._save(self._about(kind, content), {"name": path.name, **asdict(written)})
        made = self.layer(kind, content)
        if made is None:
            raise self._unwritable(OSError("the layer was removed at once"))
        return made

    def _about(self, kind: str, content: str) -> Path:
        return self.folder / "layers" / f"{kind}-{content}.json"

    # -- what files were when they were last read ------------------------------------------------

    def recall(self, signature: str) -> Any:
        """Return what was remembered under a signature, or None."""
        return _load(self.folder / "seen" / f"{signature}.json").get("value")

    def remember(self, signature: str, value: Any) -> None:
        """Keep a JSON value under a signature."""
        self._save(self.folder / "seen" / f"{signature}.json", {"value": value})

    # -- environments --------------------------------------------------------------------------

    def add(self, digest: str, record: dict[str, Any]) -> None:
        """Keep the record of an environment, a JSON object."""
        self._save(self.folder / "environments" / f"{digest}.json", record)

    def environments(self) -> list[tuple[str, float, dict[str, Any]]]:
        """Return digest, time of last use and record of each environment, the latest first."""
        found = []
        for path in (self.folder / "environments").glob("*.json"):
            with contextlib.suppress(OSError):
                record = _load(path)
                if record:
                    found.append((path.stem, path.stat().st_mtime, record))
        return sorted(found, key=lambda one: (-one[1], one[0]))

    def environment(self, begin: str) -> dict[str, Any]:
        """Return the record of the environment whose digest begins like this.

        Raises
        ------
        ConfigError
            There is none, or there are several.
        """
        digests = [digest for digest, _, _ in self.environments() if digest.startswith(begin)]
        if len(digests) != 1:
            raise ConfigError(
                f"{'No' if not digests else 'More than one'} environment begins with {begin!r}.",
                items=digests,
                cause="more letters of it are needed"
                if digests
                else "it was pruned, the name is mistyped, or it is a file without a suffix",
                fix="hepscale env list",
            )
        return _load(self.folder / "environments" / f"{digests[0]}.json")

    def prune(self, keep: int, unpacked: Path | None = None) -> Pruned:
        """Remove all environments but the `keep` that were used last.

        Parameters
        ----------
        keep
            Number of environments.
        unpacked
            Folder where this machine's workers have unpacked environments; one that a worker
            uses stays.
        """
        kept: set[str] = set()
        freed = removed = recent = 0
        for at, (digest, _, record) in enumerate(self.environments()):
            if at < keep:
                kept.add(digest)
                kept.update(f"{one['kind']}-{one['content']}" for one in record["layers"])
            else:
                freed += _remove(self.folder / "environments" / f"{digest}.json")
                removed += 1
        # also what a killed process has begun, whose name begins with a dot
        for path in (self.folder / "layers").glob("*"):
            about = path.with_name(f"{path.name.partition('.')[0]}.json")
            used = about if about.exists() else path
            if path.name.partition(".")[0] in kept:
                continue
            if _age_s(used) > _SETTLED_S:
                freed += _remove(path)
            else:
                recent += path.stat().st_size
        for path in (self.folder / name for name in ("seen", "locks")):
            for one in path.glob("*"):
                if not kept or _age_s(one) > _FORGOTTEN_S:
                    freed += _remove(one)
        for path in unpacked.glob("[!.]*") if unpacked is not None else ():
            if path.name not in kept and _is_free(path):
                freed += _remove(path)
        return Pruned(removed, freed, recent)

    # -- files ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Keep other processes from doing the same thing; the kernel ends it with ours."""
        path = self.folder / "locks" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            # a file system without locks: what is written twice is the same
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _save(self, path: Path, value: dict[str, Any]) -> None:
        begun: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=path.parent, prefix=".", delete=False
            ) as stream:
                begun = Path(stream.name)
                json.dump(value, stream)
            begun = begun.replace(path)
        except OSError as error:
            if begun is not None:
                begun.unlink(missing_ok=True)
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> PackError:
        return PackError(
            f"The store of environments cannot be written: {error.strerror or error}.",
            items=[str(self.folder)],
            cause="the folder is read-only or its disk is full",
            fix="hepscale env prune, or export HEPSCALE_CACHE_DIR=<a folder with more room>",
        )


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _age_s(path: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0


def _is_free(path: Path) -> bool:
    """Return whether no worker uses an unpacked environment, and make it one that none will."""
    mark = path / ".hepscale-ready"
    with contextlib.suppress(OSError), mark.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # without its mark nobody takes what is left for whole
        mark.unlink()
    return not mark.exists()


def _remove(path: Path) -> int:
    """Remove a file or a folder; return its size in bytes."""
    size = 0
    for one in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            size += one.lstat().st_size
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
    return size
