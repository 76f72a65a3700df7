# SPDX-License-Identifier: Apache-2.0
"""TDX as items of a bundle: bound to the claims, each malformed or missing part a reason of its item."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import fakepki
import pytest
from cube_attestation.bundle import Bundle
from cube_attestation.cmw import Collection
from cube_attestation.policy import load
from cube_attestation.subject import Outcome, Subject
from cube_attestation.tdx.appraise import FIRMWARE_ASSUMPTION
from cube_attestation.tdx.collateral import Signed
from cube_attestation.tdx.items import LABELS, appraise_tdx
from cube_attestation.tdx.policy import TdxPolicy
from cube_attestation.verdict import Verdict
from cube_attestation.verifier import verify
from fake_tdx import NOW, FakeGoogle, FakeTdx

WORLD = fakepki.World()
CLAIMS = WORLD.claims()


def td(**values: Any) -> FakeTdx:
    return FakeTdx(td={"report_data": CLAIMS.report_data(), **values})


def body(signed: Signed | None, member: str) -> bytes:
    assert signed is not None
    return b'{"%b":%b,"signature":"%b"}' % (member.encode(), signed.content, signed.signature.hex().encode())


def evidence(world: FakeTdx) -> dict[str, bytes]:
    given = world.collateral()
    return {
        "tdx-quote": world.quote(),
        "tdx-tcb-info": body(given.tcb_info, "tcbInfo"),
        "tdx-tcb-info-chain": given.tcb_info_chain,
        "tdx-qe-identity": body(given.qe_identity, "enclaveIdentity"),
        "tdx-qe-identity-chain": given.qe_identity_chain,
        "tdx-root-crl": given.root_crl or b"",
        "tdx-pck-crl": given.pck_crl or b"",
    }


POLICY = TdxPolicy(roots=FakeTdx().anchors)


def judge(parts: dict[str, bytes], policy: TdxPolicy = POLICY, *, claims: bool = True) -> Outcome:
    collection = Collection({})
    for label, value in parts.items():
        collection = collection.with_item(label, LABELS[label], value, 4)
    subject = Subject(collection, WORLD.the_policy(), NOW, CLAIMS if claims else None, None, None)
    return appraise_tdx(subject, policy)


def codes(outcome: Outcome) -> set[str]:
    return {reason.code for item in outcome.items for reason in item.reasons}


def test_a_quote_over_the_claims_reaches_hardware() -> None:
    outcome = judge(evidence(td()))
    assert codes(outcome) == set()
    assert outcome.tier == "hardware"
    assert outcome.assumptions == ()


def test_a_quote_over_other_claims_does_not() -> None:
    outcome = judge(evidence(FakeTdx()))
    assert (codes(outcome), outcome.tier) == ({"tdx.report_data.unbound"}, "")
    outcome = judge(evidence(td()), claims=False)
    assert (codes(outcome), outcome.tier) == ({"tdx.report_data.unbound"}, "")


def test_refused_by_policy_is_still_hardware() -> None:
    outcome = judge(evidence(td()), replace(POLICY, mr_td=(bytes(48),)))
    assert (codes(outcome), outcome.tier) == ({"tdx.mrtd.not_allowed"}, "hardware")


@pytest.mark.parametrize(
    ("label", "value", "code"),
    [
        ("tdx-quote", None, "tdx.quote.missing"),
        ("tdx-quote", b"x", "tdx.quote.malformed"),
        ("tdx-tcb-info", b"x", "tdx.collateral.malformed"),
        ("tdx-qe-identity", b"x", "tdx.collateral.malformed"),
        ("tdx-root-crl", b"x", "tdx.collateral.malformed"),
        ("tdx-tcb-info-chain", b"x", "tdx.collateral.malformed"),
        ("tdx-tcb-info", None, "collateral.tcb_info.missing"),
        ("tdx-qe-identity-chain", None, "collateral.qe_identity.missing"),
        ("tdx-root-crl", None, "collateral.root_crl.missing"),
        ("ccel", b"x", "tdx.eventlog.malformed"),
    ],
)
def test_missing_and_malformed(label: str, value: bytes | None, code: str) -> None:
    parts = {k: v for k, v in evidence(td()).items() if k != label}
    outcome = judge(parts if value is None else {**parts, label: value})
    assert code in codes(outcome)
    assert outcome.tier == ""


def test_event_log() -> None:
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, 0x0C, 48, 0)
    log = struct.pack("<II", 1, 3) + bytes(20) + struct.pack("<I", len(spec)) + spec
    quiet = (bytes(48),) * 4
    zero = (bytes(48),)
    policy = replace(POLICY, explain_rtmrs=True, rtmrs=(zero, zero, zero, None))
    assert codes(judge({**evidence(td(rtmrs=quiet)), "ccel": log}, policy)) == set()
    assert codes(judge({**evidence(td()), "ccel": log}, policy)) >= {"tdx.eventlog.replay_mismatch"}


def test_endorsed_firmware() -> None:
    google = FakeGoogle()
    policy = replace(POLICY, mr_td=(), endorsement_roots=google.roots)
    parts = {**evidence(td()), "gce-launch-endorsement": google.endorsement()}
    outcome = judge(parts, policy)
    assert (codes(outcome), outcome.assumptions) == (set(), (FIRMWARE_ASSUMPTION,))
    assert codes(judge(evidence(td()), policy)) == {"tdx.mrtd.not_allowed"}
    broken = judge({**parts, "gce-launch-endorsement": b"x"}, policy)
    assert codes(broken) == {"tdx.mrtd.not_allowed", "tdx.endorsement.malformed"}
    assert codes(judge({**parts, "gce-launch-endorsement": b"x"})) == set()  # nobody asked for it


def whole(parts: dict[str, bytes], section: str) -> Verdict:
    """The verdict over a whole bundle, a TD in place of the TPM, under a policy file with ``section``."""
    collection = WORLD.evidence()
    kept = ("claims", "launch", "image-manifest")
    collection = Collection({label: item for label, item in collection.items.items() if label in kept})
    for label, value in parts.items():
        collection = collection.with_item(label, LABELS[label], value, 4)
    policy = load((WORLD.policy_toml() + section).encode())
    given: dict[str, Any] = {"now": fakepki.NOW, "nonce": fakepki.NONCE, "tls_spki": WORLD.tls_spki}
    verdict = verify(Bundle(collection), policy, **given)
    assert verdict.dump() == verify(Bundle(collection), policy, **given).dump()
    return verdict


SECTION = f"""
[tdx]
roots = ["{POLICY.roots[0]}"]
mrtd = ["{"22" * 48}"]
rtmr0 = ["{"30" * 48}"]
rtmr1 = ["{"31" * 48}"]
rtmr2 = ["{"32" * 48}"]
rtmr3 = ["{"33" * 48}"]
"""


def test_a_whole_bundle() -> None:
    """The claims rest on the TD's quote; the policy's section says which TD."""
    parts = evidence(td())
    verdict = whole(parts, SECTION)
    assert (verdict.codes, verdict.tier, verdict.passed) == ((), "hardware", True)
    refused = whole(parts, SECTION.replace("22" * 48, "44" * 48))
    assert (refused.codes, refused.exit_code) == (("tdx.mrtd.not_allowed",), 1)
    unexplained = whole(parts, SECTION.replace("rtmr1", "# rtmr1"))
    assert (unexplained.codes, unexplained.exit_code) == (("tdx.rtmr.unexplained",), 1)
    forged = whole({**parts, "tdx-quote": FakeTdx().quote()}, SECTION)
    assert (forged.exit_code, forged.tier) == (2, "")
    assert {"tdx.report_data.unbound", "claims.not_bound"} <= set(forged.codes)


def test_no_section_no_td() -> None:
    assert not whole(evidence(td()), "").passed


def test_roots_of_the_policy() -> None:
    outcome = judge(evidence(td()), TdxPolicy())
    assert "tdx.chain.untrusted_root" in codes(outcome)
