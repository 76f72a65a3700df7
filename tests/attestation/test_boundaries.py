# SPDX-License-Identifier: Apache-2.0
"""Every rule with an order (SVNs, TCB, versions, ages, clocks, expiry) passes just before its bound, not after it.

One table over all kinds. The last test holds it against the policies' members: whichever of them is a number, a
version or a time needs a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, get_type_hints

import fake_azure
import fake_nvidia
import fake_tdx
import fake_tokens
import fake_x509
import fakepki
import pytest
from cube_attestation import times
from cube_attestation.azure import appraise as azure_appraise
from cube_attestation.azure import policy as azure_policy
from cube_attestation.azure import verify as azure_verify
from cube_attestation.azure.abi import parse_hcl
from cube_attestation.nvidia import appraise as nvidia
from cube_attestation.nvidia.policy import NvidiaPolicy
from cube_attestation.policy import LaunchRules, Policy
from cube_attestation.snp import abi as snp_abi
from cube_attestation.snp import appraise as snp
from cube_attestation.snp import verify as snp_verify
from cube_attestation.snp.policy import SnpPolicy
from cube_attestation.tdx import appraise as tdx
from cube_attestation.tdx import endorsement
from cube_attestation.tdx import verify as tdx_verify
from cube_attestation.tdx.policy import TdxPolicy
from cube_attestation.tokens import abi as tokens_abi
from cube_attestation.tokens import appraise as tokens
from cube_attestation.verifier import verify
from cube_attestation.x509 import crl
from fake_azure import FakeAzure
from fake_snp import FakeSnp
from fake_tdx import FakeGoogle, FakeTdx
from fakepki import NONCE, NOW

SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
LONG_AGO = NOW - timedelta(days=9)
Codes = Callable[[], set[str]]


@dataclass(frozen=True)
class Bound:
    """``rule``: the policy's member, or in words what the evidence brings; two neighbours around its bound."""

    kind: str
    rule: str
    before: Codes
    after: Codes
    code: str


# --- one verdict per kind


def bundle(**changes: Any) -> set[str]:
    """A whole bundle of the software tier; ``launch``, ``manifest`` and ``sealed`` change what their names say."""
    launch, manifest = changes.pop("launch", {}), changes.pop("manifest", {})
    sealed = changes.pop("sealed", False)
    world = fakepki.World(**changes)
    world.launch.update(launch)
    payload = {**world.manifest_payload(), **manifest}
    world.manifest_payload = lambda: payload  # type: ignore[method-assign]
    given = world.receipted() if sealed else world.bundle()
    nonce = None if sealed else NONCE
    return set(verify(given, world.the_policy(), now=NOW, nonce=nonce).codes)


def ek(**dates: Any) -> fakepki.Identity:
    issuer = fakepki.tpm_maker()[1]
    return fakepki.issue("", fakepki.rsa_key("ek"), issuer, critical_san=True, **dates)


def of_snp(machine: FakeSnp | None = None, *, max_crl_age: timedelta | None = None, **rules: Any) -> set[str]:
    machine = machine or FakeSnp()
    endorsements = snp_verify.read_endorsements(machine.certificates(), [machine.crl])
    report = snp_abi.parse_report(machine.report())
    verified = snp_verify.verify(
        report, endorsements, now=fake_x509.NOW, roots=machine.roots, max_crl_age=max_crl_age
    )
    item = snp.appraise(verified, snp.Rules(**{"measurements": ["11" * 48], **rules}))
    return {reason.code for reason in item.reasons}


def of_azure(machine: FakeAzure | None = None, *, minimum: int = 0, **options: Any) -> set[str]:
    machine = machine or FakeAzure()
    hcl, processor = parse_hcl(machine.hcl()), machine.machine()
    endorsements = snp_verify.read_endorsements(processor.certificates(), [processor.crl])
    hardware = snp_verify.verify(
        snp_abi.parse_report(hcl.hardware), endorsements, now=fake_x509.NOW, roots=processor.roots
    )
    rules = azure_appraise.paravisor_rules(minimum, id_keys=["33" * 48])
    verified = azure_verify.verify(
        hcl, machine.quote(), machine.certificates(), hardware_report_data=hardware.report.report_data,
        now=fake_x509.NOW, nonce=fake_azure.NONCE, roots=fake_azure.roots(),
        crls=[crl.load(data, where="list") for data in machine.crls()], **options,
    )  # fmt: skip
    items = (snp.appraise(hardware, rules), *azure_appraise.appraise(verified, azure_appraise.Rules()))
    return {reason.code for item in items for reason in item.reasons}


