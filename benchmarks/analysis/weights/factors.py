"""Scale factors of muons, read from the file beside this module."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import yaml


def load() -> dict[str, Any]:
    """Return edges in pt [GeV], values and uncertainties."""
    text = resources.files(__package__).joinpath("factors.yaml").read_text()
    return {name: np.asarray(value) for name, value in yaml.safe_load(text).items()}


def of_muons(pt: Any, *, shift: float = 0.0) -> Any:
    """Return a scale factor for each muon, shifted by so many uncertainties."""
    table = load()
    at = np.clip(np.digitize(pt, table["edges"]) - 1, 0, len(table["values"]) - 1)
    return table["values"][at] + shift * table["uncertainties"][at]
