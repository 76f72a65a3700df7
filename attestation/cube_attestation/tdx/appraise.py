# SPDX-License-Identifier: Apache-2.0
"""Is an authentic quote acceptable? A rule for every field of the TD report, for TCB, collateral and platform.

Field meanings: Intel TDX Module ABI (TD attributes, XFAM); TCB statuses: Intel PCS API v4.
"""

from __future__ import annotations

from collections.abc import Collection

from cube_attestation import jcs, times
from cube_attestation.tpm.eventlog import EventLog
from cube_attestation.verdict import Comparison, ItemVerdict, Reason

from . import abi, ccel, endorsement
from .policy import DEBUG, NEVER, PLATFORM_FLAGS, SEPT_VE_DISABLE, TdxPolicy
from .tcb import NOT_SUPPORTED
from .verify import Verification

ATTRIBUTES = {
    0: "DEBUG",
    27: "LASS",
    28: "SEPT_VE_DISABLE",
    29: "MIGRATABLE",
    30: "PKS",
    31: "KL",
    62: "TPA",
    63: "PERFMON",
}
STATUS_CODES = {
    "SWHardeningNeeded": "tdx.tcb.sw_hardening_needed",
    "ConfigurationNeeded": "tdx.tcb.configuration_needed",
    "ConfigurationAndSWHardeningNeeded": "tdx.tcb.configuration_and_sw_hardening_needed",
    "OutOfDate": "tdx.tcb.out_of_date",
    "OutOfDateConfigurationNeeded": "tdx.tcb.out_of_date_configuration_needed",
    "Revoked": "tdx.tcb.revoked",
    NOT_SUPPORTED: "tdx.tcb.not_supported",
}
FIRMWARE_ASSUMPTION = "gcp.firmware_by_endorsement"
MEASUREMENTS = ("mr_td", "mr_seam", "mr_config_id", "mr_owner", "mr_owner_config")


def appraise(
    found: Verification,
    policy: TdxPolicy,
    *,
    report_data: bytes | None = None,
    log: EventLog | None = None,
    endorsed: endorsement.Endorsement | None = None,
    item: str = "tdx-quote",
) -> ItemVerdict:
    """Judge what ``verify`` found. ``report_data``: the 64 bytes that the quote must carry; None: not compared.

    ``log``: the parsed CCEL; one that does not replay to the quote's RTMRs is not authentic. ``endorsed``: a launch
    endorsement, looked at only if the policy names roots for it. Never raises for a well-formed quote.
    """
    report = found.quote.body
    if not isinstance(report, abi.TdReport):
        reason = Reason("tdx.quote.not_tdx", "this quote is of an SGX enclave, not of a TD")
        return ItemVerdict(item, found.forged, (reason,), (), platform_facts(found))
    judge = _Judge(found, policy, report)
    judge.firmware(endorsed)
    judge.identity()
    judge.attributes()
    judge.registers(log)
    judge.tcb()
    judge.collateral()
    judge.platform()
    if report_data is not None:
        judge.report_data(report_data)
    forged = found.forged + tuple(judge.forged) + (ccel.check(log, report) if log else ())
    facts = {**platform_facts(found), **report_facts(report), **judge.facts}
    return ItemVerdict(item, forged, tuple(judge.refused), tuple(judge.compared), facts)


