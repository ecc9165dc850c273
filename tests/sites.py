"""An interpreter that has one folder of installed packages and no other."""

from __future__ import annotations

import dataclasses
import itertools
import os
from typing import TYPE_CHECKING

from site_folder import BELOW, Prefix

from hepscale.env import index, interpreter, reach
from hepscale.env.reach import Reached

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LARGE_BYTES = 50_000_000
# Each installation has a time of its own, however fast they follow one another.
_times = itertools.count(1_700_000_000)


class Site(Prefix):
    """A prefix, and its interpreter."""

    @property
    def interpreter(self) -> interpreter.Interpreter:
        return dataclasses.replace(
            interpreter.this(),
            prefix=str(self.root),
            sites=(str(self.site),),
            site_below=BELOW,
            path=(str(self.site),),
            conda=(self.root / "conda-meta").is_dir(),
        )

    def index(self) -> index.Index:
        return index.load(self.interpreter)

    def put(
        self,
        name: str,
        files: Mapping[str, str | bytes],
        *,
        requires: Sequence[str] = (),
        entry_points: str = "",
        large: bool = False,
    ) -> Path:
        """Install a wheel; a large one only says that it is. Return its ``.dist-info``."""
        info = self.install(name, files, requires=requires, entry_points=entry_points)
        with open(info / "RECORD", "a") as record:
            record.write(f"{name}.data,,{LARGE_BYTES if large else 0}\n")
        now = next(_times)
        os.utime(info / "RECORD", (now, now))
        return info


def reached(site: Site, *modules: str, **options: object) -> dict[str, Reached]:
    """Return what modules reach when they are imported."""
    return reach.at_import(modules, site.index(), **options)  # type: ignore[arg-type]
