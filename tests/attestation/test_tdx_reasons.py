# SPDX-License-Identifier: Apache-2.0
"""Every reason code of TDX fires on correctly signed evidence of something wrong; rules just before and after."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields
from cube_attestation.tdx import appraise as appraisal
from cube_attestation.tdx import ccel, endorsement, tcb
from cube_attestation.tdx.appraise import appraise
from cube_attestation.tdx.collateral import STATUSES, Collateral
from cube_attestation.tdx.policy import ALLOW_MISSING, TdxPolicy, read_policy
from cube_attestation.tdx.verify import verify
from fake_tdx import BORN, NOW, FakeGoogle, FakeTdx, Names

SECOND = timedelta(seconds=1)


def codes(
    world: FakeTdx,
    policy: TdxPolicy | None = None,
    *,
    now: datetime = NOW,
    collateral: Collateral | None = None,
    quote: bytes | None = None,
    **arguments: Any,
) -> set[str]:
    """All reason codes of a verdict over ``world``'s evidence."""
    given = world.collateral() if collateral is None else collateral
    found = verify(quote or world.quote(), given, now=now, anchors=world.anchors)
    verdict = appraise(found, policy or TdxPolicy(), **arguments)
    assert verdict.acceptable == (not verdict.reasons)
    assert {reason.code.split(".")[0] for reason in verdict.forged} <= {"tdx", "collateral"}
    return {reason.code for reason in verdict.reasons}


@pytest.mark.parametrize(
    "world",
    [
        FakeTdx(),
        FakeTdx(version=5),
        FakeTdx(version=5, body_type=3),
        FakeTdx(trailing=bytes(3000)),
        FakeTdx(flags=None),
        FakeTdx(td={"tee_tcb_svn": bytes([4, 0, 3]) + bytes(13)}),
        FakeTdx(auth=b""),
    ],
)
def test_right_evidence_passes(world: FakeTdx) -> None:
    assert codes(world) == set()


