# SPDX-License-Identifier: Apache-2.0
"""How an image came to be: an in-toto Statement v1 with SLSA provenance v1, in the same envelopes as manifests."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cube_attestation import dsse, times
from cube_attestation import manifest as format_
from cube_attestation.errors import BadInput, NotAuthentic

from cube_images import lock, manifest
from cube_images.errors import ImageError
from cube_images.lock import Lock
from cube_images.paths import write_whole
from cube_images.provenance.described import PAYLOAD, Described

NAME = "provenance.json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "tag:cube-confidential,2026:measured-image/1"
# SLSA: the builder is what has to be trusted for this to be true. A build that nobody hosts says so.
UNHOSTED = "tag:cube-confidential,2026:builder/unhosted"
LONGEST = 3650


def _dependencies(locked: Lock) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "lock", "digest": {"sha256": locked.digest()}}]
    for purpose, packages in sorted(locked.debian.items()):
        found += [
            {
                "uri": (
                    f"pkg:deb/debian/{quote(item.name, safe='')}@{quote(item.version, safe='')}"
                    f"?arch={item.architecture}&distro={locked.suite}"
                ),
                "digest": {"sha256": item.sha256},
                "annotations": {"for": purpose},
            }
            for item in packages
        ]
    found += [
        {"uri": f"pkg:pypi/{item.name}@{item.version}", "digest": {"sha256": item.sha256}} for item in locked.wheels
    ]
    found += [
        {
            "uri": f"pkg:golang/{item.module}@{item.version}",
            "digest": {"sha256": item.gosum},
            "annotations": {"digest of": "go.sum, which pins the module and all it is built of"},
        }
        for item in locked.go
    ]
    return found


def statement(payload: Mapping[str, Any], locked: Lock, builder: str = UNHOSTED) -> dict[str, Any]:
    """The statement about the image of `payload`; `builder` is a URI. Raises `ImageError` for another lock."""
    if f"sha256:{locked.digest()}" != payload["lock"]:
        raise ImageError(
            f"image {payload['id']} was built from another lock than this checkout has",
            "check out the commit that built it",
        )
    subjects = {PAYLOAD: format_.identity(payload), "disk.img": payload["image"], "uki.efi": payload["uki"]}
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": value.removeprefix("sha256:")}} for name, value in subjects.items()
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"flavour": payload["flavour"]},
                "internalParameters": {"definition": payload["definition"], "lock": payload["lock"]},
                "resolvedDependencies": _dependencies(locked),
            },
            "runDetails": {"builder": {"id": builder}},
        },
    }


def sign(image: Described, signer: dsse.Signer, *, now: datetime, days: int, builder: str = UNHOSTED) -> datetime:
    """Sign the image in its folder: a manifest that is good for `days` from `now` on, and its provenance.

    Signing again replaces both; the image's identity stays. Returns the expiry. Raises `ImageError`.
    """
    if image.folder is None:
        raise ImageError("only a built image can be signed", "name the folder of one")
    if not 1 <= days <= LONGEST:
        raise ImageError(f"an expiry in {days} days is not between 1 and {LONGEST}")
    expires = (now + timedelta(days=days)).replace(microsecond=0)
    payload = {**image.payload, "expires": times.format_time(expires)}
    said = dsse.sign(PAYLOAD_TYPE, statement(payload, lock.load(payload["flavour"]), builder), signer)
    write_whole(image.folder / NAME, json.dumps(said, sort_keys=True) + "\n")
    manifest.write(image.folder, payload, signer)
    return expires


def check(path: Path, keys: list[bytes | str], payload: Mapping[str, Any]) -> str:
    """Check a provenance file against the manifest's payload beside it; what it says, in one line.

    Raises `NotAuthentic` when none of `keys` signed it or it is about another image, else `BadInput`.
    """
    where = str(path)
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"not JSON: {error}", where=where) from error
    found: Any = dsse.verify(raw, PAYLOAD_TYPE, keys, where=where).payload
    try:
        if found["_type"] != STATEMENT or found["predicateType"] != PREDICATE:
            raise BadInput("no in-toto statement with SLSA provenance v1", where=where)
        subjects = {row["name"]: f"sha256:{row['digest']['sha256']}" for row in found["subject"]}
        builder = found["predicate"]["runDetails"]["builder"]["id"]
        definition = found["predicate"]["buildDefinition"]["internalParameters"]["definition"]
        inputs = len(found["predicate"]["buildDefinition"]["resolvedDependencies"])
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"the statement lacks a member: {error}", where=where) from error
    expected = {PAYLOAD: format_.identity(payload), "disk.img": payload["image"], "uki.efi": payload["uki"]}
    if subjects != expected or definition != payload["definition"]:
        raise NotAuthentic("the provenance is that of another image", why="invalid", where=where)
    return f"provenance: built from {inputs} locked inputs by {builder}"
