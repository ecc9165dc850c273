"""Whom a client believes: manifest, whitelist, certificate, and what must not be believed.

The master key, which the client is given, signs the whitelist; the whitelist lists certificates;
the key of a listed certificate signs the manifest; the manifest names the root catalog by its
hash, and from there on hashes lead to every file.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from . import RepositoryError
from .keys import PublicKey, certificate, public_keys
from .names import Algorithm, Name, hasher

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Blacklist",
    "Manifest",
    "Whitelist",
    "check_certificate",
    "check_manifest",
    "master_keys",
    "read_blacklist",
    "read_manifest",
    "read_whitelist",
]

_TOP = hashlib.md5(b"", usedforsecurity=False).hexdigest()
_ASK = "Ask those who run the repository."
_SERVED = "Look at what the server answers; a proxy may have put a page of its own in its place."
_CHANGED = "It was changed on its way or on the server, or is only half there."


class _Signed(NamedTuple):
    text: bytes
    printed: bytes
    signature: bytes


class Manifest(NamedTuple):
    """What ``.cvmfspublished`` says of one revision; `signed` is for `check_manifest`."""

    root: Name
    number: int
    time: int
    certificate: Name
    history: Name | None
    signed: _Signed


class Whitelist(NamedTuple):
    """What ``.cvmfswhitelist`` says; its signature was found right."""

    expires: datetime
    fingerprints: frozenset[Name]

    def check_date(self, fqrn: str, now: datetime | None = None) -> None:
        """Raise `RepositoryError` if it has run out."""
        if (now or datetime.now(UTC)) > self.expires:
            raise RepositoryError(
                f"The whitelist of {fqrn} has run out.",
                f"{self.expires:%Y-%m-%d %H:00} UTC",
                "It was not signed again in time, a proxy keeps an old one, or the clock is wrong.",
                "Compare `date -u`; else ask those who run the repository for a new whitelist.",
            )


class Blacklist(NamedTuple):
    """What is refused however well it is signed: certificates, revisions below a number."""

    fingerprints: frozenset[Name]
    least: int

    def check_revision(self, fqrn: str, number: int) -> None:
        """Raise `RepositoryError` if revision `number` is among them."""
        if number < self.least:
            raise RepositoryError(
                f"This revision of {fqrn} is on the blacklist.",
                f"revision {number}, below {self.least}",
                "It was withdrawn, for a fault or for its safety.",
                "Use a newer revision: take away `root_hash` or `tag`, or name a later one.",
            )


def master_keys(fqrn: str, texts: Iterable[str]) -> list[PublicKey]:
    """Return the master keys that the PEM `texts` hold; `RepositoryError` if one is unreadable."""
    keys = []
    for text in texts:
        try:
            keys += public_keys(text)
        except ValueError as error:
            raise RepositoryError(
                f"A public key of {fqrn} cannot be read.",
                text[:60].strip(),
                f"It is not an RSA key in PEM form: {error}.",
                "Give the contents of its .pub file, which `openssl rsa -pubin -in FILE` can read.",
            ) from None
    if not keys:
        raise RepositoryError(
            f"No public key of {fqrn} is given.",
            cause="Without it nothing that a server says of the repository can be verified.",
            fix="Name its .pub file in the setting `keys`, or in CVMFS_PUBLIC_KEY.",
        )
    return keys


def read_manifest(data: bytes, fqrn: str) -> Manifest:
    """Return what a ``.cvmfspublished`` says; its signature is still to be verified.

    Raises
    ------
    RepositoryError
        If it cannot be read, is not that of `fqrn`, or does not fit the hash it carries.
    """
    signed = _split(data, "manifest", fqrn)
    # of a line that is there twice, the last one counts
    lines = {line[:1]: line[1:] for line in signed.text.decode("latin-1").split("\n")}
    if (name := lines.get("N")) != fqrn:
        raise RepositoryError(
            f"The manifest is not that of {fqrn}.",
            f"N{name}",
            "The URL of a server leads to another repository.",
            f"Check the URLs of {fqrn}.",
        )
    if lines.get("R") != _TOP:
        raise RepositoryError(
            f"The manifest of {fqrn} is not that of the top of a repository.",
            f"R{lines.get('R')}",
            "A server publishes a part of a repository as if it were the whole.",
            _ASK,
        )
    try:
        if not lines["D"].isdecimal():
            raise ValueError(f"D{lines['D']}")
        return Manifest(
            root=Name.parse(lines["C"], "C"),
            number=int(lines["S"]),
            time=int(lines.get("T", "0")),
            certificate=Name.parse(lines["X"], "X"),
            history=Name.parse(lines["H"], "H") if "H" in lines else None,
            signed=signed,
        )
    except (KeyError, ValueError) as error:
        raise _unreadable("manifest", fqrn, f"a line is missing or wrong: {error}") from None


def read_whitelist(data: bytes, fqrn: str, keys: Sequence[PublicKey]) -> Whitelist:
    """Return what a ``.cvmfswhitelist`` says, verified with the master `keys`; look at its date.

    Raises
    ------
    RepositoryError
        If it cannot be read, is not signed by one of `keys`, is not that of `fqrn`, or wants to be
        verified in a way that is not known here.
    """
    signed = _split(data, "whitelist", fqrn)
    lines = signed.text.decode("latin-1").split("\n")
    try:
        _, expires, name = lines[:3]
        date = expires.removeprefix("E")
        if len(date) != 14 or not date.isdecimal():
            raise ValueError(expires)
        # the original looks at the hour only
        until = datetime(int(date[:4]), int(date[4:6]), int(date[6:8]), int(date[8:10]), tzinfo=UTC)
    except ValueError as error:
        raise _unreadable("whitelist", fqrn, f"a line is missing or wrong: {error}") from None
    for line in lines[3:]:
        if line[:1] in {"V", "W"}:
            raise RepositoryError(
                f"The whitelist of {fqrn} has to be verified in a way that is not known here.",
                line,
                "It is signed with a chain of certificates instead of a master key.",
                'Use the CVMFS software of the node (`how = "mounted"` or `"cvmfs2"`).',
            )
    if not any(key.signed(signed.printed, signed.signature) for key in keys):
        raise RepositoryError(
            f"The whitelist of {fqrn} was not signed with a master key that is given.",
            f"{len(keys)} tried",
            "The key is that of another repository, or somebody signed who must not.",
            f"Get the public key of {fqrn} from those who run it, not from the server.",
        )
    if name != f"N{fqrn}":
        raise RepositoryError(
            f"The whitelist is not that of {fqrn}.",
            name.removeprefix("N"),
            "A server offers that of another repository.",
            f"Check the URLs of {fqrn}.",
        )
    return Whitelist(until, _fingerprints(lines[3:]))


def read_blacklist(lines: Iterable[str], fqrn: str) -> Blacklist:
    """Return what is refused of `fqrn`: fingerprints, and revisions by lines ``<fqrn N``.

    Raises
    ------
    RepositoryError
        If a line is neither: what somebody wanted to be refused must not be let in by a slip.
    """
    bare = [line.partition("#")[0].strip() for line in lines]
    least = 0
    fingerprints: list[Name] = []
    for line in filter(None, bare):
        name, _, number = line[1:].strip().partition(" ")
        if line.startswith("<") and number.strip().isdecimal():
            least = max(least, int(number) if name == fqrn else 0)
        elif found := _fingerprints([line]):
            fingerprints += found
        else:
            raise RepositoryError(
                "A line of the blacklist cannot be read.",
                line,
                "It is neither the fingerprint of a certificate nor `<repository revision`.",
                "Put it right, or a # before it.",
            )
    return Blacklist(frozenset(fingerprints), least)


def check_certificate(pem: bytes, fqrn: str, whitelist: Whitelist, black: Blacklist) -> PublicKey:
    """Return the key of a certificate that the whitelist lists and the blacklist does not.

    The dates in the certificate mean nothing in CVMFS.

    Raises
    ------
    RepositoryError
        If it may not sign for `fqrn`.
    """
    try:
        der, key = certificate(pem.decode("latin-1"))
    except ValueError as error:
        raise _unreadable("certificate", fqrn, str(error)) from None
    names = [Name(_digest(algorithm, der), algorithm) for algorithm in Algorithm]
    if banned := next((one for one in names if one in black.fingerprints), None):
        raise RepositoryError(
            f"The certificate that signs {fqrn} is on the blacklist.",
            _printed(banned),
            "Its key has got into the wrong hands, or is out of use.",
            _ASK,
        )
    if whitelist.fingerprints.isdisjoint(names):
        raise RepositoryError(
            f"The certificate that signs {fqrn} is not on its whitelist.",
            _printed(names[0]),
            "Somebody signed who must not, or a proxy keeps an old whitelist.",
            _ASK,
        )
    return key


def check_manifest(manifest: Manifest, fqrn: str, key: PublicKey) -> None:
    """Raise `RepositoryError` if the manifest was not signed with the key of its certificate."""
    if not key.signed_sha1(manifest.signed.printed, manifest.signed.signature):
        raise RepositoryError(
            f"The signature of the manifest of {fqrn} is wrong.",
            f"revision {manifest.number}",
            _CHANGED,
            _SERVED,
        )


def _split(data: bytes, what: str, fqrn: str) -> _Signed:
    """Take a signed text apart; see that the hash printed in it is that of the text."""
    text, line, rest = data.partition(b"\n--\n")
    printed, end, signature = rest.partition(b"\n")
    if not line or not end:
        raise _unreadable(what, fqrn, "it has no signature")
    text += b"\n"
    try:
        name = Name.parse(printed.decode("latin-1"))
    except ValueError as error:
        raise _unreadable(what, fqrn, str(error)) from None
    if _digest(name.algorithm, text) != name.digest:
        raise RepositoryError(
            f"The {what} of {fqrn} does not fit the hash it carries.",
            name.text,
            _CHANGED,
            _SERVED,
        )
    return _Signed(text, printed, signature)


def _unreadable(what: str, fqrn: str, item: str) -> RepositoryError:
    return RepositoryError(f"The {what} of {fqrn} cannot be read.", item, _CHANGED, _SERVED)


def _fingerprints(lines: Iterable[str]) -> frozenset[Name]:
    names = set()
    for line in lines:
        words = line.partition("#")[0].split()
        try:
            names.add(Name.parse(words[0].replace(":", "").lower()))
        except (IndexError, ValueError):
            continue  # a remark
    return frozenset(names)


def _printed(name: Name) -> str:
    digits, dash, ending = name.text.upper().partition("-")
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2)) + dash + ending


def _digest(algorithm: Algorithm, content: bytes) -> bytes:
    made = hasher(algorithm)
    made.update(content)
    return made.digest()
