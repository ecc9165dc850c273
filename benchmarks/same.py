"""Whether two results of the analysis are equal: counts exactly, weighted sums to 1e-12."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["differences"]

_RELATIVE = 1e-12


def differences(reference: Path, other: Path) -> list[str]:
    """Compare two pickled outputs; return where they differ."""
    one, two = (pickle.loads(path.read_bytes()) for path in (reference, other))
    return _compare("output", one, two)


def _compare(path: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, dict):
        if sorted(one) != sorted(other):
            return [f"{path}: {sorted(one)} and {sorted(other)}"]
        return [text for key in one for text in _compare(f"{path}[{key!r}]", one[key], other[key])]
    if not hasattr(one, "view"):
        return [] if one == other else [f"{path}: {one} and {other}"]
    left, right = _by_category(one), _by_category(other)
    if left.keys() != right.keys():
        return [f"{path}: {sorted(left)} and {sorted(right)}"]
    close = all(np.allclose(left[key], right[key], rtol=_RELATIVE, atol=_RELATIVE) for key in left)
    return [] if close else [f"{path}: the contents differ"]


def _by_category(made: Any) -> dict[str, Any]:
    """Return values and variances of each dataset: their order follows that of merging."""
    return {
        name: np.concatenate(
            [
                made[{"dataset": name}].values(flow=True),
                made[{"dataset": name}].variances(flow=True),
            ]
        )
        for name in made.axes["dataset"]
    }
