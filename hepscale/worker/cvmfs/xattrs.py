"""Extended attributes: those that were published, and what CVMFS's own client tells by them."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .nodes import Node

__all__ = ["listed", "value"]

_OF_THE_ROOT = ("user.fqrn", "user.revision", "user.root_hash")


def listed(node: Node) -> list[str]:
    """Return the names that listxattr(2) tells; the others are found by name only."""
    own = list(node.entry.xattrs)
    return own if node.entry.path else [*own, *_OF_THE_ROOT]


def value(node: Node, name: str, repository: str) -> bytes | None:
    """Return an attribute, or None."""
    entry, revision = node.entry, node.revision
    if name in entry.xattrs:
        return entry.xattrs[name]
    if name == "user.fqrn":
        return repository.encode()
    if name == "user.revision":
        return str(revision.number).encode()
    if name == "user.root_hash":
        return revision.root.text.encode()
    if name == "xfsroot.rawlink" and stat.S_ISLNK(entry.mode):
        return os.fsencode(entry.rawlink)
    if not stat.S_ISREG(entry.mode):
        return None
    if name == "user.hash" and entry.object is not None:
        return entry.object.text.encode()
    if name == "user.chunks":
        return str(len(revision.chunks(entry))).encode()
    if name == "user.compression":
        return b"zlib" if entry.compressed else b"none"
    return None
