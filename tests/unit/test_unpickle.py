"""Unpickling what workers send back leaves the classes of a notebook alone."""

from __future__ import annotations

import collections
import pickle
import subprocess
import sys
import textwrap

import cloudpickle
import numpy as np
import pytest

from hepscale.executor import unpickle

# as in a notebook: the classes are in __main__, and what workers send back comes from a process
# that has made them from a pickle
PRELUDE = """
import pickle, subprocess, sys
from collections import namedtuple
from dataclasses import dataclass
from enum import Enum
import cloudpickle
from hepscale.executor import unpickle

def helper():
    return "first"

class Processor:
    calls = 0
    def process(self):
        return helper()

class Derived(Processor):
    def process(self):
        return "derived " + super().process()

@dataclass
class Cut:
    name: str
    passed: int = 0
    def __add__(self, other):
        return Cut(self.name, self.passed + other.passed)

Point = namedtuple("Point", "x y")

class Region(Enum):
    SIGNAL = 1
    CONTROL = 2

def on_a_worker(function, *arguments):
    code = '''
import pickle, sys, cloudpickle, types
function, arguments = pickle.load(sys.stdin.buffer)
sys.modules["__main__"] = types.ModuleType("__main__")
sys.stdout.buffer.write(cloudpickle.dumps(function(*arguments)))
'''
    sent = cloudpickle.dumps((function, arguments))
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    return done.stdout
"""


def script(tmp_path, text):
    """Run the prelude and `text` as ``__main__`` in a process of its own."""
    path = tmp_path / "notebook.py"
    path.write_text(PRELUDE + textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_an_edited_helper_takes_effect_after_a_run(tmp_path):
    out = script(
        tmp_path,
        """
        made = Processor.process
        back = unpickle.loads(on_a_worker(lambda one: (one, one.process()), Processor()))
        assert back[1] == "first"
        assert type(back[0]) is Processor
        assert Processor.process is made
        def helper():
            return "second"
        print(Processor().process(), back[0].process())
        """,
    )
    assert out == ["second", "second"]


def test_cloudpickle_itself_writes_to_the_class(tmp_path):
    """What this guards against; without it the module were not needed."""
    out = script(
        tmp_path,
        """
        made = Processor.process
        pickle.loads(on_a_worker(lambda one: (one, one.process()), Processor()))
        def helper():
            return "second"
        print(Processor.process is made, Processor().process())
        """,
    )
    assert out == ["False", "first"]


def test_state_of_a_class_is_kept(tmp_path):
    out = script(
        tmp_path,
        """
        sent = on_a_worker(lambda one: one, Derived())
        Processor.calls = 7
        Derived.calls = 8
        back = unpickle.loads(sent)
        assert type(back) is Derived and Derived.__mro__[1] is Processor
        print(Processor.calls, Derived.calls, back.process())
        """,
    )
    assert out == ["7", "8", "derived", "first"]


def test_outputs_are_of_the_very_classes(tmp_path):
    script(
        tmp_path,
        """
        def work():
            return {"cut": Cut("pt", 3), "point": Point(1, 2), "region": {Region.SIGNAL: 5},
                    "class": Cut, "nested": [Derived()]}
        back = unpickle.loads(on_a_worker(work))
        assert type(back["cut"]) is Cut and back["class"] is Cut
        assert back["cut"] + Cut("pt", 4) == Cut("pt", 7)
        assert type(back["point"]) is Point and back["point"] == Point(1, 2)
        assert back["region"] == {Region.SIGNAL: 5}
        assert next(iter(back["region"])) is Region.SIGNAL
        assert isinstance(back["nested"][0], Processor)
        """,
    )


def test_two_outputs_that_bring_a_new_class_bring_one_class(tmp_path):
    script(
        tmp_path,
        """
        def work():
            @dataclass
            class Local:
                x: int
                def double(self):
                    return 2 * self.x
            return Local(4)
        sent = on_a_worker(work)
        one, other = unpickle.loads(sent), unpickle.loads(sent)
        assert type(one) is type(other) and one == other
        assert one.double() == 8
        """,
    )


def test_an_unknown_class_is_made_whole():
    base = type("Base", (), {"__module__": "__main__", "inherited": lambda self: "b"})
    made = type("Made", (base,), {"__module__": "__main__", "x": 5, "method": lambda self: self.x})
    data = cloudpickle.dumps(made())
    code = (
        "import sys; from hepscale.executor import unpickle;"
        "one = unpickle.loads(sys.stdin.buffer.read()); print(one.method(), one.inherited())"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True)
    assert done.stdout.split() == [b"5", b"b"], done.stderr


@pytest.mark.parametrize("dumps", [cloudpickle.dumps, pickle.dumps])
def test_plain_data(dumps):
    value = {
        "a": np.arange(5),
        "b": collections.defaultdict(int, x=1),
        "c": {1, 2},
        "d": collections.Counter("aab"),
        "e": (None, 1.5, b"x"),
    }
    back = unpickle.loads(dumps(value))
    assert np.array_equal(back.pop("a"), value.pop("a"))
    assert back == value


def test_functions_by_value():
    factor = 3
    assert unpickle.loads(cloudpickle.dumps(lambda x: x * factor))(4) == 12


def test_no_pickle():
    with pytest.raises(pickle.UnpicklingError):
        unpickle.loads(b"no pickle")