class _Judge:
    def __init__(self, found: Verification, policy: TdxPolicy, report: abi.TdReport) -> None:
        self.found, self.policy, self.report = found, policy, report
        self.forged: list[Reason] = []
        self.refused: list[Reason] = []
        self.compared: list[Comparison] = []
        self.facts: dict[str, jcs.Json] = {}

    def refuse(self, code: str, words: str) -> None:
        self.refused.append(Reason(code, words))

    def one_of(self, what: str, code: str, value: bytes, allowed: Collection[bytes]) -> None:
        expected = value if value in allowed else next(iter(allowed), b"")
        self.compared.append(Comparison(what, expected.hex() or "nothing is allowed", value.hex()))
        if value not in allowed:
            self.refuse(code, f"{what} {value.hex()[:16]}… is none of the {len(allowed)} allowed values")

    def firmware(self, endorsed: endorsement.Endorsement | None) -> None:
        """MRTD: among the policy's values, or in an endorsement under one of the policy's roots."""
        policy, value = self.policy, self.report.mr_td
        if policy.mr_td is None and not policy.endorsement_roots:
            return
        named = endorsed.endorses(value) if endorsed and policy.endorsement_roots else None
        if value in (policy.mr_td or ()) or endorsed is None or named is None:
            self.one_of("MRTD", "tdx.mrtd.not_allowed", value, policy.mr_td or ())
            return
        if problem := endorsement.verify(endorsed, policy.endorsement_roots, self.found.now):
            self.forged.append(Reason(f"tdx.endorsement.{problem.why}", problem.words))
        if endorsed.svn < policy.min_firmware_svn:
            words = f"firmware SVN {endorsed.svn} is below {policy.min_firmware_svn}"
            self.refuse("tdx.endorsement.svn_too_low", words)
        self.compared.append(Comparison("MRTD", named.mr_td.hex(), value.hex()))
        self.facts |= {
            "assumptions": [FIRMWARE_ASSUMPTION],
            "firmware_sha384": endorsed.digest.hex(),
            "firmware_svn": endorsed.svn,
            "firmware_ram_gib": named.ram_gib,
        }

    def identity(self) -> None:
        for name in MEASUREMENTS[1:]:
            allowed = getattr(self.policy, name)
            if allowed is not None:
                short = name.replace("_", "")
                self.one_of(short.upper(), f"tdx.{short}.not_allowed", getattr(self.report, name), allowed)
        service = self.report.mr_service_td
        if service is not None and self.policy.mr_service_td is not None:
            self.one_of("MRSERVICETD", "tdx.mrservicetd.not_allowed", service, self.policy.mr_service_td)

    def attributes(self) -> None:
        mask, policy = self.report.attributes, self.policy
        if mask & DEBUG:
            self.refuse("tdx.attributes.debug", "the TD is debuggable: its host reads and writes its memory")
        if policy.attributes_required & SEPT_VE_DISABLE and not mask & SEPT_VE_DISABLE:
            self.refuse(
                "tdx.attributes.sept_ve_disable",
                "SEPT_VE_DISABLE is off: the host can raise exceptions in the guest",
            )
        if missing := policy.attributes_required & ~mask & ~SEPT_VE_DISABLE:
            self.refuse("tdx.attributes.not_allowed", f"TD attributes lack {_bits(missing, ATTRIBUTES)}")
        if extra := mask & ~policy.attributes_allowed & ~policy.attributes_required & ~DEBUG:
            self.refuse("tdx.attributes.not_allowed", f"TD attributes have {_bits(extra, ATTRIBUTES)}")
        xfam = self.report.xfam
        if missing := policy.xfam_required & ~xfam:
            self.refuse("tdx.xfam.not_allowed", f"XFAM 0x{xfam:x} lacks {_bits(missing, {})}")
        if extra := xfam & ~policy.xfam_allowed & ~policy.xfam_required:
            self.refuse("tdx.xfam.not_allowed", f"XFAM 0x{xfam:x} has {_bits(extra, {})}")
        svn = self.report.tee_tcb_svn
        if any(have < need for have, need in zip(svn, policy.min_tee_tcb_svn, strict=True)):
            lowest = policy.min_tee_tcb_svn.hex()
            self.refuse("tdx.tee_tcb_svn.too_low", f"TEE_TCB_SVN {svn.hex()} is below {lowest}")

    def registers(self, log: EventLog | None) -> None:
        replayed = ccel.replay(log) if log else None
        for i, (value, allowed) in enumerate(zip(self.report.rtmrs, self.policy.rtmrs, strict=True)):
            if allowed is not None:
                self.one_of(f"RTMR{i}", "tdx.rtmr.mismatch", value, allowed)
            decide = allowed is None and self.policy.explain_rtmrs
            explained = log is not None and replayed is not None and replayed[i] == value
            if log is not None and explained:
                self.events(log, i, decide=decide)
                explained = bool(ccel.of_register(log, i))
            # nothing measured says nothing about what runs; only RTMR3 is the guest's to leave alone
            if decide and not explained and (i < 3 or any(value)):
                words = f"RTMR{i} is neither pinned by the policy nor explained by an event log"
                self.refuse("tdx.rtmr.unexplained", words)

    def events(self, log: EventLog, rtmr: int, *, decide: bool) -> None:
        policy = self.policy
        findings, reasons = ccel.appraise(log, rtmr, policy.events, secure_boot=policy.secure_boot)
        if decide:
            self.refused += reasons
        self.facts[f"rtmr{rtmr}_events"] = [
            {"type": f.type, "label": f.label, "sha384": f.digest.hex(), "state": f.state, "words": f.words}
            for f in findings
        ]

    def tcb(self) -> None:
        tcb = self.found.tcb
        if tcb is None and {"tdx.tcb_info", "tdx.qe_identity"} & set(self.policy.allow_missing):
            return
        if tcb is None:
            self.refuse("tdx.tcb.unknown", "the TCB status can't be told without a platform and its collateral")
            return
        self.compared.append(
            Comparison(
                "TCB status",
                tcb.status if tcb.status in self.policy.tcb_statuses else " or ".join(self.policy.tcb_statuses),
                tcb.status,
            )
        )
        if tcb.status in NEVER or tcb.status not in self.policy.tcb_statuses:
            since = f", as of {times.format_time(tcb.date)}" if tcb.date else ""
            parts = f"platform {tcb.platform}, TDX module {tcb.module}, quoting enclave {tcb.enclave}"
            open_ones = f"; {', '.join(tcb.advisories)}" if tcb.advisories else ""
            code = STATUS_CODES.get(tcb.status, "tdx.tcb.unknown")
            self.refuse(code, f"TCB {tcb.status}{since} ({parts}{open_ones})")
        else:
            for advisory in tcb.advisories:
                if advisory not in self.policy.advisories:
                    self.refuse("tdx.tcb.advisory_not_accepted", f"{advisory} is open on this platform")

    def collateral(self) -> None:
        found, lowest = self.found, self.policy.min_evaluation_number
        for words, document in (("TCB info", found.tcb_info), ("QE identity", found.qe_identity)):
            if document is not None and document.evaluation_number < lowest:
                number = document.evaluation_number
                words = f"the {words} is of TCB recovery {number}, the policy wants {lowest} or later"
                self.refuse("collateral.evaluation_number_too_low", words)
        limit = self.policy.max_collateral_age_s
        if limit is not None and found.oldest is not None:
            age = int((found.now - found.oldest).total_seconds())
            if age > limit:
                self.refuse("collateral.too_old", f"collateral is {age} s old, the policy allows {limit} s")

    def platform(self) -> None:
        pck, policy = self.found.pck, self.policy
        if pck is None:
            return
        if policy.fmspcs is not None and pck.fmspc not in policy.fmspcs:
            self.refuse("tdx.platform.not_allowed", f"FMSPC {pck.fmspc.hex()} is none of those allowed")
        if policy.ppids is not None and pck.ppid not in policy.ppids:
            self.refuse("tdx.platform.not_allowed", f"platform {pck.ppid.hex()} is none of those allowed")
        for name in policy.refuse_platforms:
            if getattr(pck, name) is not False:
                said = "says" if getattr(pck, name) else "does not deny"
                self.refuse("tdx.platform.flag_refused", f"Intel's certificate {said} {name}")

    def report_data(self, expected: bytes) -> None:
        value = self.report.report_data
        self.compared.append(Comparison("REPORTDATA", expected.hex(), value.hex()))
        if value != expected:
            words = f"REPORTDATA {value.hex()[:16]}… is not {expected.hex()[:16]}…"
            self.refuse("tdx.report_data.mismatch", words)


