# SPDX-License-Identifier: Apache-2.0
"""The initrd: busybox, dmsetup, a few kernel modules and one script, about 3 MB.

systemd's own initrd does the same in ten times the size and, without hardware virtualization, 12 seconds more.
"""

import hashlib
import lzma
import re
from pathlib import Path

from cube_templates import render

from cube_images import debian, sandbox
from cube_images.cpio import Archive
from cube_images.errors import ImageError
from cube_images.flavour import Flavour
from cube_images.lock import Lock, Package
from cube_images.paths import cache_dir, entry
from cube_images.run import run

_FOLDERS = ("dev", "modules", "proc", "sys", "sysroot", "tmp")
_LOADER = "/lib64/ld-linux-x86-64.so.2"


def kernel(lock: Lock) -> Package:
    """The locked package with the kernel itself (not the one that only names the newest)."""
    found = [package for package in lock.debian["image"] if re.match(r"linux-image-\d", package.name)]
    if len(found) != 1:
        raise ImageError(f"the lock has {len(found)} kernels, not one", "run `measured-image lock`")
    return found[0]


def unpacked(package: Package) -> Path:
    """Folder of the cache with the files of a locked package."""
    return entry(cache_dir() / "parts" / package.sha256, lambda folder: debian.extract(package, folder))


def _script(definition: Flavour) -> bytes:
    return render("mkosi/init", {"image": definition.image}).encode()


def digest(definition: Flavour, lock: Lock) -> str:
    """What the initrd depends on: its packages, the script, the list of modules and this recipe."""
    total = hashlib.sha256()
    for text in (
        lock.digest("tools"),
        kernel(lock).sha256,
        lock.package("busybox-static").sha256,
        *definition.initrd_modules,
        str(definition.image["epoch"]),
    ):
        total.update(text.encode() + b"\0")
    total.update(_script(definition) + Path(__file__).read_bytes())
    return total.hexdigest()


class _Modules:
    """The modules of one kernel, found by name, with what each needs first."""

    def __init__(self, lock: Lock, tools: Path, root: Path) -> None:
        (self._folder,) = (
            root / "usr/lib/modules" if (root / "usr/lib/modules").is_dir() else root / "lib/modules"
        ).iterdir()
        self._lock, self._tools = lock, tools
        self._files = {self._name(path.name): path for path in self._folder.rglob("*.ko*")}
        built_in = (self._folder / "modules.builtin").read_text().split()
        self._built_in = {self._name(Path(line).name) for line in built_in}

    @staticmethod
    def _name(file: str) -> str:
        return file.partition(".")[0].replace("-", "_")

    def order(self, wanted: tuple[str, ...]) -> list[Path]:
        """Files of the wanted modules and their dependencies, each after what it needs; built-in ones left out."""
        found: list[Path] = []
        for name in wanted:
            self._visit(self._name(name), found)
        return found

    def _visit(self, name: str, found: list[Path]) -> None:
        if name in self._built_in:
            return
        path = self._files.get(name)
        if path is None:
            raise ImageError(f"the kernel {self._folder.name} has no module {name}", "correct the flavour's list")
        depends = run(
            sandbox.command(
                self._lock,
                self._tools,
                ["modinfo", "-F", "depends", f"/{path.name}"],
                writable={},
                readable={path: f"/{path.name}"},
            )
        ).text
        for other in filter(None, depends.split(",")):
            self._visit(self._name(other), found)
        if path not in found:
            found.append(path)


def _libraries(lock: Lock, tools: Path, program: str) -> list[str]:
    """Shared libraries of a program of the tools tree, as its own loader finds them."""
    listed = run(sandbox.command(lock, tools, [_LOADER, "--list", program], writable={})).text
    return [path for path in re.findall(r"=> (/\S+) \(0x", listed) if path != _LOADER]


def build(definition: Flavour, lock: Lock, tools: Path) -> Path:
    """Path of the initrd (a zstd-compressed cpio) in the cache; made when its inputs have changed."""

    def make(folder: Path) -> None:
        archive = Archive(definition.image["epoch"])
        for name in _FOLDERS:
            archive.folder(name)
        archive.device("dev/console", 5, 1)
        archive.device("dev/null", 1, 3)
        archive.file("init", _script(definition), 0o755)
        busybox = unpacked(lock.package("busybox-static"))
        archive.file("bin/busybox", (busybox / "usr/bin/busybox").read_bytes(), 0o755)
        archive.file("bin/dmsetup", (tools / "usr/sbin/dmsetup").read_bytes(), 0o755)
        archive.file(_LOADER.lstrip("/"), (tools / "usr" / _LOADER.lstrip("/")).read_bytes(), 0o755)
        for library in _libraries(lock, tools, "/usr/sbin/dmsetup"):
            name = library.lstrip("/")
            archive.file(name, (tools / "usr" / name.removeprefix("usr/")).read_bytes(), 0o755)
        modules = _Modules(lock, tools, unpacked(kernel(lock))).order(definition.initrd_modules)
        names = []
        for path in modules:
            content = path.read_bytes()
            names.append(path.name.removesuffix(".xz"))
            archive.file(f"modules/{names[-1]}", lzma.decompress(content) if path.suffix == ".xz" else content)
        archive.file("modules/order", ("\n".join(names) + "\n").encode())
        packed = run(
            sandbox.command(lock, tools, ["zstd", "-12", "--quiet", "--single-thread", "--stdout"], writable={}),
            input=archive.bytes(),
        ).stdout
        (folder / "initrd.cpio.zst").write_bytes(packed)

    return entry(cache_dir() / "initrds" / digest(definition, lock), make) / "initrd.cpio.zst"
