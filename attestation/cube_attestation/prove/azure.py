# SPDX-License-Identifier: Apache-2.0
"""Attacks on Azure's chain: paravisor claims, the vTPM's key, its certificate."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from cube_attestation.azure import abi
from cube_attestation.azure.policy import AzurePolicy
from cube_attestation.snp.abi import REPORT_BYTES
from cube_attestation.x509 import crl
from cube_attestation.x509.certificate import Certificate

from . import forge, tpm
from .case import OTHER_DIGEST, Case, Inapplicable, Mutation


def _hcl(case: Case) -> abi.HclReport:
    return abi.parse_hcl(case.item("azure-hcl"))


def _section(case: Case) -> AzurePolicy:
    case.item("azure-hcl")
    return case.policy.azure or AzurePolicy()


def _with_section(**members: object) -> Callable[[Case], Case]:
    def change(case: Case) -> Case:
        return case.under(azure=replace(_section(case), **members))  # type: ignore[arg-type]

    return change


def _with_rules(**members: object) -> Callable[[Case], Case]:
    def change(case: Case) -> Case:
        rules = replace(_section(case).rules, **members)  # type: ignore[arg-type] # callers name members
        return _with_section(rules=rules)(case)

    return change


def with_claims(case: Case, claims: bytes) -> Case:
    """The HCL report with other claims and fitting sizes."""
    data = case.item("azure-hcl")
    end = abi.HEADER + REPORT_BYTES
    _, version, tee, hash_type, old = struct.unpack_from("<IIIII", data, end)
    runtime = struct.pack("<IIIII", 20 + len(claims), version, tee, hash_type, len(claims)) + claims
    size = struct.pack("<I", abi.HEADER + REPORT_BYTES + len(runtime))
    room = max(0, len(data) - end - 20 - old)
    return case.put("azure-hcl", data[:8] + size + data[12:end] + runtime + bytes(room))


def _own_key(case: Case) -> Case:
    """The claims name the forger's key, and that key quotes: the report does not vouch for either."""
    claims = json.loads(_hcl(case).claims)
    numbers = forge.rsa_key("forger's vTPM").public_key().public_numbers()
    for key in claims["keys"]:
        if key["kid"] == "HCLAkPub":
            key["n"] = base64.urlsafe_b64encode(numbers.n.to_bytes(256, "big")).decode().rstrip("=")
            key["e"] = base64.urlsafe_b64encode(numbers.e.to_bytes(3, "big")).decode().rstrip("=")
    forged = with_claims(case, json.dumps(claims, separators=(",", ":")).encode())
    return tpm.requoted(forged, forge.rsa_key("forger's vTPM"))


def _claims_edited(case: Case) -> Case:
    claims = _hcl(case).claims
    at = claims.find(b"true")
    other = claims.replace(b"true", b"false", 1) if at >= 0 else claims.replace(b"false", b"true", 1)
    return with_claims(case, other)


def _own_quote(case: Case) -> Case:
    _section(case)
    return tpm.requoted(case, forge.rsa_key("forger's vTPM"))


def _chain(case: Case) -> tuple[Certificate, ...]:
    found = forge.load(case.item("azure-ak-chain"), where="azure-ak-chain", padding=True)
    return forge.ordered(found, found[0])


def _impostor(case: Case) -> Case:
    """Microsoft's names over the machine's own key, signed by the forger."""
    chain = _chain(case)
    if len(chain) < 2:
        raise Inapplicable("the issuers of the AK certificate are not in the bundle")
    made = forge.impostor(chain, "Microsoft")
    return case.put("azure-ak-chain", made.pem)


def _expired(case: Case) -> Case:
    return replace(case, now=_chain(case)[0].not_after + timedelta(seconds=1))


def _without_ak(case: Case) -> Case:
    return _with_section(allow_missing=())(case.without("azure-ak-chain"))


def _without_crls(case: Case) -> Case:
    return _with_section(allow_missing=())(case.without("azure-crls"))


def _stale(case: Case) -> Case:
    lists = crl.load_all(case.item("azure-crls"), where="azure-crls")
    return replace(case, now=min(one.next_update for one in lists) + timedelta(seconds=1))


MUTATIONS = (
    Mutation(
        "azure.hcl.removed",
        "no HCL report",
        "azure.hcl.malformed",
        lambda case: case.without("azure-hcl"),
    ),
    Mutation(
        "azure.hcl.forged",
        "a forged HCL report that vouches for the forger's own attestation key, which quotes correctly",
        "azure.hcl.unbound_claims",
        _own_key,
    ),
    Mutation("azure.claims.edited", "a paravisor claim turned around", "azure.hcl.unbound_claims", _claims_edited),
    Mutation(
        "azure.ak.forger", "a quote by a key that the claims do not name", "azure.hcl.unbound_key", _own_quote
    ),
    Mutation(
        "azure.ak.impostor",
        "an AK certificate under Microsoft's names with the forger's keys",
        "azure.ak_chain.untrusted_root",
        _impostor,
        also="azure.ak_chain.signature_invalid",
    ),
    Mutation(
        "azure.ak.roots",
        "an AK certificate of a root that is not accepted",
        "azure.ak_chain.untrusted_root",
        _with_section(roots=(OTHER_DIGEST,)),
    ),
    Mutation("azure.ak.removed", "no AK certificate", "collateral.ak_certificate.missing", _without_ak),
    Mutation("azure.ak.expired", "after the AK certificate's end", "azure.ak_chain.expired", _expired),
    Mutation("azure.crls.removed", "no revocation lists", "collateral.crl.missing", _without_crls),
    Mutation("azure.crls.stale", "after a revocation list's end", "collateral.expired", _stale),
    Mutation(
        "azure.vm",
        "the genuine evidence of another VM",
        "azure.vm_id.not_allowed",
        _with_rules(vm_ids=("0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f",)),
    ),
    Mutation(
        "azure.user_data",
        "genuine claims with other user data",
        "azure.user_data.mismatch",
        _with_rules(user_data=b"\x0f" * 64),
    ),
)
