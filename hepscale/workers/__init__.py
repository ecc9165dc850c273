"""Workers of Work Queue that are started for the user, here or by a batch system."""

from __future__ import annotations
