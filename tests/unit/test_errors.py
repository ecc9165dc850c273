"""Errors: how they read, and that they survive pickling and catching under every name."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys

import pytest
import uproot

import hepscale
from hepscale import errors
from hepscale.errors import (
    ChunksFailed,
    HepScaleError,
    InputError,
    MergeFailed,
    RunError,
    RunInterrupted,
    also_as,
)
from hepscale.executor.task import ChunkFailure

CLASSES = [
    one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, HepScaleError)
]
ORIGINALS = [
    OSError,
    FileNotFoundError,
    KeyError,
    ValueError,
    ZeroDivisionError,
    MemoryError,
    UnicodeDecodeError,
    AttributeError,
    ImportError,
    StopIteration,
    uproot.exceptions.KeyInFileError,
    uproot.deserialization.DeserializationError,
]


def made(cls):
    error = cls("A fact.", items=["one"], detail="More.", cause="a cause", fix="a command")
    error.partial_output = {"n": 3}
    error.failed = (ChunkFailure("dy", "a.root", 0, 10, "exception", "boom"),)
    return error


def parts(error):
    return (
        (error.fact, error.items, error.detail, error.cause, error.fix),
        (error.partial_output, error.failed, str(error), error.args),
    )


def test_the_tree_is_the_one_that_is_drawn():
    drawn = [line for line in errors.__doc__.splitlines() if line.lstrip(" │├└─")[:1].isupper()]
    depths = {}
    for line in drawn:
        name = line.lstrip(" │├└─").split()[0]
        if name in errors.__all__:
            depths[name] = (len(line) - len(line.lstrip(" │├└─"))) // 4
    assert set(depths) == {cls.__name__ for cls in CLASSES}
    for cls in CLASSES:
        ours = [one for one in cls.__mro__ if issubclass(one, HepScaleError)]
        assert depths[cls.__name__] == len(ours), cls
    assert set(errors.__all__) == {*depths, "also_as", "misspelt", "nearest"}
    assert {cls.__name__ for cls in CLASSES} <= set(hepscale.__all__)


def test_how_an_error_reads():
    error = HepScaleError(
        "7 of 9 chunks failed.",
        items=[f"chunk {n}" for n in range(7)],
        detail="Traceback",
        cause="a bug",
        fix="correct it",
    )
    assert str(error) == (
        "7 of 9 chunks failed.\n"
        "  chunk 0\n  chunk 1\n  chunk 2\n  chunk 3\n  chunk 4\n"
        "  ... and 2 more\n"
        "\nTraceback\n\n"
        "Likely cause: a bug\n"
        "Next: correct it"
    )
    assert str(HepScaleError("A fact.")) == "A fact."
    assert str(HepScaleError("A fact.", items=["x"] * 5)).count("\n") == 5
    assert HepScaleError("A fact.").args == ("A fact.",)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_every_class_comes_back_from_a_pickle(cls, again):
    error = made(cls)
    back = again(error)
    assert type(back) is cls
    assert parts(back) == parts(error)


@pytest.mark.parametrize("original", ORIGINALS)
@pytest.mark.parametrize("cls", [InputError, ChunksFailed, MergeFailed])
def test_combinations(cls, original):
    combined = also_as(cls, original)
    assert also_as(cls, original) is combined
    assert combined.__name__ == cls.__name__
    assert issubclass(combined, cls)
    error = made(combined)
    for name in (cls, HepScaleError, Exception):
        assert isinstance(error, name)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is combined
    assert parts(back) == parts(error)
    assert str(back).startswith("A fact.\n  one\n")
    with pytest.raises(cls):
        raise error
    if original is not StopIteration:
        assert isinstance(error, original)
        with pytest.raises(original):
            raise error


def test_what_cannot_be_combined_stays_what_it_is():
    for original in (KeyboardInterrupt, SystemExit, GeneratorExit, BaseException):
        assert also_as(ChunksFailed, original) is ChunksFailed
    assert also_as(ChunksFailed, Exception) is ChunksFailed
    assert also_as(ChunksFailed, RunError) is ChunksFailed

    class Slots(ValueError):
        __slots__ = ("x",)

    combined = also_as(ChunksFailed, Slots)
    assert issubclass(combined, ChunksFailed)
    assert made(combined).fact == "A fact."


def test_an_original_with_a_constructor_of_its_own():
    class Picky(Exception):
        def __init__(self, a, b, *, c):
            super().__init__(a, b, c)

        def __str__(self):
            return "picky"

    error = made(also_as(ChunksFailed, Picky))
    assert isinstance(error, Picky)
    assert str(error).startswith("A fact.")


def test_an_original_that_makes_its_objects_in_a_way_of_its_own():
    class Made(Exception):
        def __new__(cls, a, b):
            return super().__new__(cls, a, b)

    assert also_as(ChunksFailed, Made) is ChunksFailed


def test_a_combined_error_is_unpickled_in_another_process():
    data = pickle.dumps(made(also_as(InputError, FileNotFoundError)))
    code = (
        "import pickle, sys; error = pickle.load(sys.stdin.buffer);"
        "from hepscale.errors import InputError;"
        "assert isinstance(error, InputError) and isinstance(error, FileNotFoundError);"
        "print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.decode().startswith("A fact.\n  one\n")


def test_a_stopped_run_is_a_keyboard_interrupt_and_ours():
    with pytest.raises(KeyboardInterrupt):
        raise made(RunInterrupted)
    with pytest.raises(HepScaleError):
        raise made(RunInterrupted)


def test_it_imports_nothing_of_ours_and_nothing_that_is_installed():
    code = (
        "import sys; before = set(sys.modules); import hepscale.errors;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = set(done.stdout.split())
    assert new - {"hepscale"} <= set(sys.stdlib_module_names)
