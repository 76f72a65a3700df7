# SPDX-License-Identifier: Apache-2.0
"""The lock: every Debian package, wheel and Go module of a flavour by version and hash, and no address.

The file is canonical enough to be digested as it is: sorted, one package a line.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cube_images.errors import ImageError
from cube_images.paths import cache_dir, write_whole

VERSION = 1


@dataclass(frozen=True, order=True)
class Package:
    """One Debian binary package: `sha256` and `size` (bytes) are of the .deb file."""

    name: str
    version: str
    architecture: str
    sha256: str
    size: int

    @property
    def spec(self) -> str:
        """`name=version`, as apt takes it."""
        return f"{self.name}={self.version}"


@dataclass(frozen=True, order=True)
class Wheel:
    """One Python wheel from the package index; `sha256` is of the .whl file."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, order=True)
class GoModule:
    """One program from a Go module; `gosum` is the SHA-256 of the go.sum that pins it and all it is built of."""

    name: str
    module: str
    version: str
    gosum: str


@dataclass(frozen=True)
class Lock:
    """All inputs of a flavour. `debian` maps the purpose (image, tools, …) to its packages."""

    flavour: str
    suite: str
    debian: Mapping[str, tuple[Package, ...]]
    wheels: tuple[Wheel, ...]
    go: tuple[GoModule, ...]

    def packages(self) -> list[Package]:
        """Every package of every set, once."""
        return sorted({package for packages in self.debian.values() for package in packages})

    def package(self, name: str) -> Package:
        """The locked package of that name; raises `ImageError` when the lock has none."""
        for package in self.packages():
            if package.name == name:
                return package
        raise ImageError(f"the lock of {self.flavour!r} has no package {name}", "run `measured-image lock`")

    def wheel(self, name: str) -> Wheel:
        """The locked wheel of that name; raises `ImageError` when the lock has none."""
        for wheel in self.wheels:
            if wheel.name == name:
                return wheel
        raise ImageError(f"the lock of {self.flavour!r} has no wheel {name}", "run `measured-image lock`")

    def digest(self, *sets: str) -> str:
        """SHA-256 (hex) of the whole lock, or of the named package sets only."""
        value = (
            {name: [asdict(package) for package in sorted(self.debian[name])] for name in sets}
            if sets
            else dump(self)
        )
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def dump(lock: Lock) -> str:
    """The lock as the text of its file."""

    def rows(items: Any) -> str:
        return ",\n".join("   " + json.dumps(asdict(item)) for item in sorted(items))

    sets = ",\n".join(f'  "{name}": [\n{rows(packages)}\n  ]' for name, packages in sorted(lock.debian.items()))
    return (
        f'{{\n "version": {VERSION},\n "flavour": "{lock.flavour}",\n "suite": "{lock.suite}",\n'
        f' "debian": {{\n{sets}\n }},\n "wheels": [\n{rows(lock.wheels)}\n ],\n "go": [\n{rows(lock.go)}\n ]\n}}\n'
    )


def parse(text: str, where: str) -> Lock:
    """Read a lock from its text; raises `ImageError` that names `where` for anything else."""
    try:
        raw = json.loads(text)
        if raw["version"] != VERSION:
            raise ImageError(f"{where}: lock version {raw['version']} is not known", "run `measured-image lock`")
        return Lock(
            flavour=raw["flavour"],
            suite=raw["suite"],
            debian={name: tuple(Package(**item) for item in items) for name, items in raw["debian"].items()},
            wheels=tuple(Wheel(**item) for item in raw["wheels"]),
            go=tuple(GoModule(**item) for item in raw["go"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"{where} is not a lock file: {error}", "run `measured-image lock`") from error


def _shipped(flavour: str) -> Path:
    return Path(str(files("cube_images") / "locks" / f"{flavour}.json"))


def _anew(flavour: str) -> Path:
    # Made when a locked package had vanished everywhere. It names what it replaced, so a refreshed lock ends it.
    digest = hashlib.sha256(_shipped(flavour).read_bytes()).hexdigest()
    return cache_dir() / "locks" / f"{flavour}-{digest[:16]}.json"


def load(flavour: str) -> Lock:
    """The lock of a flavour: the shipped one, or what replaced it on this host when packages had vanished."""
    shipped = _shipped(flavour)
    if not shipped.is_file():
        raise ImageError(f"flavour {flavour!r} has no lock", f"run `measured-image lock {flavour}`")
    path = _anew(flavour) if _anew(flavour).is_file() else shipped
    return parse(path.read_text(), str(path))


def store(lock: Lock, *, shipped: bool) -> Path:
    """Write the lock: over the shipped file, or as this host's replacement of it."""
    path = _shipped(lock.flavour) if shipped else _anew(lock.flavour)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, dump(lock))
    return path


def changes(old: Lock, new: Lock) -> list[str]:
    """What differs, one line each: `name 1.0 -> 1.1`."""
    before = {package.name: package.version for package in old.packages()}
    after = {package.name: package.version for package in new.packages()}
    return [
        f"{name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