def of_tdx(machine: FakeTdx | None = None, *, google: FakeGoogle | None = None, **rules: Any) -> set[str]:
    machine = machine or FakeTdx()
    found = tdx_verify.verify(machine.quote(), machine.collateral(), now=fake_tdx.NOW, anchors=machine.anchors)
    endorsed = endorsement.parse(google.endorsement()) if google else None
    if google:
        rules = {"endorsement_roots": google.roots, "mr_td": (), **rules}
    return {reason.code for reason in tdx.appraise(found, TdxPolicy(**rules), endorsed=endorsed).reasons}


def of_gpu(device: fake_nvidia.FakeDevice | None = None, *, count: int = 1, **changes: Any) -> set[str]:
    given: dict[str, Any] = changes.pop("ocsp", {})
    signer: dict[str, Any] = changes.pop("signer", {})
    device = device or fake_nvidia.FakeDevice()
    devices = (device, *(fake_nvidia.FakeDevice(role=f"gpu {i}") for i in range(1, count)))
    rims = (fake_nvidia.driver_rim(), fake_nvidia.vbios_rim())
    for one in rims:
        if signer:
            one.changed = {"l4": signer}
    collateral = fake_nvidia.collateral(*rims, devices=devices, **given)
    evidence = [one.evidence() for one in devices]
    items = nvidia.appraise(evidence, collateral, fake_nvidia.rules(**changes), fake_nvidia.NOW)
    return {reason.code for item in items for reason in item.reasons}


def of_token(*, max_life: timedelta = tokens.MAX_LIFE, **claims: int) -> set[str]:
    token = fake_tokens.FakeToken("maa", claims=claims)
    keys = tokens_abi.load_keys(fake_tokens.key_set(fake_tokens.jwk("maa", fake_tokens.KIDS["maa"])))
    rules = tokens.TokenPolicy(
        "maa", (fake_tokens.ISS["maa"],), frozenset({fake_tokens.spki_digest("maa")}), max_life=max_life
    )
    items = tokens.appraise(token.data(), keys, rules, fake_tokens.NOW, nonce=fake_tokens.NONCE)
    return {reason.code for item in items for reason in item.reasons}


EPOCH = int(fake_tokens.NOW.timestamp())
T = fake_tdx.NOW
X = fake_x509.NOW


def tee(*svns: int) -> bytes:
    return bytes(svns).ljust(16, b"\0")


def tcb(**part: int) -> dict[str, snp_abi.Tcb]:
    """What the fake Milan has (4, 1, 24, 219), or one part of it changed."""
    have = {"bootloader": 4, "tee": 1, "snp": 24, "microcode": 219}
    return {"Milan": snp_abi.Tcb(**{**have, **part})}


def until(time: Any) -> dict[str, Any]:
    return {"start": LONG_AGO, "end": time}


