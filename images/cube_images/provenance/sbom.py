# SPDX-License-Identifier: Apache-2.0
"""The software bill of materials of an image: CycloneDX 1.6, JSON. The same image always gives the same bytes."""

import uuid
from collections.abc import Sequence
from typing import Any

from cube_images.provenance import spdx
from cube_images.provenance.described import Described
from cube_images.provenance.inventory import Component

_SPACE = uuid.UUID("0c0f3f3e-6a44-4b0b-9b1b-6f2d3f0a6c11")
_TYPES = {"deb": "library", "golang": "library", "program": "application", "own": "application"}


def _component(item: Component, taken: set[str]) -> dict[str, Any]:
    reference = item.purl
    while reference in taken:
        reference += "#"
    taken.add(reference)
    found: dict[str, Any] = {
        "type": _TYPES[item.kind],
        "bom-ref": reference,
        "name": item.name,
        "version": item.version,
        "purl": item.purl,
        "licenses": [
            {"license": {"name": item.stated}}
            if item.licence == spdx.NOASSERTION
            else {"expression": item.licence, "acknowledgement": "declared"}
        ],
        "properties": [
            {"name": "cube:where", "value": item.where},
            {"name": "cube:source", "value": item.source},
        ],
    }
    if item.sha256:
        found["hashes"] = [{"alg": "SHA-256", "content": item.sha256}]
    if item.parts:
        found["components"] = [_component(part, taken) for part in item.parts]
    return found


def bom(image: Described, components: Sequence[Component]) -> dict[str, Any]:
    """The document. Hashes of Debian packages are of the .deb file, those of programs of the file in the image."""
    payload = image.payload
    taken: set[str] = {image.digest}
    rows = [_component(item, taken) for item in components]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, image.digest)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "operating-system",
                "bom-ref": image.digest,
                "name": payload["id"],
                "version": image.digest,
                "hashes": [{"alg": "SHA-256", "content": payload["image"].removeprefix("sha256:")}],
                "properties": [
                    {"name": f"cube:{name}", "value": payload[name]}
                    for name in ("flavour", "definition", "lock", "root", "uki")
                ],
            },
        },
        "components": rows,
        "dependencies": [{"ref": image.digest, "dependsOn": [row["bom-ref"] for row in rows]}],
    }
