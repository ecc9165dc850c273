"""What is sent, and digests that are equal in every process."""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter, defaultdict, namedtuple
from pathlib import Path
from typing import TYPE_CHECKING

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepscale.errors import PayloadError
from hepscale.executor.payload import chunk_key, dump_payload, fingerprint

if TYPE_CHECKING:
    pass


ANALYSIS = """
import abc, dataclasses, enum, functools, os, re, typing
from collections import namedtuple
from functools import cached_property, lru_cache, partial

SETTINGS = {"cuts": {"mu", "el", "tau", "jet", "met"}, "pt": 25.0, "order": ["b", "a"]}
PATTERN = re.compile("HLT_.*")
T = typing.TypeVar("T")
Pair = namedtuple("Pair", "first second")

class Region(enum.Enum):
    SIGNAL = "sr"
    CONTROL = "cr"

@dataclasses.dataclass
class Selection:
    name: str
    names: typing.List[str] = dataclasses.field(default_factory=list)
    limit: typing.Optional[float] = 3.5

class Base(abc.ABC):
    __slots__ = ("weight",)
    @abc.abstractmethod
    def process(self, events): ...

class Generic(typing.Generic[T]):
    pass

@lru_cache(maxsize=8)
def corrections(year):
    return {"2018": 1.0}.get(year)

def helper(x, factor=2):
    # a comment
    return x * factor if x in {"one", "two", "three", "four"} else os.path.join(str(x), "y")

def scaled(by):
    def scale(x):
        return [by * y for y in x]
    return scale

class Processor(Base, Generic[int]):
    lumi = 59.7
    allowed = frozenset(["a", "b", "c", "d"])

    def __init__(self, numbers):
        self.numbers = numbers
        self.scale = scaled(3)
        self.selection = Selection("tight")
        self.region = Region.SIGNAL
        self.pair = Pair(1, {"x", "y", "z"})
        self.cut = lambda x: x > SETTINGS["pt"]
        self.me = self
        self.log = partial(helper, factor=3)
        self.bound = self.process

    @cached_property
    def slow(self):
        return 1

    @property
    def fast(self):
        return self.lumi

    @staticmethod
    def static(x):
        return helper(x)

    @classmethod
    def make(cls):
        import json
        return cls([])

    def process(self, events):
        try:
            return {"n": helper(events), "c": corrections("2018"), "p": PATTERN.match("HLT")}
        finally:
            self.numbers = super().__hash__()

function = partial(Processor([1, 2.5, "x", b"y", 1j, None]).process)
"""

PRINT = """
from hepscale.executor.payload import dump_payload, fingerprint
import operator, pickle
found = fingerprint(function)
pickle.loads(dump_payload(function, operator.add))
print(found.digest, *sorted(found.modules))
"""


def run_script(path: Path, source: str, seed: int) -> list[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source + PRINT)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return run_script(tmp_path_factory.mktemp("one") / "analysis.py", ANALYSIS, 1)


@pytest.mark.parametrize("seed", [2, 3, 77])
def test_digest_is_the_same_in_another_process(
    tmp_path: Path, original: list[str], seed: int
) -> None:
    moved = "# a comment\n\n\n" + ANALYSIS.replace("# a comment", "# quite another\n    # comment")
    assert run_script(tmp_path / "elsewhere" / "cell.py", moved, seed) == original


