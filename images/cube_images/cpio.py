# SPDX-License-Identifier: Apache-2.0
"""cpio archives in the "newc" format (Linux: Documentation/driver-api/early-userspace/buffer-format.rst)."""

import stat

_TRAILER = "TRAILER!!!"


def pad(data: bytes, size: int) -> bytes:
    """`data` with zeros up to a multiple of `size`."""
    return data + bytes(-len(data) % size)


def member(
    name: str, inode: int, mode: int, content: bytes, *, links: int = 1, mtime: int = 0, rdev: int = 0
) -> bytes:
    """One entry: header, name and content, each padded to 4 bytes. `rdev` is major << 8 | minor."""
    path = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, links, mtime, len(content), 0, 0, rdev >> 8, rdev & 0xFF, len(path), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return pad(header, 4) + pad(content, 4)


def trailer() -> bytes:
    """The entry that ends an archive."""
    return member(_TRAILER, 0, 0, b"")


class Archive:
    """An initrd in the making: parents appear before children, everything belongs to root, times are one value."""

    def __init__(self, mtime: int) -> None:
        self._mtime = mtime
        self._names: set[str] = set()
        self._parts: list[bytes] = []

    def _add(self, name: str, mode: int, content: bytes = b"", rdev: int = 0) -> None:
        if name in self._names:
            return
        parent = name.rpartition("/")[0]
        if parent:
            self.folder(parent)
        self._names.add(name)
        self._parts.append(member(name, len(self._names), mode, content, mtime=self._mtime, rdev=rdev))

    def folder(self, name: str) -> None:
        """Add a folder and those above it."""
        self._add(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file with its permission bits."""
        self._add(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        """Add a character device."""
        self._add(name, stat.S_IFCHR | 0o600, rdev=major << 8 | minor)

    def bytes(self) -> bytes:
        """The whole archive."""
        return pad(b"".join(self._parts) + trailer(), 512)
