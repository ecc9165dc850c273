"""CVMFS's own configuration, ``KEY=value`` files as in ``/etc/cvmfs``.

The client of CVMFS lets a shell read them. Here they are read without running anything: values
with a shell's quotes and ``$VARIABLES``, ``export`` and ``readonly``, ``if [ ... ]; then ... else
... fi``, and files that are read by ``.``: distributed files are made of these. Anything else is an
error that names the file and the line; where it is about one value, once that value is needed.
Parameters that HepScale does not know are no error: they are variables of symlinks.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hepscale.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["SYSTEM", "Parameter", "parameters"]

SYSTEM = Path("/etc/cvmfs")

_TOKEN = re.compile(
    r"""(?P<joined>\\\n)|(?P<space>[ \t\r]+)|(?P<end>[\n;])|(?P<op>&&|\|\||[&|<>()])
    |(?P<single>'[^']*')|(?P<double>"(?:[^"\\]|\\(?s:.))*")|(?P<escaped>\\.)
    |(?P<bare>(?:\$\{[^}\n]*\}|\$\([^\n]*\)|`[^`\n]*`|[^\s'"\\;&|<>()`])+)""",
    re.VERBOSE,
)
_VARIABLE = re.compile(
    r"\\(?P<escaped>[$\"\\`\n])|\$(?P<name>[A-Za-z_]\w*)"
    r"|\$\{(?P<braced>[A-Za-z_]\w*)(?:(?P<how>:?[-=])(?P<other>[^{}'\"]*))?\}|(?P<odd>[$`])"
)
# parts of a word, and whether variables in them are filled in
_PIECES = {"single": False, "double": True, "escaped": False, "bare": True}
_ASSIGNED = re.compile(r"[A-Za-z_]\w*=")
_NAME = re.compile(r"[A-Za-z_]\w*")
_DECLARING = frozenset({"export", "readonly"})
_FILE_TESTS = {
    "-e": os.path.exists,
    "-f": os.path.isfile,
    "-d": os.path.isdir,
    "-r": os.path.exists,
}
_MOST_DEEP = 10


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value that a file gives.

    Attributes
    ----------
    value
        None: the line is not understood.
    where
        File and line.
    """

    value: str | None
    where: str

    def text(self, name: str) -> str:
        """Return the value.

        Raises
        ------
        ConfigError
            The line is not understood.
        """
        if self.value is None:
            raise _not_understood(self.where, f"the value of {name} depends on a shell")
        return self.value


def parameters(source: Path, fqrn: str, environ: Mapping[str, str]) -> dict[str, Parameter]:
    """Read what files say of a repository.

    Parameters
    ----------
    source
        A file; or a folder as ``/etc/cvmfs``. Of its files the later ones are stronger:
        ``default.conf``, ``default.d/*.conf``, ``default.local``, ``domain.d/DOMAIN.conf`` and
        ``.local``, ``config.d/FQRN.conf`` and ``.local``; before each of the three, that of
        ``CVMFS_CONFIG_REPOSITORY``, if it is mounted.
    fqrn
        The name of the repository.
    environ
        Variables that values may refer to; one that is not there is empty, as in a shell.

    Raises
    ------
    ConfigError
        There is no such file, or it holds what is not understood.
    """
    known = {**environ, "CVMFS_FQRN": fqrn}
    found: dict[str, Parameter] = {}
    if not source.is_dir():
        if not source.is_file():
            raise ConfigError(
                "There is no such configuration of CVMFS.",
                items=[str(source)],
                cause="the name is misspelt, or in another folder",
                fix=f"ls {source.absolute().parent}",
            )
        _Reader(source, known, found).read()
        return found
    for path in _layout(source, fqrn, found):
        if path.is_file():
            _Reader(path, known, found).read()
    return found


def _layout(top: Path, fqrn: str, found: Mapping[str, Parameter]) -> Iterator[Path]:
    """Yield files, the weakest first; of the configuration repository once it is known which."""
    domain = fqrn.partition(".")[2]
    yield top / "default.conf"
    yield from sorted(top.glob("default.d/*.conf"))
    shared = _of_repository(fqrn, found)
    for name in ("default", f"domain.d/{domain}", f"config.d/{fqrn}"):
        if shared is not None:
            yield shared / f"{name}.conf"
        if name != "default":
            yield top / f"{name}.conf"
        yield top / f"{name}.local"


