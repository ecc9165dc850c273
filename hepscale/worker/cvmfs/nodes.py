"""What the kernel knows of a repository: its nodes, and what a new revision changes for it.

A node is a directory, whatever it holds, or one state of a file. A file that changes becomes
another node: whoever has the old one open goes on reading that.
"""

from __future__ import annotations

import stat
import threading

from . import fuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .catalog import Chunk, Entry
    from .repository import Revision

    # of one directory: names with what they stood for and stand for now
    Differences = list[tuple[str, Entry | None, Entry | None]]

__all__ = ["Node", "Nodes"]

# entries of directories, about 1 KB each
_MOST_AT_HAND = 50_000


class Node:
    """What the kernel knows by one number.

    Attributes
    ----------
    lookups
        How often the kernel was told the number; it says how many of them it forgets.
    above
        The inode of the directory in which it was found.
    was_entered
        Of a directory: the kernel may know what is in it, and what is not.
    children
        Of a directory, what is in it, as long as it is at hand.
    order
        Of a directory, once it was listed: its names in an order that stays; None where one was.
    chunks
        Of a file, once it was read.
    detached
        It belongs to a revision that is no longer the current one.
    """

    __slots__ = (
        "above",
        "children",
        "chunks",
        "detached",
        "entry",
        "lookups",
        "number",
        "order",
        "revision",
        "was_entered",
    )

    def __init__(self, number: int, entry: Entry, revision: Revision, above: int) -> None:
        self.number, self.entry, self.revision, self.above = number, entry, revision, above
        self.lookups = 0
        self.children: Mapping[str, Entry] | None = None
        self.order: list[str | None] | None = None
        self.chunks: Sequence[Chunk] | None = None
        self.detached = self.was_entered = False


