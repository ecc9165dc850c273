"""Settings of HepScale and where each comes from: defaults, then ``HEPSCALE_*`` variables."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hepscale.errors import ConfigError

__all__ = ["Settings", "load_settings"]


def _cache_home() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / "hepscale"
    try:
        return Path.home() / ".cache" / "hepscale"
    except RuntimeError:
        # a container's user without a home
        return Path(tempfile.gettempdir()) / f"hepscale-cache-{os.getuid()}"


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


_Folder = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseModel):
    """What a user or a site may set once for all runs.

    Attributes
    ----------
    cache_dir
        Packed environments, demo data and other things that can be made again.
    run_dir
        Journals of runs; what a restarted kernel resumes from.
    scratch_dir
        Workers' sandboxes; everything below it is removed when its worker ends.
    idle_s
        Seconds after which a warm worker without work ends.
    keep_runs
        How many journals are kept; the oldest are removed first.
    keep_environments
        How many packed environments are kept, with what this machine's workers have unpacked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache_dir: _Folder = Field(default_factory=_cache_home)
    run_dir: _Folder = Field(default_factory=lambda: _cache_home() / "runs")
    scratch_dir: _Folder = Field(default_factory=lambda: Path(tempfile.gettempdir()))
    idle_s: float = Field(default=300.0, gt=0)
    keep_runs: int = Field(default=8, ge=1)
    keep_environments: int = Field(default=8, ge=1)


def load_settings() -> Settings:
    """Read the settings.

    Raises
    ------
    ConfigError
        If a ``HEPSCALE_*`` variable has a value that cannot be used.
    """
    given: dict[str, Any] = {}
    for name in Settings.model_fields:
        value = os.environ.get(f"HEPSCALE_{name.upper()}")
        if value:
            given[name] = value
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ConfigError(
            f"HEPSCALE_{name.upper()}={given.get(name)!r} cannot be used.",
            cause=str(first["msg"]),
            fix=f"unset HEPSCALE_{name.upper()}, or give it another value",
        ) from None
