# SPDX-License-Identifier: Apache-2.0
"""Is what a TPM quotes acceptable? Log replay, predicted PCR values, and the first diverging event in words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cube_attestation.errors import BadInput
from cube_attestation.manifest import Reference, ReferenceEvent
from cube_attestation.verdict import Comparison, Reason

from . import eventlog

BANK = "sha256"
LAUNCH_PCR = 8
# 10 belongs to IMA, whose log is its own; 8 is extended by the agent with the launch document and has no log;
# 16 and above can be reset or are not of the static boot.
REPLAYED_PCRS = tuple(pcr for pcr in range(16) if pcr not in (LAUNCH_PCR, 10))


class Divergence(NamedTuple):
    """Where a PCR's log leaves the prediction: the event's number within that PCR and a sentence about it."""

    pcr: int
    number: int
    words: str


def launch_pcr(payload: bytes) -> bytes:
    """PCR 8 after the agent extended it once with SHA-256 of the launch document's payload (formats §6)."""
    return eventlog.extend(BANK, bytes(32), hashlib.sha256(payload).digest())


def measured_events(tcg: eventlog.EventLog, systemd: eventlog.EventLog) -> list[eventlog.Event]:
    """All extending events of a boot: the firmware and the stub log first, systemd in the root after them."""
    return [event for event in (*tcg.events, *systemd.events) if event.extends]


def check_replay(tcg: eventlog.EventLog, systemd: eventlog.EventLog, quoted: Mapping[int, bytes]) -> list[Reason]:
    """Whether the logs lead to the quoted PCRs. Raises BadInput if they have no SHA-256 digests."""
    values = eventlog.replay((*tcg.events, *systemd.events), BANK)
    wrong = [pcr for pcr in REPLAYED_PCRS if pcr in quoted and values[pcr] != quoted[pcr]]
    if not wrong:
        return []
    words = f"replaying the event logs gives other values than quoted for PCR {', '.join(map(str, wrong))}"
    return [Reason("tpm.eventlog.replay_mismatch", words)]


def replay_reference(reference: Reference) -> list[int]:
    """PCRs whose predicted events do not lead to their predicted value (those with events only)."""
    values = {pcr: bytes(32) for pcr in range(24)}
    for event in reference.events:
        values[event.pcr] = eventlog.extend(BANK, values[event.pcr], event.digest)
    listed = {event.pcr for event in reference.events}
    return sorted(pcr for pcr in listed if reference.pcrs.get(pcr) != values[pcr])


def appraise_pcrs(
    quoted: Mapping[int, bytes],
    wanted: Sequence[int],
    reference: Reference,
    launch_payload: bytes | None,
    events: Sequence[eventlog.Event] | None,
) -> tuple[list[Reason], list[Comparison]]:
    """Compare the ``wanted`` PCRs of a quote with their predictions; PCR 8's comes from the launch document.

    ``events``: the machine's (replayed) log, for words about a mismatch; None if there is none to trust.
    """
    reasons: list[Reason] = []
    compared: list[Comparison] = []
    for pcr in wanted:
        predicted = reference.pcrs.get(pcr)
        if pcr == LAUNCH_PCR:
            predicted = None if launch_payload is None else launch_pcr(launch_payload)
        found = quoted.get(pcr)
        if predicted is None:
            reasons.append(Reason("tpm.pcr.no_reference", f"PCR {pcr}: no predicted value"))
        elif found is None:
            reasons.append(Reason("tpm.pcr.not_quoted", f"PCR {pcr}: the quote does not cover it"))
        else:
            compared.append(Comparison(f"PCR {pcr}", predicted.hex(), found.hex()))
            if found != predicted:
                reasons.append(Reason("tpm.pcr.mismatch", _mismatch_words(pcr, reference, events)))
    return reasons, compared


def _mismatch_words(pcr: int, reference: Reference, events: Sequence[eventlog.Event] | None) -> str:
    if pcr == LAUNCH_PCR:
        return "PCR 8: the machine was launched with another launch document than the one in the bundle"
    if events is None:
        return f"PCR {pcr}: differs from the predicted value; there is no event log to say where"
    divergence = first_divergence(pcr, reference.events, events)
    if divergence is None:
        return f"PCR {pcr}: differs from the predicted value, though its logged events are the predicted ones"
    return divergence.words


def first_divergence(
    pcr: int, predicted: Sequence[ReferenceEvent], measured: Sequence[eventlog.Event]
) -> Divergence | None:
    """The first event of ``pcr`` where the machine's log leaves the predicted events; None if it does not."""
    expected = [event for event in predicted if event.pcr == pcr]
    found = [event for event in measured if event.pcr == pcr and event.extends]
    digests = [event.digests.get(BANK) for event in found]
    at = 0
    while at < len(expected) and at < len(found) and digests[at] == expected[at].digest:
        at += 1
    if at == len(expected) == len(found):
        return None
    if at == len(found):
        return Divergence(
            pcr, at, f"PCR {pcr}: {expected[at].what} was predicted, and the machine's log ends before it"
        )
    if at == len(expected):
        return Divergence(pcr, at, f"PCR {pcr}: {found[at].words()} was measured beyond the predicted events")
    if at + 1 < len(expected) and digests[at] == expected[at + 1].digest:
        return Divergence(pcr, at, f"PCR {pcr}: {expected[at].what} was predicted and not measured")
    if at + 1 < len(found) and digests[at + 1] == expected[at].digest:
        words = f"PCR {pcr}: {found[at].words()} was measured before {expected[at].what} and not predicted"
        return Divergence(pcr, at, words)
    words = f"PCR {pcr}: {expected[at].what} differs from the predicted one"
    if expected[at].source:
        words += f" (predicted from {expected[at].source})"
    return Divergence(pcr, at, words)


def all_divergences(reference: Reference, measured: Sequence[eventlog.Event]) -> list[Divergence]:
    """The first divergence of every predicted PCR."""
    found = (first_divergence(pcr, reference.events, measured) for pcr in sorted(reference.pcrs))
    return [divergence for divergence in found if divergence is not None]


def parse_logs(tcg: bytes, systemd: bytes) -> tuple[eventlog.EventLog, eventlog.EventLog]:
    """Both logs, which must have SHA-256 digests. Raises BadInput."""
    first, second = eventlog.parse_tcg(tcg), eventlog.parse_systemd(systemd)
    if BANK not in first.banks or (second.events and BANK not in second.banks):
        raise BadInput("no SHA-256 digests", where="event log")
    return first, second
