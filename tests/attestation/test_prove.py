# SPDX-License-Identifier: Apache-2.0
"""Every mutation is made of some machine's bundle and refused with its own code; what would pass shows."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import fakepki
import pytest
import whole_bundles
from cube_attestation import bundle as bundles
from cube_attestation import jcs
from cube_attestation.cli import main
from cube_attestation.errors import BadInput
from cube_attestation.prove import run, show
from cube_attestation.prove.case import Case, Inapplicable, Mutation
from cube_attestation.prove.run import Proof, prove

TABLE = Path(__file__).resolve().parents[2] / "docs" / "reason-codes.md"
PROOFS: dict[str, Proof] = {}


def proof(kind: str) -> Proof:
    if kind not in PROOFS:
        whole = whole_bundles.ALL[kind]()
        PROOFS[kind] = prove(whole.bundle, whole.policy, now=fakepki.NOW)
    return PROOFS[kind]


@pytest.mark.parametrize("kind", whole_bundles.ALL)
def test_every_mutant_is_refused_with_its_code(kind: str) -> None:
    found = proof(kind)
    assert found.baseline.passed, found.baseline.codes
    bad = [(r.mutation.name, r.outcome, r.mutation.code, r.codes, r.note) for r in found.results if not r.good]
    assert not bad
    assert found.holds
    assert found.count(run.REFUSED) >= 40


def test_every_mutation_is_made_of_some_bundle() -> None:
    made = {r.mutation.name for kind in whole_bundles.ALL for r in proof(kind).results if r.outcome == run.REFUSED}
    assert made == {mutation.name for mutation in run.mutations()}


def test_names_are_unique_and_codes_are_documented() -> None:
    known = set(re.findall(r"^\| `([a-z0-9_.]+)` \|", TABLE.read_text(), re.MULTILINE))
    names = [mutation.name for mutation in run.mutations()]
    assert len(set(names)) == len(names) >= 40
    assert {mutation.code for mutation in run.mutations()} <= known
    for mutation in run.mutations():
        assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", mutation.name)


def one(change: object, code: str = "claims.not_bound") -> run.Result:
    whole = whole_bundles.local()
    mutation = Mutation("test.one", "a mutation of the test", code, change)  # type: ignore[arg-type]
    return prove(whole.bundle, whole.policy, now=fakepki.NOW, only=[mutation]).results[0]


def test_what_passes_or_is_refused_for_another_reason_is_seen() -> None:
    """The outcomes that would show a broken verifier."""

    def inapplicable(_: Case) -> Case:
        raise Inapplicable("no room")

    def broken(_: Case) -> Case:
        raise BadInput("can't be read", where="the test")

    assert one(lambda case: case).outcome == run.PASSED
    other = one(lambda case: case.without("claims"), "snp.policy.debug")
    assert (other.outcome, other.codes) == (
        run.OTHER_CODE,
        ("claims.missing", "receipt.bundle_mismatch", *other.codes[2:]),
    )
    assert (one(inapplicable).outcome, one(inapplicable).note) == (run.SKIPPED, "no room")
    assert one(broken).outcome == run.BROKEN
    assert [result.good for result in (one(lambda case: case), other, one(inapplicable), one(broken))] == [
        False,
        False,
        True,
        False,
    ]


def test_nothing_run_proves_nothing() -> None:
    whole = whole_bundles.local()
    assert not prove(whole.bundle, whole.policy, now=fakepki.NOW, only=[]).holds


def test_a_bundle_that_does_not_pass_is_no_start() -> None:
    whole = whole_bundles.local()
    strict = replace(whole.policy, environment="another")
    found = prove(whole.bundle, strict, now=fakepki.NOW)
    assert (found.results, found.holds) == ((), False)


def test_the_same_evidence_gives_the_same_proof() -> None:
    whole = whole_bundles.snp()
    first, second = (prove(whole.bundle, whole.policy, now=fakepki.NOW) for _ in range(2))
    assert jcs.dumps(show.to_json(first)) == jcs.dumps(show.to_json(second))
    assert show.to_junit(first) == show.to_junit(second)


def test_junit_counts() -> None:
    found = proof("local")
    root = ElementTree.fromstring(show.to_junit(found))
    suite = root[0]
    assert int(suite.get("tests", "")) == len(found.results) == len(suite)
    assert int(suite.get("skipped", "")) == found.count(run.SKIPPED)
    assert suite.get("failures") == "0"
    worse = replace(found, results=(replace(found.results[0], outcome=run.PASSED, codes=()),))
    failed = ElementTree.fromstring(show.to_junit(worse))[0][0][0]
    assert failed.tag == "failure"
    assert "PASSED: expected claims.nonce_mismatch" in str(failed.get("message"))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    whole = whole_bundles.local()
    (tmp_path / "bundle.json").write_bytes(bundles.dump(whole.bundle))
    (tmp_path / "policy.toml").write_text(whole.toml)
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMAND = ["prove", "bundle.json", "--policy", "policy.toml"]


def test_the_command(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--junit", "prove.xml"]) == 0
    out = capsys.readouterr().out
    assert "PROVED: " in out
    assert "tpm.ek.other " in out
    assert "snp." not in out
    assert ElementTree.parse(files / "prove.xml").getroot().tag == "testsuites"
    assert main([*COMMAND, "--all"]) == 0
    assert "the bundle has no SNP report" in capsys.readouterr().out
    assert main([*COMMAND, "--format", "json", "--output", "prove.json"]) == 0
    written = jcs.loads((files / "prove.json").read_bytes().strip())
    assert isinstance(written, dict)
    assert written["holds"] is True


def test_the_command_fails_when_a_mutant_passes(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lax = Mutation("test.lax", "nothing at all", "claims.not_bound", lambda case: case)
    monkeypatch.setattr(run, "mutations", lambda: (lax,))
    assert main(COMMAND) == 1
    out = capsys.readouterr().out
    assert "test.lax  PASSED" in out
    assert "NOT PROVED" in out


def test_the_command_refuses_a_bundle_that_does_not_pass(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "policy.toml").write_text(fakepki.World(policy={"environment": '"prod"'}).policy_toml())
    assert main(COMMAND) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "this one does not" in captured.err
