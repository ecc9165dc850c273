"""One folder of objects, in the layout of CVMFS's alien cache.

``00`` to ``ff`` hold the objects, decompressed; ``txn`` what is being written; ``quarantaine`` is
the original's. What is HepScale's own is in ``.hepscale``: digests of the objects, a file to lock,
what is needed offline, and how much there is. Any number of processes and threads use a folder at
once: an object is complete when it has its name, and one of them fetches it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from typing import TYPE_CHECKING

from . import RepositoryError
from .digests import Digests, Plain, is_told, plain_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .names import Name

__all__ = ["DIGESTS", "DamagedObject", "Store", "folders"]

_OURS = ".hepscale"
DIGESTS = f"{_OURS}/digests"
_FLOCK = struct.Struct("hhqqi4x")
# what is locked besides objects, above their places in the file
_QUOTA, _DIGESTS = 1 << 62, (1 << 62) + 1
_STALE_S = 60.0
_TOUCHED_S = 600.0
_PATIENCE_S = 120.0
_LEFT_AFTER_CLEANING = 0.75
_BLOCK_BYTES = 4096
_SIZE_DIGITS = 20


class DamagedObject(Exception):
    """The bytes of an object are not those that were stored."""


def folders() -> list[str]:
    """Return the names of the folders that hold objects."""
    return [f"{first:02x}" for first in range(256)]


class Store:
    """A folder of objects.

    Parameters
    ----------
    folder
        Made if need be.
    is_alien
        It is a site's: open to a group, never cleaned, perhaps read-only. Else it is this user's,
        and nobody else may look into it.
    quota_bytes
        How much it may hold; then the least recently used objects are removed.

    Raises
    ------
    RepositoryError
        If it cannot be made, or is not private though it has to be.
    """

    def __init__(self, folder: str, *, is_alien: bool, quota_bytes: int | None = None) -> None:
        self.folder = folder
        self.is_alien = is_alien
        self._quota_bytes = quota_bytes
        self._folder_mode, self._mode = (0o770, 0o660) if is_alien else (0o700, 0o600)
        self._owner = None if is_alien else os.geteuid()
        self._digests = Digests(self._path(DIGESTS), self._mode, self._owner)
        # which file was looked at, of objects that were used before
        self._verified: dict[bytes, int] = {}
        self.is_writable = self._make()
        if self.is_writable:
            self._sweep()

    # -- objects -----------------------------------------------------------------------------------

    def has(self, name: Name) -> bool:
        """Return whether an object is here, be it damaged or not."""
        return os.path.exists(self._path(name.cached))

    def find(self, name: Name) -> int | None:
        """Return a descriptor of an object, None if it is not here.

        Raises
        ------
        DamagedObject
            If it is not what was stored; in a folder of our own it is removed.
        """
        path = self._path(name.cached)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        try:
            if self._is_good(name, descriptor):
                return descriptor
            if not self.is_alien:
                self._drop(path, descriptor)
            raise DamagedObject(path)
        except BaseException:
            os.close(descriptor)
            raise

    def _is_good(self, name: Name, descriptor: int) -> bool:
        status = os.fstat(descriptor)
        # the folder may have been taken away since it was made, and made again by somebody else
        if self._owner not in (None, status.st_uid):
            return False
        if not self.is_alien and time.time() - status.st_atime > _TOUCHED_S:
            # no file system is trusted to do this by itself
            with contextlib.suppress(OSError):
                os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
        seen = _identity(status)
        if self._verified.get(name.digest) == seen:
            return True
        try:
            if not self._is_verified(name, descriptor, status.st_size):
                return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # the disk cannot read it
            return False
        self._verified[name.digest] = seen
        return True

    def _is_verified(self, name: Name, descriptor: int, size: int) -> bool:
        kept = self._digests.of(name)
        if kept is not None:
            return kept.size == size and kept == plain_of(descriptor)
        if self.is_alien:
            # a site's cache, filled by the original, is trusted as the original trusts it
            return True
        # copied into ours, or left by a machine that lost power
        if not is_told(descriptor, name):
            return False
        self._keep(name, plain_of(descriptor))
        return True

    def _drop(self, path: str, descriptor: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                os.unlink(path)

    def temporary(self) -> tuple[int, str]:
        """Return a new file in ``txn``, open for reading and writing, and its path."""
        self._make_folder("txn")
        path = self._path(f"txn/hepscale.{os.urandom(8).hex()}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, self._mode)
        with contextlib.suppress(OSError):
            # held until it is closed: it is not swept meanwhile
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(descriptor, self._mode)
        return descriptor, path

    def publish(self, name: Name, path: str, plain: Plain) -> int:
        """Give a complete temporary file its name; return a descriptor of it."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._make_room(plain.size)
            self._make_folder(name.cached[:2])
            self._keep(name, plain, path)
        except BaseException:
            os.close(descriptor)
            raise
        self._verified[name.digest] = _identity(os.fstat(descriptor))
        return descriptor

    def _keep(self, name: Name, plain: Plain, path: str | None = None) -> None:
        """Keep the digest of an object, and give it its name: cleaning sees both or neither."""
        self._make_folder(DIGESTS)
        with self._locked(_DIGESTS, shared=True):
            self._digests.add(name, plain)
            if path is not None:
                os.rename(path, self._path(name.cached))

    def fits(self, size: int) -> bool:
        """Return whether an object of this size may be stored at all."""
        return self._quota_bytes is None or size <= self._quota_bytes

    # -- small files -------------------------------------------------------------------------------

    def read(self, path: str) -> bytes | None:
        """Return a small file, None if there is none; `path` is below the folder."""
        try:
            with open(self._path(path), "rb") as stream:
                return stream.read()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None

    def write(self, path: str, data: bytes) -> None:
        """Write or replace a small file."""
        descriptor, new = self.temporary()
        try:
            with open(descriptor, "wb") as stream:
                stream.write(data)
            if os.path.dirname(path):
                self._make_folder(os.path.dirname(path))
            os.rename(new, self._path(path))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    # -- the folder --------------------------------------------------------------------------------

    def _path(self, below: str) -> str:
        return f"{self.folder}/{below}"

    def _make(self) -> bool:
        """Make what is missing; return whether the folder can be written."""
        try:
            if not os.path.isdir(self.folder):
                os.makedirs(os.path.dirname(self.folder) or ".", exist_ok=True)
                self._make_folder("")
            if not self.is_alien:
                self._check_private()
            for name in [*folders(), "txn", "quarantaine", _OURS, DIGESTS]:
                self._make_folder(name)
            return os.access(self._path("txn"), os.W_OK | os.X_OK)
        except OSError as error:
            if self.is_alien and os.path.isdir(self.folder) and error.errno in _READ_ONLY:
                return False
            fact = "A cache for CVMFS cannot be made."
            fix = f"ls -ld '{self.folder}', then choose another folder"
            raise RepositoryError(fact, self.folder, str(error), fix) from None

    def _make_folder(self, below: str) -> None:
        path = self._path(below)
        try:
            os.mkdir(path, self._folder_mode)
        except FileExistsError:
            return
        # whatever the umask is; what the folder above passes on is kept
        os.chmod(path, os.stat(path).st_mode & 0o7000 | self._folder_mode)

    def _check_private(self) -> None:
        status = os.stat(self.folder)
        # the link, if it is one, as well
        others = {status.st_uid, os.lstat(self.folder).st_uid} - {os.geteuid()}
        if others:
            cause = f"it belongs to the user {others.pop()}, who could change the software in it"
        elif status.st_mode & 0o077:
            cause = f"others may open it (mode {status.st_mode & 0o7777:04o})"
        else:
            return
        fact = "The folder is not fit for a cache of CVMFS."
        fix = f"chmod 700 '{self.folder}', or choose another folder"
        raise RepositoryError(fact, self.folder, cause, fix)

    def _sweep(self) -> None:
        """Remove what writers left in ``txn`` that were killed."""
        with contextlib.suppress(OSError), os.scandir(self._path("txn")) as entries:
            for entry in entries:
                if entry.name.startswith("hepscale."):
                    with contextlib.suppress(OSError):
                        _remove_unless_held(entry.path)

    # -- locks -------------------------------------------------------------------------------------

    def alone(self, name: Name) -> contextlib.AbstractContextManager[bool]:
        """Be the only one who fetches an object; the block is told whether it had to wait."""
        return self._locked(int.from_bytes(name.digest[:8], "big") >> 2)

    @contextlib.contextmanager
    def _locked(self, place: int, *, shared: bool = False) -> Iterator[bool]:
        """Lock one byte of one file that need not be there: no lock leaves anything behind."""
        path, flags = self._path(f"{_OURS}/lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, self._mode)
        except FileNotFoundError:
            # what cleans /tmp has been here
            self._make()
            descriptor = os.open(path, flags, self._mode)
        try:
            if self.is_alien:
                with contextlib.suppress(PermissionError):
                    os.fchmod(descriptor, self._mode)
            yield _lock(descriptor, place, fcntl.F_RDLCK if shared else fcntl.F_WRLCK)
        finally:
            os.close(descriptor)

    # -- quota -------------------------------------------------------------------------------------

    def _make_room(self, size: int) -> None:
        if self._quota_bytes is None:
            return
        with self._locked(_QUOTA):
            path, flags = self._path(f"{_OURS}/size"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(path, flags, self._mode)
            try:
                said = os.pread(descriptor, _SIZE_DIGITS + 1, 0)
                is_known = len(said) == _SIZE_DIGITS and said.isdigit()
                total = int(said) if is_known else self._clean(size)
                total += _on_disk(size)
                if total > self._quota_bytes:
                    total = self._clean(size) + _on_disk(size)
                # in its place: to replace a file for each object would take longer than the rest
                os.pwrite(descriptor, b"%0*d" % (_SIZE_DIGITS, total), 0)
            finally:
                os.close(descriptor)

    def _clean(self, size: int) -> int:
        """Remove what was not used for longest if need be; return how many bytes there are."""
        assert self._quota_bytes is not None
        found = []
        for first in folders():
            with contextlib.suppress(FileNotFoundError), os.scandir(self._path(first)) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        found.append((status.st_atime, _on_disk(status.st_size), entry.path))
        total = sum(one for _, one, _ in found)
        if total + _on_disk(size) <= self._quota_bytes:
            return total
        goal = max(0, _LEFT_AFTER_CLEANING * self._quota_bytes - _on_disk(size))
        touched = set()
        for _, one, path in sorted(found):
            if total <= goal:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= one
            touched.add(os.path.basename(os.path.dirname(path)))
        with self._locked(_DIGESTS):
            for first in touched:
                self._digests.compact(first, set(os.listdir(self._path(first))))
        return total


_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def _identity(status: os.stat_result) -> int:
    return hash((status.st_ino, status.st_size, status.st_mtime_ns))


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


def _lock(descriptor: int, place: int, kind: int) -> bool:
    """Wait for a byte of an open file; return whether that took time.

    Not for ever: who holds it may have been stopped, as batch systems do. Without a lock objects
    stay whole, and some are fetched twice.
    """
    wanted = _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0)
    waited_s, pause_s = 0.0, 0.001
    while waited_s < _PATIENCE_S:
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                # a file system without locks
                return False
        else:
            return waited_s > 0
        time.sleep(pause_s)
        waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, 0.02)
    return True


def _remove_unless_held(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if time.time() - os.fstat(descriptor).st_mtime > _STALE_S:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
    finally:
        os.close(descriptor)