FORGED: list[tuple[str, FakeTdx]] = [
    ("tdx.signature.invalid", FakeTdx(signer="other")),
    ("tdx.qe.unbound_key", FakeTdx(qe_bound=False)),
    ("tdx.qe.signature_invalid", FakeTdx(qe_signer="other")),
    ("tdx.qe.unknown_vendor", FakeTdx(qe_vendor=bytes(16))),
    ("tdx.qe.identity_mismatch", FakeTdx(qe={"mr_signer": bytes(32)})),
    ("tdx.qe.identity_mismatch", FakeTdx(qe={"isv_prod_id": 1})),
    ("tdx.qe.identity_mismatch", FakeTdx(qe={"misc_select": b"\1\0\0\0"})),
    ("tdx.qe.identity_mismatch", FakeTdx(qe={"attributes": b"\x13" + bytes(15)})),
    ("tdx.chain.missing", FakeTdx(cert_type=3)),
    ("tdx.chain.invalid", FakeTdx(pck_issuer="other")),
    ("tdx.chain.invalid", FakeTdx(pck_ca_is_ca=False)),
    (
        "tdx.chain.invalid",
        FakeTdx(pck_extra=(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"),)),
    ),
    ("tdx.chain.untrusted_root", FakeTdx(root_role="other root")),
    ("tdx.chain.expired", FakeTdx(pck_dates=(NOW - timedelta(days=9), NOW - SECOND))),
    ("tdx.chain.not_yet_valid", FakeTdx(pck_dates=(NOW + SECOND, NOW + timedelta(days=9)))),
    ("tdx.chain.revoked", FakeTdx(revoked=("pck",))),
    ("tdx.chain.revoked", FakeTdx(revoked=("pck-ca",))),
    ("tdx.chain.not_pck", FakeTdx(names=Names(pck_ca="Intel SGX Other CA"))),
    ("tdx.chain.not_pck", FakeTdx(pck_under_root=True)),
    ("tdx.chain.not_pck", FakeTdx(pck_has_sgx=False)),
    ("tdx.module.unknown", FakeTdx(module_id="TDX_03")),
    ("tdx.module.identity_mismatch", FakeTdx(td={"mr_signer_seam": bytes([1] * 48)})),
    ("tdx.module.identity_mismatch", FakeTdx(td={"seam_attributes": 1})),
    ("collateral.chain.untrusted_root", FakeTdx(root_role="other root")),
    ("collateral.chain.expired", FakeTdx(tcb_dates=(NOW - timedelta(days=9), NOW - SECOND))),
    ("collateral.chain.not_yet_valid", FakeTdx(tcb_dates=(NOW + SECOND, NOW + timedelta(days=9)))),
    ("collateral.chain.revoked", FakeTdx(revoked=("tcb",))),
    ("collateral.chain.not_tcb_signer", FakeTdx(names=Names(tcb="Intel SGX PCK Certificate"))),
    ("collateral.root_crl.signature_invalid", FakeTdx(root_crl_signer="other")),
    ("collateral.root_crl.wrong_issuer", FakeTdx(names=Names(), root_crl_signer="root", pck_crl_name="x")),
    ("collateral.pck_crl.signature_invalid", FakeTdx(pck_crl_signer="other")),
    ("collateral.pck_crl.signature_invalid", FakeTdx(pck_ca_crl_sign=False)),
    ("collateral.pck_crl.wrong_issuer", FakeTdx(pck_crl_name="Intel SGX PCK Processor CA")),
    ("collateral.tcb_info.signature_invalid", FakeTdx(document_signer="other")),
    ("collateral.qe_identity.signature_invalid", FakeTdx(document_signer="other")),
    ("collateral.tcb_info.wrong_platform", FakeTdx(tcb_fmspc="00806F050001")),
    ("collateral.tcb_info.wrong_kind", FakeTdx(tcb_id="SGX")),
    ("collateral.qe_identity.wrong_kind", FakeTdx(qe_id="QE")),
    ("collateral.expired", FakeTdx(next_update=NOW - SECOND)),
    ("collateral.expired", FakeTdx(root_crl_dates=(NOW - timedelta(days=9), NOW - SECOND))),
    ("collateral.expired", FakeTdx(pck_crl_dates=(NOW - timedelta(days=9), NOW - SECOND))),
    ("collateral.not_yet_valid", FakeTdx(issued=NOW + SECOND)),
    ("collateral.not_yet_valid", FakeTdx(pck_crl_dates=(NOW + SECOND, NOW + timedelta(days=9)))),
]


@pytest.mark.parametrize(("code", "world"), FORGED, ids=[f"{i}-{code}" for i, (code, _) in enumerate(FORGED)])
def test_forged(code: str, world: FakeTdx) -> None:
    if code == "collateral.root_crl.wrong_issuer":
        given = replace(world.collateral(), root_crl=world.pck_crl())
    else:
        given = world.collateral()
    found = verify(world.quote(), given, now=NOW, anchors=world.anchors)
    assert code in {reason.code for reason in found.forged}
    assert not found.authentic


@pytest.mark.parametrize("name", ["root_crl", "pck_crl", "tcb_info", "qe_identity", "tcb_info_chain"])
def test_nothing_passes_by_absence(name: str) -> None:
    world = FakeTdx()
    absent: dict[str, Any] = {name: b"" if name.endswith("chain") else None}
    given = replace(world.collateral(), **absent)
    found = codes(world, collateral=given)
    assert f"collateral.{name.removesuffix('_chain')}.missing" in found
    assert ("tdx.tcb.unknown" in found) == (not name.endswith("crl"))


@pytest.mark.parametrize("name", ALLOW_MISSING)
def test_absence_allowed_by_name(name: str) -> None:
    """The policy may do without a piece that is not there; one that is there and wrong stays wrong."""
    world = FakeTdx()
    absent: dict[str, Any] = {name.partition(".")[2]: None}
    given = replace(world.collateral(), **absent)
    policy = TdxPolicy(allow_missing=(name,))
    found = verify(world.quote(), given, now=NOW, anchors=world.anchors, allow_missing=policy.allow_missing)
    assert appraise(found, policy).acceptable
    assert not verify(world.quote(), given, now=NOW, anchors=world.anchors).authentic
    forged = FakeTdx(root_crl_signer="other", pck_crl_signer="other", document_signer="other")
    found = verify(forged.quote(), forged.collateral(), now=NOW, anchors=world.anchors, allow_missing=ALLOW_MISSING)
    assert len(found.forged) == 4


def test_chain_beside_the_quote() -> None:
    """A quote with the encrypted PPID verifies with the platform's chain from the provisioning service."""
    world = FakeTdx(cert_type=3)
    given = replace(world.collateral(), pck_chain=world.pck_chain())
    assert codes(world, collateral=given) == set()


def test_stray_certificates_are_refused() -> None:
    world = FakeTdx()
    given = replace(world.collateral(), tcb_info_chain=world.tcb_chain() + world.pck_chain())
    assert "collateral.chain.invalid" in codes(world, collateral=given)


def test_a_root_that_did_not_sign_itself_is_none() -> None:
    """The key is the pinned one, but the name of the issuer, and with it any date, could be anyone's."""
    quote = FakeTdx().quote()
    at = quote.rindex(b"-----BEGIN CERTIFICATE-----")
    certificate = x509.load_pem_x509_certificate(quote[at:])
    der = certificate.public_bytes(serialization.Encoding.DER)
    changed = base64.encodebytes(der.replace(b"Intel SGX Root CA", b"Other SGX Root CA", 1))
    pem = b"-----BEGIN CERTIFICATE-----\n" + changed + b"-----END CERTIFICATE-----\n"
    assert "tdx.chain.invalid" not in codes(FakeTdx(), quote=quote)
    assert "tdx.chain.invalid" in codes(FakeTdx(), quote=quote[:at] + pem.ljust(len(quote) - at, b"\n"))


def test_the_pck_key_may_not_sign_documents() -> None:
    """Under the same root, with digitalSignature: but it is a platform's key, not Intel's for documents."""
    world = FakeTdx(document_signer="pck")
    chain = world.pck_chain()
    given = replace(world.collateral(), tcb_info_chain=chain, qe_identity_chain=chain)
    assert "collateral.chain.not_tcb_signer" in codes(world, collateral=given)


ACCEPTABLE: list[tuple[str, FakeTdx, TdxPolicy]] = [
    ("tdx.attributes.debug", FakeTdx(td={"attributes": 1 << 28 | 1}), TdxPolicy()),
    ("tdx.attributes.debug", FakeTdx(td={"attributes": 1 << 28 | 1}), TdxPolicy(attributes_allowed=2**64 - 1)),
    ("tdx.attributes.sept_ve_disable", FakeTdx(td={"attributes": 0}), TdxPolicy()),
    ("tdx.attributes.not_allowed", FakeTdx(td={"attributes": 1 << 28 | 1 << 29}), TdxPolicy()),
    ("tdx.attributes.not_allowed", FakeTdx(), TdxPolicy(attributes_required=1 << 28 | 1 << 30)),
    ("tdx.xfam.not_allowed", FakeTdx(td={"xfam": 0x602E7 | 1 << 20}), TdxPolicy()),
    ("tdx.xfam.not_allowed", FakeTdx(td={"xfam": 1}), TdxPolicy()),
    ("tdx.mrtd.not_allowed", FakeTdx(), TdxPolicy(mr_td=(bytes(48),))),
    ("tdx.mrseam.not_allowed", FakeTdx(), TdxPolicy(mr_seam=(bytes(48),))),
    ("tdx.mrconfigid.not_allowed", FakeTdx(td={"mr_config_id": b"\1" * 48}), TdxPolicy(mr_config_id=(bytes(48),))),
    ("tdx.mrowner.not_allowed", FakeTdx(td={"mr_owner": b"\1" * 48}), TdxPolicy(mr_owner=(bytes(48),))),
    ("tdx.mrownerconfig.not_allowed", FakeTdx(td={"mr_owner_config": b"\1" * 48}),
     TdxPolicy(mr_owner_config=(bytes(48),))),
    ("tdx.mrservicetd.not_allowed", FakeTdx(version=5, body_type=3, td={"mr_service_td": b"\1" * 48}), TdxPolicy()),
    ("tdx.rtmr.mismatch", FakeTdx(), TdxPolicy(rtmrs=(None, (bytes(48),), None, None))),
    ("tdx.rtmr.unexplained", FakeTdx(), TdxPolicy(explain_rtmrs=True)),
    ("tdx.tee_tcb_svn.too_low", FakeTdx(), TdxPolicy(min_tee_tcb_svn=bytes([5]) + bytes(15))),
    ("tdx.tcb.not_supported", FakeTdx(levels=[]), TdxPolicy()),
    ("tdx.platform.not_allowed", FakeTdx(), TdxPolicy(fmspcs=(bytes(6),))),
    ("tdx.platform.not_allowed", FakeTdx(), TdxPolicy(ppids=(bytes(16),))),
    ("tdx.platform.flag_refused", FakeTdx(), TdxPolicy(refuse_platforms=("smt_enabled",))),
    ("tdx.platform.flag_refused", FakeTdx(flags=None), TdxPolicy(refuse_platforms=("smt_enabled",))),
    ("tdx.quote.not_tdx", FakeTdx(version=3, sgx=True, tcb_id="SGX", qe_id="QE"), TdxPolicy()),
    ("tdx.quote.not_tdx", FakeTdx(version=5, sgx=True, tcb_id="SGX", qe_id="QE"), TdxPolicy()),
    ("collateral.evaluation_number_too_low", FakeTdx(evaluation_number=17), TdxPolicy(min_evaluation_number=18)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "world", "policy"), ACCEPTABLE, ids=[f"{i}-{c[0]}" for i, c in enumerate(ACCEPTABLE)]
)
def test_not_acceptable(code: str, world: FakeTdx, policy: TdxPolicy) -> None:
    found = verify(world.quote(), world.collateral(), now=NOW, anchors=world.anchors)
    assert found.authentic
    verdict = appraise(found, policy)
    assert {reason.code for reason in verdict.refused} == {code}
    assert not verdict.acceptable


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "UpToDate"])
def test_tcb_status(status: str) -> None:
    """Each status has its code, whichever part has it; a policy may take all but Revoked."""
    base = FakeTdx()
    worlds = [
        FakeTdx(levels=[base.level(status)]),
        FakeTdx(module_levels=[base.isv_level(status)]),
        FakeTdx(qe_levels=[base.isv_level(status)]),
    ]
    for world in worlds:
        assert codes(world) == {appraisal.STATUS_CODES[status]}
        taken = codes(world, TdxPolicy(tcb_statuses=("UpToDate", status)))
        assert taken == ({"tdx.tcb.revoked"} if status == "Revoked" else set())


