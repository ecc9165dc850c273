"""The user's grid proxy and bearer token: where they are, and for how long they hold.

Their contents are sent to workers and go nowhere else: not into logs, not into journals.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Credential", "find", "warnings"]

_SOON = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Credential:
    """A file that proves who the user is.

    Attributes
    ----------
    variable
        By which programs find it.
    path
        Where it is.
    expires
        When it ceases to hold; None: it does not say.
    kind, renew
        What it is called, and the command that makes a new one.
    """

    variable: str
    path: Path
    expires: datetime | None
    kind: str
    renew: str


def find() -> list[Credential]:
    """Return the credentials that this user has, expired or not.

    An x509 proxy is where ``X509_USER_PROXY`` says, else ``/tmp/x509up_uUID``; a token where
    ``BEARER_TOKEN_FILE`` says, else ``bt_uUID`` in ``XDG_RUNTIME_DIR`` or ``/tmp``.
    """
    uid, found = os.getuid(), []
    proxy = _first("X509_USER_PROXY", [Path("/tmp") / f"x509up_u{uid}"])  # noqa: S108
    if proxy is not None:
        kind, renew = "x509 proxy", "voms-proxy-init"
        found.append(Credential("X509_USER_PROXY", proxy, _proxy_end(proxy), kind, renew))
    folders = [os.environ.get("XDG_RUNTIME_DIR"), "/tmp", tempfile.gettempdir()]  # noqa: S108
    token = _first("BEARER_TOKEN_FILE", [Path(one) / f"bt_u{uid}" for one in folders if one])
    if token is not None:
        kind, renew = "bearer token", "htgettoken"
        found.append(Credential("BEARER_TOKEN_FILE", token, _token_end(token), kind, renew))
    return found


def warnings(found: Sequence[Credential]) -> Iterator[str]:
    """Yield what is to be said of credentials that do not hold, or not for long."""
    now = datetime.now(UTC)
    for one in found:
        if one.expires is not None and one.expires < now + _SOON:
            when = f"{one.expires:%Y-%m-%d %H:%M} UTC"
            verb = "has expired" if one.expires < now else "expires soon"
            yield f"The {one.kind} {one.path} {verb} ({when}). To renew it: {one.renew}"


def _first(variable: str, usual: Sequence[Path]) -> Path | None:
    given = os.environ.get(variable)
    for path in [Path(given)] if given else usual:
        if path.is_file() and os.access(path, os.R_OK):
            return path.absolute()
    return None


def _proxy_end(path: Path) -> datetime | None:
    """Return the end of the shortest-lived certificate of a chain."""
    try:
        chain = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return None
    return min(one.not_valid_after_utc for one in chain)


def _token_end(path: Path) -> datetime | None:
    """Return what a JSON web token says in its middle part."""
    try:
        middle = path.read_text().strip().split(".")[1]
        told = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        return datetime.fromtimestamp(told["exp"], UTC)
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return None
