# SPDX-License-Identifier: Apache-2.0
"""The check of an exported chain: what was removed, changed, moved or put in, and where (formats §11). Pure.

A record's digest is what its successor calls ``previous``, so trust runs backwards: from the newest head that the
machine signed to the genesis. What no head covers can be cut off or, for the last record alone, changed without a
trace; the report says so instead of passing it over.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from cube_attestation import jcs
from cube_attestation.claims import Claims
from cube_attestation.errors import BadInput, NotAuthentic

from . import record as records
from .record import Genesis, Head, Record

MAX_FINDINGS = 1000
MAX_MALFORMED = 1000  # a file with more such lines is no export; each costs a parser


@dataclass(frozen=True)
class Finding:
    """A stable code, a sentence, and where: the file's line and the record's number (0 and -1: nowhere in it)."""

    code: str
    words: str
    line: int = 0
    seq: int = -1

    def to_json(self) -> dict[str, jcs.Json]:
        return {"code": self.code, "words": self.words, "line": self.line, "seq": self.seq}


@dataclass(frozen=True)
class Given:
    """What the auditor holds apart from the file.

    ``heads``: envelopes of signed heads. ``digests``: digests of records that must be in the file. ``after``: the
    digest of the record before the file's first one, if the file continues an earlier export. ``key``: digest of
    the machine's audit key. ``claims``: of evidence that was verified.
    """

    heads: tuple[jcs.Json, ...] = ()
    digests: tuple[str, ...] = ()
    after: str = ""
    key: str = ""
    claims: Claims | None = None


@dataclass
class Report:
    """What the check found. ``findings`` refuse; ``notices`` say what the result rests on or leaves open."""

    environment: str = ""
    boot: str = ""
    domain: str = ""
    records: int = 0
    first: int = -1
    last: int = -1
    head: str = ""
    gaps: int = 0
    findings: list[Finding] = field(default_factory=list)
    notices: list[Finding] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.findings

    def to_json(self) -> dict[str, jcs.Json]:
        return {
            "version": 1,
            "passed": self.passed,
            "environment": self.environment,
            "boot": self.boot,
            "domain": self.domain,
            "records": self.records,
            "first": self.first,
            "last": self.last,
            "head": self.head,
            "gaps": self.gaps,
            "findings": [finding.to_json() for finding in self.findings],
            "notices": [notice.to_json() for notice in self.notices],
        }

    def find(self, code: str, words: str, line: int = 0, seq: int = -1) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(f"audit.{code}", words, line, seq))

    def note(self, code: str, words: str, line: int = 0, seq: int = -1) -> None:
        if len(self.notices) < MAX_FINDINGS:
            self.notices.append(Finding(f"audit.{code}", words, line, seq))


@dataclass(frozen=True)
class _Entry:
    line: int
    record: Record


@dataclass(frozen=True)
class _Envelope:
    line: int  # 0: the auditor's own
    value: jcs.Json


def examine(data: bytes, given: Given | None = None) -> Report:
    """Check an export: canonical JSON lines of records, signed heads and pages. Raises BadInput if it is none."""
    given = given or Given()
    report = Report()
    entries, envelopes = _read(data, report)
    envelopes += [_Envelope(0, value) for value in given.heads]
    if not entries:
        raise BadInput("holds no record of an audit chain", todo="export it from /{domain}/audit/v1/records")
    entries = _own(entries, report)
    genesis = _genesis(entries, given, report)
    heads = _heads(envelopes, given, genesis, report)
    kept = _once(entries, heads, report)
    _order(kept, report)
    kept.sort(key=lambda entry: entry.record.seq)
    report.records, report.first, report.last = len(kept), kept[0].record.seq, kept[-1].record.seq
    report.head = kept[-1].record.digest
    _links(kept, heads, report)
    _ends(kept, heads, given, report)
    for entry in kept:
        if entry.record.kind == "gap":
            report.gaps += 1
            report.note("gap.named", _gap_words(entry.record), entry.line, entry.record.seq)
    report.findings.sort(key=lambda finding: (finding.line or 1 << 60, finding.seq))
    return report


def _gap_words(record: Record) -> str:
    count = f"{'' if record.value['exact'] else 'at least '}{record.value['missing']}"
    return (
        f"between {record.value['since']} and {record.value['until']} {count} records of this machine were lost "
        f"({record.value['cause']}); the machine says so itself"
    )


def _read(data: bytes, report: Report) -> tuple[list[_Entry], list[_Envelope]]:
    lines = data.split(b"\n")
    if lines[-1]:
        report.find("record.malformed", "the last line does not end with a line feed", len(lines))
    else:
        lines.pop()
    entries: list[_Entry] = []
    envelopes: list[_Envelope] = []
    malformed = 0
    for number, line in enumerate(lines, 1):
        where = f"line {number}"
        try:
            value = jcs.loads(line, canonical=True, where=where)
            if isinstance(value, dict) and "payloadType" in value:
                envelopes.append(_Envelope(number, value))
            elif isinstance(value, dict) and "records" in value:
                _page(value, number, entries, envelopes)
            elif len(line) > records.MAX_LINE:
                raise BadInput(f"longer than {records.MAX_LINE} bytes", where=where)
            else:
                entries.append(_Entry(number, records.read(value, line, where=where)))
        except BadInput as error:
            report.find("record.malformed", f"{error}", number)
            malformed += 1
            if malformed > MAX_MALFORMED:
                words = f"more than {MAX_MALFORMED} lines are no records"
                raise BadInput(words, where=where, todo="export it again, as JSON lines") from error
    return entries, envelopes


def _page(value: dict[str, jcs.Json], number: int, entries: list[_Entry], envelopes: list[_Envelope]) -> None:
    """An answer of ``GET …/records`` as it came."""
    listed = value["records"]
    if not isinstance(listed, list) or not set(value) <= {"records", "head", "next"}:
        raise BadInput("not a page of records", where=f"line {number}")
    for i, item in enumerate(listed):
        found = records.read(item, records.encode(item) if isinstance(item, dict) else b"", where=f"records[{i}]")
        entries.append(_Entry(number, found))
    if value.get("head") is not None:
        envelopes.append(_Envelope(number, value["head"]))


def _own(entries: list[_Entry], report: Report) -> list[_Entry]:
    """The records of the chain that most of the file is of; the others are foreign."""
    ((report.boot, report.domain), _), *_ = Counter((e.record.boot, e.record.domain) for e in entries).most_common(
        1
    )
    own: list[_Entry] = []
    for entry in entries:
        found = entry.record
        if (found.boot, found.domain) == (report.boot, report.domain):
            own.append(entry)
        else:
            report.find(
                "record.foreign",
                f"record {found.seq} is of boot {found.boot} and domain {found.domain}, not of this chain",
                entry.line,
                found.seq,
            )
    return own


def _genesis(entries: Sequence[_Entry], given: Given, report: Report) -> Genesis | None:
    found = next((entry for entry in entries if entry.record.kind == "genesis"), None)
    claims = given.claims
    if found is None:
        if claims is not None and claims.boot != report.boot:
            report.find("evidence.mismatch", f"the evidence is of boot {claims.boot}, the chain of {report.boot}")
        return None
    genesis = records.genesis(found.record)
    report.environment = genesis.environment
    pairs = [("audit_spki", given.key, genesis.audit_spki)] if given.key else []
    if claims is not None:
        pairs += [
            ("audit_spki", claims.audit_spki, genesis.audit_spki),
            ("boot", claims.boot, report.boot),
            ("environment", claims.environment, genesis.environment),
            ("tls_spki", claims.tls_spki, genesis.tls_spki),
            ("launch", claims.launch, genesis.launch),
        ]
    for what, wanted, said in pairs:
        if wanted != said:
            report.find("evidence.mismatch", f"{what}: expected {wanted}, the genesis says {said}", found.line, 0)
    return genesis


def _heads(
    envelopes: Sequence[_Envelope], given: Given, genesis: Genesis | None, report: Report
) -> dict[int, set[str]]:
    """Digests that the machine signed, by record number."""
    attested = given.claims.audit_spki if given.claims else given.key
    key = attested or (genesis.audit_spki if genesis else "")
    if not attested:
        report.note(
            "key.not_attested",
            "the audit key is only what the chain itself names; give --bundle and --policy, or --key",
        )
    found: dict[int, set[str]] = {}
    for envelope in envelopes:
        place = f"line {envelope.line}" if envelope.line else "--head"
        try:
            if not key:
                raise NotAuthentic("no key to check it with: there is no genesis; give --key", why="untrusted_key")
            head = Head.verify(envelope.value, [key], where=place)
        except (BadInput, NotAuthentic) as error:
            report.find("head.invalid", f"{error}", envelope.line)
            continue
        if (head.boot, head.domain) != (report.boot, report.domain):
            words = f"the head is of boot {head.boot} and domain {head.domain}, not of this chain"
            report.find("head.foreign", words, envelope.line)
            continue
        found.setdefault(head.seq, set()).add(head.head)
    for seq, digests in found.items():
        if len(digests) > 1:
            report.find("head.conflict", f"the machine signed {len(digests)} different records {seq}", 0, seq)
    return found


def _once(entries: Sequence[_Entry], heads: dict[int, set[str]], report: Report) -> list[_Entry]:
    """One record for each number: the one that others vouch for."""
    vouched = {entry.record.previous for entry in entries} | {
        digest for digests in heads.values() for digest in digests
    }
    by_number: dict[int, _Entry] = {}
    for entry in entries:
        seq = entry.record.seq
        held = by_number.get(seq)
        if held is None:
            by_number[seq] = entry
            continue
        better = held.record.digest not in vouched and entry.record.digest in vouched
        out = held if better else entry
        if better:
            by_number[seq] = entry
        same = "the same" if held.record.digest == entry.record.digest else "another"
        report.find("record.repeated", f"{same} record {seq} a second time", out.line, seq)
    return [entry for entry in entries if by_number[entry.record.seq] is entry]


def _order(entries: Sequence[_Entry], report: Report) -> None:
    """Name the fewest records that have to move to bring the file in order (longest increasing subsequence)."""
    tails: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for i, entry in enumerate(entries):
        place = bisect_left(tails, entry.record.seq)
        before.append(ends[place - 1] if place else -1)
        if place == len(tails):
            tails.append(entry.record.seq)
            ends.append(i)
        else:
            tails[place], ends[place] = entry.record.seq, i
    stays: set[int] = set()
    i = ends[-1]
    while i >= 0:
        stays.add(i)
        i = before[i]
    for i, entry in enumerate(entries):
        if i not in stays:
            report.find(
                "record.reordered", f"record {entry.record.seq} is not in its place", entry.line, entry.record.seq
            )


def _links(kept: Sequence[_Entry], heads: dict[int, set[str]], report: Report) -> None:
    """From the last record back: each must have the digest that its head or its intact successor names."""
    digests = {entry.record.seq: entry.record.digest for entry in kept}
    wanted: set[str] = set()
    after: _Entry | None = None
    guessed = True  # nothing signed vouches for the successor itself
    for entry in reversed(kept):
        found = entry.record
        if after is not None and after.record.seq != found.seq + 1:
            low, high = found.seq + 1, after.record.seq - 1
            words = f"record {low} is" if low == high else f"records {low} to {high} are"
            report.find("record.removed", f"{words} not in the file", after.line, low)
            wanted, guessed = set(), True
        signed = heads.get(found.seq, set())
        if signed and wanted and not signed & wanted:
            words = f"the signed record {found.seq} is not the one that record {found.seq + 1} follows"
            report.find("head.conflict", words, entry.line, found.seq)
        target = signed or wanted
        if target and found.digest not in target:
            words = f"record {found.seq} is not the one that was chained"
            if not signed and guessed and after is not None:
                words = (
                    f"record {found.seq} was changed, or what record {after.record.seq} says of it: no signed head "
                    "tells which"
                )
            report.find("record.changed", words, entry.line, found.seq)
            guessed = True
            wanted = {found.previous} if found.previous == digests.get(found.seq - 1) else set()
        else:
            guessed = guessed and not signed
            wanted = {found.previous} if found.previous else set()
        after = entry


def _ends(kept: Sequence[_Entry], heads: dict[int, set[str]], given: Given, report: Report) -> None:
    first, last = kept[0].record, kept[-1].record
    if given.after:
        if first.previous != given.after:
            words = f"record {first.seq} does not follow {given.after}: records between are missing"
            report.find("chain.beginning_missing", words, kept[0].line, first.seq)
        else:
            report.note("chain.continued", f"records before {first.seq} are in the export that --after is from")
    elif first.seq:
        words = f"the file begins with record {first.seq}; records 0 to {first.seq - 1} are missing"
        report.find("chain.beginning_missing", words, kept[0].line, first.seq)
    newest = max(heads, default=-1)
    if newest > last.seq:
        words = f"the chain was cut off: records {last.seq + 1} to {newest} are missing"
        report.find("chain.truncated", words, kept[-1].line, last.seq)
    known = {entry.record.digest for entry in kept}
    for digest in given.digests:
        if digest not in known:
            words = f"no record has the digest {digest}: it was cut off, removed or changed"
            report.find("chain.truncated", words, kept[-1].line, last.seq)
    if last.digest in given.digests:
        newest = max(newest, last.seq)
    if newest < last.seq:
        report.note(
            "last.unprotected",
            f"no signed head covers record {last.seq}: a change of its content leaves no trace",
            kept[-1].line,
            last.seq,
        )
    if not given.heads and not given.digests:
        report.note(
            "truncation.undetectable",
            f"whether records after {last.seq} were cut off can't be seen: give a head that you hold with --head",
        )
