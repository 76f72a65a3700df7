# SPDX-License-Identifier: Apache-2.0
"""What one verification is given, and the ways in which a mutation edits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from cube_attestation import dsse, jcs
from cube_attestation.bundle import Bundle
from cube_attestation.claims import Claims
from cube_attestation.cmw import Collection
from cube_attestation.errors import BadInput
from cube_attestation.fields import encode_base64
from cube_attestation.policy import Policy
from cube_attestation.verdict import Verdict
from cube_attestation.verifier import verify

from . import forge

OTHER_DIGEST = "sha256:" + "0f" * 32


class Inapplicable(Exception):
    """This mutation can't be made of this bundle; the sentence says why."""


@dataclass(frozen=True)
class Case:
    """A bundle, the policy and clock that it is judged by, and what a live caller would compare."""

    bundle: Bundle
    policy: Policy
    now: datetime
    nonce: bytes
    tls_spki: str

    def judge(self) -> Verdict:
        """The verdict, as of this bundle's bytes on disk."""
        return verify(self.bundle, self.policy, now=self.now, nonce=self.nonce, tls_spki=self.tls_spki)

    def has(self, label: str) -> bool:
        return label in self.bundle.evidence.items

    def item(self, label: str) -> bytes:
        """An item's bytes. Raises Inapplicable without it."""
        value = self.bundle.evidence.get(label)
        if value is None:
            raise Inapplicable(f"the bundle has no {label}")
        return value

    def put(self, label: str, value: bytes) -> Case:
        """The same case with other bytes under an existing label."""
        old = self.bundle.evidence.items[label]
        return self.with_evidence(self.bundle.evidence.with_item(label, old.media_type, value, old.indicator))

    def without(self, *labels: str) -> Case:
        """The same case without these items. Raises Inapplicable if none of them is there."""
        items = self.bundle.evidence.items
        if not any(label in items for label in labels):
            raise Inapplicable(f"the bundle has no {' or '.join(labels)}")
        return self.with_evidence(Collection({k: v for k, v in items.items() if k not in labels}))

    def with_evidence(self, evidence: Collection) -> Case:
        return replace(self, bundle=replace(self.bundle, evidence=evidence))

    def under(self, **members: object) -> Case:
        """The same evidence under a policy with other members."""
        return replace(self, policy=replace(self.policy, **members))  # type: ignore[arg-type] # callers name members

    def flip(self, label: str, offset: int, mask: int = 1) -> Case:
        """One bit of an item changed."""
        data = bytearray(self.item(label))
        data[offset] ^= mask
        return self.put(label, bytes(data))

    def json(self, label: str) -> dict[str, jcs.Json]:
        """A JSON item. Raises Inapplicable without it."""
        value = jcs.loads(self.item(label), where=label)
        if not isinstance(value, dict):
            raise BadInput("expected an object", where=label)
        return value

    def with_members(self, label: str, **members: jcs.Json) -> Case:
        """A JSON item with other members."""
        return self.put(label, jcs.dumps({**self.json(label), **members}))

    def claims(self) -> Claims:
        return Claims.decode(self.item("claims"))

    def signed(self, label: str, payload_type: str, payload: jcs.Json) -> Case:
        """A signed document replaced by ``payload``, correctly signed by the forger."""
        return self.put(label, jcs.dumps(dsse.sign(payload_type, payload, forge.ec_key("forger"))))

    def payload(self, label: str, payload_type: str) -> dict[str, jcs.Json]:
        """The payload of a signed document."""
        found = dsse.peek(jcs.loads(self.item(label), where=label), payload_type, where=label).payload
        if not isinstance(found, dict):
            raise BadInput("expected an object", where=label)
        return found

    def edited(self, label: str, payload: jcs.Json) -> Case:
        """A signed document with another payload under the old signatures."""
        return self.with_members(label, payload=encode_base64(jcs.dumps(payload)))


@dataclass(frozen=True)
class Mutation:
    """One attack: what it does in words, the code that must refuse it, and how to make it.

    ``change`` raises Inapplicable where the bundle or the policy leaves it no room. ``also`` is a code that says
    the same: an impostor's chain ends in an untrusted root, or in a shipped name whose real key did not sign.
    """

    name: str
    words: str
    code: str
    change: Callable[[Case], Case]
    also: str = ""


def forger_spki() -> str:
    """The digest of the forger's document key."""
    return dsse.spki_digest(forge.ec_key("forger").public_key())
