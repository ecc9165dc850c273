"""Environments whose Python is a script, which `stage0.sh` makes ready."""

from __future__ import annotations

import shutil

from unpacking import fake_interpreter

FAKE = {"inter preter.tar.gz": fake_interpreter()}


def reaches_python(place, **environ):
    """Start, and check that the interpreter of the layer is unpacked and run."""
    done = place.start(**environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("unpacking with ")
    assert f"/.new-{'a' * 64}-" in done.stdout
    # a script cannot finish what unpack.py would
    shutil.rmtree(place.store)


def make_ready(place):
    """Make what an earlier start has left: an environment that is ready."""
    python = place.prefix / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
    python.chmod(0o755)
    (place.prefix / ".hepscale-ready").touch()
    return [str(python), "-I", str(place.worker)]
