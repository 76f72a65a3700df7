# SPDX-License-Identifier: Apache-2.0
"""Every mutation is made of some machine's bundle and refused with its own code; what would pass shows."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import fakepki
import pytest
import whole_bundles
from cube_attestation import bundle as bundles
from cube_attestation import jcs
from cube_attestation.bundle import Bundle
from cube_attestation.claims import Claims
from cube_attestation.cli import main
from cube_attestation.cmw import Collection
from cube_attestation.errors import BadInput
from cube_attestation.nvidia import abi as nvidia_abi
from cube_attestation.nvidia import items as nvidia_items
from cube_attestation.nvidia.appraise import Collateral
from cube_attestation.nvidia.policy import NvidiaPolicy
from cube_attestation.policy import Policy
from cube_attestation.prove import nvidia, run, show, snp, tdx, tpm
from cube_attestation.prove.case import Case, Inapplicable, Mutation
from cube_attestation.prove.run import Proof, prove
from cube_attestation.snp.appraise import Rules as SnpRules
from cube_attestation.snp.items import LABELS as SNP_LABELS
from cube_attestation.snp.policy import SnpPolicy
from cube_attestation.tdx.collateral import from_json
from cube_attestation.tdx.items import LABELS as TDX_LABELS
from cube_attestation.tdx.policy import TdxPolicy

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
    assert {code for mutation in run.mutations() for code in (mutation.code, mutation.also) if code} <= known
    for mutation in run.mutations():
        assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", mutation.name)


# The twins' own evidence holds: it is refused for what was done to it, not for how it was made


def unedited(kind: str) -> set[str]:
    whole = whole_bundles.ALL[kind]()
    claims = Claims.decode(whole.bundle.evidence.items["claims"].value)
    case = Case(whole.bundle, whole.policy, fakepki.NOW, claims.nonce, claims.tls_spki)
    if kind in ("local", "gpu"):
        return set(tpm.twin(case).judge().codes)
    twin = snp.twin if kind in ("snp", "azure", "NCC40ads_H100_v5") else tdx.twin
    return set(twin(case, lambda _: None, trusted=True).judge().codes)


@pytest.mark.parametrize("kind", whole_bundles.ALL)
def test_an_unedited_twin_passes(kind: str) -> None:
    assert unedited(kind) == set()


@pytest.mark.parametrize(
    ("kind", "name", "codes"),
    [
        ("snp", "snp.twin.debug", {"snp.policy.debug"}),
        ("snp", "snp.twin.measurement", {"snp.measurement.not_allowed"}),
        ("snp", "snp.twin.revoked", {"snp.chain.revoked", "claims.not_bound"}),
        ("azure", "snp.twin.debug", {"snp.policy.debug"}),
        ("azure", "snp.twin.id_key", {"snp.id_key.not_allowed"}),
        ("tdx", "tdx.twin.debug", {"tdx.attributes.debug"}),
        ("tdx", "tdx.twin.mrtd", {"tdx.mrtd.not_allowed"}),
        ("tdx", "tdx.twin.revoked", {"tdx.chain.revoked", "claims.not_bound"}),
        ("gpu", "nvidia.twin.binding", {"nvidia.binding.digest_mismatch"}),
        ("local", "tpm.twin.boot", {"tpm.pcr.mismatch"}),
        ("local", "tpm.twin.claims", {"tpm.quote.nonce_mismatch", "claims.not_bound"}),
        ("local", "tpm.twin.environment", {"claims.environment_mismatch"}),
        ("local", "tpm.twin.broken_model", {"claims.model_failed"}),
        ("local", "tpm.twin.clock", {"claims.clock_skew"}),
        ("local", "image.other", {"tpm.pcr.mismatch"}),
        ("local", "launch.swapped", {"claims.launch_mismatch", "tpm.pcr.mismatch"}),
    ],
)
def test_correctly_signed_evidence_is_refused_for_its_content_alone(kind: str, name: str, codes: set[str]) -> None:
    found = next(result for result in proof(kind).results if result.mutation.name == name)
    assert set(found.codes) - {"receipt.bundle_mismatch"} == codes


COCO, VIRTEE = "snp/confidential-containers_trustee", "snp/virtee_sev"


def posed(parts: dict[str, bytes], now: datetime, policy: Policy) -> Case:
    """Real evidence beside claims that it was not made over."""
    bundle = whole_bundles.local().bundle
    kept = {k: v for k, v in bundle.evidence.items.items() if k in ("claims", "launch", "image-manifest")}
    evidence = Collection(kept)
    for label, value in parts.items():
        evidence = evidence.with_item(label, {**SNP_LABELS, **TDX_LABELS, **nvidia_items.LABELS}[label], value)
    claims = Claims.decode(kept["claims"].value)
    return Case(Bundle(evidence), policy, now, claims.nonce, claims.tls_spki)


@pytest.mark.parametrize(
    ("report", "certificate"),
    [
        (f"{COCO}/test-report.bin", f"{COCO}/test-vcek.der"),
        (f"{COCO}/test-vlek-report.bin", f"{COCO}/test-vlek.der"),
        (f"{VIRTEE}/report_milan.bin", f"{VIRTEE}/vcek_milan.der"),
    ],
)
def test_twins_of_real_amd_processors(report: str, certificate: str, vectors: Path) -> None:
    """AMD's real certificates can be copied with other keys, and nothing but the binding is then wrong."""
    rules = SnpRules(any_firmware=True, vmpls=(0, 1, 2, 3), provisional_firmware=True)
    policy = replace(local(), snp=SnpPolicy(rules=rules, allow_missing=("snp.crl",)))
    parts = {
        "snp-report": (vectors / report).read_bytes(),
        "snp-certificates": (vectors / certificate).read_bytes(),
    }
    case = posed(parts, datetime(2025, 6, 1, tzinfo=UTC), policy)
    own = {"snp.report_data.unbound"}
    assert snp_codes(case) == own
    assert snp_codes(snp.twin(case, lambda _: None, trusted=True)) == own
    # The verifier ships AMD's intermediates: they bear the issuer's name, and did not sign
    assert snp_codes(snp.twin(case, lambda _: None, trusted=False)) == own | {"snp.chain.signature_invalid"}
    debug = next(mutation for mutation in snp.MUTATIONS if mutation.name == "snp.twin.debug")
    assert snp_codes(debug.change(case)) == own | {"snp.policy.debug"}


