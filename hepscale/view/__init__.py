"""What a run looks like while it goes on: in a notebook, on a terminal, in a log."""

from __future__ import annotations

from hepscale.view.base import View, is_deaf, make_view
from hepscale.view.state import RunState, advance, apply

__all__ = ["RunState", "View", "advance", "apply", "is_deaf", "make_view"]
