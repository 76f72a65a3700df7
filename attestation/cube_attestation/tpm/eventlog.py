# SPDX-License-Identifier: Apache-2.0
"""Measured-boot logs: TCG PC Client (both formats) and systemd's userspace log; replay; events in words.

TCG PC Client Platform Firmware Profile, section 10 (event logging); systemd's TPM2_PCR_MEASUREMENTS. Event *data*
is not protected by anything, only digests are, through the PCRs: words made from data help people, decide nothing.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cube_attestation import jcs
from cube_attestation.errors import BadInput
from cube_attestation.fields import Fields

from .abi import HASHES

TCG_MEDIA_TYPE = "application/vnd.cube.tcg-eventlog"
SYSTEMD_MEDIA_TYPE = "application/vnd.cube.systemd-eventlog"
MAX_BYTES = 4 << 20
MAX_EVENTS = 20_000
MAX_RECORDS = 4096  # of systemd: a boot writes some dozens
PCRS = 24

EV_NO_ACTION, EV_SEPARATOR = 0x3, 0x4
EV_EFI_VARIABLES = (0x80000001, 0x80000002, 0x8000000C, 0x800000E0)
EV_EFI_APPLICATIONS = (0x80000003, 0x80000004, 0x80000005)
TYPES = {
    0x0: "EV_PREBOOT_CERT",
    0x1: "EV_POST_CODE",
    0x3: "EV_NO_ACTION",
    0x4: "EV_SEPARATOR",
    0x5: "EV_ACTION",
    0x6: "EV_EVENT_TAG",
    0x7: "EV_S_CRTM_CONTENTS",
    0x8: "EV_S_CRTM_VERSION",
    0x9: "EV_CPU_MICROCODE",
    0xA: "EV_PLATFORM_CONFIG_FLAGS",
    0xB: "EV_TABLE_OF_DEVICES",
    0xC: "EV_COMPACT_HASH",
    0xD: "EV_IPL",
    0xE: "EV_IPL_PARTITION_DATA",
    0xF: "EV_NONHOST_CODE",
    0x10: "EV_NONHOST_CONFIG",
    0x11: "EV_NONHOST_INFO",
    0x12: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x13: "EV_POST_CODE2",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x8000000D: "EV_EFI_GPT_EVENT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}

_SPEC_ID = b"Spec ID Event03\0"
_LOCALITY = b"StartupLocality\0"
_SECTION = re.compile(r"\.[a-z]{1,12}")


class Event(NamedTuple):
    """One measurement. ``type`` is the TCG name, ``EV_0x…`` for an unknown one, or ``systemd.<type>``."""

    pcr: int
    type: str
    digests: Mapping[str, bytes]
    data: bytes

    @property
    def extends(self) -> bool:
        """False for EV_NO_ACTION, which is only information."""
        return self.type != "EV_NO_ACTION"

    def words(self) -> str:
        """What was measured, for people, from the (unprotected) event data; at most about 120 characters."""
        return _words(self)


class EventLog(NamedTuple):
    """A parsed log: which banks it has digests for, and its events in order."""

    banks: tuple[str, ...]
    events: tuple[Event, ...]


def parse_tcg(data: bytes) -> EventLog:
    """Read ``binary_bios_measurements`` in the SHA-1 or the crypto-agile format. Raises BadInput.

    Padding of 0xff after the last event (CCEL tables, pre-allocated logs) ends the log; all else must be events.
    """
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 20} MiB", where="TCG event log")
    first, at = _sha1_event(data, 0)
    if first.extends or not first.data.startswith(_SPEC_ID):
        events: list[Event] = []
        at = 0
        while not _ended(data, at):
            event, at = _sha1_event(data, at)
            _append(events, event)
        return EventLog(("sha1",), tuple(events))
    sizes, beyond = _spec_id(first.data)
    at += beyond
    events = [first]
    while not _ended(data, at):
        event, at = _agile_event(data, at, sizes)
        _append(events, event)
    return EventLog(tuple(HASHES[alg] for alg in sizes if alg in HASHES), tuple(events))


def _append(events: list[Event], event: Event) -> None:
    if len(events) >= MAX_EVENTS:
        raise BadInput(f"more than {MAX_EVENTS} events", where="TCG event log")
    events.append(event)


def _ended(data: bytes, at: int) -> bool:
    if at == len(data):
        return True
    if data[at : at + 4] == b"\xff\xff\xff\xff":
        if data.count(b"\xff", at) != len(data) - at:
            raise BadInput(f"bytes other than 0xff in the padding after offset {at}", where="TCG event log")
        return True
    return False


def _unpack(layout: str, data: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, data, at)
    except struct.error as error:
        raise BadInput(f"ends in the middle of the event at offset {at}", where="TCG event log") from error


def _cut(data: bytes, at: int, size: int) -> bytes:
    if size > len(data) - at:
        raise BadInput(f"ends in the middle of a field at offset {at}", where="TCG event log")
    return data[at : at + size]


def _sha1_event(data: bytes, at: int) -> tuple[Event, int]:
    pcr, kind = _unpack("<II", data, at)
    digest = _cut(data, at + 8, 20)
    (size,) = _unpack("<I", data, at + 28)
    body = _cut(data, at + 32, size)
    return Event(_pcr(pcr, at), _type(kind), {"sha1": digest}, body), at + 32 + size


def _agile_event(data: bytes, at: int, sizes: Mapping[int, int]) -> tuple[Event, int]:
    start = at
    pcr, kind, count = _unpack("<III", data, at)
    at += 12
    if count > len(sizes):
        raise BadInput(f"{count} digests at offset {start}, {len(sizes)} banks", where="TCG event log")
    digests: dict[str, bytes] = {}
    seen: set[int] = set()
    for _ in range(count):
        (alg,) = _unpack("<H", data, at)
        if alg not in sizes or alg in seen:
            raise BadInput(f"algorithm 0x{alg:04x} is undeclared or twice at offset {at}", where="TCG event log")
        seen.add(alg)
        digest = _cut(data, at + 2, sizes[alg])
        at += 2 + sizes[alg]
        if alg in HASHES:
            digests[HASHES[alg]] = digest
    (size,) = _unpack("<I", data, at)
    body = _cut(data, at + 4, size)
    return Event(_pcr(pcr, start), _type(kind), digests, body), at + 4 + size


def _spec_id(data: bytes) -> tuple[dict[int, int], int]:
    """TCG_EfiSpecIDEvent (10.4.5.1): algorithm id → digest size, and vendor bytes that the event size leaves out.

    Some firmware does not count its vendor information in the event's size; it then follows the event.
    """
    (count,) = _unpack("<I", data, 24)
    if not 1 <= count <= 8:
        raise BadInput(f"{count} banks in the Spec ID event", where="TCG event log")
    sizes: dict[int, int] = {}
    for i in range(count):
        alg, size = _unpack("<HH", data, 28 + 4 * i)
        known = HASHES.get(alg)
        if alg in sizes or not 0 < size <= 64 or (known and hashlib.new(known).digest_size != size):
            raise BadInput(f"bank 0x{alg:04x} with {size} bytes in the Spec ID event", where="TCG event log")
        sizes[alg] = size
    end = 28 + 4 * count
    (vendor,) = _unpack("<B", data, end)
    if len(data) not in (end + 1, end + 1 + vendor):
        raise BadInput(f"a Spec ID event of {len(data)} bytes", where="TCG event log")
    return sizes, end + 1 + vendor - len(data)


def _pcr(pcr: int, at: int) -> int:
    if pcr >= PCRS:
        raise BadInput(f"PCR {pcr} at offset {at}", where="TCG event log")
    return pcr


def _type(kind: int) -> str:
    return TYPES.get(kind, f"EV_0x{kind:08X}")


def parse_systemd(data: bytes) -> EventLog:
    """Read ``/run/log/systemd/tpm2-measure.log``: JSON text sequences (RFC 7464). Raises BadInput."""
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 20} MiB", where="systemd event log")
    if not data:
        return EventLog((), ())
    if not data.startswith(b"\x1e"):
        raise BadInput("does not start with a record separator", where="systemd event log")
    records = data.split(b"\x1e")[1:]
    if len(records) > MAX_RECORDS:
        raise BadInput(f"more than {MAX_RECORDS} events", where="systemd event log")
    events = tuple(_record(record, f"systemd event log, record {i}") for i, record in enumerate(records))
    banks = [set(event.digests) for event in events]
    return EventLog(tuple(sorted(set.intersection(*banks))) if banks else (), events)


def _record(record: bytes, where: str) -> Event:
    value = jcs.loads(record, where=where)
    fields = Fields(value, where)  # systemd may add members, so unknown ones are not an error here
    digests: dict[str, bytes] = {}
    for i, entry in enumerate(fields.array("digests", 8)):
        digest = Fields(entry, f"{where}.digests[{i}]")
        name = digest.text("hashAlg", limit=16)
        if name not in HASHES.values():
            continue
        size = hashlib.new(name).digest_size
        if name in digests:
            raise BadInput(f"{name} occurs twice", where=where)
        digests[name] = digest.hexadecimal("digest", size, size)
    kind = ""
    if fields.has("content") and isinstance(content := fields.raw("content"), dict):
        event_type = content.get("eventType")
        kind = event_type if isinstance(event_type, str) and len(event_type) < 40 else ""
    return Event(fields.integer("pcr", 0, PCRS - 1), f"systemd.{kind or 'event'}", digests, record.strip())


def initial(bank: str) -> dict[int, bytes]:
    """PCR values after a reset: zeros, and all ones for the dynamic ones 17 to 22 (PC Client PTP 4.6.2)."""
    size = hashlib.new(bank).digest_size
    return {pcr: (b"\xff" if 17 <= pcr <= 22 else b"\0") * size for pcr in range(PCRS)}


def extend(bank: str, value: bytes, digest: bytes) -> bytes:
    """TPM2_PCR_Extend: H(value ‖ digest)."""
    return hashlib.new(bank, value + digest).digest()


def replay(events: Iterable[Event], bank: str) -> dict[int, bytes]:
    """The PCR values that ``events`` lead to in ``bank``. Raises BadInput if one of them lacks that digest."""
    values = initial(bank)
    touched: set[int] = set()
    for event in events:
        if not event.extends:
            if event.pcr == 0 and event.data.startswith(_LOCALITY) and len(event.data) == 17 and 0 not in touched:
                values[0] = bytes(len(values[0]) - 1) + event.data[16:]  # locality 3 or 4 (9.4.5.3)
            continue
        touched.add(event.pcr)
        digest = event.digests.get(bank)
        if digest is None:
            raise BadInput(f"an event of PCR {event.pcr} has no {bank} digest", where="event log")
        values[event.pcr] = extend(bank, values[event.pcr], digest)
    return values


def _words(event: Event) -> str:
    if event.type.startswith("systemd."):
        value = jcs.loads(event.data)
        content = value.get("content") if isinstance(value, dict) else None
        text = content.get("string") if isinstance(content, dict) else None
        return f"systemd {event.type.partition('.')[2]} {_clean(text) if isinstance(text, str) else ''}".strip()
    if event.type == "EV_SEPARATOR":
        return "end of the firmware's own measurements"
    if event.type == "EV_NO_ACTION":
        return f"information: {_printable(event.data.partition(bytes(1))[0])}"
    if event.type.startswith("EV_EFI_VARIABLE"):
        return _variable(event.data)
    if event.type in ("EV_EFI_GPT_EVENT", "EV_EFI_GPT_EVENT2"):
        return "partition table"
    if event.type.startswith(("EV_EFI_BOOT_SERVICES", "EV_EFI_RUNTIME")):
        return "EFI program (Authenticode digest)"
    if event.type.startswith("EV_EFI_PLATFORM_FIRMWARE_BLOB"):
        return "firmware volume"
    # TCG_PCClientTaggedEvent (10.4.2.2): identifier, size, data; the kernel's EFI stub writes words there
    text = _printable(event.data[8:] if event.type == "EV_EVENT_TAG" else event.data)
    if event.type == "EV_IPL" and event.pcr in (11, 12, 13) and _SECTION.fullmatch(text):
        # systemd-stub measures each section's name (as ASCII), then its content; the data is the name both times
        named = event.digests.get("sha256") == hashlib.sha256(f"{text}\0".encode()).digest()
        return f"name of UKI section {text}" if named else f"UKI section {text}"
    return text or event.type


def _variable(data: bytes) -> str:
    """UEFI_VARIABLE_DATA (10.2.6): GUID, name length in characters, data length, name, data."""
    if len(data) < 32:
        return "EFI variable"
    name_length, data_length = struct.unpack_from("<QQ", data, 16)
    if name_length > 512:
        return "EFI variable"
    name = data[32 : 32 + 2 * name_length].decode("utf-16-le", "replace")
    return f"EFI variable {_clean(name)} ({data_length} bytes)"


def _printable(data: bytes) -> str:
    data = data[:512]  # words are short, event data need not be
    wide = len(data) >= 2 and data[1] == 0
    text = data.decode("utf-16-le" if wide else "utf-8", "replace").rstrip("\0")
    return _clean(text) if text.isprintable() else ""


def _clean(text: str) -> str:
    """Text from a machine, safe for a terminal and a line of a report."""
    kept = "".join(c if c.isprintable() else "?" for c in text)
    return kept if len(kept) <= 100 else kept[:99] + "…"
