"""Archives of layers and of whole environments: the same content gives the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import sys
import tarfile
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from conda_pack.core import Packer
from conda_pack.formats import ParallelGzipFileWriter

from hepscale.env.contents import Content, content, is_executable
from hepscale.errors import ConfigError, PackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hepscale.env.contents import Entry, Relocation

__all__ = ["FORMATS", "OWN_FOLDER", "Written", "write_archive", "write_gzip", "write_layer", "zstd"]

FORMATS = ("tar.gz", "tar.zst")
# what HepScale itself puts below the prefix
OWN_FOLDER = "hepscale"

# 1980-01-01, the earliest time that every archive format knows
_MTIME_S = 315_532_800
_BLOCK_BYTES = 1 << 20
_GZIP_LEVEL = 4
# measured on the demo's environment: level 6 takes twice as long for 6 % less
_ZSTD_LEVEL = 3
# 128 MB: wheels hold the same library several times; more than a decoder takes by itself
_ZSTD_WINDOW_LOG = 27
# each has buffers of its own, and zstd refuses more than 256
_MOST_THREADS = 16


@dataclass(frozen=True, slots=True)
class Written:
    """An archive that was written.

    Attributes
    ----------
    sha256
        Of the archive's bytes, as hex digits.
    size_bytes, unpacked_bytes
        Of the archive and of the files in it.
    files
        Number of files.
    relocations
        What is to be filled in where it is unpacked.
    """

    sha256: str
    size_bytes: int
    unpacked_bytes: int
    files: int
    relocations: tuple[Relocation, ...]


class _Compressor(Protocol):
    def write(self, data: bytes, /) -> object: ...
    def close(self) -> object: ...


def write_layer(
    name: str,
    entries: Iterable[Entry],
    target: Path,
    form: str,
    tell: Callable[[int], None] = lambda _: None,
) -> Written:
    """Write the files of a layer, in the order of their names.

    Parameters
    ----------
    name
        Tells the list of relocations that the layer brings along from those of other layers.
    entries
        The files.
    target
        The archive; it is written under another name and renamed when it is whole.
    form
        "tar.gz" or "tar.zst".
    tell
        Is told how many bytes have been packed so far.

    Raises
    ------
    PackError
        A file cannot be read, or the archive cannot be written.
    """
    with _archive(target, form) as archive:
        relocations = _fill(archive, entries, tell)
        if relocations:
            listed = json.dumps(relocations, indent=0).encode()
            archive.add_bytes("", listed, f"{OWN_FOLDER}/relocate-{name}.json")
    return archive.written(relocations)


def write_archive(
    entries: Iterable[Entry],
    target: Path,
    form: str,
    tell: Callable[[int], None] = lambda _: None,
) -> Written:
    """Write a whole environment as one file, which conda-pack's tools take as one of theirs.

    ``bin/activate`` and ``bin/conda-unpack`` are conda-pack's own; see :func:`write_layer`.
    """
    with _archive(target, form) as archive:
        relocations = _fill(archive, entries, tell)
        packer = Packer("", archive)
        packer.prefixes = [tuple(one) for one in relocations]
        packer.finish()
    return archive.written(relocations)


def write_gzip(stream: IO[bytes], target: Path) -> None:
    """Write what `stream` holds, a tar file, as a ``.tar.gz``.

    Raises
    ------
    PackError
        It cannot be written.
    """
    with _writing(target) as file:
        out = _compressor(file, "tar.gz")
        try:
            shutil.copyfileobj(stream, out, _BLOCK_BYTES)
        finally:
            out.close()


def _fill(
    archive: _Tar, entries: Iterable[Entry], tell: Callable[[int], None]
) -> tuple[Relocation, ...]:
    relocations = []
    for entry in sorted(entries, key=lambda entry: entry.target):
        if entry.link:
            archive.add_link(entry.target, entry.link)
            continue
        packed: Content = content(entry)
        archive.add_bytes(entry.source, packed.data, entry.target, is_executable(entry))
        if packed.relocation is not None:
            relocations.append(packed.relocation)
        tell(archive.unpacked_bytes)
    return tuple(relocations)


class _Hashed:
    """A file that digests what is written to it.

    Compressors write from threads of their own, where an error would be lost: it is kept.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self._error: OSError | None = None
        self.size = 0

    def write(self, data: bytes) -> int:
        if self._error is None:
            try:
                self._stream.write(data)
            except OSError as error:
                self._error = error
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def check(self) -> None:
        """Raise the error that writing has ended with, if it has."""
        if self._error is not None:
            raise self._error

    def flush(self) -> None:
        self.check()
        self._stream.flush()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class _Tar:
    """A tar file without anything of the machine it is made on; conda-pack writes to it too."""

    def __init__(self, out: _Compressor, file: _Hashed) -> None:
        self._out = out
        self._file = file
        self.unpacked_bytes = 0
        self.files = 0

    def add(self, source: str, target: str) -> None:
        executable = bool(Path(source).stat().st_mode & 0o100)
        self.add_bytes(source, Path(source).read_bytes(), target, executable)

    def add_bytes(self, source: str, data: bytes, target: str, executable: bool = False) -> None:  # noqa: ARG002
        info = self._info(target, 0o755 if executable else 0o644)
        info.size = len(data)
        self._header(info)
        self._out.write(data)
        self._out.write(bytes(-len(data) % tarfile.BLOCKSIZE))
        self.unpacked_bytes += len(data)

    def add_link(self, target: str, to: str) -> None:
        info = self._info(target, 0o777)
        info.type, info.linkname = tarfile.SYMTYPE, to
        self._header(info)

    def end(self) -> None:
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))
        self._out.close()
        self._file.flush()

    def give_up(self) -> None:
        # its threads end only when it is told that no more comes
        with contextlib.suppress(Exception):
            self._out.close()

    def written(self, relocations: tuple[Relocation, ...]) -> Written:
        return Written(
            self._file.sha256, self._file.size, self.unpacked_bytes, self.files, relocations
        )

    def _info(self, target: str, mode: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(target)
        info.mode, info.mtime = mode, _MTIME_S
        return info

    def _header(self, info: tarfile.TarInfo) -> None:
        self._file.check()
        self._out.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        self.files += 1


@contextlib.contextmanager
def _archive(target: Path, form: str) -> Iterator[_Tar]:
    with _writing(target) as file:
        archive = _Tar(_compressor(file, form), file)
        try:
            yield archive
        except BaseException:
            archive.give_up()
            raise
        archive.end()


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[_Hashed]:
    """Write a file under another name, and give it its own when it is whole."""
    begun: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=f".{target.name}.", delete=False
        ) as stream:
            begun = Path(stream.name)
            yield _Hashed(stream)
            stream.flush()
            os.fsync(stream.fileno())
        begun.chmod(0o644)
        begun.replace(target)
        begun = None
    except OSError as error:
        raise PackError(
            f"The archive cannot be written: {error.strerror or error}.",
            items=[str(target)],
            cause="its folder is missing or read-only, or the disk is full",
            fix=f"df -h {target.parent}",
        ) from error
    finally:
        if begun is not None:
            begun.unlink(missing_ok=True)


