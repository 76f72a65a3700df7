# SPDX-License-Identifier: Apache-2.0
"""Image manifests: the predicted measurements of an image and what they come from (formats §7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from . import dsse, jcs, times
from .errors import BadInput
from .fields import PCR_INDEX, Fields

MEDIA_TYPE = "application/vnd.cube.image-manifest+dsse"


class ReferenceEvent(NamedTuple):
    """One predicted extend: the digest (32 bytes), its type, what it is in words and the input it comes from."""

    pcr: int
    digest: bytes
    type: str
    what: str
    source: str


class Reference(NamedTuple):
    """Predicted PCR values of the SHA-256 bank, and the events that lead to them, in extend order."""

    pcrs: Mapping[int, bytes]
    events: tuple[ReferenceEvent, ...]


@dataclass(frozen=True)
class ImageManifest:
    """What a verifier needs of a manifest. ``identity`` names the image, however often it is signed anew."""

    identity: str
    expires: datetime | None
    flavour: str
    id: str
    image: str
    uki: str
    root: str
    reference: Reference

    @property
    def debug(self) -> bool:
        """Debug images have a login or a shell; their flavour says so."""
        return "debug" in self.flavour.split("-")


def identity(payload: Mapping[str, object]) -> str:
    """What a policy's ``image.allowed`` names: the digest of the payload without its expiry. Raises BadInput."""
    return dsse.digest(jcs.dumps({name: value for name, value in payload.items() if name != "expires"}))


def parse(payload: object, *, where: str = "manifest") -> ImageManifest:
    """Read the payload of an image manifest. Raises BadInput.

    Members that only describe the image (packages, binaries, recorded values) are not read here; the signature
    covers them all.
    """
    fields = Fields(payload, where)
    fields.version()
    expires = times.parse(fields.text("expires", limit=20), where=where) if fields.has("expires") else None
    return ImageManifest(
        identity=identity({name: fields.raw(name) for name in fields.names()}),
        expires=expires,
        flavour=fields.text("flavour", limit=64),
        id=fields.text("id", limit=200),
        image=fields.digest("image"),
        uki=fields.digest("uki"),
        root=fields.text("root", limit=128),
        reference=_reference(fields.member("reference")),
    )


def _reference(fields: Fields) -> Reference:
    bank = fields.member("pcrs").member("sha256")
    pcrs: dict[int, bytes] = {}
    for name in bank.names():
        if not PCR_INDEX.fullmatch(name):
            raise BadInput(f"{name[:20]!r} is no PCR index", where=bank.where)
        pcrs[int(name)] = bank.hexadecimal(name, 32, 32)
    events: list[ReferenceEvent] = []
    for i, entry in enumerate(fields.array("events", 4096)):
        event = Fields(entry, f"{fields.where}.events[{i}]")
        events.append(
            ReferenceEvent(
                pcr=event.integer("pcr", 0, 23),
                digest=event.hexadecimal("sha256", 32, 32),
                type=event.text("type", limit=64),
                what=event.text("what", limit=300),
                source=event.text("from", limit=300),
            )
        )
        event.done()
    fields.done()
    return Reference(pcrs, tuple(events))
