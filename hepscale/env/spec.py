"""The description of an environment: what is in it, whether two are the same, how they differ."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hepscale.errors import PackError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Change", "Difference", "Item", "Spec", "difference"]

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Item:
    """One distribution or local module of an environment.

    Attributes
    ----------
    version
        Empty for local modules.
    content
        Digest of its files, or empty where it is not known.
    """

    version: str
    content: str = ""


@dataclass(frozen=True, slots=True)
class Spec:
    """What an environment is made of.

    Attributes
    ----------
    python
        Version of the interpreter.
    glibc
        The newest version that anything in it needs; empty where it is not known.
    machine
        Such as ``x86_64``.
    distributions, modules
        Installed distributions and local modules, by name.
    """

    python: str
    glibc: str = ""
    machine: str = ""
    distributions: Mapping[str, Item] = field(default_factory=dict)
    modules: Mapping[str, Item] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object; equal specs give equal texts."""
        value = {"format": _FORMAT, **asdict(self)}
        for name in ("distributions", "modules"):
            value[name] = dict(sorted(value[name].items()))
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Spec:
        """Return what :meth:`as_json` has described.

        Raises
        ------
        PackError
            It is of a newer format, or nothing of the kind.
        """
        try:
            if value["format"] > _FORMAT:
                raise PackError(
                    f"The environment was described by a newer HepScale: format {value['format']}.",
                    fix="pip install --upgrade hepscale",
                )
            items = {
                kind: {name: Item(**one) for name, one in value[kind].items()}
                for kind in ("distributions", "modules")
            }
            return cls(value["python"], value["glibc"], value["machine"], **items)
        except (KeyError, TypeError, AttributeError) as error:
            raise PackError(
                "The description of the environment cannot be read.",
                items=[json.dumps(value)[:200]],
                cause="it was not written by HepScale, or it is damaged",
                fix="hepscale env pack, to write it anew",
            ) from error


@dataclass(frozen=True, slots=True)
class Change:
    """What differs; `before` or `after` is empty where it is in one environment only."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Difference:
    """How one environment differs from another.

    Attributes
    ----------
    facts
        Python, glibc, machine.
    distributions, modules
        Sorted by name. Of what has the same version but other files, both say so.
    """

    facts: tuple[Change, ...]
    distributions: tuple[Change, ...]
    modules: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.facts or self.distributions or self.modules)


def difference(before: Spec, after: Spec) -> Difference:
    """Return what differs between two environments."""
    facts = [
        Change(name, getattr(before, name), getattr(after, name))
        for name in ("python", "glibc", "machine")
        if getattr(before, name) != getattr(after, name)
    ]
    return Difference(
        tuple(facts),
        tuple(_changes(before.distributions, after.distributions)),
        tuple(_changes(before.modules, after.modules)),
    )


def _changes(before: Mapping[str, Item], after: Mapping[str, Item]) -> list[Change]:
    changes = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        known = old and new and old.content and new.content
        edited = bool(old and new and known and old.content != new.content)
        if old is None or new is None or old.version != new.version or edited:
            changes.append(Change(name, _shown(old, edited), _shown(new, edited)))
    return changes


def _shown(item: Item | None, edited: bool) -> str:
    if item is None:
        return ""
    if edited:
        return f"{item.version} ({item.content[:8]})".strip()
    return item.version or item.content[:8]