def test_tcb_status_of_the_whole() -> None:
    assert tcb.worst(["UpToDate", "OutOfDate", "ConfigurationNeeded"]) == "OutOfDateConfigurationNeeded"
    assert tcb.worst(["SWHardeningNeeded", "ConfigurationNeeded"]) == "ConfigurationAndSWHardeningNeeded"
    assert tcb.worst(["SWHardeningNeeded", "OutOfDate"]) == "OutOfDate"
    assert tcb.worst(["Revoked", "OutOfDate"]) == "Revoked"
    assert tcb.worst(["Revoked", "NotSupported"]) == "NotSupported"
    assert tcb.worst([]) == "UpToDate"


def test_advisories() -> None:
    world = FakeTdx(levels=[FakeTdx().level("SWHardeningNeeded", advisories=("INTEL-SA-00001", "INTEL-SA-00002"))])
    policy = TdxPolicy(tcb_statuses=("UpToDate", "SWHardeningNeeded"), advisories=("INTEL-SA-00001",))
    assert codes(world, policy) == {"tdx.tcb.advisory_not_accepted"}
    assert codes(world, replace(policy, advisories=("INTEL-SA-00001", "INTEL-SA-00002"))) == set()


def test_tcb_levels_at_their_boundary() -> None:
    """One SVN below a level's, in any component, is the next level."""
    base = FakeTdx()
    for i in range(16):
        sgx = bytes([5] * i + [6] + [5] * (15 - i))
        assert codes(FakeTdx(levels=[base.level(sgx=sgx), base.level("OutOfDate")])) == {"tdx.tcb.out_of_date"}
        assert codes(FakeTdx(levels=[base.level(), base.level("OutOfDate")])) == set()
        tdx = bytearray([4, 1, 3] + [0] * 13)
        tdx[i] += 1
        below = {"tdx.tcb.out_of_date"} if i >= 2 else set()  # 0 and 1 are the module's own, from 1.5 on
        assert codes(FakeTdx(levels=[base.level(tdx=bytes(tdx)), base.level("OutOfDate")])) == below
    assert codes(FakeTdx(levels=[base.level(pce_svn=12)])) == {"tdx.tcb.not_supported"}
    assert codes(FakeTdx(levels=[base.level(pce_svn=11)])) == set()
    old_module = {"tee_tcb_svn": bytes([4, 0, 3]) + bytes(13)}  # TDX 1.0: component 0 counts
    assert codes(FakeTdx(td=old_module, levels=[base.level(tdx=bytes([5]) + bytes(15))])) == {
        "tdx.tcb.not_supported"
    }
    assert codes(FakeTdx(td=old_module, levels=[base.level(tdx=bytes([4]) + bytes(15))])) == set()


