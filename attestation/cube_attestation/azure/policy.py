# SPDX-License-Identifier: Apache-2.0
"""The ``[azure]`` section of a policy (formats §9)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import timedelta

from cube_attestation.anchors import microsoft
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields
from cube_attestation.snp import appraise as snp
from cube_attestation.snp.policy import max_age

from .appraise import CONSOLES, Rules, paravisor_rules
from .verify import ALLOW_MISSING_AK_CERTIFICATE, ALLOW_MISSING_CRL

_ID_KEY = re.compile(r"[0-9a-f]{96}")
_VM_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{0,128}")


@dataclass(frozen=True)
class AzurePolicy:
    """Rules for claims and paravisor, roots (SPKI digests) of AK certificates. By default no paravisor passes."""

    rules: Rules = field(default_factory=Rules)
    paravisor: snp.Rules = field(default_factory=snp.Rules)
    roots: tuple[str, ...] = microsoft.VTPM_ROOTS
    allow_missing: tuple[str, ...] = ()
    max_crl_age: timedelta | None = None


def read_policy(fields: Fields) -> AzurePolicy:
    """Read the section. ``minimum_guest_svn`` of the paravisor is required. Raises BadInput."""
    values: dict[str, object] = {}
    for name in ("ipmi", "secure_boot", "tpm", "persisted_tpm", "filtered_vpci_devices"):
        if fields.has(name):
            values[name] = fields.boolean(name)
    if fields.has("console"):
        values["console"] = fields.choice("console", *CONSOLES)
    if fields.has("vm_ids"):
        values["vm_ids"] = fields.texts("vm_ids", 1024, pattern=_VM_ID)
    if fields.has("root_certificates"):
        values["root_certificates"] = fields.texts("root_certificates", 64, pattern=_THUMBPRINT)
    if fields.has("user_data"):
        values["user_data"] = fields.hexadecimal("user_data", 64, 64)
    id_keys = fields.texts("id_keys", 64, pattern=_ID_KEY) if fields.has("id_keys") else microsoft.PARAVISOR_ID_KEYS
    roots = fields.digests("roots") if fields.has("roots") else microsoft.VTPM_ROOTS
    if not id_keys or not roots:
        raise BadInput("id_keys or roots is empty, so nothing could ever be accepted", where=fields.where)
    paravisor = paravisor_rules(fields.integer("minimum_guest_svn", 0, 2**32 - 1), id_keys=id_keys)
    provisional = fields.boolean("provisional_firmware") if fields.has("provisional_firmware") else False
    known = (ALLOW_MISSING_CRL, ALLOW_MISSING_AK_CERTIFICATE)
    allow_missing = fields.texts("allow_missing", 2) if fields.has("allow_missing") else ()
    for value in allow_missing:
        if value not in known:
            raise BadInput(f"{value[:40]!r} is none of {', '.join(known)}", where=fields.path("allow_missing"))
    policy = AzurePolicy(
        rules=replace(Rules(), **values),  # type: ignore[arg-type] # each member was read by its type above
        paravisor=replace(paravisor, provisional_firmware=provisional),
        roots=roots,
        allow_missing=allow_missing,
        max_crl_age=max_age(fields),
    )
    fields.done()
    return policy
