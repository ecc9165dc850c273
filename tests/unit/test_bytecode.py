"""The imports in compiled code, for every Python of this machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import CodeType

import pytest

import hepscale
from hepscale.env import bytecode

STATEMENTS = '''
"""All kinds of imports; what begins with "no" is for type checkers only."""
from __future__ import annotations
import typing as t
from typing import TYPE_CHECKING
import yes1, yes2.sub as alias
from .yes3 import member, other
from ..yes4 import *
from . import yes5
if TYPE_CHECKING:
    import no1
    class Hidden:
        import no2
elif t:
    import yes6
else:
    import yes7
if t.TYPE_CHECKING:
    from no3 import x
if not TYPE_CHECKING:
    import yes8
if t is None or TYPE_CHECKING:
    import yes9
if TYPE_CHECKING and t:
    import no4
try:
    import yes10
except ImportError:
    import yes11
class Body:
    import yes12
    def method(self):
        import lazy1
        if TYPE_CHECKING:
            import no5
def function():
    from lazy2 import z
    importlib.import_module("lazy3")
    def inner():
        import lazy4
async def coroutine():
    async with alias:
        import lazy5
import importlib
from importlib import import_module
importlib.import_module("yes13.sub")
import_module(".yes14", __package__)
__import__("yes15")
if TYPE_CHECKING:
    importlib.import_module("no6")
[__import__("yes16") for _ in range(3)]
import_module(computed)
def at_once():
    import yes17
    return indirectly()
def indirectly():
    import yes18
at_once()
'''
# So many names and constants that their numbers do not fit into one byte.
MANY = "\n".join(f"v{number} = {number}.5 * {number}; import m{number}" for number in range(400))
EXPECTED = sorted(
    [[f"yes{number}", False] for number in (1, *range(5, 13), 15, 16, 17, 18)]
    + [["yes2.sub", False], ["yes3", False], ["yes4", False], ["yes13.sub", False]]
    + [["yes14", False]]
    + [[f"lazy{number}", True] for number in range(1, 6)]
)
PROGRAM = """
import json, sys
from hepscale.env.bytecode import found_in
result = []
for source in json.load(sys.stdin):
    found = list(found_in(compile(source, "x", "exec", dont_inherit=True)))
    result.append([[one.name, one.level, list(one.members), one.lazy] for one in found])
print(json.dumps(result))
"""


def interpreters() -> dict[str, str]:
    """Return the Pythons of this machine that are not too old, by version."""
    found = {f"3.{sys.version_info.minor}": sys.executable}
    for minor in range(11, 16):
        name = f"3.{minor}"
        places = [*Path.home().glob(f".pyenv/versions/{name}.*/bin/python")]
        places += [Path(path)] if (path := shutil.which(f"python{name}")) else []
        for place in places:
            # what pyenv puts on the path may be a command that says it is not there
            if subprocess.run([place, "-c", ""], capture_output=True).returncode == 0:
                found.setdefault(name, str(place))
    return found


PYTHONS = interpreters()


@pytest.mark.parametrize("version", PYTHONS)
def test_all_kinds_of_imports_are_read(version: str) -> None:
    done = subprocess.run(
        [PYTHONS[version], "-c", PROGRAM],
        input=json.dumps([STATEMENTS, MANY + STATEMENTS.replace("from __future__", "#")]),
        env={"PYTHONPATH": str(Path(hepscale.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    few, many = json.loads(done.stdout)
    for found in (few, [one for one in many if not re.fullmatch(r"m\d+", one[0])]):
        names = {(name or members[0], lazy) for name, _, members, lazy in found}
        ours = sorted([name, lazy] for name, lazy in names if re.match("yes|no|lazy", name))
        assert ours == EXPECTED
    levels = {(name, level, *members) for name, level, members, _ in few if level}
    assert levels == {
        ("yes3", 1, "member", "other"),
        ("yes4", 2, "*"),
        ("", 1, "yes5"),
        ("yes14", 1),
    }
    assert sum(bool(re.fullmatch(r"m\d+", name)) for name, *_ in many) == 400


def test_a_level_in_the_instruction_itself_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # as Python 3.14 writes it
    code = compile("from ..a import b", "x", "exec", dont_inherit=True)
    unused = bytecode._OPS["LOAD_FAST"]
    monkeypatch.setattr(bytecode, "_LOAD_SMALL_INT", unused)
    raw = bytearray(code.co_code)
    at = raw[::2].index(bytecode._OPS["LOAD_CONST"])
    raw[2 * at], raw[2 * at + 1] = unused, 2
    patched = code.replace(co_code=bytes(raw), co_consts=("nothing", *code.co_consts[1:]))
    assert list(bytecode.found_in(patched)) == [bytecode.Found("a", 2, ("b",), False)]


def test_type_parameters_do_not_hide_a_class_body() -> None:
    source = "class A[T]:\n    import yes\ndef f[T]():\n    import lazy\n"
    if sys.version_info < (3, 12):
        # the scope of the parameters is a function of this name
        made = compile("def f():\n    class A:\n        import yes\n", "x", "exec")
        scope = next(const for const in made.co_consts if isinstance(const, CodeType))
        named = scope.replace(co_name="<generic parameters of A>")
        code = made.replace(
            co_consts=tuple(named if const is scope else const for const in made.co_consts)
        )
        assert [(one.name, one.lazy) for one in bytecode.found_in(code)] == [("yes", False)]
        return
    found = bytecode.found_in(compile(source, "x", "exec"))
    assert {(one.name, one.lazy) for one in found} == {("yes", False), ("lazy", True)}
