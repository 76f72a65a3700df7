# SPDX-License-Identifier: Apache-2.0
"""Where a machine's boot leaves the prediction: both event logs replayed, the first diverging event per PCR."""

from __future__ import annotations

from dataclasses import dataclass

from . import dsse, jcs, manifest
from .bundle import Bundle
from .errors import BadInput
from .tpm import appraise


@dataclass(frozen=True)
class Line:
    """One step of a PCR's history: ``mark`` is ``=`` (as predicted), ``!`` (diverges) or ``?`` (after that)."""

    pcr: int
    mark: str
    predicted: str
    measured: str


@dataclass(frozen=True)
class Explanation:
    """The divergences in words, and the histories of the PCRs that diverge."""

    divergences: tuple[appraise.Divergence, ...]
    lines: tuple[Line, ...]


def explain(bundle: Bundle) -> Explanation:
    """Compare the machine's logs with the manifest's predicted events. Whether either is authentic is verify's job.

    Raises BadInput when the bundle lacks a log or a manifest.
    """
    evidence = bundle.evidence
    tcg, envelope = evidence.get("tcg-eventlog"), evidence.get("image-manifest")
    if tcg is None or envelope is None:
        missing = "tcg-eventlog" if tcg is None else "image-manifest"
        raise BadInput(f"the bundle has no {missing}", where="explain", todo="use a bundle that the gate completed")
    logs = appraise.parse_logs(tcg, evidence.get("systemd-eventlog") or b"")
    read = dsse.peek(jcs.loads(envelope, where="image-manifest"), dsse.IMAGE_MANIFEST, where="image-manifest")
    reference = manifest.parse(read.payload).reference
    measured = appraise.measured_events(*logs)
    divergences = tuple(appraise.all_divergences(reference, measured))
    lines: list[Line] = []
    for divergence in divergences:
        predicted = [event for event in reference.events if event.pcr == divergence.pcr]
        found = [event for event in measured if event.pcr == divergence.pcr]
        for i in range(max(len(predicted), len(found))):
            mark = "=" if i < divergence.number else "!" if i == divergence.number else "?"
            left = f"{predicted[i].digest.hex()[:12]} {predicted[i].what}" if i < len(predicted) else ""
            digest = found[i].digests[appraise.BANK].hex()[:12] if i < len(found) else ""
            lines.append(Line(divergence.pcr, mark, left, f"{digest} {found[i].words()}" if i < len(found) else ""))
    return Explanation(divergences, tuple(lines))
