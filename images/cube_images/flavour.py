# SPDX-License-Identifier: Apache-2.0
"""Flavours of the image: each is one TOML file of data; the code knows none of them by name."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from cube_images.errors import ImageError


@dataclass(frozen=True)
class PackageSet:
    """Debian packages for one purpose. `alone`: without what they depend on."""

    packages: tuple[str, ...]
    alone: bool = False


@dataclass(frozen=True)
class Flavour:
    """One kind of image, as its TOML file describes it."""

    name: str
    suite: str
    relock: bool
    image: Mapping[str, Any]
    debian: Mapping[str, PackageSet]
    wheels: Mapping[str, str]
    go: Mapping[str, str]
    initrd_modules: tuple[str, ...]
    recorded: Mapping[str, Any]


def names() -> list[str]:
    """All flavours there are."""
    folder = files("cube_images") / "flavours"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load(name: str) -> Flavour:
    """Read the flavour `name`; raises `ImageError` for one that does not exist."""
    if name not in names():
        raise ImageError(f"there is no image flavour {name!r}", f"the flavours are: {', '.join(names())}")
    raw = tomllib.loads((files("cube_images") / "flavours" / f"{name}.toml").read_text())
    return Flavour(
        name=name,
        suite=raw["suite"],
        relock=raw["relock"],
        image=raw["image"],
        debian={
            key: PackageSet(tuple(value["packages"]), value.get("alone", False))
            for key, value in raw["debian"].items()
        },
        wheels=raw["wheels"],
        go=raw["go"],
        initrd_modules=tuple(raw["initrd"]["modules"]),
        recorded=raw["recorded"],
    )
