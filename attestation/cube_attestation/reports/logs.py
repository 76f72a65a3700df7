# SPDX-License-Identifier: Apache-2.0
"""Event logs for people: what was predicted beside what was measured, register by register."""

from __future__ import annotations

from dataclasses import dataclass

from cube_attestation import dsse, jcs, manifest
from cube_attestation.bundle import Bundle
from cube_attestation.errors import BadInput
from cube_attestation.tpm import appraise
from cube_attestation.tpm.eventlog import Event

SAME, DIVERGES, AFTER, UNPREDICTED = "same", "diverges", "after", "unpredicted"


@dataclass(frozen=True)
class Cell:
    """One event: the beginning of its digest (hex), and what it is."""

    digest: str
    words: str


@dataclass(frozen=True)
class Row:
    """The same step of both logs. ``state``: one of SAME, DIVERGES, AFTER and UNPREDICTED."""

    state: str
    predicted: Cell | None
    measured: Cell | None


@dataclass(frozen=True)
class Register:
    """A register's history. ``predicted``: whether anything says what it should be."""

    name: str
    predicted: bool
    rows: tuple[Row, ...]

    @property
    def diverges(self) -> bool:
        return any(row.state == DIVERGES for row in self.rows)


@dataclass(frozen=True)
class Logs:
    """Registers, and why a log that is there could not be shown."""

    registers: tuple[Register, ...] = ()
    problems: tuple[str, ...] = ()


def read(bundle: Bundle) -> Logs:
    """Both logs of a TPM, and a TD's log. Never raises on evidence: what can't be read is a problem."""
    registers: list[Register] = []
    problems: list[str] = []
    for source in (_tpm, _td):
        try:
            registers += source(bundle)
        except BadInput as error:
            problems.append(str(error))
    return Logs(tuple(registers), tuple(problems))


def _tpm(bundle: Bundle) -> list[Register]:
    data = bundle.evidence.get("tcg-eventlog")
    if data is None:
        return []
    logs = appraise.parse_logs(data, bundle.evidence.get("systemd-eventlog") or b"")
    measured = appraise.measured_events(*logs)
    reference = _reference(bundle)
    found: list[Register] = []
    for pcr in sorted({event.pcr for event in measured} | {event.pcr for event in reference}):
        left = [Cell(event.digest.hex()[:16], event.what) for event in reference if event.pcr == pcr]
        right = [_cell(event, appraise.BANK) for event in measured if event.pcr == pcr]
        whole = [
            [event.digest for event in reference if event.pcr == pcr],
            [event.digests.get(appraise.BANK, b"") for event in measured if event.pcr == pcr],
        ]
        found.append(Register(f"PCR {pcr}", bool(left), _rows(left, right, *whole)))
    return found


def _reference(bundle: Bundle) -> tuple[manifest.ReferenceEvent, ...]:
    data = bundle.evidence.get("image-manifest")
    if data is None:
        return ()
    envelope = jcs.loads(data, where="image-manifest")
    payload = dsse.peek(envelope, dsse.IMAGE_MANIFEST, where="image-manifest").payload
    return manifest.parse(payload).reference.events


def _rows(left: list[Cell], right: list[Cell], expected: list[bytes], found: list[bytes]) -> tuple[Row, ...]:
    rows: list[Row] = []
    diverged = False
    for i in range(max(len(left), len(right))):
        predicted = left[i] if i < len(left) else None
        measured = right[i] if i < len(right) else None
        if not left:
            state = UNPREDICTED
        elif diverged:
            state = AFTER
        elif i < len(left) and i < len(right) and expected[i] == found[i]:
            state = SAME
        else:
            state, diverged = DIVERGES, True
        rows.append(Row(state, predicted, measured))
    return tuple(rows)


def _cell(event: Event, bank: str) -> Cell:
    return Cell(event.digests.get(bank, b"").hex()[:16], event.words())


def _td(bundle: Bundle) -> list[Register]:
    data = bundle.evidence.get("ccel")
    if data is None:
        return []
    from cube_attestation.tdx import ccel

    events = [event for event in ccel.parse(data).events if event.extends]
    found: list[Register] = []
    for index in sorted({event.pcr for event in events}):
        rows = tuple(Row(UNPREDICTED, None, _cell(event, "sha384")) for event in events if event.pcr == index)
        # The CC event log counts MRTD as 0, then RTMR0 as 1 (UEFI 2.10, 38.4.1)
        found.append(Register(f"RTMR{index - 1}" if index else "MRTD", False, rows))
    return found
