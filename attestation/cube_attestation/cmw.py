# SPDX-License-Identifier: Apache-2.0
"""RATS conceptual message wrapper collections (draft-ietf-rats-msg-wrap, JSON), as formats §3 uses them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from . import jcs
from .errors import BadInput
from .fields import Fields, kind

COLLECTION_TYPE = "tag:cube-confidential,2026:evidence"
REFERENCE_VALUES, ENDORSEMENTS, EVIDENCE = 1, 2, 4
MAX_ITEMS = 256
MAX_ITEM_BYTES = 16 << 20

_LABEL = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_MEDIA = re.compile(r"[a-z]+/[A-Za-z0-9.+-]{1,100}")


@dataclass(frozen=True)
class Item:
    """One record: what it is, its bytes, and whether it is evidence, endorsement or reference value."""

    media_type: str
    value: bytes
    indicator: int = EVIDENCE


@dataclass(frozen=True)
class Collection:
    """Items by label."""

    items: Mapping[str, Item] = field(default_factory=dict)

    def get(self, label: str) -> bytes | None:
        """The item's bytes, or None."""
        item = self.items.get(label)
        return None if item is None else item.value

    def with_item(self, label: str, media_type: str, value: bytes, indicator: int = EVIDENCE) -> Collection:
        """A new collection with one more item (or that one replaced)."""
        return Collection({**self.items, label: Item(media_type, value, indicator)})

    def canonical(self) -> bytes:
        """Canonical bytes of ``to_json()``, made without looking through all of the base64 for escapes."""
        members = {"__cmwc_t": _quoted(COLLECTION_TYPE)}
        for label, item in self.items.items():
            value = base64.urlsafe_b64encode(item.value).rstrip(b"=")
            members[label] = b'[%b,"%b",%d]' % (_quoted(item.media_type), value, item.indicator)
        names = sorted(members, key=lambda name: name.encode("utf-16-be"))  # RFC 8785, 3.2.3
        return b"{%b}" % b",".join(b"%b:%b" % (_quoted(name), members[name]) for name in names)

    def to_json(self) -> dict[str, jcs.Json]:
        value: dict[str, jcs.Json] = {"__cmwc_t": COLLECTION_TYPE}
        for label, item in self.items.items():
            value[label] = [item.media_type, _encode(item.value), item.indicator]
        return value

    @classmethod
    def from_json(cls, value: object, *, where: str = "evidence") -> Collection:
        """Read a collection. Raises BadInput with the label."""
        fields = Fields(value, where)
        found = fields.text("__cmwc_t", limit=200)
        if found != COLLECTION_TYPE:
            raise BadInput(
                f"collection type {found!r}, expected {COLLECTION_TYPE!r}", where=fields.path("__cmwc_t")
            )
        items: dict[str, Item] = {}
        labels = [label for label in fields.names() if label != "__cmwc_t"]
        if len(labels) > MAX_ITEMS:
            raise BadInput(f"more than {MAX_ITEMS} items", where=where)
        for label in labels:
            if not _LABEL.fullmatch(label):
                raise BadInput(f"{label[:80]!r} is no label", where=where)
            items[label] = _item(fields.array(label, 3), fields.path(label))
        return cls(items)


def _item(record: list[object], where: str) -> Item:
    if len(record) != 3:
        raise BadInput("expected [media type, base64url, indicator]", where=where)
    media, data, indicator = record
    if not isinstance(media, str) or not _MEDIA.fullmatch(media):
        raise BadInput("the first entry is no media type", where=where)
    if not isinstance(data, str):
        raise BadInput(f"expected base64url, found {kind(data)}", where=where)
    if not isinstance(indicator, int) or indicator not in (REFERENCE_VALUES, ENDORSEMENTS, EVIDENCE):
        raise BadInput("the indicator is none of 1, 2, 4", where=where)
    if indicator is True:
        raise BadInput("expected an integer, found a boolean", where=where)
    return Item(media, _decode(data, where), indicator)


@lru_cache(maxsize=256)  # a few labels and media types
def _quoted(text: str) -> bytes:
    return jcs.dumps(text)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str, where: str) -> bytes:
    if len(text) > MAX_ITEM_BYTES * 4 // 3 + 4:
        raise BadInput(f"item larger than {MAX_ITEM_BYTES >> 20} MiB", where=where)
    try:
        data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput("not base64url", where=where) from error
    # The decoder also takes the other alphabet, padding, and stray bits in the last group
    last = len(data) % 3 + 1 if len(data) % 3 else 0
    if "+" in text or "/" in text or "=" in text or (last and _encode(data[-(len(data) % 3) :]) != text[-last:]):
        raise BadInput("not base64url without padding", where=where)
    return data