def test_levels_count_in_their_order_not_the_documents() -> None:
    """A low level that comes first with a better status must not win over the one that the platform reaches."""
    base = FakeTdx()
    low = base.level(sgx=bytes(16))
    assert codes(FakeTdx(levels=[low, base.level("OutOfDate")])) == {"tdx.tcb.out_of_date"}
    modules = [base.isv_level(svn=1), base.isv_level("OutOfDate", 4)]
    assert codes(FakeTdx(module_levels=modules)) == {"tdx.tcb.out_of_date"}
    assert codes(FakeTdx(qe_levels=modules)) == {"tdx.tcb.out_of_date"}


def test_both_svn_vectors_count() -> None:
    """TDX 1.5: the module at launch and the one that runs now, whichever is lower."""
    levels = [FakeTdx.isv_level(svn=4), FakeTdx.isv_level("OutOfDate", 3)]
    right, low, none = (bytes([n, 1, 3]) + bytes(13) for n in (4, 3, 2))
    for svn, svn2, expected in (
        (right, right, set()), (low, right, {"tdx.tcb.out_of_date"}), (right, low, {"tdx.tcb.out_of_date"}),
        (right, none, {"tdx.tcb.not_supported"}), (none, right, {"tdx.tcb.not_supported"}),
        (right, bytes([4, 2, 3]) + bytes(13), {"tdx.module.unknown", "tdx.tcb.not_supported"}),
    ):  # fmt: skip
        td = {"tee_tcb_svn": svn, "tee_tcb_svn2": svn2}
        assert codes(FakeTdx(version=5, body_type=3, td=td, module_levels=levels)) == expected


