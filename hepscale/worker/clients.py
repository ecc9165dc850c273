"""The client of CVMFS that a machine has: ``cvmfs2``, or that which ``cvmfsexec`` brings along."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import shlex
import shutil
import subprocess
import time

from . import proc, syscalls
from .cvmfs import own_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "NONE",
    "PROGRAM",
    "PROGRAMS",
    "Client",
    "Refused",
    "find",
    "is_private",
    "write_blacklist",
    "write_keys",
]

PROGRAM, _DISTRIBUTION = PROGRAMS = ("cvmfs2", "cvmfsexec")
NONE = f"there is neither {PROGRAM} nor {_DISTRIBUTION} on the PATH of this machine"
_UNPACK_S, _MOUNTED_S = 120.0, 60.0
_LIBRARIES = ("usr/lib64", "usr/lib")
_MOST_SLOTS = 256
_MOST_FILES = 131072
_LEAST_QUOTA_MB = 100
# what its own default.conf says; without, the first of several proxies is never tried again
_DEFAULTS = {"CVMFS_PROXY_RESET_AFTER": 300, "CVMFS_HOST_RESET_AFTER": 1800}
# time and repository, before what it has to say
_STAMP = re.compile(r"^.*? \([^()]*\) ")
_SAID_LINES = 2
_OFFLINE = "offline mode"


class Refused(Exception):
    """The client has not mounted a repository; the argument is why."""


class Client:
    """A client of CVMFS.

    Parameters
    ----------
    program
        Its path.
    environ
        Variables that it needs to find its libraries.
    """

    def __init__(self, program: str, environ: dict[str, str]) -> None:
        self.program, self._environ = program, environ

    def mount(
        self, one: dict[str, Any], cvmfs: dict[str, Any], folder: str, target: str
    ) -> tuple[subprocess.Popen[bytes], str]:
        """Mount a repository; return the process that serves it, and what is to be said of it.

        Parameters
        ----------
        one
            What is told of the repository.
        cvmfs
            The settings of CVMFS, that of all repositories.
        folder
            For its files.
        target
            Where to mount it.

        Raises
        ------
        Refused
            It is not mounted.
        """
        folder = os.path.join(folder, f"{PROGRAM}-{one['name']}")
        log = f"{folder}/log"
        try:
            os.makedirs(f"{folder}/run", mode=0o700, exist_ok=True)
            before = os.stat(target).st_dev
            room, lock = _room(cvmfs, folder, one["name"])
            try:
                config = _write_configuration(one, cvmfs, folder, room)
                # the watchdog is a process of its own, and whoever ends it ends the client
                options = f"config={config},disable_watchdog"
                command = [self.program, "-f", "-o", options, one["name"], target]
                process = self._start(command, cvmfs["variables"], log, lock)
            finally:
                os.close(lock)
        except OSError as error:
            raise Refused(f"{error.filename or self.program}: {error.strerror}") from None
        end = time.monotonic() + _MOUNTED_S
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                if os.stat(target).st_dev != before:
                    return process, _offline(log)
            time.sleep(0.01)
        process.kill()
        code = process.wait()
        with contextlib.suppress(OSError):
            syscalls.unmount(target)
        raise Refused(_said(log) or f"{self.program}: exit code {code}")

    def _start(
        self, command: list[str], variables: dict[str, str], log: str, lock: int
    ) -> subprocess.Popen[bytes]:
        parent = os.getpid()
        with open(log, "ab") as output:
            output.truncate(0)
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # links that depend on variables take them from there; in the configuration those
                # that a site's client here was given would rule
                env={**_own_variables(), **variables, **self._environ},
                pass_fds=(lock,),
                preexec_fn=lambda: _begin(parent),
            )


def _own_variables() -> dict[str, str]:
    """Return the variables of this process, without libraries that are meant for tasks."""
    environ = dict(os.environ)
    folders = environ.pop("LD_LIBRARY_PATH", "").split(os.pathsep)
    kept = [one for one in folders if one and not one.startswith("/cvmfs/")]
    return {**environ, "LD_LIBRARY_PATH": os.pathsep.join(kept)} if kept else environ


def _begin(parent: int) -> None:
    proc.die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    # it mounts by itself, which who is not root may do here only
    syscalls.keep_privileges()


def find(folder: str) -> Client | None:
    """Return the client of this machine; None: it has none.

    Parameters
    ----------
    folder
        Where a ``cvmfsexec`` that is a single file may unpack itself.
    """
    program = shutil.which(PROGRAM)
    if program is not None:
        return Client(program, {})
    program = shutil.which(_DISTRIBUTION)
    if program is None:
        return None
    here = [os.path.dirname(one) for one in (program, os.path.realpath(program))]
    for top in here:
        if found := _within(f"{top}/dist") or _within(f"{top}/.{_DISTRIBUTION}/dist"):
            return found
    return _unpacked(os.path.realpath(program), folder)


def _within(top: str) -> Client | None:
    """Return the client in a distribution, as ``mountrepo`` starts it; None: there is none."""
    program = f"{top}/usr/bin/{PROGRAM}"
    if not os.access(program, os.X_OK):
        return None
    folders = (f"{top}/{name}" for name in _LIBRARIES)
    library = next((one for one in folders if os.path.isdir(one)), top)
    paths = f"{library}:{top}/{os.path.basename(library)}"
    return Client(program, {"LD_LIBRARY_PATH": paths, "CVMFS_LIBRARY_PATH": library})


def _unpacked(program: str, folder: str) -> Client | None:
    """Let a single file unpack itself, which it does beside where it is called from."""
    place = f"{folder}/{_DISTRIBUTION}"
    os.makedirs(place, mode=0o700, exist_ok=True)
    link = f"{place}/{_DISTRIBUTION}"
    with contextlib.suppress(FileExistsError):
        os.symlink(program, link)
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [link, "-v"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_UNPACK_S,
            check=False,
        )
    return _within(f"{place}/.{_DISTRIBUTION}/dist")


# -- its files -------------------------------------------------------------------------------------


def _room(cvmfs: dict[str, Any], folder: str, name: str) -> tuple[str, int]:
    """Return a folder for its cache, and what says that it is taken, to be inherited.

    A client waits for the end of another that has the same folder.
    """
    top = f"{own_folder(cvmfs)}/{PROGRAM}"
    if not is_private(top):
        top = folder
    for slot in range(_MOST_SLOTS):
        room = f"{top}/{slot}"
        os.makedirs(room, mode=0o700, exist_ok=True)
        lock = os.open(f"{room}/{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if not isinstance(error, BlockingIOError):
                # a file system without locks, which the client needs as well
                raise Refused(f"{room}: {error.strerror}") from None
        else:
            return room, lock
    raise Refused(f"{top}: {_MOST_SLOTS} clients use it")


def is_private(top: str) -> bool:
    """Make a folder for caches, which are believed; False: others may write there."""
    above = os.path.dirname(top)
    try:
        # one by one: the first is a folder of our own client too, which wants it to be private
        os.makedirs(above, mode=0o700, exist_ok=True)
        os.makedirs(top, mode=0o700, exist_ok=True)
        folders = [os.stat(above), os.stat(top)]
        # or it leads elsewhere tomorrow
        owners = {one.st_uid for one in (*folders, os.lstat(above), os.lstat(top))}
    except OSError:
        return False
    return owners == {os.geteuid()} and not any(one.st_mode & 0o022 for one in folders)


def _write_configuration(one: dict[str, Any], cvmfs: dict[str, Any], folder: str, room: str) -> str:
    """Write down for the client of CVMFS what is told to ours; return the file."""
    ttl_s = cvmfs["max_ttl_s"]
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    said = {
        **_DEFAULTS,
        "CVMFS_SERVER_URL": ";".join(one["servers"]),
        "CVMFS_PUBLIC_KEY": ":".join(write_keys(one, folder)),
        "CVMFS_BLACKLIST": write_blacklist(one, folder),
        "CVMFS_HTTP_PROXY": cvmfs["proxies"],
        "CVMFS_ROOT_HASH": one["root_hash"],
        "CVMFS_REPOSITORY_TAG": one["tag"],
        "CVMFS_CACHE_BASE": room,
        "CVMFS_SHARED_CACHE": "no",
        **_caches(cvmfs, room),
        "CVMFS_RELOAD_SOCKETS": f"{folder}/run",
        "CVMFS_USYSLOG": f"{folder}/log",
        "CVMFS_NFILES": _MOST_FILES if most < 0 else min(most, _MOST_FILES),
        "CVMFS_TIMEOUT": max(round(cvmfs["timeout_s"]), 1),
        "CVMFS_TIMEOUT_DIRECT": max(round(cvmfs["direct_timeout_s"]), 1),
        "CVMFS_MAX_RETRIES": cvmfs["retries"],
        "CVMFS_MAX_TTL": None if ttl_s is None else max(round(ttl_s / 60), 1),
        "CVMFS_CLAIM_OWNERSHIP": "yes",
    }
    given = {key: shlex.quote(str(value)) for key, value in said.items() if value is not None}
    return _write(f"{folder}/config", "".join(f"{key}={text}\n" for key, text in given.items()))


def _caches(cvmfs: dict[str, Any], room: str) -> dict[str, Any]:
    """Return what is said of caches: as with ours, a site's is filled if it can be written."""
    alien = cvmfs["alien_cache"] and os.path.expandvars(cvmfs["alien_cache"])
    quota_mb = cvmfs["quota_mb"]
    if quota_mb is None:
        quota_mb = -1
    else:
        # it has one for each repository
        quota_mb = max(quota_mb // len(cvmfs["repositories"]), _LEAST_QUOTA_MB)
    if alien and (os.access(alien, os.W_OK) or not os.path.isdir(alien)):
        return {"CVMFS_ALIEN_CACHE": alien, "CVMFS_QUOTA_LIMIT": -1}
    if not alien:
        return {"CVMFS_QUOTA_LIMIT": quota_mb}
    return {
        "CVMFS_CACHE_PRIMARY": "both",
        "CVMFS_CACHE_both_TYPE": "tiered",
        "CVMFS_CACHE_both_UPPER": "own",
        "CVMFS_CACHE_both_LOWER": "site",
        "CVMFS_CACHE_both_LOWER_READONLY": "yes",
        "CVMFS_CACHE_own_TYPE": "posix",
        "CVMFS_CACHE_own_BASE": room,
        "CVMFS_CACHE_own_SHARED": "no",
        "CVMFS_CACHE_own_QUOTA_LIMIT": quota_mb,
        "CVMFS_CACHE_site_TYPE": "posix",
        "CVMFS_CACHE_site_ALIEN": alien,
        "CVMFS_CACHE_site_SHARED": "no",
        "CVMFS_CACHE_site_QUOTA_LIMIT": -1,
    }


def write_keys(one: dict[str, Any], folder: str) -> list[str]:
    """Write the public keys of a repository into a folder, for programs; return the files."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return [_write(f"{folder}/{one['name']}-{at}.pub", text) for at, text in enumerate(one["keys"])]


def write_blacklist(one: dict[str, Any], folder: str) -> str:
    """Write what is not believed of a repository into a folder, for programs; return the file."""
    lines = "".join(f"{line}\n" for line in one.get("blacklist", ()))
    return _write(f"{folder}/{one['name']}-blacklist", lines)


def _write(path: str, text: str) -> str:
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text)
    return path


def _said(log: str) -> str:
    """Return what it has said last."""
    return "; ".join(_lines(log)[-_SAID_LINES:])


def _offline(log: str) -> str:
    """Return why it uses what its cache has; empty: it does not."""
    lines = _lines(log)
    told = [line for line in lines if _OFFLINE in line]
    reasons = [line for line in lines if line.startswith("failed")]
    return f"{PROGRAM}: {'; '.join([*reasons[-1:], *told[-1:]])}" if told else ""


def _lines(log: str) -> list[str]:
    """Return what it has said, each once."""
    with contextlib.suppress(OSError), open(log, encoding="utf-8", errors="replace") as stream:
        said = (_STAMP.sub("", line).strip() for line in stream)
        return [*dict.fromkeys(line for line in said if line)]
    return []
