"""Bubblewrap, which a system may let have user namespaces where it refuses them to others.

So AppArmor decides, by program. It is a door only: behind it a process has all capabilities in a
user namespace and sees what is there, and makes sandboxes as if it had entered one by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["BEHIND", "door", "is_behind", "why_not"]

BEHIND = "HEPSCALE_BEHIND_BWRAP"
_PROGRAM = "bwrap"
_PROBE_S = 30.0


def is_behind() -> bool:
    """Return whether this process was started by `door`."""
    return BEHIND in os.environ


def door() -> list[str]:
    """Return the beginning of a command that runs the rest behind it; empty: there is none."""
    program = shutil.which(_PROGRAM)
    if program is None or is_behind():
        return []
    options = ["--unshare-user", "--cap-add", "ALL", "--dev-bind", "/", "/"]
    return [program, *options, "--setenv", BEHIND, "1", "--"]


def why_not(begin: list[str], settings: dict[str, Any]) -> str:
    """Try a sandbox behind a door; return why there can be none, or nothing."""
    package = os.path.dirname(os.path.abspath(__file__))
    try:
        done = subprocess.run(
            [*begin, sys.executable, "-I", package, "--sandbox"],
            input=json.dumps(settings).encode(),
            capture_output=True,
            timeout=_PROBE_S,
            check=True,
        )
        why = json.loads(done.stdout)["why"]
    except ValueError:
        why = "it does not run what it is told to"
    except OSError as error:
        why = error.strerror
    except subprocess.TimeoutExpired:
        why = f"it was not there after {_PROBE_S:.0f} s"
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        why = "".join(said).removeprefix(f"{_PROGRAM}: ") or f"exit code {error.returncode}"
    return f"{begin[0]}: {why}" if why else ""