def snp_codes(case: Case) -> set[str]:
    return {code for code in case.judge().codes if code.startswith(("snp.", "collateral."))}


def tdx_codes(case: Case) -> set[str]:
    return {code for code in case.judge().codes if code.startswith(("tdx.", "collateral."))}


@pytest.mark.parametrize(
    ("quote", "collateral", "moment"),
    [
        (
            "tdx/flashbots_attested-tls/gcp-tdx-1782809233226668671",
            "tdx/flashbots_attested-tls/gcp-tdx-collateral.json",
            datetime(2026, 6, 30, 9, 12, tzinfo=UTC),
        ),
        (
            "tdx/google_go-tdx-guest/quote_v5_sample.dat",
            "tdx/flashbots_attested-tls/azure-collateral-20260608.json",
            datetime(2026, 6, 8, 13, tzinfo=UTC),
        ),
    ],
)
def test_twins_of_real_intel_platforms(quote: str, collateral: str, moment: datetime, vectors: Path) -> None:
    """Google's padded quote v4 and a v5, with Intel's published collateral."""
    given = from_json((vectors / collateral).read_bytes())
    parts = {
        "tdx-quote": (vectors / quote).read_bytes(),
        "tdx-tcb-info": whole_bundles.published(given.tcb_info, "tcbInfo"),
        "tdx-tcb-info-chain": given.tcb_info_chain,
        "tdx-qe-identity": whole_bundles.published(given.qe_identity, "enclaveIdentity"),
        "tdx-qe-identity-chain": given.qe_identity_chain,
        "tdx-root-crl": given.root_crl or b"",
        "tdx-pck-crl": given.pck_crl or b"",
    }
    case = posed(parts, moment, replace(local(), tdx=TdxPolicy()))
    own = {"tdx.report_data.unbound"}
    assert tdx_codes(case) == own
    assert tdx_codes(tdx.twin(case, lambda _: None, trusted=True)) == own
    assert tdx_codes(tdx.twin(case, lambda _: None, trusted=True, revoke=True)) == own | {"tdx.chain.revoked"}
    assert "tdx.chain.untrusted_root" in tdx_codes(tdx.twin(case, lambda _: None, trusted=False))
    for name, code in (("tdx.debug", "tdx.attributes.debug"), ("tdx.tcb_info.edited", "signature_invalid")):
        mutation = next(mutation for mutation in tdx.MUTATIONS if mutation.name == name)
        assert any(code in found for found in tdx_codes(mutation.change(case)))


def test_twins_of_a_real_gpu(vectors: Path) -> None:
    """An H100 of driver 545 with NVIDIA's manifests for it: foreign firmware, correctly signed, is seen."""
    go, trust = vectors / "nvidia/confidentsecurity_go-nvtrust", vectors / "nvidia/NVIDIA_nvtrust"
    report = nvidia_abi.decode_report((go / "attestationReport.txt").read_bytes())
    chain = (go / "gpuAkCertChain.txt").read_bytes()
    names = ("1010_0200_882_96005E0001_test_no_gpu.swidtag", "Driver_RIM_test_no_gpu.swidtag")
    given = Collateral(tuple((trust / name).read_bytes() for name in names))
    parts = {
        "nvidia-devices": nvidia_abi.encode_evidence((nvidia_abi.Evidence(report, chain),)),
        "nvidia-collateral": nvidia_items.encode_collateral(given),
    }
    missing = frozenset({"nvidia.device_ocsp", "nvidia.rim_ocsp", "nvidia.fwid"})
    rules = NvidiaPolicy(allow_missing=missing, modes=("spt", "ppcie"))
    case = posed(parts, datetime(2024, 6, 1, tzinfo=UTC), replace(local(), nvidia=rules))
    own = {"nvidia.binding.digest_mismatch", "nvidia.report.nonce_mismatch"}
    changes = {mutation.name: mutation.change for mutation in nvidia.MUTATIONS}

    def codes(mutant: Case) -> set[str]:
        return {code for code in mutant.judge().codes if code.startswith(("nvidia.", "collateral."))}

    assert codes(case) == own
    assert codes(changes["nvidia.twin.binding"](case)) == own
    assert codes(changes["nvidia.twin.firmware"](case)) == own | {"nvidia.rim.measurement_mismatch"}
    assert codes(changes["nvidia.impostor"](case)) == own | {"nvidia.chain.untrusted_root"}
    assert codes(changes["nvidia.measurement"](case)) >= own | {"nvidia.report.signature_invalid"}
    assert codes(changes["nvidia.rim.edited"](case)) >= {"nvidia.rim.digest_mismatch"}


def local() -> Policy:
    return whole_bundles.local().policy


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