BOUNDS = [
    # bundle, claims, documents
    Bound("bundle", "max_clock_skew_s", lambda: bundle(guest_time=NOW + 60 * SECOND),
          lambda: bundle(guest_time=NOW + 61 * SECOND), "claims.clock_skew"),
    Bound("bundle", "max_clock_skew_s, behind", lambda: bundle(guest_time=NOW - 60 * SECOND),
          lambda: bundle(guest_time=NOW - 61 * SECOND), "claims.clock_skew"),
    Bound("bundle", "max_clock_skew_s, as the policy says",
          lambda: bundle(guest_time=NOW + 5 * SECOND, policy={"max_clock_skew_s": "5"}),
          lambda: bundle(guest_time=NOW + 5 * SECOND, policy={"max_clock_skew_s": "4"}), "claims.clock_skew"),
    Bound("bundle", "receipt's time", lambda: bundle(sealed=True, receipt_time=NOW + 60 * SECOND),
          lambda: bundle(sealed=True, receipt_time=NOW + 61 * SECOND), "receipt.time_in_future"),
    Bound("launch", "minimum_revision", lambda: bundle(launch={"revision": 3}),
          lambda: bundle(launch={"revision": 2}), "launch.revision.too_old"),
    Bound("image", "manifest's end", lambda: bundle(manifest={"expires": times.format_time(NOW + SECOND)}),
          lambda: bundle(manifest={"expires": times.format_time(NOW)}), "image.expired"),
    # TPM
    Bound("tpm", "EK certificate's end", lambda: bundle(ek=ek(**until(NOW))),
          lambda: bundle(ek=ek(**until(NOW - SECOND))), "tpm.ek.expired"),
    Bound("tpm", "EK certificate's beginning", lambda: bundle(ek=ek(start=NOW)),
          lambda: bundle(ek=ek(start=NOW + SECOND)), "tpm.ek.not_yet_valid"),
    Bound("tpm", "AK certificate's end", lambda: bundle(ak_valid=(LONG_AGO, NOW)),
          lambda: bundle(ak_valid=(LONG_AGO, NOW - SECOND)), "tpm.ak.expired"),
    Bound("tpm", "AK certificate's beginning", lambda: bundle(ak_valid=(NOW, NOW + DAY)),
          lambda: bundle(ak_valid=(NOW + SECOND, NOW + DAY)), "tpm.ak.not_yet_valid"),
    # SNP
    Bound("snp", "minimum_guest_svn", lambda: of_snp(minimum_guest_svn=7), lambda: of_snp(minimum_guest_svn=8),
          "snp.guest_svn.too_low"),
    Bound("snp", "minimum_version", lambda: of_snp(minimum_version=3), lambda: of_snp(minimum_version=4),
          "snp.version.too_old"),
    Bound("snp", "minimum_firmware", lambda: of_snp(minimum_firmware=(1, 55, 29)),
          lambda: of_snp(minimum_firmware=(1, 55, 30)), "snp.firmware.too_low"),
    Bound("snp", "minimum_abi", lambda: of_snp(minimum_abi=(0, 0x1F)), lambda: of_snp(minimum_abi=(0, 0x20)),
          "snp.policy.abi_too_low"),
    *(Bound("snp", f"minimum_tcb, {part}", lambda: of_snp(minimum_tcb=tcb()),
            lambda part=part, have=have: of_snp(minimum_tcb=tcb(**{part: have + 1})), "snp.tcb.too_low")
      for part, have in (("bootloader", 4), ("tee", 1), ("snp", 24), ("microcode", 219))),
    *(Bound("snp", f"{name}_mitigations",
            lambda name=name: of_snp(FakeSnp(version=5).with_fields(**{f"{name}_mitigations": 5}),
                                     **{f"{name}_mitigations": 5}),
            lambda name=name: of_snp(FakeSnp(version=5).with_fields(**{f"{name}_mitigations": 4}),
                                     **{f"{name}_mitigations": 5}), "snp.mitigation.missing")
      for name in ("launch", "current")),
    Bound("snp", "chip certificate's end", lambda: of_snp(FakeSnp(leaf_end=X)),
          lambda: of_snp(FakeSnp(leaf_end=X - SECOND)), "snp.chain.expired"),
    Bound("snp", "chip certificate's beginning", lambda: of_snp(FakeSnp(leaf_start=X)),
          lambda: of_snp(FakeSnp(leaf_start=X + SECOND)), "snp.chain.not_yet_valid"),
    Bound("snp", "list's next update", lambda: of_snp(FakeSnp(crl_end=X)),
          lambda: of_snp(FakeSnp(crl_end=X - SECOND)), "collateral.expired"),
    Bound("snp", "list's beginning", lambda: of_snp(FakeSnp(crl_start=X)),
          lambda: of_snp(FakeSnp(crl_start=X + SECOND)), "collateral.not_yet_valid"),
    Bound("snp", "max_crl_age", lambda: of_snp(max_crl_age=5 * DAY),
          lambda: of_snp(max_crl_age=5 * DAY - SECOND), "collateral.too_old"),
    # Azure
    Bound("azure", "paravisor.minimum_guest_svn", lambda: of_azure(minimum=7), lambda: of_azure(minimum=8),
          "snp.guest_svn.too_low"),
    Bound("azure", "AK certificate's end", lambda: of_azure(FakeAzure(leaf_end=X)),
          lambda: of_azure(FakeAzure(leaf_end=X - SECOND)), "azure.ak_chain.expired"),
    Bound("azure", "AK certificate's beginning", lambda: of_azure(FakeAzure(leaf_start=X)),
          lambda: of_azure(FakeAzure(leaf_start=X + SECOND)), "azure.ak_chain.not_yet_valid"),
    Bound("azure", "list's next update", lambda: of_azure(FakeAzure(crl_end=X)),
          lambda: of_azure(FakeAzure(crl_end=X - SECOND)), "collateral.expired"),
    Bound("azure", "max_crl_age", lambda: of_azure(max_crl_age=5 * DAY),
          lambda: of_azure(max_crl_age=5 * DAY - SECOND), "collateral.too_old"),
    # TDX
    *(Bound("tdx", f"min_tee_tcb_svn, component {i}", lambda: of_tdx(min_tee_tcb_svn=tee(4, 1, 3)),
            lambda i=i: of_tdx(min_tee_tcb_svn=tee(*(svn + (i == n) for n, svn in enumerate((4, 1, 3))))),
            "tdx.tee_tcb_svn.too_low")
      for i in range(3)),
    Bound("tdx", "min_firmware_svn", lambda: of_tdx(google=FakeGoogle(), min_firmware_svn=3),
          lambda: of_tdx(google=FakeGoogle(), min_firmware_svn=4), "tdx.endorsement.svn_too_low"),
    Bound("tdx", "endorsement's end", lambda: of_tdx(google=FakeGoogle(dates=(fake_tdx.BORN, T))),
          lambda: of_tdx(google=FakeGoogle(dates=(fake_tdx.BORN, T - SECOND))), "tdx.endorsement.expired"),
    Bound("tdx", "min_evaluation_number", lambda: of_tdx(min_evaluation_number=18),
          lambda: of_tdx(min_evaluation_number=19), "collateral.evaluation_number_too_low"),
    Bound("tdx", "max_collateral_age_s", lambda: of_tdx(FakeTdx(issued=T - DAY, pck_crl_dates=(T - DAY, T + DAY),
          root_crl_dates=(T - DAY, T + DAY)), max_collateral_age_s=86400),
          lambda: of_tdx(FakeTdx(issued=T - DAY - SECOND, pck_crl_dates=(T - DAY, T + DAY),
          root_crl_dates=(T - DAY, T + DAY)), max_collateral_age_s=86400), "collateral.too_old"),
    Bound("tdx", "PCK certificate's end", lambda: of_tdx(FakeTdx(pck_dates=(LONG_AGO, T))),
          lambda: of_tdx(FakeTdx(pck_dates=(LONG_AGO, T - SECOND))), "tdx.chain.expired"),
    Bound("tdx", "TCB information's next update", lambda: of_tdx(FakeTdx(next_update=T)),
          lambda: of_tdx(FakeTdx(next_update=T - SECOND)), "collateral.expired"),
    Bound("tdx", "lists' next update", lambda: of_tdx(FakeTdx(pck_crl_dates=(LONG_AGO, T))),
          lambda: of_tdx(FakeTdx(pck_crl_dates=(LONG_AGO, T - SECOND))), "collateral.expired"),
    Bound("tdx", "TCB level, SGX component", lambda: of_tdx(FakeTdx(levels=[FakeTdx().level(sgx=bytes([5] * 16))])),
          lambda: of_tdx(FakeTdx(levels=[FakeTdx().level(sgx=bytes([5] * 15 + [6]))])), "tdx.tcb.not_supported"),
    Bound("tdx", "TCB level, PCE", lambda: of_tdx(FakeTdx(levels=[FakeTdx().level(pce_svn=11)])),
          lambda: of_tdx(FakeTdx(levels=[FakeTdx().level(pce_svn=12)])), "tdx.tcb.not_supported"),
    Bound("tdx", "QE's SVN", lambda: of_tdx(FakeTdx(qe_levels=[FakeTdx.isv_level(svn=4)])),
          lambda: of_tdx(FakeTdx(qe_levels=[FakeTdx.isv_level(svn=5)])), "tdx.tcb.not_supported"),
    Bound("tdx", "module's SVN", lambda: of_tdx(FakeTdx(module_levels=[FakeTdx.isv_level(svn=4)])),
          lambda: of_tdx(FakeTdx(module_levels=[FakeTdx.isv_level(svn=5)])), "tdx.tcb.not_supported"),
    # NVIDIA
    Bound("nvidia", "minimum_driver", lambda: of_gpu(minimum_driver="580.99.01"),
          lambda: of_gpu(minimum_driver="580.99.02"), "nvidia.driver.too_old"),
    Bound("nvidia", "minimum_vbios", lambda: of_gpu(minimum_vbios="96.00.AB.00.01"),
          lambda: of_gpu(minimum_vbios="96.00.AB.00.02"), "nvidia.vbios.too_old"),
    Bound("nvidia", "devices", lambda: of_gpu(devices=1), lambda: of_gpu(devices=2), "nvidia.set.count"),
    Bound("nvidia", "switches", lambda: of_gpu(switches=0), lambda: of_gpu(switches=1), "nvidia.set.count"),
    Bound("nvidia", "ocsp_max_age", lambda: of_gpu(ocsp={"this": NOW - DAY, "next": None}),
          lambda: of_gpu(ocsp={"this": NOW - DAY - SECOND, "next": None}), "collateral.expired"),
    Bound("nvidia", "OCSP's next update", lambda: of_gpu(ocsp={"next": NOW}),
          lambda: of_gpu(ocsp={"next": NOW - SECOND}), "collateral.expired"),
    Bound("nvidia", "OCSP's time", lambda: of_gpu(ocsp={"this": NOW + 60 * SECOND}),
          lambda: of_gpu(ocsp={"this": NOW + 61 * SECOND}), "collateral.not_yet_valid"),
    Bound("nvidia", "device certificate's end",
          lambda: of_gpu(fake_nvidia.FakeDevice(changed={"leaf": {"not_after": NOW}})),
          lambda: of_gpu(fake_nvidia.FakeDevice(changed={"leaf": {"not_after": NOW - SECOND}})),
          "nvidia.chain.expired"),
    # tokens
    Bound("token", "exp", lambda: of_token(exp=EPOCH), lambda: of_token(exp=EPOCH - 1), "token.exp.expired"),
    Bound("token", "nbf", lambda: of_token(nbf=EPOCH + 60), lambda: of_token(nbf=EPOCH + 61),
          "token.time.not_yet_valid"),
    Bound("token", "iat", lambda: of_token(iat=EPOCH + 60, nbf=EPOCH), lambda: of_token(iat=EPOCH + 61, nbf=EPOCH),
          "token.time.not_yet_valid"),
    Bound("token", "max_life", lambda: of_token(max_life=3660 * SECOND), lambda: of_token(max_life=3659 * SECOND),
          "token.exp.too_long"),
]  # fmt: skip


