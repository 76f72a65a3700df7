# SPDX-License-Identifier: Apache-2.0
"""The item ``collateral-sources``: which collateral was added to a bundle, from where, when; and what it replaced.

A receipt is over the bundle as the gate had it. ``received`` gives that one back, so that a receipt still holds for
evidence to which collateral was added later. Only labels of collateral can be added or changed that way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cube_attestation import dsse, jcs, times
from cube_attestation.cmw import ENDORSEMENTS, Collection, Item
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields

LABEL, MEDIA_TYPE = "collateral-sources", "application/vnd.cube.collateral-sources+json"
# Kept apart from ``store.LABELS``, which needs every kind's code; a test keeps them equal
LABELS = frozenset((
    "ak-chain", "azure-ak-chain", "azure-crls", "gce-launch-endorsement", "nvidia-collateral", "snp-certificates",
    "snp-crl", "tdx-pck-chain", "tdx-pck-crl", "tdx-qe-identity", "tdx-qe-identity-chain", "tdx-root-crl",
    "tdx-tcb-info", "tdx-tcb-info-chain", "tokens",
))  # fmt: skip
MAX_SOURCES = 512


@dataclass(frozen=True)
class Source:
    """One piece: its item, what it is, its address or file name, digest of its bytes, when it was fetched."""

    item: str
    what: str
    source: str
    digest: str
    time: datetime


@dataclass(frozen=True)
class Sources:
    """``added``: labels that were not there before; ``replaced``: items as they were."""

    added: frozenset[str] = frozenset()
    replaced: Mapping[str, Item] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()


def read(evidence: Collection) -> Sources:
    """The record in a bundle; empty when there is none. Raises BadInput."""
    data = evidence.get(LABEL)
    if data is None:
        return Sources()
    fields = Fields(jcs.loads(data, where=LABEL), LABEL)
    fields.version()
    added = frozenset(fields.texts("added", len(LABELS)))
    replaced = Collection.from_json(fields.raw("replaced"), where=fields.path("replaced")).items
    if not added | set(replaced) <= LABELS or added & set(replaced):
        raise BadInput("names items that are no collateral", where=LABEL)
    listed: list[Source] = []
    for i, entry in enumerate(fields.array("sources", MAX_SOURCES)):
        one = Fields(entry, f"{LABEL}.sources[{i}]")
        listed.append(
            Source(one.text("item", limit=64), one.text("what", limit=300), one.text("source", limit=2048),
                   one.digest("digest"), one.time("time"))
        )  # fmt: skip
        one.done()
    fields.done()
    return Sources(added, replaced, tuple(listed))


def record(before: Collection, after: Collection, new: Iterable[Source]) -> Collection:
    """``after`` with the record of how it came from ``before``, which may have one of its own. Raises BadInput."""
    known = read(before)
    added, replaced = set(known.added), dict(known.replaced)
    for label in LABELS:
        mine, theirs = before.items.get(label), after.items.get(label)
        if mine == theirs or label in added or label in replaced:
            continue
        if mine is None:
            added.add(label)
        else:
            replaced[label] = mine
    sources = (*known.sources, *new)[-MAX_SOURCES:]
    value: dict[str, jcs.Json] = {
        "version": 1,
        "added": [*sorted(added)],
        "replaced": Collection(replaced).to_json(),
        "sources": [
            {"item": s.item, "what": s.what[:300], "source": s.source[-2048:], "digest": s.digest,
             "time": times.format_time(s.time)}
            for s in sources
        ],
    }  # fmt: skip
    return after.with_item(LABEL, MEDIA_TYPE, jcs.dumps(value), ENDORSEMENTS)


def received(evidence: Collection) -> Collection:
    """The evidence as it was before collateral was added; as it is when the record can't be read."""
    try:
        known = read(evidence)
    except BadInput:
        return evidence
    items = {k: v for k, v in evidence.items.items() if k != LABEL and k not in known.added}
    return Collection({**items, **known.replaced})


def digest(evidence: Collection) -> str:
    """What a bundle's digest was before collateral was added."""
    return dsse.digest(jcs.dumps(received(evidence).to_json()))
