"""Layers with a real Python, as `unpack.py` gets them."""

from __future__ import annotations

import sys

import unpacking

INTERPRETER, PACKAGES = "inter preter.tar.gz", "pack ages.tar.zst"
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
LAYERS = {INTERPRETER: unpacking.interpreter(), PACKAGES: unpacking.packages()}


def heals(place):
    place.contents = dict(LAYERS)
    place.write()
    place.works()
