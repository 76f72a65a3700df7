# SPDX-License-Identifier: Apache-2.0
"""Is an authentic SNP report acceptable? Rules of a policy, and what a report is worth by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from cube_attestation import jcs
from cube_attestation.verdict import Comparison, ItemVerdict, Reason

from . import abi
from .verify import Verified

ITEM = "snp"
# Policy bits that a guest's owner may demand; each narrows what the host can do.
DEMANDABLE = (
    "single_socket_required",
    "aes_256_xts_required",
    "rapl_disabled_required",
    "ciphertext_hiding_required",
    "page_swap_disabled",
)


@dataclass(frozen=True)
class Rules:
    """What a policy accepts of an SNP report. Digests and identifiers are lower-case hex.

    An empty collection is no rule, but one of ``measurements``, ``id_keys`` and ``author_keys`` is demanded unless
    ``any_firmware``: otherwise any guest of any owner would pass. ``minimum_tcb`` by product line holds for the
    reported, committed, current and launch TCB. ``demanded_policy`` and ``demanded_platform`` are names of bits
    (abi.POLICY_BITS, abi.PLATFORM_BITS). DEBUG and unknown bits are never acceptable.
    """

    measurements: Collection[str] = ()
    id_keys: Collection[str] = ()
    author_keys: Collection[str] = ()
    any_firmware: bool = False
    family_ids: Collection[str] = ()
    image_ids: Collection[str] = ()
    host_data: Collection[str] = ()
    report_data: bytes | None = None
    minimum_guest_svn: int = 0
    vmpls: Collection[int] = (0,)
    products: Collection[str] = ()
    chip_ids: Collection[str] = ()
    signing_keys: Collection[str] = ("vcek", "vlek")
    csps: Collection[str] = ()
    minimum_version: int = 2
    minimum_tcb: Mapping[str, abi.Tcb] = field(default_factory=dict)
    minimum_firmware: tuple[int, int, int] = (0, 0, 0)
    minimum_abi: tuple[int, int] = (0, 0)
    provisional_firmware: bool = False
    smt: bool = True
    migration_agent: bool = False
    cxl: bool = False
    demanded_policy: Collection[str] = ()
    demanded_platform: Collection[str] = ()
    launch_mitigations: int = 0
    current_mitigations: int = 0


def appraise(verified: Verified, rules: Rules, *, item: str = ITEM) -> ItemVerdict:
    """The item's verdict: why it is not authentic, why it is not acceptable, what was compared with what.

    A report whose signer is not known is not appraised: its TCB can't be read.
    """
    report = verified.report
    if verified.key is None:
        return ItemVerdict(item, verified.forged, facts=facts(verified))
    refused: list[Reason] = []
    compared: list[Comparison] = []

    def refuse(code: str, words: str) -> None:
        refused.append(Reason(code, words))

    _identity(report, rules, refuse, compared)
    _guest_policy(report, rules, refuse)
    _platform(report, verified.key, rules, refuse)
    _versions(verified, rules, refuse)
    return ItemVerdict(item, verified.forged, tuple(refused), tuple(compared), facts(verified))


Refuse = Callable[[str, str], None]


def _one_of(
    what: str, found: str, allowed: Collection[str], code: str, refuse: Refuse, compared: list[Comparison]
) -> None:
    """Refuse ``found`` if there are allowed values and it is none of them; note the comparison."""
    if not allowed:
        return
    compared.append(Comparison(what, found if found in allowed else " | ".join(sorted(allowed)), found))
    if found not in allowed:
        refuse(code, f"{what} {found} is not allowed")


def _identity(report: abi.Report, rules: Rules, refuse: Refuse, compared: list[Comparison]) -> None:
    if not (rules.any_firmware or rules.measurements or rules.id_keys or rules.author_keys):
        refuse("snp.identity.not_demanded", "the policy names no measurement, ID key or author key to accept")
    for what, found, allowed, code in (
        ("measurement", report.measurement, rules.measurements, "snp.measurement.not_allowed"),
        ("ID key digest", report.id_key_digest, rules.id_keys, "snp.id_key.not_allowed"),
        ("author key digest", report.author_key_digest, rules.author_keys, "snp.author_key.not_allowed"),
        ("family", report.family_id, rules.family_ids, "snp.family_id.not_allowed"),
        ("image", report.image_id, rules.image_ids, "snp.image_id.not_allowed"),
        ("host data", report.host_data, rules.host_data, "snp.host_data.not_allowed"),
    ):
        _one_of(what, found.hex(), allowed, code, refuse, compared)
    if rules.author_keys and not report.author_key:
        refuse("snp.author_key.absent", "no author key signed the ID key")
    if rules.report_data is not None:
        compared.append(Comparison("report data", rules.report_data.hex(), report.report_data.hex()))
        if rules.report_data != report.report_data:
            refuse("snp.report_data.mismatch", "the report data is not the expected one")
    if report.guest_svn < rules.minimum_guest_svn:
        words = f"guest SVN {report.guest_svn}, at least {rules.minimum_guest_svn} is demanded"
        refuse("snp.guest_svn.too_low", words)
    if report.vmpl not in rules.vmpls:
        words = f"made at VMPL {report.vmpl}, allowed: {', '.join(map(str, sorted(rules.vmpls))) or 'none'}"
        refuse("snp.vmpl.not_allowed", words)


def _guest_policy(report: abi.Report, rules: Rules, refuse: Refuse) -> None:
    if report.flag("debug_allowed"):
        refuse("snp.policy.debug", "the guest policy lets the host read and write the guest's memory")
    if report.flag("migration_agent_allowed") and not rules.migration_agent:
        refuse("snp.policy.migration_agent", "the guest policy allows a migration agent")
    if report.flag("cxl_allowed") and not rules.cxl:
        refuse("snp.policy.cxl", "the guest policy allows memory on CXL devices")
    if report.flag("smt_allowed") and not rules.smt:
        refuse("snp.policy.smt", "the guest policy allows simultaneous multithreading")
    if unknown := report.policy & ~abi.KNOWN_POLICY:
        # A bit of newer firmware may be one that weakens, as DEBUG and CXL do.
        refuse("snp.policy.unknown", f"the guest policy has bits that are not known: 0x{unknown:x}")
    if report.abi < rules.minimum_abi:
        found, least = ".".join(map(str, report.abi)), ".".join(map(str, rules.minimum_abi))
        refuse(
            "snp.policy.abi_too_low", f"the guest policy demands firmware ABI {found}, at least {least} is wanted"
        )
    for name in DEMANDABLE:
        if name in rules.demanded_policy and not report.flag(name):
            refuse("snp.policy.bit_missing", f"the guest policy lacks {name}")


def _platform(report: abi.Report, key: abi.EndorsementKey, rules: Rules, refuse: Refuse) -> None:
    if rules.products and key.product not in rules.products:
        refuse("snp.product.not_allowed", f"{key.product} is not among {', '.join(sorted(rules.products))}")
    if key.kind not in rules.signing_keys:
        refuse("snp.signing_key.not_allowed", f"signed by a {key.kind.upper()}")
    if key.kind == "vlek" and rules.csps and key.csp not in rules.csps:
        refuse("snp.csp.not_allowed", f"the VLEK is that of {key.csp}")
    if rules.chip_ids:
        if report.masked_chip or not any(report.chip_id):
            refuse("snp.chip_id.masked", "the report hides the chip, the policy names chips")
        elif report.chip_id.hex() not in rules.chip_ids:
            refuse("snp.chip_id.not_allowed", f"chip {report.chip_id.hex()} is not allowed")
    for name in abi.PLATFORM_BITS.values():
        if name in rules.demanded_platform and not report.flag(name):
            refuse("snp.platform.bit_missing", f"the platform does not have {name}")
    if report.flag("smt_enabled") and not rules.smt:
        refuse("snp.platform.smt", "simultaneous multithreading is on")


def _versions(verified: Verified, rules: Rules, refuse: Refuse) -> None:
    report = verified.report
    if report.version < rules.minimum_version:
        words = f"report version {report.version}, at least {rules.minimum_version} is demanded"
        refuse("snp.version.too_old", words)
    least = rules.minimum_tcb.get(verified.product)
    if rules.minimum_tcb and least is None:
        refuse("snp.product.not_allowed", f"the policy has no least TCB for {verified.product}")
    for name, raw in _tcbs(report).items():
        tcb = verified.tcb(raw)
        if least is not None and not tcb.covers(least):
            found, wanted = tcb.to_json(verified.product), least.to_json(verified.product)
            refuse("snp.tcb.too_low", f"{name} TCB {found}, at least {wanted} is demanded")
    for name, firmware in (("current", report.current), ("committed", report.committed)):
        if firmware.number() < rules.minimum_firmware:
            number = ".".join(map(str, rules.minimum_firmware))
            refuse("snp.firmware.too_low", f"{name} SNP firmware {firmware}, at least {number} is demanded")
    if not rules.provisional_firmware and _provisional(report):
        refuse(
            "snp.firmware.provisional", "the firmware is not committed, so the host can go back to the older one"
        )
    for name, vector, wanted_bits in (
        ("launch", report.launch_mitigations, rules.launch_mitigations),
        ("current", report.current_mitigations, rules.current_mitigations),
    ):
        if vector & wanted_bits != wanted_bits:
            words = f"{name} mitigation vector 0x{vector:x} lacks bits of 0x{wanted_bits:x}"
            refuse("snp.mitigation.missing", words)


def _provisional(report: abi.Report) -> bool:
    """Running, but not committed (56860, 3.3): the host may still return to the committed firmware."""
    return report.current != report.committed or report.current_tcb != report.committed_tcb


def _tcbs(report: abi.Report) -> dict[str, bytes]:
    return {
        "reported": report.reported_tcb,
        "committed": report.committed_tcb,
        "current": report.current_tcb,
        "launch": report.launch_tcb,
    }


def facts(verified: Verified) -> dict[str, jcs.Json]:
    """Every field of the report in words and units, for people and for the verdict."""
    report, key = verified.report, verified.key
    found: dict[str, jcs.Json] = {
        "version": report.version,
        "guest_svn": report.guest_svn,
        "vmpl": report.vmpl,
        "policy": _bits(report.policy, abi.POLICY_BITS),
        "policy_abi": ".".join(map(str, report.abi)),
        "platform": _bits(report.platform, abi.PLATFORM_BITS),
        "signing_key": report.signing_key,
        "author_key": report.author_key,
        "chip_id": "masked" if report.masked_chip else report.chip_id.hex(),
        "measurement": report.measurement.hex(),
        "report_data": report.report_data.hex(),
        "host_data": report.host_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "firmware": {"current": str(report.current), "committed": str(report.committed)},
        "trailing_bytes": report.trailing,
    }
    if report.version >= 3:
        family, model, stepping = report.cpuid
        found["cpuid"] = f"family 0x{family:02x} model 0x{model:02x} stepping {stepping}"
    if report.version >= 5:
        found["mitigations"] = {
            "launch": f"0x{report.launch_mitigations:016x}",
            "current": f"0x{report.current_mitigations:016x}",
        }
    if key is not None:
        found["product"] = key.product
        found["tcb"] = {name: _tcb(verified, raw) for name, raw in _tcbs(report).items()}
        found["endorsement_key"] = {
            "kind": key.kind,
            "product_name": key.product_name,
            **({"csp": key.csp} if key.csp else {}),
        }
    elif report.product:
        found["product"] = report.product
        found["tcb"] = {
            name: dict(abi.parse_tcb(raw, report.product).to_json(report.product))
            for name, raw in _tcbs(report).items()
        }
    else:
        found["tcb"] = {name: raw.hex() for name, raw in _tcbs(report).items()}
    if verified.chain:
        found["chain"] = [f"{certificate.name} {certificate.digest}" for certificate in verified.chain]
    return found


def _tcb(verified: Verified, raw: bytes) -> jcs.Json:
    return dict(verified.tcb(raw).to_json(verified.product))


def _bits(value: int, names: Mapping[int, str]) -> list[jcs.Json]:
    return [name for bit, name in names.items() if value >> bit & 1]
