"""What ``hepscale config show`` prints: a table for people, JSON for programs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

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


def settings_table(found: Resolved) -> RenderableType:
    """Return settings as a table; those that nobody has given are dim."""
    table = Table(box=None, pad_edge=False)
    for title in ("setting", "value", "from"):
        table.add_column(title, overflow="fold")
    for name, value in _values(found):
        origin = found.origin(name)
        style = "dim" if origin.level == "default" else ""
        table.add_row(*map(Text, (name, _text(value), str(origin))), style=style)
    parts: list[RenderableType] = [table, ""]
    parts.append(Text(f"Files: {', '.join(str(one.path) for one in found.files) or 'none'}"))
    parts.append(Text(f"Sites: {', '.join(found.sites) or 'none'}"))
    return Group(*parts)


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
