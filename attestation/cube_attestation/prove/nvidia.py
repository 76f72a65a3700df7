# SPDX-License-Identifier: Apache-2.0
"""Attacks on GPU evidence: reports, device chains, manifests, revocation answers, the set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric import ec

from cube_attestation.nvidia import abi, items, rim
from cube_attestation.nvidia.abi import Evidence
from cube_attestation.nvidia.appraise import NVDEC0_INDEX, Collateral
from cube_attestation.nvidia.policy import NvidiaPolicy

from . import forge
from .case import OTHER_DIGEST, Case, Inapplicable, Mutation

NONCE, RECORD = 4, 45  # in the request, and the first measurement block in the response


def _devices(case: Case) -> tuple[Evidence, ...]:
    return abi.decode_evidence(case.item(items.DEVICES))


def _shown(case: Case, *devices: Evidence) -> Case:
    return case.put(items.DEVICES, abi.encode_evidence(devices))


def _report(edit: Callable[[bytearray], None]) -> Callable[[Case], Case]:
    """The first device's report edited."""

    def change(case: Case) -> Case:
        first, *rest = _devices(case)
        data = bytearray(first.report)
        edit(data)
        return _shown(case, replace(first, report=bytes(data)), *rest)

    return change


def _flip(offset: int) -> Callable[[bytearray], None]:
    def edit(data: bytearray) -> None:
        data[offset] ^= 1

    return edit


def _signature(data: bytearray) -> None:
    data[len(abi.parse_report(bytes(data)).signed) + 95] ^= 1


def _measurement(index: int) -> Callable[[bytearray], None]:
    """One bit of a measured value (manifest index, block index + 1)."""

    def edit(data: bytearray) -> None:
        before = sum(7 + len(value) for value in abi.parse_report(bytes(data)).measurements[:index])
        data[RECORD + before + 7] ^= 1

    return edit


def _foreign_firmware(case: Case) -> Case:
    """A value that every manifest of the bundle which names its index accepts."""
    given = items.decode_collateral(case.item(items.COLLATERAL))
    measured = abi.parse_report(_devices(case)[0].report).measurements
    manifests = [rim.parse(data).values for data in given.rims]
    for index, value in enumerate(measured):
        named = [values[index] for values in manifests if index in values]
        if index != NVDEC0_INDEX and named and all(value in digests for digests in named):
            return _twin(_measurement(index), trusted=True)(case)
    raise Inapplicable("no manifest of the bundle names what the first device measured")


def _section(case: Case) -> NvidiaPolicy:
    case.item(items.DEVICES)
    return case.policy.nvidia or NvidiaPolicy()


def _with_section(**members: object) -> Callable[[Case], Case]:
    def change(case: Case) -> Case:
        return case.under(nvidia=replace(_section(case), **members))  # type: ignore[arg-type] # callers name members

    return change


def _twin(edit: Callable[[bytearray], None], *, trusted: bool) -> Callable[[Case], Case]:
    """The first report edited and correctly signed under a chain like NVIDIA's. ``trusted``: its root is taken.

    NVIDIA's responder knows nothing of the twin, so that the policy lets revocation answers about it be missing.
    """

    def change(case: Case) -> Case:
        first, *rest = _devices(case)
        found = forge.load(first.chain, where="device chain")
        made = forge.impostor(forge.ordered(found, found[0]), "NVIDIA")
        key = made.keys[0]
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Inapplicable("the device's key is not on an elliptic curve")
        data = bytearray(first.report)
        edit(data)
        signed = abi.parse_report(bytes(data)).signed
        report = signed + forge.raw_signature(key, signed, "sha384")
        case = _shown(case, Evidence(report, made.pem), *rest)
        if not trusted:
            return case
        section = _section(case)
        allowed = section.allow_missing | {"nvidia.device_ocsp"}
        return _with_section(device_roots=section.device_roots | {made.root}, allow_missing=allowed)(case)

    return change


def _without_chain(case: Case) -> Case:
    first, *rest = _devices(case)
    return _shown(case, replace(first, chain=b""), *rest)


def _collateral(edit: Callable[[Collateral], Collateral]) -> Callable[[Case], Case]:
    def change(case: Case) -> Case:
        given = items.decode_collateral(case.item(items.COLLATERAL))
        return _with_section(allow_missing=frozenset())(
            case.put(items.COLLATERAL, items.encode_collateral(edit(given)))
        )

    return change


def _rim_edited(given: Collateral) -> Collateral:
    """The first hash value of the first manifest, one digit changed."""
    if not given.rims:
        raise Inapplicable("the bundle has no manifest")
    first, *rest = given.rims
    at = first.find(b'Hash0="')
    if at < 0:
        raise Inapplicable("the manifest has no hash value")
    at += len(b'Hash0="')
    digit = b"0" if first[at : at + 1] != b"0" else b"1"
    return replace(given, rims=(first[:at] + digit + first[at + 1 :], *rest))


