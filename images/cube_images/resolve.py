# SPDX-License-Identifier: Apache-2.0
"""Make a flavour's lock anew from what the host's mirror and package index offer now."""

import re
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from cube_images import debian, flavour, wheels
from cube_images.errors import ImageError
from cube_images.lock import GoModule, Lock, Wheel
from cube_images.wheels import sha256_file


def go_module(name: str, module: str) -> GoModule:
    """Version and go.sum digest of a program, from the go.mod beside this file in the folder `name`."""
    folder = Path(str(files("cube_images") / name))
    found = re.search(
        rf"^\s*(?:require\s+)?{re.escape(module)} (v\S+)", (folder / "go.mod").read_text(), re.MULTILINE
    )
    if found is None:
        raise ImageError(f"{folder / 'go.mod'} does not require {module}")
    return GoModule(name, module, found[1], sha256_file(folder / "go.sum"))


def resolve(name: str, progress: Callable[[str], None]) -> Lock:
    """Choose exact versions for everything that the flavour names. Needs the mirror and the package index."""
    definition = flavour.load(name)
    progress("reading the package lists of the Debian mirror")
    apt = debian.Apt(definition.suite, debian.host_sources())
    apt.update()
    chosen = {}
    for purpose, wanted in definition.debian.items():
        progress(f"choosing Debian packages: {purpose}")
        chosen[purpose] = tuple(sorted(apt.resolve(wanted.packages, alone=wanted.alone)))
    pinned = []
    for wheel, version in definition.wheels.items():
        progress(f"hashing the wheel {wheel} {version}")
        with tempfile.TemporaryDirectory() as temporary:
            path = wheels.download(wheel, version, Path(temporary))
            pinned.append(Wheel(wheel, version, sha256_file(path)))
    return Lock(
        flavour=name,
        suite=definition.suite,
        debian=chosen,
        wheels=tuple(sorted(pinned)),
        go=tuple(go_module(key, module) for key, module in definition.go.items()),
    )
