# SPDX-License-Identifier: Apache-2.0
"""Exported audit chains: every change of one is found and named where it is."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cube_attestation import bundle as bundles
from cube_attestation import dsse, jcs
from cube_attestation.audit import record as records
from cube_attestation.audit.record import Before, Chain, Genesis, Head
from cube_attestation.audit.verify import Given, Report, examine
from cube_attestation.claims import Claims
from cube_attestation.cli import main
from cube_attestation.errors import BadInput
from fakepki import World
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = dsse.spki_digest(KEY.public_key())
BOOT, OTHER_BOOT = "ab" * 16, "cd" * 16
DOMAIN, OTHER_DOMAIN = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
WHEN = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
DIGEST = "sha256:" + "1" * 64
GENESIS = Genesis("local", DIGEST, SPKI, DIGEST, DIGEST, 3, WHEN)
LENGTH = 8


def request(number: int) -> dict[str, Any]:
    return {
        "time": "2026-11-24T12:00:00Z",
        "request": f"request-{number}",
        "token": "jti",
        "key": "kid",
        "subject": "",
        "method": "POST",
        "path": "/v1/chat/completions",
        "model": "smollm2",
        "status": 200,
        "why": "via_upstream",
        "flags": "-",
        "generation": 3,
        "received_bytes": 10,
        "sent_bytes": 20,
        "duration_ms": 30,
        "first_byte_ms": None,
        "prompt_tokens": 4,
        "completion_tokens": 5,
    }


def chain(boot: str = BOOT, domain: str = DOMAIN, length: int = LENGTH) -> list[bytes]:
    state = Chain(boot, domain)
    line, state = state.append("genesis", GENESIS.to_json())
    lines = [line]
    for number in range(1, length):
        line, state = state.append("request", request(number))
        lines.append(line)
    return lines


LINES = chain()


def head(lines: list[bytes] = LINES, key: ec.EllipticCurvePrivateKey = KEY, **changes: Any) -> dict[str, jcs.Json]:
    last = records.parse(lines[-1])
    said = {"environment": "local", "boot": last.boot, "domain": last.domain, "seq": last.seq, "head": last.digest}
    return Head(**{**said, "time": WHEN, **changes}).sign(key)


def export(lines: list[bytes], *heads: object) -> bytes:
    return b"".join(line + b"\n" for line in [*lines, *map(jcs.dumps, heads)])


def found(report: Report) -> list[tuple[str, int]]:
    return [(finding.code, finding.seq) for finding in report.findings]


def notes(report: Report) -> set[str]:
    return {note.code for note in report.notices}


def changed(line: bytes, **changes: Any) -> bytes:
    return jcs.dumps({**json.loads(line), **changes})


def test_an_intact_export() -> None:
    report = examine(export(LINES, head()), Given(heads=(head(),), key=SPKI))
    assert (report.passed, report.records, report.first, report.last) == (True, LENGTH, 0, LENGTH - 1)
    assert notes(report) == set()
    assert report.head == records.digest(LINES[-1])


def test_what_is_open_is_said() -> None:
    assert notes(examine(export(LINES))) == {
        "audit.key.not_attested",
        "audit.last.unprotected",
        "audit.truncation.undetectable",
    }
    assert notes(examine(export(LINES, head()), Given(key=SPKI))) == {"audit.truncation.undetectable"}
    digest = Given(digests=(records.digest(LINES[-1]),), key=SPKI)
    assert notes(examine(export(LINES), digest)) == set()


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (lambda x: [*x[:3], *x[4:]], [("audit.record.removed", 3)]),
        (lambda x: [*x[:3], *x[6:]], [("audit.record.removed", 3)]),
        (lambda x: x[1:], [("audit.chain.beginning_missing", 1)]),
        (lambda x: x[:-1], [("audit.chain.truncated", LENGTH - 2)]),
        (lambda x: [*x[:3], x[4], x[3], *x[5:]], [("audit.record.reordered", 4)]),
        (lambda x: [x[5], *x[:5], *x[6:]], [("audit.record.reordered", 5)]),
        (lambda x: [*x[:2], *x[3:], x[2]], [("audit.record.reordered", 2)]),
        (lambda x: [*x[:5], x[2], *x[5:]], [("audit.record.repeated", 2)]),
        (lambda x: [*x[:4], chain(OTHER_BOOT)[4], *x[4:]], [("audit.record.foreign", 4)]),
        (
            lambda x: [*x[:4], chain(domain=OTHER_DOMAIN)[4], *x[5:]],
            [("audit.record.foreign", 4), ("audit.record.removed", 4)],
        ),
        (lambda x: [*x[:4], changed(x[4], status=401), *x[5:]], [("audit.record.changed", 4)]),
        (lambda x: [*x[:4], changed(x[4], previous=DIGEST), *x[5:]], [("audit.record.changed", 4)]),
        (lambda x: [*x[:-1], changed(x[-1], completion_tokens=1)], [("audit.record.changed", LENGTH - 1)]),
        (lambda x: [changed(x[0], environment="prod"), *x[1:]], [("audit.record.changed", 0)]),
        (lambda x: [*x[:4], b"{}", *x[5:]], [("audit.record.malformed", -1), ("audit.record.removed", 4)]),
    ],
)  # fmt: skip
def test_every_kind_of_tampering_is_named(
    tamper: Callable[[list[bytes]], list[bytes]], expected: list[tuple[str, int]]
) -> None:
    report = examine(export(tamper(LINES)), Given(heads=(head(),), key=SPKI))
    assert found(report) == expected


def test_a_chain_written_anew_fails_at_the_head() -> None:
    rewritten = []
    line, state = Chain(BOOT, DOMAIN).append("genesis", GENESIS.to_json())
    rewritten.append(line)
    for number in range(1, LENGTH):
        line, state = state.append("request", {**request(number), "status": 404})
        rewritten.append(line)
    assert found(examine(export(rewritten, head()), Given(key=SPKI))) == [("audit.record.changed", LENGTH - 1)]


def test_heads() -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    assert found(examine(export(LINES, head(key=stranger)))) == [("audit.head.invalid", -1)]
    assert found(examine(export(LINES, head(boot=OTHER_BOOT)))) == [("audit.head.foreign", -1)]
    assert found(examine(export(LINES, head(head=DIGEST), head()))) == [("audit.head.conflict", LENGTH - 1)]
    early = head(LINES[:3])
    assert examine(export(LINES, early, head()), Given(key=SPKI)).passed
    unknown = Given(digests=(DIGEST,))
    assert found(examine(export(LINES, head()), unknown)) == [("audit.chain.truncated", LENGTH - 1)]


def test_an_older_head_does_not_hide_a_cut_that_a_newer_one_shows() -> None:
    cut = export(LINES[:4], head(LINES[:4]))
    report = examine(cut, Given(key=SPKI))
    assert report.passed
    assert "audit.truncation.undetectable" in notes(report)
    assert found(examine(cut, Given(heads=(head(),), key=SPKI))) == [("audit.chain.truncated", 3)]


def test_an_export_that_continues_another() -> None:
    rest = export(LINES[3:], head())
    assert found(examine(rest, Given(key=SPKI))) == [("audit.chain.beginning_missing", 3)]
    report = examine(rest, Given(key=SPKI, after=records.digest(LINES[2])))
    assert (found(report), notes(report)) == ([], {"audit.chain.continued", "audit.truncation.undetectable"})
    wrong = examine(rest, Given(key=SPKI, after=records.digest(LINES[1])))
    assert found(wrong) == [("audit.chain.beginning_missing", 3)]
    assert "audit.head.invalid" in [f.code for f in examine(rest).findings]  # no genesis, no key


def test_pages_are_taken_as_they_came() -> None:
    pages: list[dict[str, Any]] = [
        {"records": [json.loads(line) for line in LINES[i : i + 3]], "head": head(), "next": i + 3}
        for i in range(0, LENGTH, 3)
    ]
    assert examine(export([], *pages), Given(key=SPKI)).records == LENGTH
    del pages[1]["records"][1]
    assert found(examine(export([], *pages), Given(key=SPKI))) == [("audit.record.removed", 4)]


def test_evidence_must_be_of_the_boot_that_the_genesis_names() -> None:
    claims = Claims(b"n" * 16, "local", BOOT, DIGEST, SPKI, WHEN, DIGEST)
    report = examine(export(LINES, head()), Given(claims=claims))
    assert (report.passed, notes(report)) == (True, {"audit.truncation.undetectable"})
    for changes in ({"boot": OTHER_BOOT}, {"environment": "prod"}, {"launch": SPKI}, {"tls_spki": SPKI}):
        other = Claims(**{**claims.__dict__, **changes})
        assert found(examine(export(LINES, head()), Given(claims=other))) == [("audit.evidence.mismatch", 0)]
    stranger = Claims(**{**claims.__dict__, "audit_spki": DIGEST})
    codes = {code for code, _ in found(examine(export(LINES, head()), Given(claims=stranger)))}
    assert codes == {"audit.evidence.mismatch", "audit.head.invalid"}


def test_gaps_that_the_machine_names() -> None:
    state = Chain(BOOT, DOMAIN)
    first, state = state.append("genesis", GENESIS.to_json())
    gap: dict[str, Any] = {
        "cause": "envoy.restarted",
        "missing": 4,
        "exact": False,
        "since": "2026-11-24T11:59:58Z",
        "until": "2026-11-24T12:00:00Z",
        "time": "2026-11-24T12:00:00Z",
    }
    second, state = state.append("gap", gap)
    report = examine(export([first, second]), Given(key=SPKI))
    (note,) = [note for note in report.notices if note.code == "audit.gap.named"]
    assert report.gaps == 1
    assert "at least 4 records" in note.words


EXPORT = export(LINES, head())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(EXPORT) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(offset: int, difference: int) -> None:
    """The file with its signed head, the key known: each changed byte is found, in its line or the next record."""
    data = bytearray(EXPORT)
    data[offset] ^= difference
    line = EXPORT.count(b"\n", 0, offset) + 1
    report = examine(bytes(data), Given(key=SPKI))
    assert not report.passed
    places = {finding.line for finding in report.findings} | {finding.seq + 1 for finding in report.findings}
    assert places & {line - 1, line, line + 1}, report.findings


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_shuffle_removal_or_doubling_goes_unnoticed(data: st.DataObject) -> None:
    picked = data.draw(st.lists(st.sampled_from(LINES), max_size=LENGTH + 3))
    if picked == LINES:
        return
    try:
        report = examine(export(picked, head()), Given(key=SPKI))
    except BadInput:
        assert not picked
    else:
        assert not report.passed


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(BadInput):
        assert not examine(data).passed


ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126))
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))
SCALAR = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | UNICODE


@given(st.dictionaries(ASCII, SCALAR))
def test_the_quick_encoding_is_the_canonical_one(value: dict[str, Any]) -> None:
    assert records.encode(value) == jcs.dumps(value)


def test_genesis_of_a_later_boot() -> None:
    later = Genesis(**{**GENESIS.__dict__, "before": Before(OTHER_BOOT, 7, DIGEST)})
    line, _ = Chain(BOOT, DOMAIN).append("genesis", later.to_json())
    assert records.genesis(records.parse(line)) == later


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "chain.jsonl").write_bytes(EXPORT)
    (tmp_path / "head.json").write_bytes(jcs.dumps(head()))
    (tmp_path / "cut.jsonl").write_bytes(export(LINES[:4]))
    return tmp_path


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(folder / "chain.jsonl")
    assert main(["audit", "verify", file, "--key", SPKI]) == 0
    assert "truncation.undetectable" in capsys.readouterr().out
    assert main(["audit", "verify", file, "--head", str(folder / "head.json"), "--key", SPKI]) == 0
    assert "note" not in capsys.readouterr().out
    cut = str(folder / "cut.jsonl")
    assert main(["audit", "verify", cut, "--head", str(folder / "head.json"), "--format", "json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in report["findings"]] == ["audit.chain.truncated"]
    assert main(["audit", "verify", cut, "--head", records.digest(LINES[-1])]) == 2
    assert "audit.chain.truncated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jsonl"], "can't be read"),
        (["{}/head.json"], "no record"),
        (["{}/chain.jsonl", "--key", "abc"], "--key"),
        (["{}/chain.jsonl", "--bundle", "b.json"], "--policy"),
        (["{}/chain.jsonl", "--head", "{}/nothing"], "can't be read"),
    ],
)
def test_bad_input_of_the_command(
    folder: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given_arguments = [argument.replace("{}", str(folder)) for argument in arguments]
    assert main(["audit", "verify", *given_arguments]) == 3
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


class Audited(World):
    """A machine whose evidence names this audit key."""

    def claims(self) -> Claims:
        return replace(super().claims(), audit_spki=SPKI)


def test_the_command_takes_the_key_from_evidence_that_the_policy_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = Audited()
    claims = world.claims()
    begins = Genesis("local", claims.tls_spki, SPKI, claims.launch, DIGEST, 1, WHEN)
    first, state = Chain(claims.boot, DOMAIN).append("genesis", begins.to_json())
    second, state = state.append("request", request(1))
    file = tmp_path / "chain.jsonl"
    file.write_bytes(export([first, second], head([first, second])))
    (tmp_path / "bundle.json").write_bytes(bundles.dump(world.receipted()))
    (tmp_path / "policy.toml").write_text(world.policy_toml())
    arguments = ["audit", "verify", str(file), "--bundle", str(tmp_path / "bundle.json")]
    arguments += ["--policy", str(tmp_path / "policy.toml"), "--at", "2026-11-24T12:00:00Z"]
    assert main(arguments) == 0
    assert "not_attested" not in capsys.readouterr().out

    file.write_bytes(export(LINES, head()))  # another boot's, with the same key
    assert main(arguments) == 2
    assert "audit.evidence.mismatch" in capsys.readouterr().out

    refused = Audited(environment="prod")
    (tmp_path / "bundle.json").write_bytes(bundles.dump(refused.receipted()))
    assert main(arguments) == 1
    assert "claims.environment_mismatch" in capsys.readouterr().out


def test_every_code_is_in_the_table() -> None:
    root = Path(__file__).resolve().parents[2]
    source = (root / "attestation/cube_attestation/audit/verify.py").read_text()
    used = {f"audit.{code}" for code in re.findall(r'\.(?:find|note)\(\s*"([a-z_.]+)"', source)}
    table = set(
        re.findall(r"^\| `(audit\.[a-z_.]+)` \|", (root / "docs/reason-codes.md").read_text(), re.MULTILINE)
    )
    assert used == table
