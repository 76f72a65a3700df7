# SPDX-License-Identifier: Apache-2.0
"""What a check is given and what it says, and the table of kinds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module

from cube_attestation import jcs, times
from cube_attestation.errors import BadInput
from cube_attestation.recognise import Material
from cube_attestation.verdict import NOT_AUTHENTIC, PASSED, REFUSED, ItemVerdict, Reason

# Each kind: module (imported for its own kind only), code of unreadable input, names that may be missing
KINDS = {
    "snp": ("snp", "snp.report.malformed", ("snp.crl",)),
    "tdx": ("tdx", "tdx.quote.malformed", ("tdx.root_crl", "tdx.pck_crl", "tdx.tcb_info", "tdx.qe_identity")),
    "tpm-quote": ("tpm", "tpm.quote.malformed", ("tpm.ak-certificate", "tpm.crl")),
    "tpm-eventlog": ("tpm", "tpm.eventlog.malformed", ("tpm.ak-certificate", "tpm.crl", "tpm.quote")),
    "ccel": (
        "tdx",
        "tdx.eventlog.malformed",
        ("tdx.root_crl", "tdx.pck_crl", "tdx.tcb_info", "tdx.qe_identity", "tdx.quote"),
    ),
    "azure-hcl": (
        "azure",
        "azure.hcl.malformed",
        ("snp.crl", "azure.crl", "azure.ak-certificate", "tdx.root_crl", "tdx.pck_crl", "tdx.tcb_info",
         "tdx.qe_identity"),
    ),
    "nvidia-gpu": (
        "nvidia",
        "nvidia.evidence.malformed",
        ("nvidia.device_ocsp", "nvidia.rim_ocsp", "nvidia.driver_rim", "nvidia.vbios_rim", "nvidia.fwid"),
    ),
    "nvidia-switch": (
        "nvidia", "nvidia.evidence.malformed", ("nvidia.device_ocsp", "nvidia.rim_ocsp", "nvidia.vbios_rim")
    ),
    "nvidia-rim": ("nvidia", "nvidia.evidence.malformed", ("nvidia.rim_ocsp",)),
    "token": ("tokens", "token.malformed", ()),
}  # fmt: skip
NAMES = tuple(sorted({name for _, _, names in KINDS.values() for name in names}))


@dataclass(frozen=True)
class Given:
    """One check: the files' material, the clock, the nonce that the evidence must answer, what may be missing.

    ``roots``: SPKI digests of roots that the caller accepts beside the vendors' shipped ones.
    """

    kind: str
    material: Material
    now: datetime
    nonce: bytes | None = None
    allow_missing: Collection[str] = ()
    roots: tuple[str, ...] = ()

    def data64(self) -> bytes | None:
        """The nonce as 64 bytes of report data: a shorter one is followed by zeros. Raises BadInput."""
        if self.nonce is not None and len(self.nonce) > 64:
            raise BadInput(f"{len(self.nonce)} bytes, report data has 64", where="nonce")
        return None if self.nonce is None else self.nonce.ljust(64, b"\0")


@dataclass(frozen=True)
class Result:
    """The items of one check. The first is the one that was asked for."""

    kind: str
    items: tuple[ItemVerdict, ...]
    now: datetime
    allowed_missing: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()

    @property
    def authentic(self) -> bool:
        return all(item.authentic for item in self.items)

    @property
    def acceptable(self) -> bool:
        return all(item.acceptable for item in self.items)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        return tuple(dict.fromkeys(reason for item in self.items for reason in item.reasons))

    @property
    def codes(self) -> tuple[str, ...]:
        """Each code once, in the order in which it was found."""
        return tuple(dict.fromkeys(reason.code for reason in self.reasons))

    @property
    def exit_code(self) -> int:
        if not self.authentic:
            return NOT_AUTHENTIC
        return PASSED if self.acceptable else REFUSED

    def to_json(self) -> dict[str, jcs.Json]:
        """``kind``, ``authentic``, ``acceptable``, ``reasons`` (codes) and ``facts``.

        Facts are the first item's members; ``words`` the sentences of the reasons, ``now`` the clock, ``items`` the
        single items when there are several, ``compared`` what was held against what.
        """
        facts: dict[str, jcs.Json] = dict(self.items[0].facts)
        facts["now"] = times.format_time(self.now)
        if self.allowed_missing:
            facts["allowed_missing"] = list(self.allowed_missing)
        if self.roots:
            facts["added_roots"] = list(self.roots)
        if self.reasons:
            facts["words"] = [f"{reason.code}: {reason.words}" for reason in self.reasons]
        if compared := [c.to_json() for item in self.items for c in item.compared]:
            facts["compared"] = [dict(entry) for entry in compared]
        if len(self.items) > 1:
            facts["items"] = {
                item.item: {"authentic": item.authentic, "acceptable": item.acceptable, "facts": dict(item.facts),
                            "reasons": [reason.code for reason in item.reasons]}
                for item in self.items
            }  # fmt: skip
        return {
            "kind": self.kind,
            "authentic": self.authentic,
            "acceptable": self.acceptable,
            "reasons": list(self.codes),
            "facts": facts,
        }

    def dump(self) -> bytes:
        """Deterministic JSON with a newline."""
        return jcs.dumps(self.to_json()) + b"\n"


def check(given: Given) -> Result:
    """Check one item. Raises BadInput for bytes that are no such item, and for files that hold none."""
    module, _, names = KINDS[given.kind]
    for name in given.allow_missing:
        if name not in names:
            known = ", ".join(names) or "nothing"
            raise BadInput(f"{name[:40]!r} can't be missing here", where="--allow-missing", todo=f"known: {known}")
    run: Callable[[Given], tuple[ItemVerdict, ...]] = import_module(f"{__package__}.{module}").check
    return Result(given.kind, run(given), given.now, tuple(sorted(set(given.allow_missing))), given.roots)


def malformed(kind: str, problem: str, now: datetime) -> Result:
    """The result over input that could not be read: neither authentic nor acceptable."""
    return Result(kind, (ItemVerdict(kind, (Reason(KINDS[kind][1], problem),)),), now)


def needed(parts: tuple[bytes, ...], what: str, hint: str) -> bytes:
    """The one part of its kind. Raises BadInput when there is none, or more than one."""
    if not parts:
        raise BadInput(f"none of the files holds {what}", todo=hint)
    if len(parts) > 1:
        raise BadInput(f"the files hold {what} {len(parts)} times", todo="check them one by one")
    return parts[0]
