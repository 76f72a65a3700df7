# SPDX-License-Identifier: Apache-2.0
"""``check nvidia-gpu``, ``nvidia-switch``, ``nvidia-rim``: devices with manifests and OCSP, or a manifest alone."""

from __future__ import annotations

from dataclasses import replace

from cube_attestation.anchors import nvidia as anchors
from cube_attestation.errors import BadInput
from cube_attestation.nvidia import abi
from cube_attestation.nvidia.appraise import Collateral, appraise, appraise_rim
from cube_attestation.nvidia.policy import ALLOW_MISSING, MODES, NvidiaPolicy
from cube_attestation.recognise import Material
from cube_attestation.verdict import ItemVerdict
from cube_attestation.x509 import certificate

from .result import Given, needed


def check(given: Given) -> tuple[ItemVerdict, ...]:
    """Items of every device and of the set, or of the manifest. Raises BadInput."""
    material = given.material
    rules = NvidiaPolicy(
        modes=MODES,
        allow_missing=frozenset(set(ALLOW_MISSING) & set(given.allow_missing)),
        device_roots=frozenset((*anchors.DEVICE_ROOTS, *given.roots)),
        rim_roots=frozenset((*anchors.RIM_ROOTS, *given.roots)),
    )
    collateral = Collateral(material.rims, material.ocsp)
    if given.kind == "nvidia-rim":
        data = needed(material.rims, "a manifest", "pass the .swidtag or XML file")
        return (appraise_rim(data, collateral, rules, given.now),)
    if not material.devices:
        raise BadInput("none of the files holds a device's report", todo="pass the SPDM report or NVIDIA's JSON")
    evidence = devices(material)
    reports = [abi.parse_report(device.report) for device in evidence]
    wanted = given.kind == "nvidia-switch"
    if not any(report.is_switch == wanted for report in reports):
        other = "nvidia-gpu" if wanted else "nvidia-switch"
        raise BadInput(f"the report is not that of {given.kind}", todo=f"use `check {other}`")
    *items, whole = appraise(evidence, collateral, rules, given.now, nonce=given.nonce)
    if len({report.is_switch for report in reports}) == 1:
        # GPUs without their switches say nothing about how they are wired, nor the other way round
        refused = tuple(reason for reason in whole.refused if reason.code != "nvidia.set.topology")
        whole = replace(whole, refused=refused, compared=() if refused != whole.refused else whole.compared)
    return (*items, whole) if len(items) > 1 else tuple(items)


def devices(material: Material) -> tuple[abi.Evidence, ...]:
    """Each report with its chain; one report without takes the certificates that came in other files."""
    bare = [device for device in material.devices if not device.chain]
    loose = _pem(material) if bare else b""
    if len(bare) > 1 and loose:
        raise BadInput(f"{len(bare)} reports and certificates in other files", todo="check them one by one")
    return tuple(abi.Evidence(device.report, device.chain or loose) for device in material.devices)


def _pem(material: Material) -> bytes:
    """The loose certificates as the tools write them, the device's own first."""
    found = certificate.load_all(material.certificates, where="certificates")
    issuers = {one.issuer for one in found}
    leaf_first = sorted(found, key=lambda one: one.subject in issuers)
    return certificate.to_pem(leaf_first)
