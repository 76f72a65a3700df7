# SPDX-License-Identifier: Apache-2.0
"""Write an image's disk in the form that a target takes, with a description beside it that a program can use."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cube_images import flavour
from cube_images.paths import write_whole
from cube_images.provenance.described import Described
from cube_images.release import azure, gcp, qcow2, source
from cube_images.release.source import Progress


@dataclass(frozen=True)
class _Form:
    """How a target takes a disk. `write` takes disk, its digest, file, epoch, a reporter; gives the disk's size."""

    suffix: str
    write: Callable[[Path, str, Path, int, Progress], int]
    modules: tuple[str, ...] = ()
    resource: Mapping[str, Any] | None = None


FORMS: Mapping[str, _Form] = {
    "gcp": _Form(gcp.SUFFIX, gcp.write, gcp.MODULES, {"guestOsFeatures": list(gcp.FEATURES)}),
    "azure": _Form(azure.SUFFIX, azure.write, azure.MODULES, {"hyperVGeneration": "V2", "architecture": "x64"}),
    "qcow2": _Form(qcow2.SUFFIX, qcow2.write),
}


def warnings(image: Described, target: str) -> list[str]:
    """Why a machine of `target` would not come up from this image; none of it keeps the file from being written."""
    definition = flavour.load(image.payload["flavour"])
    missing = [name for name in FORMS[target].modules if name not in definition.initrd_modules]
    found = []
    if missing:
        found.append(
            f"flavour {definition.name!r} has no module {', '.join(missing)}: no machine of {target} boots it"
        )
    if FORMS[target].modules and definition.image.get("address"):
        found.append(f"flavour {definition.name!r} has the fixed address {definition.image['address']}")
    return found


def export(image: Described, target: str, folder: Path, say: Progress) -> dict[str, Any]:
    """Write `<id>.<suffix>` and `<id>.<target>.json` into `folder`; returns what the latter says.

    Raises `NotAuthentic` when the disk is not the one of its manifest. Nothing half-written stays.
    """
    form = FORMS[target]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{image.payload['id']}{form.suffix}"
    epoch = int(flavour.load(image.payload["flavour"]).image["epoch"])
    size = form.write(image.file("disk.img"), image.payload["image"], path, epoch, say)
    found = {
        "version": 1,
        "target": target,
        "image": image.digest,
        "file": path.name,
        "sha256": source.digest(path, say).removeprefix("sha256:"),
        "size": path.stat().st_size,
        "diskSize": size,
        **(form.resource or {}),
    }
    write_whole(folder / f"{image.payload['id']}.{target}.json", json.dumps(found, indent=1) + "\n")
    return found
