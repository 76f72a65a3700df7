# SPDX-License-Identifier: Apache-2.0
"""The image manifest (docs/formats.md, section 7): what an image is, what it measures and what that comes from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cube_attestation import dsse
from cube_attestation.errors import AttestationError

from cube_images import initrd, pe, predict
from cube_images.errors import ImageError
from cube_images.flavour import Flavour
from cube_images.lock import Lock
from cube_images.paths import write_whole
from cube_images.predict import Measurement
from cube_images.rootfs import Binary
from cube_images.wheels import sha256_file

NAME = "manifest.json"


def root_hash(uki: bytes) -> str:
    """The dm-verity root hash on the UKI's command line (hex)."""
    words = pe.parse(uki, "the UKI").sections.get(".cmdline", b"").rstrip(b"\0").decode().split()
    found = [word.partition("=")[2] for word in words if word.startswith("roothash=")]
    if len(found) != 1:
        raise ImageError("the UKI's command line has no root hash")
    return found[0]


def reference(found: Sequence[Measurement]) -> dict[str, Any]:
    """The `reference` member: predicted values and the events that lead to them."""
    return {
        "pcrs": {"sha256": {str(pcr): value.hex() for pcr, value in sorted(predict.pcrs(found).items())}},
        "events": [
            {
                "pcr": item.pcr,
                "sha256": item.digest.hex(),
                "type": item.type,
                "what": item.what,
                "from": item.source,
            }
            for item in found
        ],
    }


def installed(lock: Lock, listing: str) -> list[dict[str, str]]:
    """The packages in the root, from mkosi's list, each with the hash that the lock has for it."""
    locked = {(item.name, item.version, item.architecture): item for item in lock.debian["image"]}
    found = []
    for entry in json.loads(listing)["packages"]:
        package = locked.get((entry["name"], entry["version"], entry["architecture"]))
        if package is None:
            raise ImageError(f"{entry['name']} {entry['version']} is in the image, but not in the lock")
        row = asdict(package)
        del row["size"]
        found.append(row)
    return sorted(found, key=lambda row: row["name"])


def payload(
    definition: Flavour,
    lock: Lock,
    folder: Path,
    *,
    definition_digest: str,
    packages: list[dict[str, str]],
    binaries: Sequence[Binary],
) -> dict[str, Any]:
    """The manifest of the image in `folder`; the same image always gives the same bytes."""
    uki = (folder / "uki.efi").read_bytes()
    code = f"sha256:{sha256_file(folder / 'OVMF_CODE.fd')}"
    recorded: Mapping[str, Any] = definition.recorded
    known = recorded.get("firmware") == code
    initrd_packages = [lock.package("busybox-static"), initrd.kernel(lock)]
    return {
        "version": 1,
        "flavour": definition.name,
        "id": f"{definition.image['id']}-{definition_digest[:12]}",
        "image": f"sha256:{sha256_file(folder / 'disk.img')}",
        "uki": dsse.digest(uki),
        "uki_authenticode": f"sha256:{pe.parse(uki, 'the UKI').authenticode.hex()}",
        "root": root_hash(uki),
        "lock": f"sha256:{lock.digest()}",
        "definition": f"sha256:{definition_digest}",
        "firmware": {"code": code, "vars": f"sha256:{sha256_file(folder / 'OVMF_VARS.fd')}"},
        "packages": packages,
        "binaries": [
            {"path": item.path, "sha256": item.sha256, "origin": item.origin, "from": item.source}
            for item in binaries
        ]
        + [
            {
                "path": f"initrd: {item.name}",
                "sha256": item.sha256,
                "origin": "taken",
                "from": f"package {item.spec}",
            }
            for item in initrd_packages
        ],
        "reference": reference(predict.predict(folder)),
        "recorded": {
            "pcrs": {"sha256": dict(recorded["pcrs"])} if known else {},
            "from": recorded["from"] if known else "nothing is recorded for this firmware",
        },
    }


def write(folder: Path, content: Mapping[str, Any], signer: dsse.Signer) -> Path:
    """Put `content` signed by `signer` into `folder` as manifest.json.

    Signatures that the file already has over the same content stay: environments with keys of their own share a
    cached image.
    """
    path = folder / NAME
    envelope: dict[str, Any] = dict(dsse.sign(dsse.IMAGE_MANIFEST, content, signer))
    try:
        found = json.loads(path.read_text())
        others = found["signatures"] if found["payload"] == envelope["payload"] else []
    except (OSError, ValueError, KeyError, TypeError):
        others = []
    keyid = dsse.spki_digest(signer.spki)
    if others and _holds(found, signer):
        return path
    envelope["signatures"] += [other for other in others if other["keyid"] != keyid]
    write_whole(path, json.dumps(envelope, sort_keys=True) + "\n")
    return path


def _holds(envelope: object, signer: dsse.Signer) -> bool:
    try:
        dsse.verify(envelope, dsse.IMAGE_MANIFEST, [signer.spki])
    except AttestationError:
        return False
    return True