def _of_repository(fqrn: str, found: Mapping[str, Parameter]) -> Path | None:
    name = found.get("CVMFS_CONFIG_REPOSITORY")
    if name is None or name.value in (None, "", fqrn):
        return None
    mounts = found.get("CVMFS_MOUNT_DIR")
    return Path(
        mounts.value if mounts and mounts.value else "/cvmfs", name.value or "", "etc/cvmfs"
    )


def _not_understood(where: str, cause: str) -> ConfigError:
    return ConfigError(
        "A line of the configuration of CVMFS is not understood.",
        items=[where],
        cause=cause,
        fix="write the value out, or say it in [cvmfs] of hepscale.toml: see hepscale config show",
    )


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of a line, in pieces: its text, and whether variables are filled in."""

    pieces: tuple[tuple[str, bool], ...]
    line: int
    is_operator: bool = False

    @property
    def plain(self) -> str:
        return "".join(text for text, _ in self.pieces)

    @property
    def keyword(self) -> str:
        """The text of a word without quotes."""
        return self.pieces[0][0] if len(self.pieces) == 1 else ""


class _Reader:
    def __init__(
        self, path: Path, known: dict[str, str], found: dict[str, Parameter], depth: int = 0
    ) -> None:
        self._path = path
        self._known = known
        self._found = found
        self._depth = depth
        self._commands: list[list[_Word]] = []

    def read(self) -> None:
        try:
            text = self._path.read_text("utf-8", "surrogateescape")
        except OSError as error:
            raise ConfigError(
                "A configuration of CVMFS cannot be read.",
                items=[str(self._path)],
                cause=(error.strerror or str(error)).lower(),
                fix=f"ls -l {self._path}",
            ) from None
        self._commands = list(self._split(text))[::-1]
        self._block(run=True)
        if self._commands:
            word = self._commands[-1][0]
            raise self._error(word, f"{word.plain!r} stands without an if before it")

    def _error(self, word: _Word, cause: str) -> ConfigError:
        return _not_understood(f"{self._path}:{word.line}", cause)

    def _split(self, text: str) -> Iterator[list[_Word]]:
        """Yield the commands of a text, each as its words."""
        words: list[_Word] = []
        pieces: list[tuple[str, bool]] = []
        at, line = 0, 1

        def close() -> None:
            if pieces:
                words.append(_Word(tuple(pieces), line))
                pieces.clear()

        while at < len(text):
            if text[at] == "#" and not pieces:
                at = text.find("\n", at) if "\n" in text[at:] else len(text)
                continue
            token = _TOKEN.match(text, at)
            if token is None:
                raise self._error(_Word((), line), "a quote is not closed")
            kind, got, at = token.lastgroup or "", token[0], token.end()
            if kind in _PIECES:
                inner = got[1:-1] if got[0] in "'\"" else got.removeprefix("\\")
                pieces.append((inner, _PIECES[kind]))
            elif kind != "joined":
                close()
            if kind == "op":
                words.append(_Word(((got, False),), line, is_operator=True))
            elif kind == "end" and words:
                yield words
                words = []
            line += got.count("\n")
        close()
        if words:
            yield words

    # -- what it means ---------------------------------------------------------------------------

    def _block(self, *, run: bool | None) -> None:
        """Read commands up to a word that ends a block; None: it is open whether they are run."""
        while self._commands and self._commands[-1][0].keyword not in {
            "then",
            "elif",
            "else",
            "fi",
        }:
            command = self._commands.pop()
            if command[0].keyword == "if":
                self._if(command, run)
            else:
                self._simple(command, run)

    def _if(self, command: list[_Word], run: bool | None) -> None:
        begin = command[0]
        left: bool | None = True
        while command[0].keyword in {"if", "elif"}:
            verdict = self._test(command[1:])
            self._expect("then", begin)
            self._block(run=_both(run, _both(left, verdict)))
            left = _both(left, None if verdict is None else not verdict)
            if not self._commands:
                raise self._error(begin, "this if has no fi")
            if self._commands[-1][0].keyword == "elif":
                command = self._commands.pop()
            else:
                break
        if self._commands[-1][0].keyword == "else":
            self._expect("else", begin)
            self._block(run=_both(run, left))
        self._expect("fi", begin)

    def _expect(self, keyword: str, begin: _Word) -> None:
        if not self._commands or self._commands[-1][0].keyword != keyword:
            raise self._error(begin, f"this if has no {keyword}")
        rest = self._commands.pop()[1:]
        if rest:
            self._commands.append(rest)

    def _test(self, words: list[_Word]) -> bool | None:
        """Return whether ``[ ... ] && [ ... ] || ...`` holds; None where that is not known."""
        whole: bool | None = True
        joined = "&&"
        while words:
            ends = [at for at, word in enumerate(words) if word.is_operator]
            end = ends[0] if ends else len(words)
            verdict = self._single_test(words[:end])
            if joined == "&&":
                whole = _both(whole, verdict)
            elif joined == "||":
                whole = True if True in (whole, verdict) else _both(None, whole or verdict)
            else:
                return None
            joined = words[end].plain if ends else ""
            words = words[end + 1 :]
        return whole

    def _single_test(self, words: list[_Word]) -> bool | None:
        if len(words) < 3 or (words[0].keyword, words[-1].keyword) not in {
            ("[", "]"),
            ("[[", "]]"),
        }:
            return None
        inner = [self._expanded(word) for word in words[1:-1]]
        if None in inner:
            return None
        match inner:
            case ["!", *rest] if rest:
                verdict = self._single_test([words[0], *words[2:]])
                return None if verdict is None else not verdict
            case [one]:
                return bool(one)
            case ["-n", one]:
                return bool(one)
            case ["-z", one]:
                return not one
            case [("-e" | "-f" | "-d" | "-r") as kind, one]:
                return _FILE_TESTS[kind](self._path.parent / (one or ""))
            case [one, "=" | "==", other]:
                return one == other
            case [one, "!=", other]:
                return one != other
        return None

    def _simple(self, words: list[_Word], run: bool | None) -> None:
        first = words[0]
        if any(word.is_operator for word in words):
            cause = "it is a command of a shell; values with ; | or & need quotes"
            raise self._error(first, cause)
        if first.keyword in _DECLARING:
            words = words[1:]
        elif first.keyword in {".", "source"} and len(words) == 2:
            if run is not False:
                self._include(words[1], run)
            return
        for word in words:
            head = word.pieces[0]
            name = head[0].partition("=")[0]
            if head[1] and _ASSIGNED.match(head[0]):
                rest = _Word(((head[0][len(name) + 1 :], True), *word.pieces[1:]), word.line)
                if run is not False:
                    self._assign(name, None if run is None else self._expanded(rest), word.line)
            elif first.keyword not in _DECLARING or not _NAME.fullmatch(word.plain):
                cause = f"{word.plain!r} is no KEY=value; values with spaces or ; need quotes"
                raise self._error(word, cause)

    def _assign(self, name: str, value: str | None, line: int) -> None:
        self._found[name] = Parameter(value, f"{self._path}:{line}")
        if value is None:
            self._known.pop(name, None)
        else:
            self._known[name] = value

    def _include(self, word: _Word, run: bool | None) -> None:
        name = self._expanded(word)
        if name is None or run is None or self._depth >= _MOST_DEEP:
            raise self._error(word, "it depends on a shell which file is read here")
        path = self._path.parent / name
        if path.is_file():
            _Reader(path, self._known, self._found, self._depth + 1).read()

    def _expanded(self, word: _Word) -> str | None:
        """Return a word with its variables filled in; None where that takes a shell."""
        texts: list[str] = []
        for piece, is_open in word.pieces:
            text = self._filled(piece) if is_open else piece
            if text is None:
                return None
            texts.append(text)
        return "".join(texts)

    def _filled(self, text: str) -> str | None:
        parts: list[str] = []
        at = 0
        for found in _VARIABLE.finditer(text):
            parts.append(text[at : found.start()])
            at = found.end()
            name = found["name"] or found["braced"]
            if found["odd"]:
                return None
            if found["escaped"]:
                parts.append(found["escaped"].replace("\n", ""))
                continue
            if name not in self._known and name in self._found:
                # its own value is not understood
                return None
            value = self._known.get(name)
            if found["how"] and (value is None or (found["how"][0] == ":" and not value)):
                value = self._filled(found["other"])
                if value is None:
                    return None
            parts.append(value or "")
        return "".join([*parts, text[at:]])


def _both(one: bool | None, other: bool | None) -> bool | None:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True