def _stale(case: Case) -> Case:
    """A day after the longest time that the policy lets a revocation answer count."""
    section = _section(case)
    if "nvidia.device_ocsp" in section.allow_missing:
        raise Inapplicable("the policy lets revocation answers be missing")
    return replace(case, now=case.now + section.ocsp_max_age + timedelta(days=1))


def _count(case: Case) -> Case:
    gpus = sum(not abi.parse_report(device.report).is_switch for device in _devices(case))
    return _with_section(devices=gpus + 1)(case)


def _other_mode(case: Case) -> Case:
    modes = {abi.parse_report(device.report).mode for device in _devices(case)}
    return _with_section(modes=tuple(mode for mode in ("spt", "mpt", "ppcie") if mode not in modes))(case)


MUTATIONS = (
    Mutation(
        "nvidia.removed",
        "no evidence of the GPUs",
        "nvidia.evidence.missing",
        lambda case: _with_section()(case).without(items.DEVICES),
    ),
    Mutation(
        "nvidia.nonce", "a report made for another request", "nvidia.report.nonce_mismatch", _report(_flip(NONCE))
    ),
    Mutation(
        "nvidia.binding",
        "GPU evidence that the claims do not name",
        "nvidia.binding.digest_mismatch",
        lambda case: case.put(items.DEVICES, case.item(items.DEVICES) + b"\n"),
    ),
    Mutation(
        "nvidia.signature", "one bit of the signature", "nvidia.report.signature_invalid", _report(_signature)
    ),
    Mutation(
        "nvidia.measurement",
        "one bit of a measurement",
        "nvidia.report.signature_invalid",
        _report(_measurement(1)),
    ),
    Mutation("nvidia.chain", "a GPU without certificates", "nvidia.chain.missing", _without_chain),
    Mutation(
        "nvidia.impostor",
        "a report correctly signed under a chain like NVIDIA's, but for the keys",
        "nvidia.chain.untrusted_root",
        _twin(lambda _: None, trusted=False),
    ),
    Mutation(
        "nvidia.twin.machine",
        "the correctly signed report of another machine's GPU",
        "nvidia.report.nonce_mismatch",
        _twin(_flip(NONCE), trusted=True),
    ),
    Mutation(
        "nvidia.twin.firmware",
        "the correctly signed report of a GPU with foreign firmware",
        "nvidia.rim.measurement_mismatch",
        _foreign_firmware,
    ),
    Mutation(
        "nvidia.twin.binding",
        "another genuine GPU that answers the right nonce, but not the one that the claims name",
        "nvidia.binding.digest_mismatch",
        _twin(lambda _: None, trusted=True),
    ),
    Mutation(
        "nvidia.roots",
        "a device of a maker that is not accepted",
        "nvidia.chain.untrusted_root",
        _with_section(device_roots=frozenset({OTHER_DIGEST})),
    ),
    Mutation(
        "nvidia.collateral",
        "no manifests and no revocation answers",
        "collateral.vbios_rim.missing",
        lambda case: _with_section(allow_missing=frozenset())(case.without(items.COLLATERAL)),
    ),
    Mutation(
        "nvidia.ocsp.removed",
        "no revocation answers",
        "collateral.ocsp.missing",
        _collateral(lambda given: replace(given, ocsp=())),
    ),
    Mutation("nvidia.ocsp.stale", "revocation answers that are too old", "collateral.expired", _stale),
    Mutation(
        "nvidia.rim.removed",
        "no manifests",
        "collateral.vbios_rim.missing",
        _collateral(lambda given: replace(given, rims=())),
    ),
    Mutation(
        "nvidia.rim.edited",
        "a manifest edited after signing",
        "nvidia.rim.digest_mismatch",
        _collateral(_rim_edited),
    ),
    Mutation(
        "nvidia.rim.roots",
        "manifests of a root that is not accepted",
        "nvidia.rim.untrusted_root",
        _with_section(rim_roots=frozenset({OTHER_DIGEST})),
    ),
    Mutation(
        "nvidia.set.duplicate",
        "one GPU that stands in for two",
        "nvidia.set.duplicate",
        lambda case: _shown(case, _devices(case)[0], *_devices(case)),
    ),
    Mutation("nvidia.set.count", "a GPU left out", "nvidia.set.count", _count),
    Mutation("nvidia.mode", "GPUs in another mode", "nvidia.mode.not_allowed", _other_mode),
    Mutation("nvidia.chip", "another chip", "nvidia.chip.not_allowed", _with_section(chips=("XX000",))),
    Mutation("nvidia.driver", "an outdated driver", "nvidia.driver.too_old", _with_section(minimum_driver="99999")),
    Mutation(
        "nvidia.vbios",
        "an outdated VBIOS",
        "nvidia.vbios.too_old",
        _with_section(minimum_vbios="FF.FF.FF.FF.FF"),
    ),
)
