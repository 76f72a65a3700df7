# SPDX-License-Identifier: Apache-2.0
"""The ``[tdx]`` section of a policy (docs/evidence/tdx.md), and the rules that it stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cube_attestation.anchors.intel import INTEL_ROOTS
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields

from . import ccel
from .collateral import STATUSES
from .tcb import NOT_SUPPORTED

DEBUG, SEPT_VE_DISABLE = 1 << 0, 1 << 28
XFAM_REQUIRED = 0x3  # x87 and SSE: the module refuses TDs without
XFAM_ALLOWED = 0x6DBE7  # what TDX 1.0 and 1.5 can give: AVX, AVX-512, PT, PKRU, CET, ULI, LBR, AMX
ZERO48 = bytes(48)
NEVER = ("Revoked", NOT_SUPPORTED)  # statuses that no policy can take
PLATFORM_FLAGS = ("dynamic_platform", "cached_keys", "smt_enabled")
ALLOW_MISSING = ("tdx.root_crl", "tdx.pck_crl", "tdx.tcb_info", "tdx.qe_identity")


@dataclass(frozen=True)
class TdxPolicy:
    """What a verifier accepts of a TD. The defaults hold for any TD and pin no identity: None means not compared.

    Lists hold allowed values (measurements 48 bytes, SHA-384). ``rtmrs[i]`` None: RTMRi must then be explained by
    the event log and ``events`` if ``explain_rtmrs``, else it is not compared. DEBUG is refused whatever is set.
    """

    mr_td: tuple[bytes, ...] | None = None
    endorsement_roots: tuple[str, ...] = ()  # an MRTD that their endorsement names is allowed as well
    min_firmware_svn: int = 0  # of endorsed firmware
    mr_seam: tuple[bytes, ...] | None = None
    mr_config_id: tuple[bytes, ...] | None = None
    mr_owner: tuple[bytes, ...] | None = None
    mr_owner_config: tuple[bytes, ...] | None = None
    mr_service_td: tuple[bytes, ...] | None = (ZERO48,)
    rtmrs: tuple[tuple[bytes, ...] | None, ...] = (None, None, None, None)
    explain_rtmrs: bool = False
    events: tuple[ccel.EventRule, ...] = ()
    secure_boot: bool | None = None
    attributes_required: int = SEPT_VE_DISABLE
    attributes_allowed: int = SEPT_VE_DISABLE
    xfam_required: int = XFAM_REQUIRED
    xfam_allowed: int = XFAM_ALLOWED
    min_tee_tcb_svn: bytes = bytes(16)
    tcb_statuses: tuple[str, ...] = ("UpToDate",)
    advisories: tuple[str, ...] = ()  # judged harmless; those of any accepted status must be among them
    min_evaluation_number: int = 0
    max_collateral_age_s: int | None = None
    fmspcs: tuple[bytes, ...] | None = None
    ppids: tuple[bytes, ...] | None = None
    roots: tuple[str, ...] = INTEL_ROOTS
    allow_missing: tuple[str, ...] = ()  # of ALLOW_MISSING: collateral that need not be there
    refuse_platforms: tuple[str, ...] = ()  # names among PLATFORM_FLAGS


_HEX48 = re.compile(r"[0-9a-f]{96}")
_MASK = re.compile(r"0x[0-9a-f]{1,16}")
_ADVISORY = re.compile(r"[A-Z0-9-]{1,40}")


def read_policy(fields: Fields) -> TdxPolicy:
    """Read the ``[tdx]`` section (docs/evidence/tdx.md). Raises BadInput that names the member.

    A policy file must say which firmware it takes (``mrtd`` or ``endorsement_roots``), and every register that it
    does not pin must be explained by the event log and ``[[tdx.events]]``. Fields that it leaves out must be zero.
    """
    roots = fields.digests("endorsement_roots") if fields.has("endorsement_roots") else ()
    policy = TdxPolicy(
        mr_td=_values(fields, "mrtd") if fields.has("mrtd") or not roots else (),
        endorsement_roots=roots,
        min_firmware_svn=_number(fields, "min_firmware_svn") or 0,
        mr_seam=_values(fields, "mrseam") if fields.has("mrseam") else None,
        mr_config_id=_values(fields, "mrconfigid") if fields.has("mrconfigid") else (ZERO48,),
        mr_owner=_values(fields, "mrowner") if fields.has("mrowner") else (ZERO48,),
        mr_owner_config=_values(fields, "mrownerconfig") if fields.has("mrownerconfig") else (ZERO48,),
        mr_service_td=_values(fields, "mrservicetd") if fields.has("mrservicetd") else (ZERO48,),
        rtmrs=tuple(_values(fields, f"rtmr{i}") if fields.has(f"rtmr{i}") else None for i in range(4)),
        explain_rtmrs=True,
        events=_events(fields) if fields.has("events") else (),
        secure_boot=fields.boolean("secure_boot") if fields.has("secure_boot") else None,
        attributes_required=_mask(fields, "attributes_required", SEPT_VE_DISABLE),
        attributes_allowed=_mask(fields, "attributes_allowed", SEPT_VE_DISABLE),
        xfam_required=_mask(fields, "xfam_required", XFAM_REQUIRED),
        xfam_allowed=_mask(fields, "xfam_allowed", XFAM_ALLOWED),
        min_tee_tcb_svn=fields.hexadecimal("min_tee_tcb_svn", 16, 16)
        if fields.has("min_tee_tcb_svn")
        else bytes(16),
        tcb_statuses=_statuses(fields) if fields.has("tcb_statuses") else ("UpToDate",),
        advisories=fields.texts("advisories", 256, pattern=_ADVISORY) if fields.has("advisories") else (),
        min_evaluation_number=_number(fields, "min_tcb_evaluation_number") or 0,
        max_collateral_age_s=_number(fields, "max_collateral_age_s"),
        fmspcs=_hexes(fields, "fmspcs", 6) if fields.has("fmspcs") else None,
        ppids=_hexes(fields, "ppids", 16) if fields.has("ppids") else None,
        roots=fields.digests("roots") if fields.has("roots") else INTEL_ROOTS,
        allow_missing=_known(fields, "allow_missing", ALLOW_MISSING),
        refuse_platforms=_known(fields, "refuse_platforms", PLATFORM_FLAGS),
    )
    fields.done()
    if (policy.attributes_allowed | policy.attributes_required) & DEBUG:
        raise BadInput("allows DEBUG", where=fields.path("attributes_allowed"), todo="a debug TD has no secrets")
    return policy


def _values(fields: Fields, name: str) -> tuple[bytes, ...]:
    found = tuple(bytes.fromhex(text) for text in fields.texts(name, 256, pattern=_HEX48))
    if not found:
        raise BadInput("is empty, so nothing could ever be accepted", where=fields.path(name), todo="name a value")
    return found


def _hexes(fields: Fields, name: str, size: int) -> tuple[bytes, ...]:
    pattern = re.compile(f"[0-9a-f]{{{2 * size}}}")
    return tuple(bytes.fromhex(text) for text in fields.texts(name, 1024, pattern=pattern))


def _mask(fields: Fields, name: str, default: int) -> int:
    return int(fields.text(name, pattern=_MASK), 16) if fields.has(name) else default


def _number(fields: Fields, name: str) -> int | None:
    return fields.integer(name, 0, 2**31) if fields.has(name) else None


def _statuses(fields: Fields) -> tuple[str, ...]:
    found = fields.texts("tcb_statuses", len(STATUSES))
    for status in found:
        if status not in STATUSES or status in NEVER:
            known = ", ".join(s for s in STATUSES if s not in NEVER)
            raise BadInput(f"{status[:40]!r} is none of {known}", where=fields.path("tcb_statuses"))
    if not found:
        raise BadInput("is empty, so nothing could ever be accepted", where=fields.path("tcb_statuses"))
    return found


def _known(fields: Fields, name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    found = fields.texts(name, len(known)) if fields.has(name) else ()
    for one in found:
        if one not in known:
            raise BadInput(f"{one[:40]!r} is none of {', '.join(known)}", where=fields.path(name))
    return found


def _events(fields: Fields) -> tuple[ccel.EventRule, ...]:
    found: list[ccel.EventRule] = []
    for i, entry in enumerate(fields.array("events", 512)):
        rule = Fields(entry, f"{fields.path('events')}[{i}]")
        found.append(
            ccel.EventRule(
                rtmr=rule.integer("rtmr", 0, 3),
                type=rule.text("type", limit=64),
                label=rule.text("label", limit=128),
                digests=_values(rule, "digests"),
                required=rule.boolean("required") if rule.has("required") else True,
            )
        )
        rule.done()
    return tuple(found)
