"""Publishes small CVMFS repositories: the files that a web server would offer below one URL.

::

    site = publish(tmp_path / "web", "demo.example.org", {
        "README": b"hello\\n",
        "latest": Link("v1/$(ARCH:-any)"),
        "v1": Folder({"big": File(data, chunk=1000)}, nested=True),
    })
    site.key, site.last.root          # the public master key (PEM), the name of the root catalog
    site.publish({...}, tag="second")  # the next revision
    site.sign(S="1")                  # its manifest with another line, rightly signed
    site.whitelist(expires="20200101000000")
    site.damage("README")             # flips a byte of the object

The folder is what CVMFS itself calls the backend storage.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from catalogs import TIME, Catalogs, File, Folder, Link, Revision, Tree, database
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo
from cryptography.x509.oid import NameOID
from objects import named, stored

from hepscale.worker.cvmfs.names import Algorithm, Name

__all__ = [
    "TIME",
    "Algorithm",
    "File",
    "Folder",
    "Link",
    "Revision",
    "Site",
    "fingerprint",
    "public_pem",
    "publish",
]


@functools.cache
def private_key(purpose: str) -> rsa.RSAPrivateKey:
    """Return the key of this process for `purpose`: "master", "release", or another one."""
    del purpose
    return rsa.generate_private_key(65537, 2048)


def public_pem(purpose: str = "master") -> str:
    """Return the public half of a key, as a client is given it."""
    return (
        private_key(purpose)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


@functools.cache
def certificate(purpose: str = "release") -> x509.Certificate:
    """Return a certificate that signs itself, and has run out: clients look at the whitelist."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "release managers")])
    begin = datetime(2020, 1, 1)
    return (
        x509.CertificateBuilder(name, name, private_key(purpose).public_key(), 7)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=365))
        .sign(private_key(purpose), hashes.SHA256())
    )


def fingerprint(algorithm: Algorithm, purpose: str = "release") -> str:
    """Return the line of a whitelist for a certificate."""
    der = certificate(purpose).public_bytes(serialization.Encoding.DER)
    digest = named(der, algorithm)
    _, dash, ending = digest.text.upper().partition("-")
    return ":".join(f"{byte:02X}" for byte in digest.digest) + dash + ending


def publish(folder: str | Path, name: str, tree: Mapping[str, Tree], **options: object) -> Site:
    """Publish the first revision of a repository; `options` are those of `Site.publish`.

    `algorithm` of `Site` may be among them.
    """
    algorithm = options.pop("algorithm", Algorithm.SHA1)
    site = Site(Path(folder), name, Algorithm(algorithm))  # type: ignore[arg-type]
    site.publish(tree, **options)  # type: ignore[arg-type]
    return site


class Site:
    """A repository that is being published in `folder`; `key` is its public master key."""

    def __init__(self, folder: Path, name: str, algorithm: Algorithm = Algorithm.SHA1) -> None:
        self.folder, self.name, self.algorithm = folder, name, algorithm
        self.key = public_pem()
        self.revisions: list[Revision] = []
        self.lines: dict[str, str] = {}
        self.objects: dict[str, list[Name]] = {}  # of each file of the last revision

    @property
    def last(self) -> Revision:
        """The last revision."""
        return self.revisions[-1]

    def settings(self, *servers: str, **more: object) -> dict[str, object]:
        """Return what a client is told of this repository."""
        pins = {"root_hash": None, "tag": None, "blacklist": []}
        return {"name": self.name, "servers": list(servers), "keys": [self.key], **pins, **more}

    def publish(
        self,
        tree: Mapping[str, Tree],
        *,
        tag: str = "",
        time: int | None = None,
        ttl_s: int | None = 240,
        schema: int = 7,
        number: int | None = None,
    ) -> Revision:
        """Publish the next revision, an hour after the one before, with catalogs of that schema."""
        number = number or len(self.revisions) + 1
        time = time or TIME + 3600 * number
        top = tree if isinstance(tree, Folder) else Folder(tree, uid=0, gid=0)
        writer = Catalogs(self.store, self.algorithm, schema, number, ttl_s)
        root, size, _ = writer.write("", top)
        self.objects = writer.objects
        revision = Revision(number, root, size, time, tag)
        self.revisions.append(revision)
        release = certificate().public_bytes(serialization.Encoding.PEM)
        self.lines = {
            "C": root.text, "B": str(size), "R": hashlib.md5(b"").hexdigest(),
            "D": str(ttl_s or 240), "S": str(number), "G": "no", "A": "no", "N": self.name,
            "X": self.store(release, "X").text, "H": self._history().text, "T": str(time),
        }  # fmt: skip
        self.sign()
        self.whitelist()
        return revision

    def sign(self, key: str = "release", **lines: str | None) -> None:
        """Write the manifest anew with other `lines`, without those that are None, signed."""
        chosen = {**self.lines, **lines}
        text = "".join(
            f"{letter}{value}\n" for letter, value in chosen.items() if value is not None
        )
        printed = named(text.encode(), self.algorithm).text.encode()
        signature = private_key(key).sign(printed, padding.PKCS1v15(), hashes.SHA1())
        self._write(".cvmfspublished", b"%s--\n%s\n%s" % (text.encode(), printed, signature))

    def whitelist(
        self,
        *,
        key: str = "master",
        name: str | None = None,
        expires: str = "20540408232649",
        more: Sequence[str] = (),
        fingerprints: Sequence[str] | None = None,
    ) -> None:
        """Write the whitelist; `more` are lines after the name, such as ``Vpkcs7``."""
        listed = [fingerprint(self.algorithm)] if fingerprints is None else fingerprints
        lines = ["20200101000000", f"E{expires}", f"N{name or self.name}", *more, *listed]
        text = "".join(f"{line}\n" for line in lines)
        printed = named(text.encode(), self.algorithm).text.encode()
        signature = private_key(key).sign(printed, padding.PKCS1v15(), NoDigestInfo())
        self._write(".cvmfswhitelist", b"%s--\n%s\n%s" % (text.encode(), printed, signature))

    def store(self, content: bytes, suffix: str = "", *, compressed: bool = True) -> Name:
        """Store an object; return its name."""
        name, data = stored(content, self.algorithm, suffix, compressed=compressed)
        self._write(name.path, data)
        return name

    def files(self) -> dict[str, bytes]:
        """Return all that a server offers, for `objects.serving`."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}

    def path(self, name: Name) -> Path:
        """Return where an object is stored."""
        return self.folder / name.path

    def damage(self, file: str | Name, at: int = -1) -> None:
        """Flip a bit in the object of a file of the last revision (its first chunk), or in any."""
        path = self.path(self.objects[file][0] if isinstance(file, str) else file)
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    def _write(self, path: str, content: bytes) -> None:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        # whoever reads it meanwhile gets the old or the new one
        place.with_name(f"{place.name}.new").write_bytes(content)
        place.with_name(f"{place.name}.new").replace(place)

    def _history(self) -> Name:
        tags = {one.tag: one for one in self.revisions if one.tag} | {"trunk": self.last}
        rows = [
            (tag, one.root.text, one.number, one.time, 0, "", one.size, "")
            for tag, one in tags.items()
        ]
        columns = [
            "name TEXT", "hash TEXT", "revision INTEGER", "timestamp INTEGER", "channel INTEGER",
            "description TEXT", "size INTEGER", "branch TEXT",
        ]  # fmt: skip
        return self.store(database({"tags": (columns, rows)}), "H")