def test_isv_svn_at_its_boundary() -> None:
    level = FakeTdx.isv_level
    assert codes(FakeTdx(qe_levels=[level(svn=5), level("OutOfDate", 4)])) == {"tdx.tcb.out_of_date"}
    assert codes(FakeTdx(qe_levels=[level(svn=4)])) == set()
    assert codes(FakeTdx(qe_levels=[level(svn=5)])) == {"tdx.tcb.not_supported"}
    assert codes(FakeTdx(module_levels=[level(svn=5), level("OutOfDate", 1)])) == {"tdx.tcb.out_of_date"}
    assert codes(FakeTdx(module_levels=[level(svn=5)])) == {"tdx.tcb.not_supported"}


@pytest.mark.parametrize(
    "at",
    [
        lambda time: FakeTdx(next_update=time),
        lambda time: FakeTdx(root_crl_dates=(NOW - timedelta(days=9), time)),
        lambda time: FakeTdx(pck_crl_dates=(NOW - timedelta(days=9), time)),
        lambda time: FakeTdx(pck_dates=(NOW - timedelta(days=9), time)),
        lambda time: FakeTdx(tcb_dates=(NOW - timedelta(days=9), time)),
    ],
)
def test_ends_are_exact(at: Callable[[datetime], FakeTdx]) -> None:
    """The last second counts, the next does not, also when everything was verified just before."""
    end = NOW + timedelta(hours=1)
    world = at(end)
    quote, given = world.quote(), world.collateral()
    assert codes(world, quote=quote, collateral=given, now=end) == set()
    assert codes(world, quote=quote, collateral=given, now=end + SECOND) != set()
    assert codes(world, quote=quote, collateral=given, now=end) == set()


@pytest.mark.parametrize(
    ("google", "expected"),
    [
        (FakeGoogle(), set()),
        (FakeGoogle(signer="other"), {"tdx.endorsement.signature_invalid"}),
        (FakeGoogle(issuer="other"), {"tdx.endorsement.invalid"}),
        (FakeGoogle(dates=(BORN, NOW - SECOND)), {"tdx.endorsement.expired"}),
        (FakeGoogle(dates=(BORN, NOW)), set()),
        (FakeGoogle(dates=(NOW + SECOND, NOW + 2 * SECOND)), {"tdx.endorsement.not_yet_valid"}),
        (FakeGoogle(svn=2), {"tdx.endorsement.svn_too_low"}),
        (FakeGoogle(mr_td=bytes([0x23] * 48)), {"tdx.mrtd.not_allowed"}),
    ],
)
def test_endorsed_firmware(google: FakeGoogle, expected: set[str]) -> None:
    endorsed = endorsement.parse(google.endorsement())
    policy = TdxPolicy(endorsement_roots=google.roots, min_firmware_svn=3)
    assert codes(FakeTdx(), policy, endorsed=endorsed) == expected
    # not asked for: MRTD by value only, the endorsement is not looked at
    assert codes(FakeTdx(), TdxPolicy(mr_td=(bytes([0x22] * 48),)), endorsed=endorsed) == set()
    assert codes(FakeTdx(), TdxPolicy(mr_td=(bytes(48),)), endorsed=endorsed) == {"tdx.mrtd.not_allowed"}


def test_endorsements_of_others() -> None:
    endorsed = endorsement.parse(FakeGoogle().endorsement())
    policy = TdxPolicy(endorsement_roots=("sha256:" + "0" * 64,))
    assert codes(FakeTdx(), policy, endorsed=endorsed) == {"tdx.endorsement.untrusted_root"}
    assert codes(FakeTdx(), policy) == {"tdx.mrtd.not_allowed"}
    broken = replace(endorsed, signer=b"\x30\x00")
    assert codes(FakeTdx(), policy, endorsed=broken) == {"tdx.endorsement.malformed"}
    facts = appraise(
        verify(FakeTdx().quote(), FakeTdx().collateral(), now=NOW, anchors=FakeTdx().anchors),
        TdxPolicy(endorsement_roots=FakeGoogle().roots),
        endorsed=endorsed,
    ).facts
    assert facts["assumptions"] == ["gcp.firmware_by_endorsement"]
    assert facts["firmware_ram_gib"] == 234