def _bits(mask: int, names: dict[int, str]) -> str:
    return ", ".join(names.get(i, f"bit {i}") for i in range(mask.bit_length()) if mask >> i & 1)


def platform_facts(found: Verification) -> dict[str, jcs.Json]:
    """What quote, PCK certificate and collateral say about the platform, as far as they are there."""
    quote = found.quote
    facts: dict[str, jcs.Json] = {
        "quote_version": quote.version,
        "tee": "tdx" if quote.tee == abi.TEE_TDX else "sgx",
        "trailing_bytes": len(quote.trailing),
        "qe_isv_svn": quote.qe_report.isv_svn,
    }
    if found.pck is not None:
        pck = found.pck
        facts |= {
            "fmspc": pck.fmspc.hex(),
            "ppid": pck.ppid.hex(),
            "pce_id": pck.pce_id.hex(),
            "pce_svn": pck.pce_svn,
            "cpu_svn": pck.cpu_svn.hex(),
            **{name: getattr(pck, name) for name in PLATFORM_FLAGS},
        }
    if found.tcb is not None:
        tcb = found.tcb
        facts |= {
            "tcb_status": tcb.status,
            "tcb_platform": tcb.platform,
            "tcb_module": tcb.module,
            "tcb_enclave": tcb.enclave,
            "tcb_date": times.format_time(tcb.date) if tcb.date else None,
            "advisories": list(tcb.advisories),
        }
    if found.tcb_info is not None:
        facts["tcb_evaluation_number"] = found.tcb_info.evaluation_number
    if found.oldest is not None and found.next_update is not None:
        facts |= {
            "collateral_oldest": times.format_time(found.oldest),
            "collateral_next_update": times.format_time(found.next_update),
        }
    return facts


def report_facts(report: abi.TdReport) -> dict[str, jcs.Json]:
    """Every field of a TD report, masks with their names."""
    facts: dict[str, jcs.Json] = {
        "tee_tcb_svn": report.tee_tcb_svn.hex(),
        "mr_seam": report.mr_seam.hex(),
        "mr_signer_seam": report.mr_signer_seam.hex(),
        "seam_attributes": f"{report.seam_attributes:016x}",
        "attributes": f"{report.attributes:016x}",
        "attributes_words": _bits(report.attributes, ATTRIBUTES),
        "xfam": f"{report.xfam:016x}",
        **{name: getattr(report, name).hex() for name in MEASUREMENTS if name != "mr_seam"},
        **{f"rtmr{i}": value.hex() for i, value in enumerate(report.rtmrs)},
        "report_data": report.report_data.hex(),
    }
    if report.tee_tcb_svn2 is not None and report.mr_service_td is not None:
        facts |= {"tee_tcb_svn2": report.tee_tcb_svn2.hex(), "mr_service_td": report.mr_service_td.hex()}
    return facts
