# SPDX-License-Identifier: Apache-2.0
"""CC event logs (CCEL): replay to RTMR0–3 and appraisal event by event, in words.

UEFI 2.11, section 38 (Confidential Computing); TDX maps log index 1 to RTMR0 and so on, index 0 is MRTD and never
extended. The log itself is not protected: only digests count, and an event's data only where its digest covers it.
On GCP's TDX machines (a3-highgpu-1g) RTMR0 holds the firmware's configuration, RTMR1 the programs that it starts
(the UKI, then the kernel inside of it), RTMR2 the sections that the UKI's stub measures, RTMR3 what the guest adds.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cube_attestation.errors import BadInput
from cube_attestation.tpm import eventlog
from cube_attestation.tpm.eventlog import Event, EventLog
from cube_attestation.verdict import Reason

from .abi import TdReport

MEDIA_TYPE = "application/vnd.cube.ccel"
MAX_BYTES = 1 << 20
MAX_EVENTS = 4096
REGISTERS = 4


@dataclass(frozen=True)
class EventRule:
    """Digests (SHA-384) that events of this register, TCG type and label may have. ``required``: one must occur.

    Programs are labelled by their order: ``program 1`` is the first that the firmware starts.
    """

    rtmr: int
    type: str
    label: str
    digests: tuple[bytes, ...]
    required: bool = True


class Finding(NamedTuple):
    """One extended event of a register: ``state`` is content (its data says it all), allowed or refused."""

    rtmr: int
    type: str
    label: str
    digest: bytes
    state: str
    words: str


def parse(data: bytes) -> EventLog:
    """Read a CCEL data area: crypto-agile format, SHA-384, indexes 0 to 4. Raises BadInput.

    The area is pre-allocated: 0xff (or zeros) after the last event end the log.
    """
    where = "CCEL"
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 20} MiB", where=where)
    log = eventlog.parse_tcg(_used(data))
    if "sha384" not in log.banks:
        raise BadInput("has no SHA-384 digests", where=where, todo="pass the CC event log, not the TPM's")
    if len(log.events) > MAX_EVENTS:
        raise BadInput(f"more than {MAX_EVENTS} events", where=where)
    for event in log.events:
        if event.extends and not 1 <= event.pcr <= REGISTERS:
            raise BadInput(f"an event for index {event.pcr}; TDX extends 1 to 4 (RTMR0 to RTMR3)", where=where)
        if event.extends and "sha384" not in event.digests:
            raise BadInput(f"an event for RTMR{event.pcr - 1} without a SHA-384 digest", where=where)
    return log


def _used(data: bytes) -> bytes:
    """What of the area is log: zeros where an event would start, up to the end, are padding. Raises BadInput.

    A walk over the headers alone; whatever it can't follow is left to the parser, which says what is wrong.
    """
    if len(data) < 32:
        return data
    (size,) = struct.unpack_from("<I", data, 28)
    at, count = 32 + size, 1
    while at + 16 <= len(data) and data[at : at + 16] != bytes(16):
        count += 1
        if count > MAX_EVENTS:
            raise BadInput(f"more than {MAX_EVENTS} events", where="CCEL")
        (digests,) = struct.unpack_from("<I", data, at + 8)
        end = at + 12 + 50 * digests  # each an algorithm and 48 bytes: a CCEL has SHA-384 only
        if digests > 1 or end + 4 > len(data):
            return data
        (size,) = struct.unpack_from("<I", data, end)
        at = end + 4 + size
    return data[:at] if at < len(data) and not any(data[at:]) else data


def of_register(log: EventLog, rtmr: int) -> tuple[Event, ...]:
    """The events that extend RTMR ``rtmr`` (0 to 3), in order."""
    return tuple(event for event in log.events if event.extends and event.pcr == rtmr + 1)


def replay(log: EventLog) -> tuple[bytes, bytes, bytes, bytes]:
    """The values of RTMR0 to RTMR3 that the log leads to: SHA-384 extends from zeros."""
    values = [bytes(48)] * REGISTERS
    for event in log.events:
        if event.extends:
            values[event.pcr - 1] = hashlib.sha384(values[event.pcr - 1] + event.digests["sha384"]).digest()
    return values[0], values[1], values[2], values[3]


def check(log: EventLog, report: TdReport) -> tuple[Reason, ...]:
    """Why the log is not the one of ``report``; empty when every register that it touches replays.

    RTMR3 is the guest's own: firmware's log need not know about it, so without events there it is not compared.
    """
    found: list[Reason] = []
    for rtmr, (logged, quoted) in enumerate(zip(replay(log), report.rtmrs, strict=True)):
        if logged == quoted or (rtmr == 3 and not of_register(log, 3)):
            continue
        words = f"the event log leads to RTMR{rtmr} {logged.hex()[:16]}…, the quote says {quoted.hex()[:16]}…"
        found.append(Reason("tdx.eventlog.replay_mismatch", words))
    return tuple(found)


def label(event: Event) -> str:
    """What was measured, as short as rules name it (variable, UKI section, text), from unprotected data."""
    if event.type.startswith("EV_EFI_VARIABLE"):
        parts = _variable(event.data)
        return parts[0] if parts else "EFI variable"
    if event.type in ("EV_EFI_HANDOFF_TABLES2", "EV_EFI_PLATFORM_FIRMWARE_BLOB2"):
        size = event.data[0] if event.data else 0
        return _text(event.data[1 : 1 + size])
    if event.type in ("EV_EFI_GPT_EVENT", "EV_EFI_GPT_EVENT2"):
        return "GPT"
    if event.type == "EV_SEPARATOR" or event.type in _PROGRAMS:
        return event.type
    return _text(event.data) or event.type


_PROGRAMS = (
    "EV_EFI_BOOT_SERVICES_APPLICATION",
    "EV_EFI_BOOT_SERVICES_DRIVER",
    "EV_EFI_RUNTIME_SERVICES_DRIVER",
)
_ACTIONS = (
    "Calling EFI Application from Boot Option",
    "Returning from EFI Application from Boot Option",
    "Exit Boot Services Invocation",
    "Exit Boot Services Returned with Success",
)
_SECURE_BOOT_VARIABLES = ("PK", "KEK", "db", "dbx", "dbt", "dbr")


def programs(log: EventLog) -> tuple[bytes, ...]:
    """Authenticode digests (SHA-384) of the programs that RTMR1 holds, in order: the UKI, then its kernel."""
    return tuple(event.digests["sha384"] for event in of_register(log, 1) if event.type in _PROGRAMS)


def sections(log: EventLog) -> dict[str, bytes]:
    """Section name → SHA-384 of its content as the UKI's stub measured it into RTMR2.

    The stub extends twice for each: the name with its NUL, then the content. Events that are not such a pair are
    left out; use ``appraise`` to decide about them.
    """
    found: dict[str, bytes] = {}
    events = [event for event in of_register(log, 2) if event.type == "EV_IPL"]
    for name, content in zip(events[::2], events[1::2], strict=False):
        text = label(name)
        if text == label(content) and name.digests["sha384"] == hashlib.sha384(text.encode() + b"\0").digest():
            found.setdefault(text, content.digests["sha384"])
    return found


def appraise(
    log: EventLog, rtmr: int, rules: Iterable[EventRule], *, secure_boot: bool | None = None
) -> tuple[tuple[Finding, ...], tuple[Reason, ...]]:
    """Judge every event of RTMR ``rtmr``: one that neither a rule allows nor its own content settles is refused.

    ``secure_boot``: what the SecureBoot variable must say; None: either, and then the key databases don't matter,
    because nothing relies on them (programs are pinned by digest in RTMR1).
    """
    rules = [rule for rule in rules if rule.rtmr == rtmr]
    findings: list[Finding] = []
    reasons: list[Reason] = []
    used: set[int] = set()
    started = 0
    for i, event in enumerate(of_register(log, rtmr)):
        name, digest = label(event), event.digests["sha384"]
        if event.type in _PROGRAMS:
            started += 1
            name = f"program {started}"
        matching = [n for n, rule in enumerate(rules) if (rule.type, rule.label) == (event.type, name)]
        allowing = [n for n in matching if digest in rules[n].digests]
        used.update(allowing)
        if allowing:
            state, words = "allowed", f"{name}: a digest that the policy names"
        elif matching:
            state, words = "refused", f"{name}: {digest.hex()[:16]}… is none of the digests that the policy names"
        else:
            state, words = _by_content(event, name, secure_boot)
        findings.append(Finding(rtmr, event.type, name, digest, state, words))
        if state == "refused":
            reasons.append(Reason("tdx.event.not_allowed", f"RTMR{rtmr} event {i} ({event.type}): {words}"))
    for n, rule in enumerate(rules):
        if rule.required and n not in used:
            reasons.append(Reason("tdx.event.missing", f"RTMR{rtmr} has no allowed {rule.type} for {rule.label}"))
    if rtmr == 0 and secure_boot and not any(f.label == "SecureBoot" and f.state != "refused" for f in findings):
        reasons.append(Reason("tdx.event.missing", "RTMR0 does not show that secure boot is on"))
    return tuple(findings), tuple(reasons)


def rules_for_uki(uki: bytes, kernel: bytes, contents: Mapping[str, bytes]) -> tuple[EventRule, ...]:
    """Predicted rules of RTMR1 and RTMR2 for a machine that boots one UKI.

    ``uki`` and ``kernel`` are Authenticode digests of the UKI and of its .linux section, ``contents`` the digests
    of the sections that its stub measures (.linux, .osrel, .cmdline, .initrd …); all SHA-384.
    """
    program = "EV_EFI_BOOT_SERVICES_APPLICATION"
    rules = [EventRule(1, program, f"program {i + 1}", (digest,)) for i, digest in enumerate((uki, kernel))]
    for name, digest in contents.items():
        rules.append(EventRule(2, "EV_IPL", name, (hashlib.sha384(name.encode() + b"\0").digest(), digest)))
    return tuple(rules)


def record(log: EventLog, rtmr: int) -> tuple[EventRule, ...]:
    """Rules that allow what this very boot measured into RTMR ``rtmr`` and that its own content does not settle.

    For firmware values that nobody can predict (TD HOB, ACPI tables). Recorded is not predicted: keep it apart.
    """
    found: dict[tuple[str, str], list[bytes]] = {}
    for finding in appraise(log, rtmr, ())[0]:
        if finding.state == "refused":
            digests = found.setdefault((finding.type, finding.label), [])
            if finding.digest not in digests:
                digests.append(finding.digest)
    return tuple(EventRule(rtmr, kind, name, tuple(digests)) for (kind, name), digests in found.items())


def _by_content(event: Event, name: str, secure_boot: bool | None) -> tuple[str, str]:
    """Events whose digest covers data that is in the log and that decides nothing beyond what it says."""
    digest = event.digests["sha384"]
    covered = digest == hashlib.sha384(event.data).digest()
    if event.type == "EV_SEPARATOR":
        if covered and event.data in (bytes(4), b"\xff\xff\xff\xff"):
            return "content", "end of a phase of the firmware"
        return "refused", "a separator that reports an error or is not what its digest says"
    if event.type == "EV_EFI_ACTION" and covered and name in _ACTIONS:
        return "content", name
    if event.type in ("EV_EFI_GPT_EVENT", "EV_EFI_GPT_EVENT2") and covered:
        return "content", "partition table; what starts from it is measured by itself"
    if event.type in ("EV_EFI_VARIABLE_BOOT", "EV_EFI_VARIABLE_BOOT2"):
        parts = _variable(event.data)
        boot = name == "BootOrder" or (len(name) == 8 and name.startswith("Boot"))
        # EDK2 measures the variable's value alone under the older type
        if parts and boot and (covered or digest == hashlib.sha384(parts[1]).digest()):
            return "content", f"{name}: where the firmware looks for programs; what starts is measured by itself"
    if event.type == "EV_EFI_VARIABLE_AUTHORITY" and covered and not secure_boot:
        return "content", f"{name}: whose signature secure boot took, which nothing relies on"
    if event.type == "EV_EFI_VARIABLE_DRIVER_CONFIG" and covered and (parts := _variable(event.data)):
        if name == "SecureBoot":
            on = parts[1] == b"\x01"
            words = f"secure boot is {'on' if on else 'off'}"
            if secure_boot is not None and on != secure_boot:
                return "refused", f"{words}, the policy wants it {'on' if secure_boot else 'off'}"
            return "content", words
        if name in _SECURE_BOOT_VARIABLES and not secure_boot:
            return "content", f"{name}: {len(parts[1])} bytes of secure boot keys, which nothing relies on"
    return "refused", f"{name}: {digest.hex()[:16]}…, and no rule of the policy names it"


def _variable(data: bytes) -> tuple[str, bytes] | None:
    """UEFI_VARIABLE_DATA: name and value, or None when it is not exactly one."""
    if len(data) < 32:
        return None
    name_length, size = struct.unpack_from("<QQ", data, 16)
    if name_length > 256 or len(data) != 32 + 2 * name_length + size:
        return None
    name = data[32 : 32 + 2 * name_length].decode("utf-16-le", "replace")
    return (name if name.isprintable() else "EFI variable"), data[32 + 2 * name_length :]


def _text(data: bytes) -> str:
    """Text of an event, ASCII or UTF-16, without its NULs; empty when it is none."""
    wide = len(data) >= 2 and data[1] == 0
    text = data[:512].decode("utf-16-le" if wide else "utf-8", "replace").rstrip("\0")
    return text[:80] if text.isprintable() else ""


def endorsement_addresses(log: EventLog) -> tuple[str, ...]:
    """Where the firmware says that its signed endorsement is published (SP800-155 events; a hint, nothing more)."""
    found: list[str] = []
    for event in log.events:
        if event.data.startswith(b"SP800-155 Event3"):
            at = event.data.find(b"https://")
            text = event.data[at:].partition(b"\0")[0].decode("ascii", "replace") if at >= 0 else ""
            if text and text.isprintable() and len(text) < 512:
                found.append(text)
    return tuple(found)