# What hangs on an item that is not authentic is not either
FOLLOWS = {
    "tpm.ek.expired": {"claims.not_bound"},
    "tpm.ek.not_yet_valid": {"claims.not_bound"},
    "tpm.ak.expired": {"claims.not_bound"},
    "tpm.ak.not_yet_valid": {"claims.not_bound"},
    "tdx.chain.expired": {"tdx.tcb.unknown"},
}


@pytest.mark.parametrize("bound", BOUNDS, ids=[f"{bound.kind}: {bound.rule}" for bound in BOUNDS])
def test_it_passes_just_before_and_fails_just_after(bound: Bound) -> None:
    assert bound.before() == set()
    assert bound.after() - FOLLOWS.get(bound.code, set()) == {bound.code}


# Members that have an order in their values; all others are sets, names and switches
ORDERED = (int, int | None, timedelta, timedelta | None, tuple[int, int], tuple[int, int, int])
POLICIES: dict[str, tuple[type, ...]] = {
    "bundle": (Policy,),
    "launch": (LaunchRules,),
    "snp": (snp.Rules, SnpPolicy),
    "azure": (azure_policy.AzurePolicy, azure_appraise.Rules),
    "tdx": (TdxPolicy,),
    "nvidia": (NvidiaPolicy,),
    "token": (tokens.TokenPolicy,),
}
# bits that must or may be set: no order
MASKS = {"attributes_required", "attributes_allowed", "xfam_required", "xfam_allowed"}
# Versions and vectors whose type does not say that they have an order
ALSO = {"snp": {"minimum_tcb"}, "tdx": {"min_tee_tcb_svn"}, "nvidia": {"minimum_driver", "minimum_vbios"}}


@pytest.mark.parametrize("kind", POLICIES)
def test_no_ordered_rule_of_a_policy_is_without_its_bound(kind: str) -> None:
    wanted = set(ALSO.get(kind, ()))
    for policy in POLICIES[kind]:
        hints = get_type_hints(policy, vars(__import__(policy.__module__, fromlist=["_"])) | _LAZY)
        wanted |= {one.name for one in dataclasses.fields(policy) if hints[one.name] in ORDERED} - MASKS
    tested = {bound.rule.split(",")[0] for bound in BOUNDS if bound.kind == kind}
    assert wanted - tested == set()


# What a policy's module imports for its types alone
_TYPES = ("AzurePolicy", "NvidiaPolicy", "SnpPolicy", "TdxPolicy", "TokenPolicy")
_LAZY: dict[str, Any] = dict.fromkeys(_TYPES, object)