def _compressor(file: _Hashed, form: str) -> _Compressor:
    threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    if form == "tar.gz":
        return _Gzip(file, threads)
    if form == "tar.zst":
        return _Zstd(file, threads)
    raise ConfigError(
        f"There is no format {form!r}.",
        cause=f"known are: {', '.join(FORMATS)}",
        fix="hepscale env pack --format tar.gz ...",
    )


def zstd() -> Any:
    """Return the module that reads and writes zstd."""
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return importlib.import_module(name)


class _Gzip(ParallelGzipFileWriter):  # type: ignore[misc]
    """conda-pack's, in which whole environments do not wait in memory to be compressed."""

    def __init__(self, file: _Hashed, threads: int) -> None:
        # of blocks: before its threads start
        self._room = threading.Semaphore(4 * threads)
        super().__init__(file, _GZIP_LEVEL, threads, mtime=0)

    def write(self, data: bytes, /) -> None:
        for begin in range(0, len(data), _BLOCK_BYTES):
            piece = data[begin : begin + _BLOCK_BYTES]
            if self.buffer_length + len(piece) > self._block_size:
                self._room.acquire()
            super().write(piece)

    def _compress(self, in_bufs: list[bytes]) -> list[bytes]:
        try:
            result: list[bytes] = super()._compress(in_bufs)
            return result
        finally:
            self._room.release()


class _Zstd:
    def __init__(self, file: _Hashed, threads: int) -> None:
        module = zstd()
        option = module.CompressionParameter
        self._file = file
        # with at least one worker the result does not depend on how many there are
        self._compressor = module.ZstdCompressor(
            options={
                option.compression_level: _ZSTD_LEVEL,
                option.nb_workers: threads,
                option.enable_long_distance_matching: 1,
                option.window_log: _ZSTD_WINDOW_LOG,
                option.checksum_flag: 1,
            }
        )

    def write(self, data: bytes, /) -> None:
        # large pieces one by one, so that the memory that waits for its turn stays small
        for begin in range(0, len(data), _BLOCK_BYTES):
            packed = self._compressor.compress(data[begin : begin + _BLOCK_BYTES])
            if packed:
                self._file.write(packed)

    def close(self) -> None:
        self._file.write(self._compressor.flush())
