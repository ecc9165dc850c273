"""The certificate of a manager: made for it alone, in a moment, and gone with its folder."""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["certificate"]

# of the longest run that anybody may have
_DAYS = 365


def certificate(folder: Path) -> tuple[str, str]:
    """Write a key and a certificate that is signed with it; return their paths.

    Workers encrypt with it and do not check whom they talk to: that is what the password is for.

    Parameters
    ----------
    folder
        Where they are written, readable for this user only.

    Raises
    ------
    OSError
        They cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hepscale")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # clocks differ
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=_DAYS))
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    paths = []
    for title, data in (
        ("key", secret),
        ("certificate", made.public_bytes(serialization.Encoding.PEM)),
    ):
        path = folder / f"{title}.pem"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(data)
        paths.append(str(path))
    return paths[0], paths[1]