def test_digest_does_not_depend_on_what_happened_before(
    tmp_path: Path, original: list[str]
) -> None:
    history = """
import copy, json, concurrent.futures, xml.dom.minidom
copy.copy(Selection("x")), typing.List[str], typing.Optional[float]
re.purge()
for clear in typing._cleanups: clear()
corrections("2016"), isinstance(3, Base), function.func.__self__.fast
"""
    assert run_script(tmp_path / "analysis.py", ANALYSIS + history, 5) == original


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lumi = 59.7", "lumi = 59.8"),
        ("factor=2", "factor=4"),
        ("str(x)", "repr(x)"),
        ('"y")', '"z")'),
        ("scaled(3)", "scaled(4)"),
        ('"pt": 25.0', '"pt": 26.0'),
        ("partial(helper, factor=3)", "partial(helper, factor=5)"),
        ('"cr"', '"cr2"'),
        ("x > SETTINGS", "x >= SETTINGS"),
        ("HLT_.*", "HLT_.+"),
        ("return 1\n", "return 2\n"),
        ("maxsize=8", "maxsize=9"),
        ('"2018": 1.0', '"2018": 1.1'),
        ('"x", b"y"', '"x", b"z"'),
        ('["b", "a"]', '["a", "b"]'),
        ('"met"}', '"MET"}'),
        ('"four"}', '"five"}'),
        ("limit: typing.Optional[float] = 3.5", "limit: typing.Optional[float] = 3.6"),
        ("import json\n", "import pprint\n"),
        ('"first second"', '"first third"'),
        ("finally:", "except ValueError:"),
    ],
)
def test_digest_changes_with_the_code(
    tmp_path: Path, original: list[str], old: str, new: str
) -> None:
    assert ANALYSIS.count(old) == 1
    changed = run_script(tmp_path / "analysis.py", ANALYSIS.replace(old, new), 1)
    assert changed[0] != original[0]


def test_modules_are_those_that_the_pickle_refers_to(original: list[str]) -> None:
    assert {"enum", "functools", "abc", "re"} <= set(original[1:])
    assert "os" in original[1:]
    assert "__main__" not in original
    assert "cloudpickle.cloudpickle" in original[1:]


def test_science_objects_are_stable(tmp_path: Path) -> None:
    source = """
import numba, numpy as np, hist, awkward as ak
from coffea.nanoevents import NanoAODSchema
@numba.njit
def fast(x):
    return x + 1
@numba.vectorize(["float64(float64)"])
def ufunc(x):
    return x + 1
h = hist.Hist.new.Reg(10, 0, 1, name="x").StrCat(["a"], growth=True, name="c").Weight()
h.fill(x=[0.1], c="b", weight=2)
arrays = [np.arange(6).reshape(2, 3).T, np.array(["a", None], dtype=object), np.float32(2)]
arrays += [np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]), ak.Array([[1, 2], []]), np.add]
def function(events, schema=NanoAODSchema):
    return fast(events), h, arrays, ufunc, np.sum(events)
"""
    one = run_script(tmp_path / "one.py", source, 1)
    assert run_script(tmp_path / "two.py", "\n\nimport scipy.special\n" + source, 2) == one
    found = {name.partition(".")[0] for name in one[1:]}
    assert {"numba", "numpy", "hist", "awkward", "coffea"} <= found
    for old, new in [("x + 1", "x + 2"), ("weight=2", "weight=3")]:
        assert run_script(tmp_path / "new.py", source.replace(old, new, 1), 1)[0] != one[0]


def test_digest_is_the_same_after_a_round_trip() -> None:
    box = {"sizes": [1, 2], "more": ({"a"}, b"x" * 100_000)}

    def function(x: int) -> object:
        return box, x

    copy = pickle.loads(cloudpickle.dumps(function))
    assert fingerprint(copy).digest == fingerprint(function).digest


def test_values_of_other_kinds_differ() -> None:
    values: list[object] = [
        *(0, False, 0.0, -0.0, 0j, "", b"", (), [], {}, set(), frozenset(), None, ..., bytearray()),
        *(1, True, 1.0, "1", b"1", (1,), [1], {1: None}, {1}, frozenset({1}), -1, 10**5000),
        *(("a", "b"), ("ab",), ["a", ["b"]], [["a"], "b"], [["a", "b"]], {"a": "b"}, {"a", "b"}),
        *(defaultdict(list), defaultdict(dict), Counter("a"), Counter("aa")),
        *(int, list, len, np.add, np.multiply, NotImplemented, range(3), slice(1)),
        *(np.zeros(2), np.zeros(3), np.zeros((1, 2)), np.zeros(2, dtype="f4"), np.float64(0)),
    ]
    digests = [fingerprint(value).digest for value in values]
    assert len(set(digests)) == len(values)


def test_sharing_of_what_can_change_counts_and_that_of_values_does_not() -> None:
    one, two = [1], [1]
    assert fingerprint([one, one]).digest != fingerprint([one, two]).digest
    text, pair = "x" * 50, (1, "y")
    fresh = ["".join(["x"] * 50), (int("1"), "y")]
    assert fingerprint([text, text, pair, pair]).digest == fingerprint([text, *fresh, pair]).digest