def test_collateral_age() -> None:
    """Measured against the clock, from the oldest piece: here the root CRL, 100 days old."""
    world = FakeTdx()
    limit = 100 * 86400
    assert codes(world, TdxPolicy(max_collateral_age_s=limit)) == set()
    assert codes(world, TdxPolicy(max_collateral_age_s=limit - 1)) == {"collateral.too_old"}
    assert codes(world, TdxPolicy(max_collateral_age_s=limit), now=NOW + SECOND) == {"collateral.too_old"}
    assert codes(world, TdxPolicy(min_evaluation_number=18)) == set()


def test_report_data() -> None:
    assert codes(FakeTdx(), report_data=bytes(range(64))) == set()
    assert codes(FakeTdx(), report_data=bytes(64)) == {"tdx.report_data.mismatch"}


def test_masks_at_their_boundary() -> None:
    for bit in range(64):
        allowed = TdxPolicy().xfam_allowed >> bit & 1
        assert (codes(FakeTdx(td={"xfam": 3 | 1 << bit})) == set()) == bool(allowed), bit
        assert (codes(FakeTdx(td={"attributes": 1 << 28 | 1 << bit})) == set()) == (bit == 28), bit


def test_one_bit_of_a_quote_of_each_version() -> None:
    for world in (FakeTdx(), FakeTdx(version=5, body_type=3)):
        quote, given = world.quote(), world.collateral()
        for at in range(12, 48 + 584, 41):
            mutant = quote[:at] + bytes([quote[at] ^ 0x10]) + quote[at + 1 :]
            try:
                found = verify(mutant, given, now=NOW, anchors=world.anchors)
            except BadInput:
                continue
            assert not found.authentic


def test_a_naive_clock_is_refused() -> None:
    world = FakeTdx()
    with pytest.raises(BadInput, match="zone"):
        verify(world.quote(), world.collateral(), now=NOW.replace(tzinfo=None), anchors=world.anchors)


# Event logs


def event(index: int, kind: int, digest: bytes, data: bytes) -> bytes:
    return struct.pack("<IIIH", index, kind, 1, 0x0C) + digest + struct.pack("<I", len(data)) + data


def log_of(*events: bytes) -> bytes:
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, 0x0C, 48, 0)
    return struct.pack("<II", 1, 3) + bytes(20) + struct.pack("<I", len(spec)) + spec + b"".join(events)


def measured(index: int, kind: int, data: bytes) -> bytes:
    return event(index, kind, hashlib.sha384(data).digest(), data)


def variable(name: str, value: bytes) -> bytes:
    return bytes(16) + struct.pack("<QQ", len(name), len(value)) + name.encode("utf-16-le") + value


SEPARATOR, ACTION, APPLICATION, CONFIG, BOOT = 4, 0x80000007, 0x80000003, 0x80000001, 0x80000002
UKI, KERNEL = bytes([0xAA] * 48), bytes([0xBB] * 48)
BOOT_LOG = log_of(
    measured(1, CONFIG, variable("SecureBoot", b"\1")),
    measured(1, CONFIG, variable("PK", b"key")),
    event(1, BOOT, hashlib.sha384(b"\0\0").digest(), variable("BootOrder", b"\0\0")),
    measured(1, SEPARATOR, bytes(4)),
    event(1, 0xA, bytes([0xCC] * 48), b"ACPI DATA"),
    measured(2, ACTION, b"Calling EFI Application from Boot Option"),
    event(2, APPLICATION, UKI, b"\0"),
    event(2, APPLICATION, KERNEL, b"\0"),
    event(3, 0xD, hashlib.sha384(b".linux\0").digest(), ".linux\0".encode("utf-16-le")),
    event(3, 0xD, bytes([0xDD] * 48), ".linux\0".encode("utf-16-le")),
)
RULES = (
    ccel.EventRule(0, "EV_PLATFORM_CONFIG_FLAGS", "ACPI DATA", (bytes([0xCC] * 48),)),
    ccel.EventRule(1, "EV_EFI_BOOT_SERVICES_APPLICATION", "program 1", (UKI,)),
    ccel.EventRule(1, "EV_EFI_BOOT_SERVICES_APPLICATION", "program 2", (KERNEL,)),
    ccel.EventRule(2, "EV_IPL", ".linux", (hashlib.sha384(b".linux\0").digest(), bytes([0xDD] * 48))),
)