class Nodes:
    """The nodes of a mounted repository; who uses more than one of its methods holds `lock`."""

    def __init__(self, revision: Revision) -> None:
        entry = revision.entry("")
        assert entry is not None, "a repository has a root"
        root = Node(fuse.ROOT, entry, revision, entry.inode)
        self.lock = threading.RLock()
        self.revision = revision
        self._last = fuse.ROOT
        self._nodes = {root.number: root}
        self._by_inode = {entry.inode: root}
        # directories whose children are at hand, the first one first, and how many these are
        self._entered: dict[int, int] = {}
        self._at_hand = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, number: int) -> Node | None:
        """Return the node of this number."""
        return self._nodes.get(number)

    def enter(self, node: Node) -> None:
        """Have the children of a directory at hand; this may have to fetch a catalog.

        Raises
        ------
        ObjectError
            It cannot be had.
        """
        while node.children is None:
            revision = node.revision
            children = revision.children(node.entry.path)
            with self.lock:
                if node.revision is not revision:
                    continue
                self._put_away(node.number)
                node.children, node.was_entered = children, True
                self._entered[node.number] = len(children)
                self._at_hand += len(children)
                while self._at_hand > _MOST_AT_HAND and len(self._entered) > 1:
                    self._put_away(next(iter(self._entered)))

    def _put_away(self, number: int) -> None:
        size = self._entered.pop(number, None)
        if size is not None:
            self._at_hand -= size
            if number in self._nodes:
                self._nodes[number].children = None

    def contents(self, node: Node) -> Mapping[str, Entry]:
        """Return the children of a directory that was entered."""
        if node.children is None:
            # put away since: others were entered
            return node.revision.children(node.entry.path)
        return node.children

    def order(self, node: Node) -> Sequence[str | None]:
        """Return the names in an order that stays, without hidden ones; None where one was."""
        if node.order is None:
            node.order = [name for name, one in self.contents(node).items() if not one.hidden]
        return node.order

    def take(self, parent: Node, entry: Entry) -> Node:
        """Return the node of an entry of `parent`, one that the kernel is about to be told of."""
        node = None if parent.detached else self._by_inode.get(entry.inode)
        if node is None:
            self._last += 1
            node = Node(self._last, entry, parent.revision, parent.entry.inode)
            node.detached = parent.detached
            self._nodes[node.number] = node
            if not node.detached:
                self._by_inode[entry.inode] = node
        node.lookups += 1
        return node

    def forget(self, number: int, lookups: int) -> None:
        """Drop a node once the kernel has forgotten it as often as it was told of it."""
        with self.lock:
            node = self._nodes.get(number)
            if node is None or number == fuse.ROOT:
                return
            node.lookups -= lookups
            if node.lookups <= 0:
                self._put_away(number)
                del self._nodes[number]
                self._detach(node)

    def _detach(self, node: Node | None) -> None:
        if node is None:
            return
        node.detached = True
        if self._by_inode.get(node.entry.inode) is node:
            del self._by_inode[node.entry.inode]

    def advance(self, new: Revision) -> tuple[list[int], list[tuple[int, str]]]:
        """Make another revision the current one.

        Returns
        -------
        tuple
            What the kernel has to be told of: nodes that are no longer what they were, and names,
            each with the number of its directory.

        Raises
        ------
        ObjectError
            A catalog of the new revision cannot be had; nothing has changed.
        """
        found: dict[int, tuple[Differences, Mapping[str, Entry] | None]] = {}
        while True:
            with self.lock:
                left = [
                    node
                    for node in self._nodes.values()
                    if node.was_entered and not node.detached and node.number not in found
                ]
                if not left:
                    return self._replace(new, found)
            # catalogs are read without the lock, while the old revision is served
            for node in left:
                found[node.number] = self._compare(node, new)

    def _compare(self, node: Node, new: Revision) -> tuple[Differences, Mapping[str, Entry] | None]:
        path = node.entry.path
        before = node.revision.children(path)
        now = new.entry(path)
        after = new.children(path) if now is not None and stat.S_ISDIR(now.mode) else None
        names = {**before, **(after or {})}
        differences = [
            (name, before.get(name), (after or {}).get(name))
            for name in names
            if self._differs(before.get(name), (after or {}).get(name), new)
        ]
        return differences, after

    def _differs(self, old: Entry | None, entry: Entry | None, new: Revision) -> bool:
        if old is None or entry is None or old != entry:
            return True
        if not old.chunked or old.inode not in self._by_inode:
            return False
        return list(self.revision.chunks(old)) != list(new.chunks(entry))

    def _replace(
        self, new: Revision, found: Mapping[int, tuple[Differences, Mapping[str, Entry] | None]]
    ) -> tuple[list[int], list[tuple[int, str]]]:
        inodes: list[int] = []
        names: list[tuple[int, str]] = []
        for number, (differences, children) in found.items():
            node = self._nodes.get(number)
            if node is None:
                continue
            for name, old, entry in differences:
                child = None if old is None else self._by_inode.get(old.inode)
                if entry is not None and _is_directory(old) and _is_directory(entry):
                    inodes += self._change(child, entry)
                else:
                    names.append((number, name))
                    self._detach(child)
            if children is None:
                self._detach(node)
            elif differences:
                inodes.append(number)
                _keep_order(node, children)
            if node.children is not None and children is not None:
                node.children = children
        top, entry = self._nodes[fuse.ROOT], new.entry("")
        if entry is not None and entry != top.entry:
            inodes += self._change(top, entry)
        self.revision = new
        for node in self._nodes.values():
            if not node.detached:
                node.revision = new
        return inodes, names

    def _change(self, node: Node | None, entry: Entry) -> list[int]:
        """Give a directory other attributes; return its number if the kernel knows it."""
        if node is None:
            return []
        node.entry = entry
        return [node.number]


def _is_directory(entry: Entry | None) -> bool:
    return entry is not None and stat.S_ISDIR(entry.mode)


def _keep_order(node: Node, children: Mapping[str, Entry]) -> None:
    """Give new names the last places, so that who is listing the directory misses no old one."""
    if node.order is None:
        return
    visible = {name for name, one in children.items() if not one.hidden}
    known = set(node.order)
    node.order = [name if name in visible else None for name in node.order]
    node.order += [name for name in children if name in visible and name not in known]
