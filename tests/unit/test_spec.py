from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from hepscale.env.spec import Change, Difference, Item, Spec, difference
from hepscale.errors import PackError

SPEC = Spec(
    "3.11.7",
    "2.34",
    "x86_64",
    {"numpy": Item("2.4.6", "a" * 64), "hist": Item("2.12.1", "b" * 64)},
    {"helper": Item("", "c" * 64)},
)


def changed(**given: Any) -> Spec:
    return dataclasses.replace(SPEC, **given)


def test_spec_survives_json() -> None:
    value = json.loads(json.dumps(SPEC.as_json()))
    assert Spec.from_json(value) == SPEC
    assert value["format"] == 1
    assert value["distributions"]["numpy"] == {"version": "2.4.6", "content": "a" * 64}
    assert Spec.from_json(Spec("3.13.0").as_json()) == Spec("3.13.0")


def test_equal_specs_give_equal_texts() -> None:
    other = changed(distributions=dict(reversed(list(SPEC.distributions.items()))))
    assert json.dumps(other.as_json()) == json.dumps(SPEC.as_json())


def test_newer_format() -> None:
    with pytest.raises(PackError, match="by a newer HepScale: format 2") as caught:
        Spec.from_json({**SPEC.as_json(), "format": 2, "python": {}})
    assert caught.value.fix == "pip install --upgrade hepscale"


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        "text",
        {**SPEC.as_json(), "format": "1"},
        {**SPEC.as_json(), "distributions": []},
        {**SPEC.as_json(), "distributions": {"x": {"colour": 1}}},
        {**SPEC.as_json(), "modules": {"x": None}},
        {name: one for name, one in SPEC.as_json().items() if name != "glibc"},
    ],
)
def test_damaged_description(value: Any) -> None:
    with pytest.raises(PackError, match="The description of the environment cannot be read"):
        Spec.from_json(value)


def test_no_difference() -> None:
    found = difference(SPEC, Spec.from_json(SPEC.as_json()))
    assert found == Difference((), (), ())
    assert not found


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (changed(python="3.12.0"), ("facts", "python", "3.11.7", "3.12.0")),
        (changed(glibc=""), ("facts", "glibc", "2.34", "")),
        (changed(machine="aarch64"), ("facts", "machine", "x86_64", "aarch64")),
        (changed(modules={}), ("modules", "helper", "cccccccc", "")),
        (
            changed(modules={"helper": Item("", "d" * 64)}),
            ("modules", "helper", "(cccccccc)", "(dddddddd)"),
        ),
        (
            changed(distributions={"numpy": SPEC.distributions["numpy"]}),
            ("distributions", "hist", "2.12.1", ""),
        ),
        (
            changed(distributions={**SPEC.distributions, "yaml": Item("6", "e" * 64)}),
            ("distributions", "yaml", "", "6"),
        ),
        (
            changed(distributions={**SPEC.distributions, "hist": Item("3")}),
            ("distributions", "hist", "2.12.1", "3"),
        ),
        (
            changed(distributions={**SPEC.distributions, "hist": Item("2.12.1", "e" * 64)}),
            ("distributions", "hist", "2.12.1 (bbbbbbbb)", "2.12.1 (eeeeeeee)"),
        ),
    ],
)
def test_difference(other: Spec, expected: tuple[str, ...]) -> None:
    kind, *change = expected
    found = difference(SPEC, other)
    assert found
    assert getattr(found, kind) == (Change(*change),)
    assert sum(map(len, (found.facts, found.distributions, found.modules))) == 1


def test_content_that_is_not_known_is_not_compared() -> None:
    other = changed(distributions={**SPEC.distributions, "hist": Item("2.12.1")})
    assert not difference(SPEC, other)
    assert not difference(other, SPEC)


def test_changes_are_sorted() -> None:
    names = ["zlib", "Arrow", "numpy", "hist"]
    other = changed(distributions={name: Item("9") for name in names})
    assert [one.name for one in difference(SPEC, other).distributions] == sorted(names)
