"""The processor within the function that coffea's `Runner` hands to an executor."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import lz4.frame

from hepscale.errors import PayloadError
from hepscale.executor import chunking, unpickle

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["again", "readable"]


def again(executor: Any, items: list[Any], function: Callable[..., Any]) -> Any:
    """Run what an earlier run has not done; return what `Runner` makes of all of it.

    Parameters
    ----------
    executor
        That of the earlier run, which is not changed.
    items, function
        What it was called with.

    Raises
    ------
    RunError
        If chunks failed or the run was stopped; ``partial_output`` has the rest.
    """
    output, error = executor.copy(resume=True)(items, function, None)
    output = chunking.content(output)
    if error:
        error.partial_output = output
        raise error
    postprocess = getattr(_processor(readable(function)), "postprocess", None)
    made = postprocess(output) if callable(postprocess) else None
    return output if made is None else made


def _processor(function: Any) -> Any:
    """Return the processor that partial functions within one another are given, else None."""
    if not isinstance(function, partial):
        return None
    found = function.keywords.get("processor_instance")
    inner = (_processor(one) for one in (function.func, *function.args))
    return next((one for one in inner if one is not None), None) if found is None else found


def readable(function: Any) -> Any:
    """Return `function` with the processor in place of its compressed pickle, to look into it."""
    if not isinstance(function, partial):
        return function
    keywords = dict(function.keywords)
    packed = keywords.get("processor_instance")
    if isinstance(packed, bytes):
        keywords["processor_instance"] = _unpacked(packed)
    return partial(function.func, *map(readable, function.args), **keywords)


def _unpacked(packed: bytes) -> Any:
    try:
        return unpickle.loads(lz4.frame.decompress(packed))
    except Exception as error:
        raise PayloadError(
            "The processor cannot be made again from its pickle.",
            items=[f"{type(error).__name__}: {error}"],
            cause="its __setstate__ or __reduce__, or that of something in it, raises",
            fix='python -c "import cloudpickle; cloudpickle.loads(cloudpickle.dumps(...))"',
        ) from error
