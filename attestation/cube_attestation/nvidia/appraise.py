# SPDX-License-Identifier: Apache-2.0
"""Is an NVIDIA device acceptable? Reference values of NVIDIA's manifests, revocation, mode, versions, the set.

Manifests and OCSP responses are collateral: what is missing, unsigned or revoked there makes the device's item not
authentic, because nothing vouches for its firmware then. What they say of the device makes it acceptable or not.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from cube_attestation import jcs, times
from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.verdict import Comparison, Findings, ItemVerdict, Reason

from . import abi, chains, ocsp, rim, verify
from .policy import NvidiaPolicy

MAX_RIMS = 64
NVDEC0_INDEX = 35  # measures a decoder that may be fused off; then its value means nothing
RIM_CODES = {
    "digest_mismatch": "nvidia.rim.digest_mismatch",
    "signature_invalid": "nvidia.rim.signature_invalid",
    "signature_form": "nvidia.rim.signature_form",
    "chain.untrusted_root": "nvidia.rim.untrusted_root",
    "chain.signature_invalid": "nvidia.rim.chain_signature_invalid",
    "chain.constraints": "nvidia.rim.chain_constraints",
    "chain.weak": "nvidia.rim.chain_weak",
    "chain.expired": "collateral.expired",
    "chain.not_yet_valid": "collateral.not_yet_valid",
}

MISSING_RIM = {"driver": "collateral.driver_rim.missing", "vbios": "collateral.vbios_rim.missing"}

# What is known about single measurements, by RIM index
HAZARDS: Mapping[int, str] = {
    9: "known on a3-highgpu-1g after a guest reboot: stop the VM and start it again, a reboot does not help",
    52: "known after confidential mode was switched on or off: reset the GPU",
}


@dataclass(frozen=True)
class Collateral:
    """Raw manifests and OCSP responses, in any order; what fits no device is left aside."""

    rims: tuple[bytes, ...] = ()
    ocsp: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if len(self.rims) > MAX_RIMS:
            raise BadInput(f"more than {MAX_RIMS} manifests", where="NVIDIA collateral")

    @cached_property
    def by_serial(self) -> Mapping[int, tuple[bytes, ...]]:
        """The OCSP responses by the serial number that they are about. Raises BadInput."""
        return ocsp.index(self.ocsp)


def appraise(
    devices: Sequence[abi.Evidence],
    collateral: Collateral,
    rules: NvidiaPolicy,
    now: datetime,
    *,
    nonce: bytes | None = None,
) -> tuple[ItemVerdict, ...]:
    """One item per device (``nvidia-gpu-0`` …, ``nvidia-switch-0`` …), then ``nvidia-set`` for the whole.

    ``nonce``: what every report must carry; from claims it is ``Claims.gpu_nonce()``. Raises BadInput.
    """
    checked = [
        verify.verify(
            device, rules.device_roots, now, nonce=nonce, fwid_required="nvidia.fwid" not in rules.allow_missing
        )
        for device in devices
    ]
    items: list[ItemVerdict] = []
    counts = {"gpu": 0, "switch": 0}
    for device in checked:
        kind = "switch" if device.report.is_switch else "gpu"
        items.append(_device(device, collateral, rules, now).verdict(f"nvidia-{kind}-{counts[kind]}"))
        counts[kind] += 1
    items.append(_set(checked, rules).verdict("nvidia-set"))
    return tuple(items)


def appraise_rim(data: bytes, collateral: Collateral, rules: NvidiaPolicy, now: datetime) -> ItemVerdict:
    """One manifest by itself (``nvidia-rim``): signature, chain, revocation. Raises BadInput."""
    findings = Findings()
    content = rim.parse(data)
    findings.facts = {
        "kind": content.kind,
        "product": content.product,
        "version": content.version,
        "tag_id": content.tag_id,
        "active": [*sorted(content.values)],
    }
    verified = _verified_rim(data, rules, now, findings)
    if verified is not None:
        _revocation(verified.path, collateral, rules, now, findings, "nvidia.rim_ocsp")
        findings.facts["signer_until"] = times.format_time(verified.not_after)
    return findings.verdict("nvidia-rim")


def _device(device: verify.Device, collateral: Collateral, rules: NvidiaPolicy, now: datetime) -> Findings:
    findings = Findings(list(device.reasons), facts=_facts(device))
    _policy(device, rules, findings)
    if device.leaf is None:
        return findings  # nobody known speaks, so reference values mean nothing
    _revocation(device.leaf.path, collateral, rules, now, findings, "nvidia.device_ocsp")
    manifests = _manifests(device, collateral, rules, now, findings)
    if manifests:
        _measurements(device.report, manifests, findings)
    return findings


def _facts(device: verify.Device) -> dict[str, jcs.Json]:
    report = device.report
    facts: dict[str, jcs.Json] = {
        "chip": device.chip,
        "vbios": report.vbios_version,
        "nonce": report.request_nonce.hex(),
        "rims": [*report.rim_ids(device.chip)],
    }
    if not report.is_switch:
        facts |= {"board": report.board, "driver": report.driver_version, "mode": report.mode}
    if report.trailing:
        facts["trailing_bytes"] = report.trailing
    if device.leaf is not None:
        facts["serial"] = device.leaf.serial
    return facts


def _revocation(
    path: chains.Path,
    collateral: Collateral,
    rules: NvidiaPolicy,
    now: datetime,
    findings: Findings,
    name: str,
) -> None:
    """OCSP for every certificate that NVIDIA's responder knows: all but the root and a device's own leaf.

    The leaf is made by the device at each firmware start; the responder answers "unauthorized" for it.
    """
    first = 1 if name == "nvidia.device_ocsp" else 0
    certificates = path.certificates
    for certificate, issuer in zip(certificates[first:-1], certificates[first + 1 :], strict=True):
        if name in rules.allow_missing and certificate.serial not in collateral.by_serial:
            continue
        reasons = ocsp.check(certificate, issuer, collateral.by_serial, now, rules.ocsp_max_age)
        if name in rules.allow_missing:
            reasons = [reason for reason in reasons if reason.code != "collateral.ocsp.missing"]
        findings.forged += reasons


def _policy(device: verify.Device, rules: NvidiaPolicy, findings: Findings) -> None:
    """Chip, board, mode and minimum versions."""
    report, chip = device.report, device.chip
    if rules.chips and chip not in rules.chips:
        findings.refuse("nvidia.chip.not_allowed", f"the device is a {chip or 'nameless chip'}")
        findings.compared.append(Comparison("chip", " or ".join(rules.chips), chip))
    if report.is_switch:
        return
    if rules.boards and report.board not in rules.boards:
        findings.refuse("nvidia.board.not_allowed", f"the board is {report.board}")
        findings.compared.append(Comparison("board", " or ".join(rules.boards), report.board))
    if report.mode not in rules.modes:
        findings.refuse("nvidia.mode.not_allowed", f"the GPU is in mode {report.mode}")
        findings.compared.append(Comparison("mode", " or ".join(rules.modes), report.mode))
    for what, code, minimum, found in (
        ("driver", "nvidia.driver.too_old", rules.minimum_driver, report.driver_version),
        ("VBIOS", "nvidia.vbios.too_old", rules.minimum_vbios, report.vbios_version),
    ):
        if minimum and _version(found) < _version(minimum):
            findings.refuse(code, f"{what} {found} is older than {minimum}")
            findings.compared.append(Comparison(f"{what} at least", minimum, found))


def _version(text: str) -> tuple[int, ...]:
    """Parts of a version as numbers; VBIOS parts are hexadecimal. What is no number sorts first."""
    base = 16 if text.count(".") == 4 else 10
    parts = text.split(".")
    try:
        return tuple(int(part, base) for part in parts)
    except ValueError:
        return (-1,)


def _verified_rim(data: bytes, rules: NvidiaPolicy, now: datetime, findings: Findings) -> rim.VerifiedRim | None:
    try:
        return rim.verify(data, rules.rim_roots, now, allow_expired=rules.allow_expired_rim)
    except NotAuthentic as error:
        findings.forged.append(Reason(RIM_CODES[error.why], f"manifest: {error.what}"))
        return None


def _manifests(
    device: verify.Device, collateral: Collateral, rules: NvidiaPolicy, now: datetime, findings: Findings
) -> dict[str, list[rim.Rim]]:
    """The authentic, unrevoked manifests of the device's own driver and VBIOS version, by kind.

    Several of one kind may fit (NVIDIA signs one again later, and boards share VBIOS versions). Only if none of
    them holds are the reasons reported.
    """
    report = device.report
    wanted = {"vbios": report.vbios_version}
    if not report.is_switch:
        wanted["driver"] = report.driver_version
    contents = [(data, rim.parse(data)) for data in collateral.rims]
    found: dict[str, list[rim.Rim]] = {}
    for kind, version in wanted.items():
        problems = Findings()
        for data, content in contents:
            if content.kind != kind or content.version.upper() != version.upper():
                continue
            this = Findings()
            if content.product.replace("_", "").upper() != device.chip:
                words = f"the manifest of {kind} {version} is for {content.product}, the device is a {device.chip}"
                this.forged.append(Reason("nvidia.rim.product_mismatch", words))
            elif (verified := _verified_rim(data, rules, now, this)) is not None:
                _revocation(verified.path, collateral, rules, now, this, "nvidia.rim_ocsp")
            if not this.forged:
                found.setdefault(kind, []).append(content)
            problems.forged += this.forged
        if kind in found:
            continue
        if not problems.forged and f"nvidia.{kind}_rim" not in rules.allow_missing:
            words = f"no manifest of {kind} {version} for {device.chip or 'this device'}"
            problems.forged.append(Reason(MISSING_RIM[kind], words))
        findings.forged += problems.forged
    return found


def _measurements(report: abi.Report, manifests: dict[str, list[rim.Rim]], findings: Findings) -> None:
    """Compare with the manifests that fit best: one of each kind must agree in every active index."""
    best: list[tuple[str, int, str, str]] | None = None
    total = 0
    for chosen in itertools.product(*([(kind, m) for m in found] for kind, found in sorted(manifests.items()))):
        values: dict[int, tuple[str, tuple[bytes, ...]]] = {}
        for kind, manifest in chosen:
            for index, digests in manifest.values.items():
                if index in values:
                    findings.refuse("nvidia.rim.conflict", f"both manifests give a value for index {index}")
                    return
                values[index] = (kind, digests)
        if empty := [kind for kind, manifest in chosen if not manifest.values]:
            findings.refuse("nvidia.rim.empty", f"the {empty[0]} manifest gives no value to compare with")
            return
        if report.opaque.get(abi.NVDEC0) == bytes([abi.DISABLED]) and not report.is_switch:
            values.pop(NVDEC0_INDEX, None)
        differing = _differing(report, values)
        if best is None or len(differing) < len(best):
            best, total = differing, len(values)
    findings.facts["measurements_compared"] = total
    for kind, index, expected, got in best or ():
        words = f"index {index} differs from the {kind} manifest"
        if index in HAZARDS:
            words += f"; {HAZARDS[index]}"
        findings.refuse("nvidia.rim.measurement_mismatch", words)
        findings.compared.append(Comparison(f"measurement {index} ({kind} manifest)", expected, got))


def _differing(
    report: abi.Report, values: Mapping[int, tuple[str, tuple[bytes, ...]]]
) -> list[tuple[str, int, str, str]]:
    """(kind, index, expected, found) of every index whose measurement is none of the accepted values."""
    found: list[tuple[str, int, str, str]] = []
    for index, (kind, digests) in sorted(values.items()):
        got = report.measurements[index] if index < len(report.measurements) else b""
        if got not in digests:
            found.append((kind, index, " or ".join(digest.hex() for digest in digests), got.hex() or "absent"))
    return found


def _set(devices: Sequence[verify.Device], rules: NvidiaPolicy) -> Findings:
    """The devices together: counts, no device twice, one request, and in protected PCIe the links between them."""
    findings = Findings()
    gpus = [device for device in devices if not device.report.is_switch]
    switches = [device for device in devices if device.report.is_switch]
    findings.facts = {"gpus": len(gpus), "switches": len(switches)}
    for what, wanted, found in (("GPUs", rules.devices, len(gpus)), ("NVSwitches", rules.switches, len(switches))):
        if wanted not in (-1, found):
            findings.refuse("nvidia.set.count", f"{found} {what} where {wanted} are expected")
            findings.compared.append(Comparison(what, str(wanted), str(found)))
    if not devices:
        findings.refuse("nvidia.set.count", "no device at all")
    known = [device.leaf for device in devices if device.leaf is not None]
    counted = Counter(leaf.identity for leaf in known)
    for leaf in {leaf.identity: leaf for leaf in known if counted[leaf.identity] > 1}.values():
        findings.refuse("nvidia.set.duplicate", f"device {leaf.pdi.hex() or leaf.serial} occurs more than once")
    if len({device.report.request_nonce for device in devices}) > 1:
        findings.refuse("nvidia.set.nonces", "the reports answer different requests")
    if len({(device.report.mode, device.report.driver_version) for device in gpus}) > 1:
        findings.refuse("nvidia.set.mixed", "the GPUs differ in mode or driver version")
    if any(device.report.mode == "ppcie" for device in gpus) and "ppcie" in rules.modes:
        _topology(gpus, switches, findings)
    return findings


def _topology(gpus: Sequence[verify.Device], switches: Sequence[verify.Device], findings: Findings) -> None:
    """In protected PCIe mode NVLink is plain text: the GPUs must be wired to exactly the attested switches.

    A device's identifier (PDI) is certified: the serial number of its boot ROM's certificate less its first byte.
    """
    own_gpus = frozenset(_pdi(device) for device in gpus)
    own_switches = frozenset(_pdi(device) for device in switches)
    for device in gpus:
        linked = abi.switch_links(device.report)
        if linked != own_switches:
            _miswired(device, "switches", linked, own_switches, findings)
    for device in switches:
        linked = abi.gpu_links(device.report)
        if linked != own_gpus:
            _miswired(device, "GPUs", linked, own_gpus, findings)
        if device.report.opaque.get(abi.SWITCH_PDI) != _pdi(device):
            findings.refuse("nvidia.set.topology", "a switch reports another identifier than its certificate's")


def _pdi(device: verify.Device) -> bytes:
    return device.leaf.pdi if device.leaf is not None else b""


def _miswired(
    device: verify.Device, what: str, linked: frozenset[bytes], attested: frozenset[bytes], findings: Findings
) -> None:
    words = (
        f"device {_pdi(device).hex() or 'unknown'} is wired to {len(linked)} {what}, attested are {len(attested)}"
    )
    if len(linked) == len(attested):
        words = f"device {_pdi(device).hex() or 'unknown'} is wired to other {what} than the attested ones"
    findings.refuse("nvidia.set.topology", words)
    expected, found = (" ".join(sorted(pdi.hex() for pdi in pdis)) for pdis in (attested, linked))
    findings.compared.append(Comparison(f"{what} of {_pdi(device).hex() or 'unknown'}", expected, found))
