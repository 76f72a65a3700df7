# SPDX-License-Identifier: Apache-2.0
"""SARIF 2.1.0 (OASIS), as code hosts show it: one result for each reason and each assumption."""

from __future__ import annotations

import hashlib
from urllib.parse import quote

from cube_attestation import jcs
from cube_attestation.verdict import Reason, Verdict

from . import VERIFIER, version

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def render(verdict: Verdict, subject: str) -> bytes:
    """The log as canonical JSON with a newline; ``subject`` becomes the results' artifact."""
    found = [(item.item, reason, True) for item in verdict.items for reason in item.reasons]
    found += [("verdict", Reason(code, assumption(code)), False) for code in verdict.assumptions]
    codes = sorted({reason.code for _, reason, _ in found})
    location = quote(subject, safe="/:@!$&'()*+,;=-._~?#[]%" if "://" in subject else "/")
    rules: list[jcs.Json] = [{"id": code, "name": code.replace(".", "_")} for code in codes]
    results: list[jcs.Json] = []
    for item, reason, failed in found:
        place: dict[str, jcs.Json] = {
            "physicalLocation": {"artifactLocation": {"uri": location}, "region": {"startLine": 1}},
            "logicalLocations": [{"name": item, "kind": "member"}],
        }
        print_of = hashlib.sha256(f"{item}\0{reason.code}".encode()).hexdigest()
        results.append(
            {
                "ruleId": reason.code,
                "ruleIndex": codes.index(reason.code),
                "kind": "fail" if failed else "informational",
                "level": "error" if failed else "none",
                "message": {"text": f"{item}: {reason.words}"},
                "locations": [place],
                "partialFingerprints": {"itemAndCode/v1": print_of},
            }
        )
    now = verdict.to_json()["now"]
    run: dict[str, jcs.Json] = {
        "tool": {"driver": {"name": f"{VERIFIER} attestation", "version": version(), "rules": rules}},
        "invocations": [{"executionSuccessful": True, "exitCode": verdict.exit_code, "endTimeUtc": now}],
        "results": results,
        "properties": {
            "passed": verdict.passed,
            "tier": verdict.tier,
            "lowestTier": verdict.lowest_tier,
            "freshness": verdict.freshness,
            "bundle": verdict.bundle,
            "policy": verdict.policy,
        },
    }
    return jcs.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}) + b"\n"


_ASSUMPTIONS = {
    "software.firmware_not_appraised": "the host's firmware is recorded, not predicted",
    "software.no_hardware_protection": (
        "TPM and memory belong to the host: this proves the flow and protects nothing"
    ),
    "gcp.firmware_by_endorsement": (
        "the firmware is accepted because Google signed for it, not because anybody rebuilt it"
    ),
    "azure.paravisor_trusted": (
        "Microsoft's paravisor runs at VMPL 0 with the virtual TPM in it: it is trusted, identified by its ID key"
    ),
    "azure.hardware_report_at_boot": "the hardware report is made at boot; only the virtual TPM's quote is fresh",
    "gpu.relay_possible": (
        "GPU evidence can be relayed: before TDISP no report says how the GPU is attached to this machine"
    ),
}


def assumption(code: str) -> str:
    """What an assumption code means; a code that is not known stands for itself."""
    return _ASSUMPTIONS.get(code, code)
