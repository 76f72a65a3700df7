# SPDX-License-Identifier: Apache-2.0
"""``check snp``: a report with the certificates and lists that were given."""

from __future__ import annotations

import contextlib

from cube_attestation.anchors import amd
from cube_attestation.errors import BadInput
from cube_attestation.recognise import Material
from cube_attestation.snp import abi, verify
from cube_attestation.snp.appraise import Rules, appraise
from cube_attestation.verdict import ItemVerdict
from cube_attestation.x509 import certificate, crl

from .result import Given, needed

PRIVILEGES = (0, 1, 2, 3)


def rules(report_data: bytes | None) -> Rules:
    """What holds for every guest: no DEBUG, no migration agent, no memory on CXL. All else is for a policy."""
    return Rules(any_firmware=True, vmpls=PRIVILEGES, provisional_firmware=True, report_data=report_data)


def endorsements(material: Material) -> verify.Endorsements:
    """Every certificate and list that is there, whichever file it came in. Raises BadInput."""
    tables = verify.read_endorsements(material.snp_tables)
    found = certificate.load_all(material.certificates, where="SNP certificates")
    lists = [crl.load(data, where=f"revocation list {i}") for i, data in enumerate(material.crls)]
    return verify.Endorsements((*found, *tables.certificates), (*lists, *tables.crls))


def report(given: Given, data: bytes, rules: Rules, *, item: str) -> tuple[ItemVerdict, verify.Verified]:
    """The item of one report under ``rules``. Raises BadInput."""
    vouching = endorsements(given.material)
    verified = verify.verify(
        abi.parse_report(data, max_trailing=abi.MAX_TRAILING),
        vouching,
        now=given.now,
        roots={**amd.ROOTS, **dict.fromkeys(given.roots, _product(vouching))},
        allow_missing=given.allow_missing,
    )
    return appraise(verified, rules, item=item), verified


def _product(vouching: verify.Endorsements) -> str:
    """The product line that the endorsement key names: an added root stands for that one."""
    for one in vouching.certificates:
        if abi.key_kind(one):
            with contextlib.suppress(BadInput):
                return abi.parse_endorsement_key(one).product
    return ""


def _inside_hcl(data: bytes) -> bytes:
    """The SNP report inside of an Azure HCL report; empty when it holds a TDREPORT. Raises BadInput."""
    from cube_attestation.azure.abi import parse_hcl

    report = parse_hcl(data)
    return report.hardware if report.tee == "snp" else b""


def check(given: Given) -> tuple[ItemVerdict, ...]:
    """The report's item. Raises BadInput."""
    found = tuple(_inside_hcl(data) for data in given.material.hcl_reports)
    reports = given.material.snp_reports or tuple(filter(None, found))
    data = needed(reports, "an SNP report", "pass the report's 1184 bytes, or their hex or base64")
    return (report(given, data, rules(given.data64()), item="snp")[0],)
