"""What ``hepscale config show`` prints: a table for people, JSON for programs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hepscale.config import Resolved

__all__ = ["settings_json", "settings_table"]

# who asks for a proxy may have to give a name and a password
_PASSWORD = re.compile(r"(?<=//)[^/@\s]+@")


def settings_json(found: Resolved) -> dict[str, Any]:
    """Return settings, with the level and the place that each came from, as a JSON object."""
    settings = {
        name: {
            "value": value,
            "level": found.origin(name).level,
            "where": str(found.origin(name)),
        }
        for name, value in _values(found)
    }
    files = [str(file.path) for file in found.files]
    return {"settings": settings, "files": files, "sites": found.sites}


def settings_table(found: Resolved, width: int) -> Text:
    """Return settings as lines that are not to be wrapped; those that nobody has given are dim.

    Parameters
    ----------
    found
        The settings.
    width
        Columns of the terminal. What does not fit beside a value is in a line of its own, so that
        no path is broken.
    """
    rows = [(name, _text(value), found.origin(name)) for name, value in _values(found)]
    names = max(len(name) for name, _, _ in rows)
    room = width - names - 4
    values = max((len(text) for _, text, by in rows if len(text) + len(str(by)) <= room), default=5)
    shown = Text()

    def add(name: str, text: str, by: str, style: str) -> None:
        fits = max(len(text), values) + len(by) <= room
        between = " " * max(2, values - len(text) + 2) if fits else "\n" + " " * (names + 2)
        shown.append(f"{name:<{names}}  {text}{between}{by}\n", style)

    add("setting", "value", "from", "bold")
    for name, text, origin in rows:
        add(name, text, str(origin), "dim" if origin.level == "default" else "")
    files = "\n       ".join(str(one.path) for one in found.files)
    shown.append(f"\nFiles: {files or 'none'}")
    shown.append(f"\nSites: {', '.join(found.sites) or 'none'}")
    return shown


def _values(found: Resolved) -> Iterator[tuple[str, Any]]:
    for name, value in found.settings.model_dump(mode="json").items():
        if isinstance(value, dict) and value:
            for inner, one in value.items():
                yield f"{name}.{inner}", _hidden(one)
        else:
            yield name, _hidden(value)


def _hidden(value: Any) -> Any:
    if isinstance(value, str):
        return _PASSWORD.sub("***@", value)
    if isinstance(value, list):
        return [_hidden(one) for one in value]
    if isinstance(value, dict):
        return {name: _hidden(one) for name, one in value.items()}
    return value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "-" if value in (None, "", [], {}) else str(value)
