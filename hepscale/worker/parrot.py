"""Parrot, where a machine has it and it works: it shows its processes what it is told to.

All tasks of a forkserver run under one Parrot, so they share its private ``/tmp``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from . import clients

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["command", "find", "why_not"]

_PROGRAM = "parrot_run"
_PROBE_S = 20.0
_MOUNTS = "parrot-mounts"
_READY = "hepscale-parrot-works"


def find() -> str:
    """Return the path of ``parrot_run``; empty: there is none."""
    return shutil.which(_PROGRAM) or ""


def why_not(program: str, wanted: dict[str, Any]) -> str:
    """Run a dynamically linked program and an import under Parrot; return why it is no use.

    An import of a module written in C: it has to load a library.
    """
    if not program:
        return f"there is no {_PROGRAM} on the PATH of this machine"
    if not wanted.get("network", True) or wanted.get("writes", "folder") != "folder":
        return "Parrot neither cuts the network nor keeps a task from writing in its own folder"
    code = f"import ctypes; print({_READY!r})"
    for command in (["sh", "-c", f"echo {_READY}"], [sys.executable, "-I", "-S", "-c", code]):
        try:
            done = subprocess.run(
                [program, "--", *command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PROBE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"{program}: {command[0]} hangs under it"
        except OSError as error:
            return f"{program}: {error.strerror}"
        if done.stdout.decode(errors="replace").strip() != _READY:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            reason = said[0] if said else f"exit code {done.returncode}"
            return f"{program}: {command[0]} does not run under it: {reason}"
    return ""


def command(
    program: str, settings: dict[str, Any], wanted: dict[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Return the beginning of a command that runs the rest under Parrot, and its variables.

    Parameters
    ----------
    program
        ``parrot_run``.
    settings
        Of the forkserver: its folder ``dir``, ``cvmfs``.
    wanted
        What its tasks may see: ``allow``.
    """
    folder = settings["dir"]
    private = os.path.join(folder, "parrot-tmp")
    os.makedirs(private, mode=0o700, exist_ok=True)
    mounts = os.path.join(folder, _MOUNTS)
    with open(mounts, "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.writelines(f"{line}\n" for line in _mounts(folder, private, wanted))
    cvmfs = settings.get("cvmfs") or {}
    environ = {}
    if cvmfs.get("repositories"):
        told = [_repository(one, folder) for one in cvmfs["repositories"]]
        environ["PARROT_CVMFS_REPO"] = " ".join(told)
        environ["HTTP_PROXY"] = cvmfs.get("proxies", "")
    if cvmfs.get("alien_cache"):
        environ["PARROT_CVMFS_ALIEN_CACHE"] = cvmfs["alien_cache"]
    return [program, "-m", mounts, "-M", f"/tmp={private}", "--"], environ


def _mounts(folder: str, private: str, wanted: dict[str, Any]) -> list[str]:
    """Return lines of a mount list; what stands later counts first."""
    hidden = [f"{one} DENY" for one in ("/home", "/root", "/sys")]
    shown = dict.fromkeys([folder, sys.prefix, sys.base_prefix, *sys.path])
    lines = [f"{one} {one}" for one in shown if one.startswith("/")]
    for text in wanted.get("allow", ()):
        path, rights = (text[:-3], "rwx") if text.endswith(":rw") else (text, "rx")
        lines.append(f"{path} {path} {rights}")
    lines += [f"/var/tmp {private}", f"/dev/shm {private}"]
    return [*hidden, *lines]


def _repository(one: dict[str, Any], folder: str) -> str:
    """Return how Parrot is told of a repository: ``NAME:pubkey=...,url=...``."""
    keys = ":".join(clients.write_keys(one, os.path.join(folder, "parrot-keys")))
    return f"{one['name']}:pubkey={keys},url={';'.join(one['servers'])}"
