"""RSA public keys, out of PEM files and certificates, and the signatures that they verify."""

from __future__ import annotations

import binascii
import hashlib
import re
from typing import NamedTuple

__all__ = ["PublicKey", "certificate", "public_keys"]

_PEM = re.compile(
    r"-----BEGIN (PUBLIC KEY|RSA PUBLIC KEY|CERTIFICATE)-----\s+(.*?)-----END \1-----", re.DOTALL
)
_INTEGER, _BITS, _SEQUENCE = 0x02, 0x03, 0x30
_RSA = bytes.fromhex("06092a864886f70d010101")  # its object identifier
_SHA1 = bytes.fromhex("3021300906052b0e03021a05000414")  # the DigestInfo before a digest
_LEAST_BITS = 1024


class PublicKey(NamedTuple):
    """An RSA key."""

    modulus: int
    exponent: int

    def signed(self, content: bytes, signature: bytes) -> bool:
        """Whether `signature` is that of `content`: PKCS #1 v1.5 with nothing about a hash.

        What must come out is built and compared as a whole, so that nothing can hide in it.
        """
        size = (self.modulus.bit_length() + 7) // 8
        padding = b"\xff" * (size - len(content) - 3)
        number = int.from_bytes(signature, "big")
        if len(signature) != size or len(padding) < 8 or number >= self.modulus:
            return False
        recovered = pow(number, self.exponent, self.modulus).to_bytes(size, "big")
        return recovered == b"\x00\x01" + padding + b"\x00" + content

    def signed_sha1(self, content: bytes, signature: bytes) -> bool:
        """Whether `signature` is that of the SHA-1 of `content`: PKCS #1 v1.5."""
        return self.signed(_SHA1 + hashlib.sha1(content, usedforsecurity=False).digest(), signature)


def public_keys(text: str) -> list[PublicKey]:
    """Return all RSA keys of a PEM text.

    Raises
    ------
    ValueError
        If there is none, or one that cannot be read.
    """
    keys = []
    for kind, body in _PEM.findall(text):
        der = binascii.a2b_base64(body)
        if kind == "CERTIFICATE":
            keys.append(_of_certificate(der))
        else:
            keys.append(_rsa(der) if kind == "RSA PUBLIC KEY" else _of_any(der))
    if not keys:
        raise ValueError("no PEM block of a public key")
    return keys


def certificate(text: str) -> tuple[bytes, PublicKey]:
    """Return the DER form of a PEM certificate, which fingerprints are made of, and its key.

    Raises
    ------
    ValueError
        If it is none, or its key is not an RSA key.
    """
    for kind, body in _PEM.findall(text):
        if kind == "CERTIFICATE":
            der = binascii.a2b_base64(body)
            return der, _of_certificate(der)
    raise ValueError("no PEM block of a certificate")


# -- DER -------------------------------------------------------------------------------------------


def _items(content: bytes) -> list[tuple[int, bytes, bytes]]:
    """Return (tag, value, all of it) of what stands one after the other in `content`."""
    items, at = [], 0
    while at < len(content):
        tag, length, begin = content[at], int.from_bytes(content[at + 1 : at + 2]), at + 2
        if length & 0x80:
            begin += length & 0x7F
            length = int.from_bytes(content[at + 2 : begin], "big")
        end = begin + length
        if end > len(content):
            raise ValueError("DER that is cut short")
        items.append((tag, content[begin:end], content[at:end]))
        at = end
    return items


def _sequence(content: bytes, least: int) -> list[tuple[int, bytes, bytes]]:
    """Return the items of the one sequence that `content` is."""
    outer = _items(content)
    if len(outer) != 1 or outer[0][0] != _SEQUENCE:
        raise ValueError("not a DER sequence")
    items = _items(outer[0][1])
    if len(items) < least:
        raise ValueError("a DER sequence that is too short")
    return items


def _of_certificate(der: bytes) -> PublicKey:
    # serial, algorithm, issuer, dates, subject, key; from version 2 on the version comes first
    signed = _sequence(_sequence(der, 3)[0][2], 6)
    if signed[0][0] != _INTEGER:
        del signed[0]
    if len(signed) < 6:
        raise ValueError("a certificate without a key")
    return _of_any(signed[5][2])


def _of_any(der: bytes) -> PublicKey:
    algorithm, bits, *_ = _sequence(der, 2)
    if not algorithm[1].startswith(_RSA) or bits[0] != _BITS:
        raise ValueError("not an RSA key")
    return _rsa(bits[1][1:])


def _rsa(der: bytes) -> PublicKey:
    numbers = _sequence(der, 2)
    if any(tag != _INTEGER for tag, _, _ in numbers):
        raise ValueError("not an RSA key")
    modulus, exponent = (int.from_bytes(value, "big") for _, value, _ in numbers[:2])
    if modulus.bit_length() < _LEAST_BITS or exponent < 3:
        raise ValueError(f"an RSA key of {modulus.bit_length()} bits")
    return PublicKey(modulus, exponent)
