# SPDX-License-Identifier: Apache-2.0
"""Event logs: real ones replay to their machines' PCRs, malformed ones are one clear error."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from cube_attestation.errors import BadInput
from cube_attestation.tpm import eventlog
from fakepki import Step, default_boot, replay, systemd_log, tcg_log
from hypothesis import given, settings
from hypothesis import strategies as st

LOGS = "tpm/google_go-tpm-tools/eventlogs"
FIXTURES = "tpm/tpm2-software_tpm2-tools/eventlogs"


def test_every_real_log_replays_to_its_machines_pcrs(vectors: Path) -> None:
    expected = json.loads((vectors / LOGS / "expected_pcrs.json").read_text())
    assert len(expected) == 14
    for name, banks in expected.items():
        log = eventlog.parse_tcg((vectors / LOGS / name).read_bytes())
        for bank, pcrs in banks.items():
            values = eventlog.replay(log.events, bank.lower())
            for pcr, value in pcrs.items():
                assert values[int(pcr)].hex() == value.lower(), f"{name}, {bank}, PCR {pcr}"


def test_other_real_logs_parse_and_every_event_has_words(vectors: Path) -> None:
    paths = sorted((vectors / FIXTURES).glob("*.bin"))
    assert len(paths) == 12
    for path in paths:
        log = eventlog.parse_tcg(path.read_bytes())
        assert log.events
        for event in log.events:
            assert event.words()
            assert event.words().isprintable()
            assert len(event.words()) < 160


def test_a_changed_digest_of_a_real_log_changes_a_pcr(vectors: Path) -> None:
    data = bytearray((vectors / LOGS / "ubuntu-2404-amd-sevsnp.bin").read_bytes())
    log = eventlog.parse_tcg(bytes(data))
    before = eventlog.replay(log.events, "sha256")
    event = next(e for e in log.events if e.extends and data.count(e.digests["sha256"]) == 1)
    data[data.index(event.digests["sha256"])] ^= 1
    after = eventlog.replay(eventlog.parse_tcg(bytes(data)).events, "sha256")
    assert before[event.pcr] != after[event.pcr]


def test_both_logs_of_a_boot_replay() -> None:
    steps = default_boot()
    tcg, systemd = eventlog.parse_tcg(tcg_log(steps)), eventlog.parse_systemd(systemd_log(steps))
    assert eventlog.replay((*tcg.events, *systemd.events), "sha256") == replay(steps)
    assert systemd.events[0].words() == "systemd phase sysinit"
    assert systemd.events[0].type == "systemd.phase"
    words = [event.words() for event in tcg.events]
    assert words[words.index("UKI section .cmdline") - 1] == "name of UKI section .cmdline"
    assert "Calling EFI Application from Boot Option" in words


def test_tagged_events_of_the_kernel_have_words() -> None:
    data = struct.pack("<II", 0x8F3B22EC, 13) + b"Linux initrd\0"
    assert eventlog.Event(9, "EV_EVENT_TAG", {}, data).words() == "Linux initrd"


def test_start_up_locality_seeds_pcr_0() -> None:
    event = eventlog.Event(0, "EV_NO_ACTION", {}, b"StartupLocality\0\x03")
    assert eventlog.replay([event], "sha256")[0] == bytes(31) + b"\3"
    one = eventlog.Event(0, "EV_SEPARATOR", {"sha256": bytes(32)}, b"")
    late = eventlog.replay([one, event], "sha256")[0]
    assert late == eventlog.extend("sha256", bytes(32), bytes(32)), "locality after the first extend is ignored"


def test_dynamic_pcrs_start_at_ones() -> None:
    assert eventlog.initial("sha1")[17] == b"\xff" * 20
    assert eventlog.initial("sha384")[23] == bytes(48)


def test_padding_of_ones_ends_a_log_and_anything_else_does_not() -> None:
    data = tcg_log(default_boot())
    padded = eventlog.parse_tcg(data + b"\xff" * 100)
    assert padded == eventlog.parse_tcg(data)
    with pytest.raises(BadInput, match="0xff"):
        eventlog.parse_tcg(data + b"\xff" * 100 + b"\0")
    with pytest.raises(BadInput):
        eventlog.parse_tcg(data + b"\0")


def test_a_log_cut_anywhere_is_bad_input_or_shorter() -> None:
    data = tcg_log(default_boot()[:3])
    whole = len(eventlog.parse_tcg(data).events)
    for end in range(len(data)):
        try:
            found = len(eventlog.parse_tcg(data[:end]).events)
        except BadInput:
            continue
        assert found < whole


BAD = {
    "a PCR beyond 23": struct.pack("<IIIH", 24, 4, 1, 0x0B) + bytes(32) + bytes(4),
    "an undeclared bank": struct.pack("<IIIH", 0, 4, 1, 0x04) + bytes(20) + bytes(4),
    "a bank twice": struct.pack("<III", 0, 4, 2) + (struct.pack("<H", 0x0B) + bytes(32)) * 2 + bytes(4),
    "a size beyond the end": struct.pack("<IIIH", 0, 4, 1, 0x0B) + bytes(32) + b"\xff\xff\xff\xff",
}


@pytest.mark.parametrize("event", BAD.values(), ids=BAD.keys())
def test_malformed_event(event: bytes) -> None:
    with pytest.raises(BadInput):
        eventlog.parse_tcg(tcg_log([]) + event)


@pytest.mark.parametrize(
    "spec",
    [
        struct.pack("<I", 0),
        struct.pack("<I", 9),
        struct.pack("<IHH", 1, 0x0B, 20),
        struct.pack("<IHHHH", 2, 0x0B, 32, 0x0B, 32) + b"\0",
        struct.pack("<IHH", 1, 0x0B, 32) + b"\0surprise",
    ],
)
def test_malformed_spec_id(spec: bytes) -> None:
    body = b"Spec ID Event03\0" + bytes(8) + spec
    with pytest.raises(BadInput):
        eventlog.parse_tcg(struct.pack("<II", 0, 3) + bytes(20) + struct.pack("<I", len(body)) + body)


def test_an_event_without_the_bank_cannot_be_replayed() -> None:
    with pytest.raises(BadInput):
        eventlog.replay([eventlog.Event(4, "EV_IPL", {"sha1": bytes(20)}, b"")], "sha256")


def test_words_never_carry_control_characters() -> None:
    step = Step(4, "EV_EFI_ACTION", "", b"\x1b[31mred\n")
    log = eventlog.parse_tcg(tcg_log([step]))
    assert log.events[1].words().isprintable()


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"\x1e{}",
        b"\x1enot json",
        b'\x1e{"pcr":24,"digests":[]}',
        b'\x1e{"pcr":1,"digests":[{"hashAlg":"sha256"}]}',
    ],
)
def test_malformed_systemd_log(data: bytes) -> None:
    with pytest.raises(BadInput):
        eventlog.parse_systemd(data)


@settings(max_examples=300)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_a_log_or_bad_input(data: bytes, after_header: bool) -> None:
    data = tcg_log([]) + data if after_header else data
    for parse in (eventlog.parse_tcg, eventlog.parse_systemd):
        try:
            log = parse(data)
        except BadInput:
            continue
        for event in log.events:
            assert event.words().isprintable()


@given(st.data())
def test_any_changed_byte_of_a_log_is_a_log_or_bad_input(data: st.DataObject) -> None:
    raw = bytearray(tcg_log(default_boot()))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    try:
        log = eventlog.parse_tcg(bytes(raw))
        for event in log.events:
            event.words()
        if "sha256" in log.banks:
            eventlog.replay(log.events, "sha256")
    except BadInput:
        pass