def booted(data: bytes = BOOT_LOG, **policy: Any) -> set[str]:
    log = ccel.parse(data)
    world = FakeTdx(td={"rtmrs": ccel.replay(log)})
    return codes(world, TdxPolicy(explain_rtmrs=True, events=policy.pop("events", RULES), **policy), log=log)


def test_explained_registers_pass() -> None:
    assert booted() == set()
    assert booted(secure_boot=False) == {"tdx.event.not_allowed"}
    # with secure boot relied upon, its keys need a rule
    assert booted(secure_boot=True) == {"tdx.event.not_allowed"}
    pk = ccel.EventRule(
        0, "EV_EFI_VARIABLE_DRIVER_CONFIG", "PK", (hashlib.sha384(variable("PK", b"key")).digest(),)
    )
    assert booted(secure_boot=True, events=(*RULES, pk)) == set()


@pytest.mark.parametrize("i", range(len(RULES)))
def test_each_rule_is_needed_and_must_occur(i: int) -> None:
    assert booted(events=RULES[:i] + RULES[i + 1 :]) == {"tdx.event.not_allowed"}
    absent = ccel.EventRule(RULES[i].rtmr, "EV_IPL", "absent", (bytes(48),))
    assert booted(events=(*RULES, absent)) == {"tdx.event.missing"}
    assert booted(events=(*RULES, replace(absent, required=False))) == set()


def test_programs_in_another_order_are_refused() -> None:
    """The kernel alone, without the stub that measures its command line, is not the UKI."""
    swapped = BOOT_LOG.replace(UKI, b"?" * 48).replace(KERNEL, UKI).replace(b"?" * 48, KERNEL)
    assert booted(swapped) == {"tdx.event.not_allowed", "tdx.event.missing"}


@pytest.mark.parametrize(
    "extra",
    [
        measured(1, SEPARATOR, b"\1\0\0\0"),
        event(1, SEPARATOR, bytes(48), bytes(4)),
        measured(1, CONFIG, variable("SomethingElse", b"\1")),
        event(1, CONFIG, bytes(48), variable("PK", b"key")),
        event(1, BOOT, bytes(48), variable("BootOrder", b"\0\0")),
        measured(2, ACTION, b"Something that firmware does not say"),
        event(2, 0x99, bytes(48), b"unknown"),
    ],
)
def test_events_that_content_does_not_settle(extra: bytes) -> None:
    assert booted(BOOT_LOG + extra) == {"tdx.event.not_allowed"}


def test_secure_boot_must_show() -> None:
    log = ccel.parse(log_of(measured(1, SEPARATOR, bytes(4))))
    codes_found = [reason.code for reason in ccel.appraise(log, 0, (), secure_boot=True)[1]]
    assert codes_found == ["tdx.event.missing"]


def test_a_log_of_another_boot_is_not_authentic() -> None:
    log = ccel.parse(BOOT_LOG)
    assert "tdx.eventlog.replay_mismatch" in codes(FakeTdx(), log=log)
    quiet = ccel.parse(log_of(measured(1, SEPARATOR, bytes(4))))
    rtmrs = (ccel.replay(quiet)[0], bytes(48), bytes(48), b"\7" * 48)
    world = FakeTdx(td={"rtmrs": rtmrs})
    assert codes(world, log=quiet) == set()  # RTMR3 is the guest's own …
    policy = TdxPolicy(explain_rtmrs=True)
    assert codes(world, policy, log=quiet) == {"tdx.rtmr.unexplained"}  # … but somebody must say what is in it
    zero = (bytes(48),)
    assert codes(world, replace(policy, rtmrs=(None, zero, zero, (b"\7" * 48,))), log=quiet) == set()
    untouched = FakeTdx(td={"rtmrs": (bytes(48),) * 4})
    for log in (None, ccel.parse(log_of())):  # nothing measured explains nothing, except in RTMR3
        assert codes(untouched, policy, log=log) == {"tdx.rtmr.unexplained"}
        assert codes(untouched, replace(policy, rtmrs=(zero, zero, zero, None)), log=log) == set()


# Policy files


def read(value: dict[str, Any]) -> TdxPolicy:
    return read_policy(Fields(value, "policy.tdx"))