def test_depth_and_cycles_are_no_limit() -> None:
    deep: list[object] = []
    for _ in range(50_000):
        deep = [deep]
    assert fingerprint(deep).digest != fingerprint([deep]).digest

    class Node:
        def __init__(self) -> None:
            self.others = {self}

    assert fingerprint(Node()).digest != fingerprint([Node()]).digest


def test_sets_of_objects_have_no_order() -> None:
    regions = [(name, frozenset({name, "x"})) for name in "abcdef"]
    assert fingerprint(set(regions)).digest == fingerprint({*regions[::-1]}).digest


def test_codes_are_those_pickled_by_value() -> None:
    def inner() -> int:
        import json

        return len(json.__name__)

    def outer() -> int:
        return inner()

    codes = fingerprint(functools.partial(outer)).codes
    assert {outer.__code__, inner.__code__} <= set(codes)
    assert not fingerprint(len).codes


def test_a_function_of_a_local_module_counts_by_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "payload_local"
    package.mkdir()
    (package / "__init__.py").write_text("from . import sub\n")
    (package / "sub.py").write_text(
        "def function(x):\n    return x\ndef make():\n    return lambda: 3\nvalue = function\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sub = importlib.import_module("payload_local.sub")
    for obj in (sub, sub.function, sub.make(), functools.partial(sub.function)):
        assert "payload_local.sub" in fingerprint(obj).modules
    assert not fingerprint(sub.function).codes
    assert sub.make().__code__ in fingerprint(sub.make()).codes


def test_payload_is_loaded_with_pickle_alone() -> None:
    factor = 3
    data = dump_payload(lambda x: x * factor, lambda a, b: a + b)
    payload = pickle.loads(data)
    assert payload["function"](2) == 6
    assert payload["merge"](2, 3) == 5
    assert payload["dumps"] is cloudpickle.dumps


def test_cached_properties_and_cached_functions_are_sent() -> None:
    @functools.lru_cache(maxsize=3)
    def fibonacci(n: int) -> int:
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    class Lazy:
        @functools.cached_property
        def number(self) -> int:
            return fibonacci(20)

    def function(x: int) -> int:
        return x + Lazy().number

    loaded = pickle.loads(dump_payload(function, max))
    assert loaded["function"](1) == 6766
    assert pickle.loads(dump_payload(fibonacci, max))["function"].cache_parameters() == {
        "maxsize": 3,
        "typed": False,
    }


IDENTITY = (
    "dy",
    "file.root",
    "Events",
    0,
    100,
    "uuid",
    {"xsec": 1.5, "tags": {"a": [1], "b": None}},
)


def test_chunk_key_covers_function_identity_and_duplicates() -> None:
    key = chunk_key("f" * 32, IDENTITY)
    assert len(key) == 32
    assert set(key) <= set("0123456789abcdef")
    others = [chunk_key("e" * 32, IDENTITY), chunk_key("f" * 32, IDENTITY, 1)]
    changed = ((*IDENTITY[:at], "other", *IDENTITY[at + 1 :]) for at in range(len(IDENTITY)))
    others.extend(chunk_key("f" * 32, identity) for identity in changed)
    others.append(chunk_key("f" * 32, (*IDENTITY[:-1], {"xsec": 1.5, "tags": {"a": [2]}})))
    assert len({key, *others}) == len(others) + 1


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text() | st.integers() | st.tuples(st.text(), st.integers()),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
        max_size=5,
    )
)
def test_chunk_key_does_not_depend_on_the_order_of_metadata(metadata: dict[object, object]) -> None:
    turned = dict(reversed(metadata.items()))
    assert chunk_key("f", ("x", metadata)) == chunk_key("f", ("x", turned))


def test_chunk_key_takes_any_metadata() -> None:
    point = namedtuple("point", "x y")
    for value in (np.arange(3), Path("x"), {"a": {1, 2}}, np.int64(4), frozenset("ab"), point):
        assert chunk_key("f", ("x", {"k": value})) == chunk_key("f", ("x", {"k": value}))
    with pytest.raises(PayloadError, match=r"chunk.*lock"):
        chunk_key("f", ("x", {"lock": threading.Lock()}))
