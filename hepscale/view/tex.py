"""Labels written in TeX as plain text, for pages that have no TeX."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["plain"]

_MATH = re.compile(r"\$([^$]+)\$")
_COMMAND = re.compile(r"\\([a-zA-Z]+|.) ?")
_RAISED = dict(zip("0123456789+-=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿ", strict=True))
_LOWERED = dict(zip("0123456789+-=()", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", strict=True))
_SYMBOLS = {
    "to": " → ", "rightarrow": " → ", "pm": "±", "mp": "∓", "times": "\u00d7", "cdot": "·",
    "sqrt": "√", "infty": "∞", "ell": "\u2113", "sum": "Σ", "leq": "≤", "le": "≤", "geq": "≥",
    "ge": "≥", "neq": "≠", "ne": "≠", "approx": "≈", "sim": "~", "circ": "°", "ast": "*",
    "prime": "\u2032", "parallel": "∥", "perp": "⊥", "ldots": "…", "slash": "/", "quad": " ",
    "varepsilon": "ε", "varphi": "φ", "vartheta": "θ", "lambda": "λ", "Lambda": "Λ",
    ",": " ", ";": " ", ":": " ", "!": "", "%": "%", "#": "#", "_": "_", "&": "&",
    **dict.fromkeys(("mathrm", "mathit", "mathbf", "text", "textrm", "rm", "left", "right"), ""),
}  # fmt: skip
_ACCENTS = {
    "bar": "\u0304", "overline": "\u0304", "hat": "\u0302", "tilde": "\u0303", "vec": "\u20d7",
}  # fmt: skip
_ACCENT = re.compile(r"\\(bar|overline|hat|tilde|vec) ?(?:\{([^{}]*)\}|(\w))")
_FRACTION = re.compile(r"\\d?frac ?\{([^{}]*)\} ?\{([^{}]*)\}")
_GROUP = re.compile(r"(?<![_^])\{([^{}]*)\}")
_SCRIPT = re.compile(r"([_^]) ?(?:\{([^{}]*)\}|([^{}\\]))")


def plain(label: str) -> str:
    """Return a label with what is between dollars as plain text: ``$p_T$`` becomes ``pT``.

    Greek letters, common symbols, and digits that are raised or lowered become their characters;
    what else is raised or lowered stands beside its letter, and unknown commands keep their name.
    """
    return _MATH.sub(lambda found: _text(found[1]), label) if label.count("$") > 1 else label


def _text(math: str) -> str:
    text = _COMMAND.sub(_symbol, _FRACTION.sub(r"\1/\2", math))
    text = _ACCENT.sub(lambda found: _accented(found[1], found[2] or found[3] or ""), text)
    # the innermost first
    while (changed := _SCRIPT.sub(_script, _GROUP.sub(r"\1", text))) != text:
        text = changed
    return " ".join(re.sub(r"[{}\\]", "", text).split())


def _symbol(found: re.Match[str]) -> str:
    name = found[1]
    if name in _ACCENTS:
        return found[0]
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    case = "CAPITAL" if name[:1].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {case} LETTER {name.upper()}")
    except KeyError:
        return name


def _accented(command: str, inner: str) -> str:
    return inner[:1] + _ACCENTS[command] + inner[1:]


def _script(found: re.Match[str]) -> str:
    text = found[2] if found[2] is not None else found[3]
    table = _RAISED if found[1] == "^" else _LOWERED
    return "".join(table[char] for char in text) if all(char in table for char in text) else text