FULL: dict[str, Any] = {
    "mrtd": ["22" * 48], "mrseam": ["11" * 48], "mrconfigid": ["00" * 48], "mrowner": ["00" * 48],
    "mrownerconfig": ["00" * 48], "mrservicetd": ["00" * 48], "rtmr0": ["30" * 48], "rtmr1": ["31" * 48],
    "rtmr2": ["32" * 48], "rtmr3": ["33" * 48], "secure_boot": True, "attributes_required": "0x10000000",
    "attributes_allowed": "0x10000000", "xfam_required": "0x3", "xfam_allowed": "0x6dbe7",
    "min_tee_tcb_svn": "04" + "00" * 15, "tcb_statuses": ["UpToDate", "SWHardeningNeeded"], "advisories": [],
    "min_tcb_evaluation_number": 18, "max_collateral_age_s": 8640000, "fmspcs": ["00806f050000"],
    "ppids": [bytes(range(16)).hex()], "refuse_platforms": [], "roots": ["sha256:" + "0" * 64], "allow_missing": [],
    "events": [{"rtmr": 0, "type": "EV_IPL", "label": "x", "digests": ["00" * 48], "required": False}],
}  # fmt: skip


def test_policy_file() -> None:
    assert codes(FakeTdx(), read(FULL)) == set()
    assert codes(FakeTdx(), read({"mrtd": ["22" * 48]})) == {"tdx.rtmr.unexplained"}
    assert codes(FakeTdx(td={"mr_owner": b"\1" * 48}), read({k: v for k, v in FULL.items() if k != "mrowner"})) == {
        "tdx.mrowner.not_allowed"
    }


@pytest.mark.parametrize(
    "change",
    [
        {"mrtd": []}, {"mrtd": ["22"]}, {"mrtd": "22" * 48}, {"tcb_statuses": ["Revoked"]}, {"tcb_statuses": []},
        {"tcb_statuses": ["Fine"]}, {"attributes_allowed": "0x10000001"}, {"attributes_required": "0x1"},
        {"attributes_allowed": 5}, {"refuse_platforms": ["x"]}, {"allow_missing": ["all"]}, {"roots": ["x"]},
        {"unknown": 1}, {"events": [{}]},
        {"min_tee_tcb_svn": "04"}, {"max_collateral_age_s": -1},
        {"events": [{**FULL["events"][0], "unknown": 1}]}, {"events": [{**FULL["events"][0], "digests": []}]},
    ],
)  # fmt: skip
def test_policy_file_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        read(FULL | change)


def test_policy_file_needs_firmware() -> None:
    with pytest.raises(BadInput, match="missing"):
        read({k: v for k, v in FULL.items() if k != "mrtd"})


def _tests() -> str:
    return "".join(path.read_text() for path in Path(__file__).parent.glob("test_tdx_[ir]*.py"))


def test_every_code_is_documented_and_fires() -> None:
    """Codes that the source can give, rows of the table, and codes that tests name are the same set."""
    root = Path(__file__).resolve().parents[2]
    sources = "".join(path.read_text() for path in (root / "attestation/cube_attestation/tdx").glob("*.py"))
    emitted = set(re.findall(r'"((?:tdx|collateral|gcp)(?:\.[a-z0-9_]+){1,2})"', sources))
    emitted -= set(ALLOW_MISSING)  # names, not codes
    whys = ("invalid", "untrusted_root", "expired", "not_yet_valid")
    emitted |= {f"{chain}.{why}" for chain in ("tdx.chain", "collateral.chain", "tdx.endorsement") for why in whys}
    emitted |= {f"tdx.endorsement.{why}" for why in ("malformed", "signature_invalid")}
    emitted |= {f"collateral.{i}.{w}" for i in ("root_crl", "pck_crl") for w in ("missing", "wrong_issuer")}
    emitted |= {f"collateral.{i}.signature_invalid" for i in ("root_crl", "pck_crl", "tcb_info", "qe_identity")}
    emitted |= {f"collateral.{i}.missing" for i in ("tcb_info", "qe_identity")}
    emitted |= {f"tdx.{name.replace('_', '')}.not_allowed" for name in appraisal.MEASUREMENTS}
    table = (root / "docs" / "reason-codes.md").read_text()
    rows = set(re.findall(r"^\| `([a-z0-9_.]+)` \|", table, re.MULTILINE))
    assert emitted - rows == set(), "codes without a row"
    assert {row for row in rows if row.startswith("tdx.")} - emitted == set(), "rows without code"
    fired = set(re.findall(r'"((?:tdx|collateral|gcp)(?:\.[a-z0-9_]+){1,2})"', _tests()))
    fired |= set(appraisal.STATUS_CODES.values())  # test_tcb_status
    fired |= {f"collateral.{i}.missing" for i in ("root_crl", "pck_crl", "tcb_info", "qe_identity")}  # …_by_absence
    assert emitted - fired == set(), "codes that no test makes fire"
