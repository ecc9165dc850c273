"""A repository: which revision is believed and used, and when to look for a newer one.

What this cache has found right stays usable: where no server answers, or where what it answers is
refused, the revision that was used last is used again. Its signatures are verified again as well,
with the newest whitelist that is rightly signed; only the date of that whitelist is forgiven then,
and `Revision.notice` says so. A revision that is new to this cache has to be right in everything.

A revision that is pinned by its root hash needs no signature: the hash says all.
"""

from __future__ import annotations

import math
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from . import ObjectError, RepositoryError
from .catalog import tagged
from .names import Name
from .revision import Revision
from .trust import (
    Manifest,
    Whitelist,
    check_certificate,
    check_manifest,
    master_keys,
    read_blacklist,
    read_manifest,
    read_whitelist,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .cache import Cache
    from .fetch import Fetcher
    from .keys import PublicKey

__all__ = ["AGAIN_S", "Repository", "Revision"]

_MANIFEST, _WHITELIST = "manifest", "whitelist"
# the longest time until the next try when one has failed
AGAIN_S = 180.0
_MOST_CERTIFICATE_BYTES = 1 << 16


class _NoAnswer(RepositoryError):
    """No server answers."""


class _Older(RepositoryError):
    """A server offers an older revision than one that was seen."""


class Repository:
    """One repository; for several threads.

    Parameters
    ----------
    settings
        Of this repository: ``name``, ``keys`` (PEM), ``root_hash`` or ``tag`` to pin a revision,
        ``blacklist``.
    cache, fetcher
        Where objects are kept, and come from.
    max_ttl_s
        The longest time to go on without asking for a newer revision.
    variables
        What the variants of symbolic links are made of.

    Attributes
    ----------
    name : str
        Such as ``hepscale.example.org``.
    trouble : RepositoryError or None
        Why the last `refresh` has found nothing.

    Raises
    ------
    RepositoryError
        If a line of the blacklist cannot be read.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        cache: Cache,
        fetcher: Fetcher,
        *,
        max_ttl_s: float | None = None,
        variables: Mapping[str, str],
    ) -> None:
        self.name: str = settings["name"]
        self.trouble: RepositoryError | None = None
        self._settings, self._cache, self._fetcher = settings, cache, fetcher
        self._max_ttl_s, self._variables = max_ttl_s, variables
        self._blacklist = read_blacklist(settings.get("blacklist") or (), self.name)
        self._keys: list[PublicKey] = []
        # the newest one that is rightly signed, be it of today or not
        self._whitelist: Whitelist | None = None
        self._lock = threading.Lock()
        self._revision: Revision | None = None
        self._due = 0.0

    @property
    def pinned(self) -> bool:
        """Whether the settings name one revision."""
        return bool(self._settings.get("root_hash") or self._settings.get("tag"))

    def open(self) -> Revision:
        """Return the revision to use, verified.

        Raises
        ------
        RepositoryError
            If there is none that can be believed.
        """
        with self._lock:
            if self._settings.get("root_hash"):
                self._revision = self._by_hash(self._settings["root_hash"])
            else:
                self._keys = master_keys(self.name, self._settings.get("keys") or ())
                self._revision = self._newest()
            self._due = self._next(self._revision)
            return self._revision

    @property
    def wait_s(self) -> float:
        """Seconds until it is time to ask for a newer revision; without end for a pinned one."""
        return math.inf if self.pinned else max(0.0, self._due - time.monotonic())

    def refresh(self, *, now: bool = False) -> Revision | None:
        """Return a newer revision if its time has come and there is one; None otherwise.

        With `now` it is asked for at once. A pinned repository has no newer revision. `trouble`
        says why a try has failed.
        """
        with self._lock:
            old = self._revision
            if old is None or self.pinned or (not now and time.monotonic() < self._due):
                return None
            self.trouble = None
            try:
                new = self._from_server()
            except RepositoryError as error:
                self.trouble = error
                self._due = time.monotonic() + min(old.ttl_s, AGAIN_S)
                return None
            self._revision, self._due = new, self._next(new)
            return None if new is old else new

    # -- which revision ----------------------------------------------------------------------------

    def _newest(self) -> Revision:
        try:
            return self._from_server()
        except RepositoryError as error:
            return self._from_cache(error)

    def _from_server(self) -> Revision:
        self._whitelist = None
        try:
            return self._offered(fresh=False)
        except _NoAnswer:
            raise
        except RepositoryError as refused:
            # a proxy on the way may keep an old one
            try:
                return self._offered(fresh=True)
            except _NoAnswer:
                raise refused from None

    def _offered(self, *, fresh: bool) -> Revision:
        data = self._get(".cvmfspublished", fresh=fresh)
        manifest = read_manifest(data, self.name)
        listed = self._get(".cvmfswhitelist", fresh=fresh)
        self._whitelist = read_whitelist(listed, self.name, self._keys)
        self._whitelist.check_date(self.name)
        self._check(manifest, self._whitelist)
        self._check_age(manifest)
        revision = self._wanted(manifest)
        revision.offline, revision.notice = False, ""
        try:
            self._cache.keep(self.name, _MANIFEST, data)
            self._cache.keep(self.name, _WHITELIST, listed)
            self._cache.remember(self.name, manifest.root.text, manifest.time, manifest.number)
        except OSError as error:
            revision.notice = f"The revision cannot be kept for later: {error}."
        return revision

    def _from_cache(self, refused: RepositoryError) -> Revision:
        """Return the revision that this cache has found right before; else raise `refused`."""
        data = self._cache.kept(self.name, _MANIFEST)
        if data is None:
            return self._from_memory(refused)
        notices = [_told(refused)]
        try:
            manifest = read_manifest(data, self.name)
            whitelist = self._whitelist
            if whitelist is None:
                listed = self._cache.kept(self.name, _WHITELIST) or b""
                whitelist = read_whitelist(listed, self.name, self._keys)
            self._check(manifest, whitelist)
            revision = self._wanted(manifest)
        except RepositoryError as error:
            # without a server, the cache's own fault says more
            raise (error if isinstance(refused, _NoAnswer) else refused) from None
        try:
            whitelist.check_date(self.name)
        except RepositoryError as error:
            notices.append(_told(error))
        return self._kept(revision, refused, notices)

    def _from_memory(self, refused: RepositoryError) -> Revision:
        """Return the revision that a cache of the CVMFS software remembers, which keeps no more.

        What comes out of such a cache cannot be verified: whoever names it trusts it.
        """
        remembered = self._cache.remembered(self.name)
        known = isinstance(refused, _NoAnswer | _Older) and not self._settings.get("tag")
        if remembered is None or not known:
            raise refused
        root, published, number = remembered
        try:
            self._blacklist.check_revision(self.name, number)
            revision = self._opened(Name.parse(root, "C"), time=published)
        except (RepositoryError, ValueError):
            raise refused from None
        notices = [_told(refused), "The cache holds no manifest: no signature could be verified."]
        return self._kept(revision, refused, notices)

    def _kept(self, revision: Revision, refused: RepositoryError, notices: list[str]) -> Revision:
        revision.offline = isinstance(refused, _NoAnswer)
        kept = f"Revision {revision.number} is the one that the cache has kept."
        revision.notice = " ".join(dict.fromkeys([*notices, kept]))
        return revision

    def _by_hash(self, text: str) -> Revision:
        try:
            root = Name.parse(text, "C")
        except ValueError as error:
            raise RepositoryError(
                f"The root hash of {self.name} is none.",
                text,
                str(error),
                "Give the 40 digits after the C of its manifest, with -rmd160 or -shake128 if any.",
            ) from None
        revision = self._opened(root)
        self._blacklist.check_revision(self.name, revision.number)
        return revision

    def _wanted(self, manifest: Manifest) -> Revision:
        """Return the revision of a manifest, or the older one that the settings' tag names."""
        if tag := self._settings.get("tag"):
            return self._by_tag(tag, manifest)
        if self._revision is not None and self._revision.root == manifest.root:
            return self._revision
        return self._opened(manifest.root, time=manifest.time)

    def _by_tag(self, tag: str, manifest: Manifest) -> Revision:
        root: Name | None = None
        tags: list[str] = []
        if manifest.history is not None:
            try:
                opened = self._cache.open(manifest.history, self._fetcher)
                root, tags = tagged(opened, manifest.history, tag)
            except ObjectError as error:
                raise self._missing("history", error) from error
        if root is None:
            raise RepositoryError(
                f"{self.name} has no tag {tag!r}.",
                f"it has {', '.join(tags[:10]) or 'no tags'}",
                "It is misspelt, or was removed.",
                "Name one of these, or pin the revision by `root_hash`.",
            )
        revision = self._opened(root)
        self._blacklist.check_revision(self.name, revision.number)
        return revision

    # -- what is verified --------------------------------------------------------------------------

    def _check(self, manifest: Manifest, whitelist: Whitelist) -> None:
        try:
            # nothing says yet that those who offer it may be believed
            opened = self._cache.open(
                manifest.certificate, self._fetcher, most=_MOST_CERTIFICATE_BYTES
            )
        except ObjectError as error:
            raise self._missing("certificate", error) from error
        with os.fdopen(opened, "rb") as file:
            pem = file.read(_MOST_CERTIFICATE_BYTES)
        key = check_certificate(pem, self.name, whitelist, self._blacklist)
        check_manifest(manifest, self.name, key)
        self._blacklist.check_revision(self.name, manifest.number)

    def _check_age(self, manifest: Manifest) -> None:
        remembered = self._cache.remembered(self.name)
        if remembered is None or (manifest.time, manifest.number) >= remembered[1:]:
            return
        raise _Older(
            f"A server offers an older revision of {self.name} than was seen before.",
            f"revision {manifest.number}, seen: {remembered[2]}",
            "The server or a proxy is behind, or somebody plays an old revision back.",
            "Wait for the server to catch up, or take it off the list of servers.",
        )

    # -- plumbing ----------------------------------------------------------------------------------

    def _get(self, path: str, *, fresh: bool) -> bytes:
        try:
            return self._fetcher.get(path, fresh=fresh)
        except RepositoryError as error:
            raise _NoAnswer(error.fact, error.item, error.cause, error.fix) from error

    def _opened(self, root: Name, *, time: int | None = None) -> Revision:
        try:
            return Revision(
                root,
                self._cache,
                self._fetcher,
                self._variables,
                time=time,
                max_ttl_s=self._max_ttl_s,
            )
        except ObjectError as error:
            raise self._missing("root catalog", error) from error

    def _missing(self, what: str, error: ObjectError) -> RepositoryError:
        return RepositoryError(
            f"The {what} of {self.name} cannot be had.",
            f"{error.filename}: {error.strerror}",
            "No server that was asked has it as its name promises, and the cache has it not.",
            "Try again later, or with another server first.",
        )

    def _next(self, revision: Revision) -> float:
        wait = min(revision.ttl_s, AGAIN_S) if revision.notice else revision.ttl_s
        return time.monotonic() + wait


def _told(error: RepositoryError) -> str:
    return f"{error.fact.removesuffix('.')}: {error.item}."
