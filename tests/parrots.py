"""Parrots: the real one of this machine, if it runs programs, and a stand-in with its manners."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

import sandboxes

from hepscale.worker import parrot

# takes and refuses the options and mount lists that parrot_run 7 and 8 do, says what they say, and
# runs a program as its child, which ends with it; it hides nothing
_STAND_IN = """\
#!{python} -IS
import ctypes, getopt, os, re, signal, subprocess, sys

def fail(text):
    sys.exit("2026/01/01 00:00:00.00 parrot_run[1]<child:1> fatal: " + text)

def read(path):
    for number, line in enumerate(open(path), 1):
        fields = line.split()[:3]
        if not fields or line[0] == "#":
            continue
        if len(fields) == 1:
            fail(f"{{path}} has an error on line {{number}}")
        if len(fields) == 3 and not re.fullmatch("[rwxRWX]+", fields[2]):
            fail(f"{{path}} has invalid options on line {{number}}")

names = ["check-driver=", "cvmfs-alien-cache=", "cvmfs-repos=", "dynamic-mounts", "help", "mount="]
names += ["no-set-foreground", "proxy=", "tab-file=", "tempdir=", "timeout=", "version"]
try:
    options, command = getopt.getopt(sys.argv[1:], "hl:m:M:p:r:t:T:v", names)
except getopt.GetoptError as error:
    print("Use: parrot_run [options] <command> ...")
    sys.exit(f"parrot_run: {{error}}")
if "PARROT_ENABLED" in os.environ:
    sys.exit("sorry, parrot_run cannot be run inside of itself.")
for name, value in options:
    if name == "--check-driver":
        print(value, "is enabled" if {cvmfs} else "is not enabled")
        sys.exit(not {cvmfs})
    if name in ("-M", "--mount") and "=" not in value:
        fail("badly formed mount string: " + value)
    if name in ("-m", "--tab-file"):
        read(value)
    if name in ("-t", "--tempdir"):
        os.makedirs(value, exist_ok=True)
print("2026/01/01 00:00:00.00 parrot_run[1]<child:1> notice: this may not work", file=sys.stderr)
def begin():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
sys.stderr.flush()
{body}
os.environ["PARROT_ENABLED"] = "TRUE"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = subprocess.run(command, preexec_fn=begin, close_fds=False).returncode
sys.exit(code if code >= 0 else 128 - code)
"""


def stand_in(folder: Path, body: str = "", *, cvmfs: bool = True) -> str:
    """Write a program that stands for ``parrot_run``, and does `body` before it runs `command`."""
    path = folder / "parrot_run"
    text = _STAND_IN.format(python=sandboxes.SYSTEM_PYTHON, body=body, cvmfs=cvmfs)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def serves(program: str) -> bool:
    """Return whether a Parrot was built with CVMFS."""
    asked = [program, "--check-driver", "cvmfs"]
    return bool(program) and subprocess.run(asked, capture_output=True, check=False).returncode == 0


@functools.cache
def real() -> str:
    """Return the ``parrot_run`` of this machine; empty: there is none that runs programs."""
    program = parrot.find()
    with tempfile.TemporaryDirectory() as folder:
        return "" if parrot.why_not(program, {"dir": folder}, {}) else program
