# SPDX-License-Identifier: Apache-2.0
"""GPUs in a bundle: bound to the claims, both ways; nothing malformed raises."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from cube_attestation.claims import MEDIA_TYPE as CLAIMS
from cube_attestation.claims import Claims
from cube_attestation.cmw import ENDORSEMENTS, EVIDENCE, Collection
from cube_attestation.errors import BadInput
from cube_attestation.nvidia import abi
from cube_attestation.nvidia.appraise import Collateral
from cube_attestation.nvidia.items import (
    ASSUMPTION,
    COLLATERAL,
    COLLATERAL_MEDIA_TYPE,
    DEVICES,
    DEVICES_MEDIA_TYPE,
    appraise_bundle,
    decode_collateral,
    encode_collateral,
)
from cube_attestation.subject import Subject
from cube_attestation.verdict import ItemVerdict
from cube_attestation.verifier import verify
from fake_nvidia import NOW, FakeDevice, collateral, driver_rim, rules, spki_digest, vbios_rim
from fakepki import World


def machine(world: World, **device: object) -> tuple[Claims, bytes, Collateral]:
    """Claims of a machine with one GPU, the GPU's evidence over them, and its collateral."""
    claims = world.claims()
    gpu = FakeDevice(nonce=claims.gpu_nonce(), **device)  # type: ignore[arg-type]
    devices = abi.encode_evidence((gpu.evidence(),))
    bound = replace(claims, gpu="sha256:" + hashlib.sha256(devices).hexdigest())
    return bound, devices, collateral(driver_rim(), vbios_rim(), devices=(gpu,))


def judge(claims: Claims | None, devices: bytes | None, given: bytes | None) -> list[str]:
    evidence = Collection({})
    if claims is not None:
        evidence = evidence.with_item("claims", CLAIMS, claims.encode(), EVIDENCE)
    if devices is not None:
        evidence = evidence.with_item(DEVICES, DEVICES_MEDIA_TYPE, devices, EVIDENCE)
    if given is not None:
        evidence = evidence.with_item(COLLATERAL, COLLATERAL_MEDIA_TYPE, given, ENDORSEMENTS)
    subject = Subject(evidence, World().the_policy(), NOW, claims, None, None)
    return codes(appraise_bundle(subject, rules()))


def codes(items: tuple[ItemVerdict, ...]) -> list[str]:
    return sorted({reason.code for item in items for reason in item.reasons})


def test_bound_gpu_passes() -> None:
    claims, devices, given = machine(World())
    assert judge(claims, devices, encode_collateral(given)) == []


def test_binding_holds_both_ways() -> None:
    """Another machine's, boot's or connection's GPU; claims that name another GPU, or none."""
    claims, devices, given = machine(World())
    packed = encode_collateral(given)
    for other in (World(tls_spki="sha256:" + "12" * 32), World(nonce=bytes(32)), World(environment="prod")):
        theirs, their_devices, _ = machine(other)
        assert judge(replace(theirs, gpu=claims.gpu), devices, packed) == ["nvidia.report.nonce_mismatch"]
        assert judge(replace(claims, gpu=theirs.gpu), their_devices, packed) == ["nvidia.report.nonce_mismatch"]
        assert judge(claims, their_devices, packed) == [
            "nvidia.binding.digest_mismatch",
            "nvidia.report.nonce_mismatch",
        ]
    assert judge(replace(claims, gpu=""), devices, packed) == ["nvidia.binding.digest_mismatch"]
    assert judge(claims, devices + b"\n", packed) == ["nvidia.binding.digest_mismatch"]


ALL_MISSING = ["collateral.driver_rim.missing", "collateral.ocsp.missing", "collateral.vbios_rim.missing"]


def test_what_is_missing_or_malformed_is_a_reason() -> None:
    claims, devices, given = machine(World())
    packed = encode_collateral(given)
    assert judge(claims, None, packed) == ["nvidia.evidence.missing"]
    assert judge(None, devices, packed) == ["nvidia.binding.no_claims"]
    assert judge(claims, devices, None) == ALL_MISSING
    for wrong in (
        b"",
        b"{}",
        b'{"ocsp":[],"rims":[1]}',
        b'{"ocsp":["AA=="],"rims":[]}',
        b'{"ocsp":[],"rims":["AA=="]}',
    ):
        assert judge(claims, devices, wrong) == ["nvidia.evidence.malformed"]
    assert judge(claims, b"[]", packed) == ["nvidia.evidence.malformed"]
    broken = abi.encode_evidence((abi.Evidence(b"no report", b""),))
    assert judge(claims, broken, packed) == ["nvidia.evidence.malformed"]


def test_collateral_item() -> None:
    given = Collateral((b"rim",), (b"one", b"two"))
    assert decode_collateral(encode_collateral(given)) == given
    with pytest.raises(BadInput):
        decode_collateral(b'{"ocsp":[],"rims":[],"more":1}')


class GpuWorld(World):
    """A machine with a TPM and one GPU; ``gpu`` is what the claims name, ``shown`` what the bundle holds."""

    gpu: bytes = b""
    shown: bytes = b""
    given: bytes = b""

    def claims(self) -> Claims:
        claims = super().claims()
        return replace(claims, gpu="sha256:" + hashlib.sha256(self.gpu).hexdigest()) if self.gpu else claims

    def evidence(self) -> Collection:
        evidence = super().evidence()
        if self.shown:
            evidence = evidence.with_item(DEVICES, DEVICES_MEDIA_TYPE, self.shown, EVIDENCE)
            evidence = evidence.with_item(COLLATERAL, COLLATERAL_MEDIA_TYPE, self.given, ENDORSEMENTS)
        return evidence


def gpu_world(**policy: str) -> GpuWorld:
    world = GpuWorld()
    _, world.gpu, given = machine(world)
    world.shown, world.given = world.gpu, encode_collateral(given)
    roots = {"device_roots": "nvidia root", "rim_roots": "rim root"}
    world.policy = {f"nvidia.{name}": f'["{spki_digest(role)}"]' for name, role in roots.items()} | policy
    return world


def whole(world: GpuWorld) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
    verdict = verify(world.bundle(), world.the_policy(), now=world.now, nonce=world.nonce, tls_spki=world.tls_spki)
    return verdict.passed, verdict.codes, verdict.assumptions


def test_the_whole_bundle() -> None:
    """TPM, claims and GPU under one policy; the assumption about relays is said."""
    passed, codes, assumptions = whole(gpu_world())
    assert passed, codes
    assert ASSUMPTION in assumptions
    assert whole(gpu_world(**{"nvidia.minimum_driver": '"999"'}))[1] == ("nvidia.driver.too_old",)
    other = gpu_world()
    other.shown = machine(GpuWorld(tls_spki="sha256:" + "12" * 32))[1]
    assert whole(other)[1] == ("nvidia.binding.digest_mismatch", "nvidia.report.nonce_mismatch")
    silent = gpu_world()
    silent.shown = b""
    assert whole(silent)[1] == ("nvidia.evidence.missing",)
    unasked = gpu_world()
    unasked.policy = {}
    assert "nvidia.chain.untrusted_root" in whole(unasked)[1]  # the defaults: NVIDIA's own roots
    unasked.shown = b""
    assert whole(unasked)[1] == ("nvidia.evidence.missing",)  # the claims speak of a GPU
    bare = GpuWorld()
    bare.policy = {"nvidia.devices": "1"}
    assert whole(bare)[1] == ("nvidia.evidence.missing",)
