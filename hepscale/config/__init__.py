"""Settings of HepScale and where each comes from: `load_settings`.

In rising order: the site's file, the user's, the project's, the profile that was chosen of a site,
``HEPSCALE_*`` variables, arguments. ``hepscale config show`` says which of them gave what.
"""

from __future__ import annotations

from hepscale.config.cvmfs import CvmfsSettings, RepositorySettings
from hepscale.config.files import ConfigFile, config_files
from hepscale.config.levels import Level, Origin, Resolved, load_settings, resolve
from hepscale.config.model import Settings, WorkersSettings

__all__ = [
    "ConfigFile",
    "CvmfsSettings",
    "Level",
    "Origin",
    "RepositorySettings",
    "Resolved",
    "Settings",
    "WorkersSettings",
    "config_files",
    "load_settings",
    "resolve",
]
