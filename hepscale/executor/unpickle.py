"""Unpickling that leaves the user's classes alone."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

from cloudpickle import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["loads"]


class _KeepingUnpickler(pickle.Unpickler):
    """Finds the classes of ``__main__`` that this process has, and does not write to them.

    cloudpickle itself sets all attributes of such a class anew: its methods are then copies with
    a frozen copy of the notebook's globals, and a helper that is edited later has no effect.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._known: set[type] = set()

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if found in (cloudpickle._make_skeleton_class, cloudpickle._make_skeleton_enum):
            return self._make_with(found)
        if found is cloudpickle._class_setstate:
            return self._set_state
        return found

    def _make_with(self, make_skeleton: Callable[..., type]) -> Callable[..., type]:
        def make(*args: Any) -> type:
            tracker_id = args[-2]
            is_known = tracker_id in cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
            made = make_skeleton(*args)
            if is_known:
                self._known.add(made)
            return made

        return make

    def _set_state(self, made: type, state: Any) -> Any:
        return made if made in self._known else cloudpickle._class_setstate(made, state)


def loads(data: bytes) -> Any:
    """Return the object that `data` pickles."""
    return _KeepingUnpickler(data).load()
