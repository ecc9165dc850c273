"""What cannot be sent to workers, and how that is said."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hepscale.errors import PayloadError
from hepscale.executor.payload import dump_payload, fingerprint

if TYPE_CHECKING:
    import types


class Holder:
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)

    def process(self, events: object) -> object:
        return events


@pytest.mark.parametrize("send", [fingerprint, lambda obj: dump_payload(obj, max)])
def test_error_names_the_way_to_what_cannot_be_pickled(
    send: types.FunctionType, tmp_path: Path
) -> None:
    lock = threading.Lock()
    held = Holder(numbers=[1, 2], files={"log": lock})
    with open(tmp_path / "out", "w") as out:
        cases = [
            (Holder(lock=lock), "Holder.lock"),
            (held, "Holder.files['log']"),
            (held.process, "Holder.files['log']"),
            (functools.partial(max, processor_instance=Holder(lock=lock)), "processor_instance.lo"),
            (functools.partial(max, functools.partial(held.process)), "Holder.files['log']"),
            (lambda: lock, "<lambda>: variable lock"),
            (lambda x=lock: x, "<lambda>: defaults[0][0]"),
            (Holder(out=out), "Holder.out"),
            (Holder(events=(x for x in "ab")), "Holder.events"),
            (type("Dynamic", (), {"lock": lock}), "Dynamic.lock"),
        ]
        for obj, path in cases:
            with pytest.raises(PayloadError) as caught:
                send(obj)
            assert path in caught.value.fact
            assert caught.value.cause
            assert "process()" in caught.value.fix
            assert caught.value.__cause__ is not None


def test_error_when_merge_cannot_be_pickled() -> None:
    lock = threading.Lock()
    with pytest.raises(PayloadError, match="variable lock"):
        dump_payload(max, lambda a, b: (a, b, lock))


def test_error_when_pickle_would_go_too_deep() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PayloadError, match="nested too deeply"):
        dump_payload(lambda: deep, max)


def test_error_when_something_is_sent_by_its_name_in_main() -> None:
    class Named:
        def __reduce__(self) -> str:
            return "unique"

    Named.__module__ = "__main__"

    with pytest.raises(PayloadError, match="does not find unique in its own __main__"):
        fingerprint(Named())


def test_an_error_of_a_reducer_is_translated() -> None:
    class Broken:
        def __getstate__(self) -> object:
            raise ZeroDivisionError("mine")

    with pytest.raises(PayloadError, match=r"Broken.*: mine") as caught:
        fingerprint({"x": Broken()})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
