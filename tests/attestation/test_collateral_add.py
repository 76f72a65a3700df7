# SPDX-License-Identifier: Apache-2.0
"""``attestation collateral add`` and ``show``: files that belong to the evidence, and files that don't."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import fake_azure
import fake_nvidia
import fake_snp
import fake_tdx
import fake_tokens
import fakepki
import pytest
import whole_bundles
from cube_attestation import bundle as bundles
from cube_attestation.bundle import Bundle
from cube_attestation.cli import main
from cube_attestation.cmw import Collection
from cube_attestation.collateral import sources, store
from cube_attestation.tokens import items as tokens
from cube_attestation.verifier import verify
from whole_bundles import Whole, published

AT = "2026-11-24T12:00:00Z"


def bare(whole: Whole, *kept: str) -> Bundle:
    items = {k: v for k, v in whole.bundle.evidence.items.items() if k not in store.LABELS or k in kept}
    given = whole.bundle.evidence.items.get("tokens")
    if given is not None:
        emptied = [replace(one, keys=b'{"keys":[]}') for one in tokens.decode(given.value)]
        items["tokens"] = replace(given, value=tokens.encode(emptied))
    return Bundle(Collection(items))


def add(folder: Path, whole: Whole, files: dict[str, bytes], start: Bundle | None = None) -> int:
    (folder / "bundle.json").write_bytes(bundles.dump(start or bare(whole)))
    (folder / "policy.toml").write_text(whole.toml)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    options = ["--policy", str(folder / "policy.toml"), "--at", AT, "--output", str(folder / "full.json")]
    return main(["collateral", "add", str(folder / "bundle.json"), *(str(folder / n) for n in files), *options])


def full(folder: Path) -> Bundle:
    return bundles.load((folder / "full.json").read_bytes())


def snp_files() -> dict[str, bytes]:
    machine = fake_snp.FakeSnp()
    return {
        "vcek.der": machine.leaf.der,
        "ask.pem": machine.ask.pem,
        "ark.der": machine.ark.der,
        "crl": machine.crl,
    }


def tdx_files() -> dict[str, bytes]:
    given = fake_tdx.FakeTdx().collateral()
    return {
        "tcb.json": published(given.tcb_info, "tcbInfo"),
        "qe.json": published(given.qe_identity, "enclaveIdentity"),
        "chain.pem": given.tcb_info_chain,
        "root.crl": given.root_crl or b"",
        "pck.crl": (given.pck_crl or b"").hex().encode(),
    }


def gpu_files() -> dict[str, bytes]:
    device = fake_nvidia.FakeDevice()
    given = fake_nvidia.collateral(fake_nvidia.driver_rim(), fake_nvidia.vbios_rim(), devices=(device,))
    keys = {n: fake_tokens.key_set(fake_tokens.jwk(n, fake_tokens.KIDS[n])) for n in ("nras", "ita")}
    return {
        **{f"rim{i}.xml": data for i, data in enumerate(given.rims)},
        **{f"ocsp{i}.der": data for i, data in enumerate(given.ocsp)},
        **{f"{name}.json": data for name, data in keys.items()},
    }


def azure_files() -> dict[str, bytes]:
    machine = fake_azure.FakeAzure()
    root, ca2025, ca24 = fake_azure.chain()
    crls = {f"azure{i}.crl": data for i, data in enumerate(machine.crls())}
    return {**snp_files(), "issuers.pem": root.pem + ca24.pem, "ca2025.der": ca2025.der, **crls}


def azure_start(whole: Whole) -> Bundle:
    own = whole.bundle.evidence.items["azure-ak-chain"]
    first = own.value.split(b"-----END CERTIFICATE-----")[0] + b"-----END CERTIFICATE-----\n"
    start = bare(whole, "azure-ak-chain")
    return Bundle(Collection({**start.evidence.items, "azure-ak-chain": replace(own, value=first)}))


@pytest.mark.parametrize("name", ["snp", "tdx", "gpu", "azure"])
def test_files_complete_a_bundle_in_any_order(name: str, tmp_path: Path) -> None:
    whole = whole_bundles.ALL[name]()
    files = {"snp": snp_files, "tdx": tdx_files, "gpu": gpu_files, "azure": azure_files}[name]()
    start = azure_start(whole) if name == "azure" else bare(whole, "ak-chain")
    for order in (files, dict(reversed(files.items()))):
        assert add(tmp_path, whole, order, start) == 0
        verdict = verify(full(tmp_path), whole.policy, now=fakepki.NOW)
        assert verdict.passed, [r for item in verdict.items for r in item.reasons]
        noted = sources.read(full(tmp_path).evidence)
        assert {one.source for one in noted.sources} == set(files)
        assert {one.item for one in noted.sources} <= noted.added | set(noted.replaced)


def test_an_older_good_response_does_not_push_out_a_newer_one(tmp_path: Path) -> None:
    whole, device = whole_bundles.gpu(), fake_nvidia.FakeDevice()
    newer = device.ocsp(this=fake_nvidia.NOW.replace(minute=30, hour=11))[0]
    older = device.ocsp(this=fake_nvidia.NOW.replace(hour=2))[0]
    for files, left in (({"a": newer, "b": older}, {newer, older}), ({"a": older, "b": newer}, {newer})):
        assert add(tmp_path, whole, files) == 0
        assert set(store.nvidia_collateral(full(tmp_path).evidence).ocsp) == left


def test_one_json_with_everything_of_intels(tmp_path: Path) -> None:
    whole = whole_bundles.tdx()
    assert add(tmp_path, whole, {"collateral.json": fake_tdx.FakeTdx().collateral_json().encode()}) == 0
    assert verify(full(tmp_path), whole.policy, now=fakepki.NOW).passed


def other_snp() -> fake_snp.FakeSnp:
    return fake_snp.FakeSnp(hardware_id=bytes(64))


STRANGE_RIM = replace(fake_nvidia.driver_rim(), version="1.2.3")


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("snp", other_snp().leaf.der, "chip 0102030405060708"),
        ("snp", fake_snp.FakeSnp(product="Genoa").crl, "no accepted root of Milan"),
        ("snp", published(fake_tdx.FakeTdx().collateral().tcb_info, "tcbInfo"), "issuer chain is missing"),
        ("snp", fake_azure.chain()[1].der, "no certificate of the bundle is missing this issuer"),
        ("snp", fake_nvidia.driver_rim().sign(), "no evidence that it could be about"),
        ("snp", fake_nvidia.FakeDevice().ocsp()[0], "no evidence that it could be about"),
        (
            "snp",
            fake_tokens.key_set(fake_tokens.jwk("ita", fake_tokens.KIDS["ita"])),
            "no evidence that it could be",
        ),
        ("snp", fake_snp.FakeSnp().report(), "holds evidence (snp reports)"),
        ("snp", fake_tdx.FakeTdx().quote(), "holds evidence (tdx quotes)"),
        ("snp", b"what is this", "holds no collateral that is known"),
        ("gpu", STRANGE_RIM.sign(), "a driver manifest 1.2.3 for GH100, asked for"),
        ("gpu", fake_nvidia.FakeRim(signer="stranger", version=fake_nvidia.DRIVER).sign(), "did not sign"),
        ("gpu", fake_nvidia.FakeDevice(role="other").ocsp()[0], "no evidence that it could be about"),
        (
            "tdx",
            fake_tdx.FakeTdx(tcb_fmspc="00606a000000").collateral_json().encode(),
            "the platform is 00806f050000",
        ),
        ("tdx", fake_tdx.FakeTdx().collateral().tcb_info_chain, "no document of the bundle is signed under it"),
    ],
)
def test_what_does_not_belong_is_refused_with_its_name(
    name: str, file: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = whole_bundles.ALL[name]()
    code = add(tmp_path, whole, {"strange": file})
    if name == "tdx" and b"tcb_info" in file:  # the rest of that file belongs
        assert code == 0
        assert words in capsys.readouterr().err
        assert "tdx-tcb-info" not in full(tmp_path).evidence.items
        return
    assert code == 3
    err = capsys.readouterr().err
    assert words in err
    assert "strange: " in err
    assert not (tmp_path / "full.json").exists()


def test_one_strange_file_among_good_ones_leaves_nothing(tmp_path: Path) -> None:
    assert add(tmp_path, whole_bundles.snp(), {**snp_files(), "other.der": other_snp().leaf.der}) == 3
    assert not (tmp_path / "full.json").exists()


def test_published_chains_of_all_kinds_in_one_file_are_taken_as_far_as_they_belong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine, vlek = fake_snp.FakeSnp(), fake_snp.FakeSnp(kind="vlek")
    chain = {"all.pem": machine.ask.pem + machine.ark.pem + vlek.ask.pem}
    assert add(tmp_path, whole_bundles.snp(), {**snp_files(), **chain}) == 0
    assert "left aside" in capsys.readouterr().err


# --- show ---


def show(folder: Path, *more: str) -> int:
    return main(["collateral", "show", str(folder / "b.json"), "--policy", str(folder / "p.toml"), *more])


@pytest.mark.parametrize("name", ["snp", "tdx", "gpu", "azure", "azure_tdx"])
def test_a_whole_bundle_lacks_nothing_until_its_collateral_runs_out(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = whole_bundles.ALL[name]()
    (tmp_path / "b.json").write_bytes(bundles.dump(whole.bundle))
    (tmp_path / "p.toml").write_text(whole.toml)
    assert show(tmp_path, "--at", AT) == 0
    assert "lacking at 2026-11-24T12:00:00Z: nothing" in capsys.readouterr().out
    assert show(tmp_path, "--at", "2027-03-01T00:00:00Z", "--format", "json") == 1
    found = json.loads(capsys.readouterr().out)
    assert {row["state"] for row in found["items"]} >= {"expired"}
    assert all(row["digest"].startswith("sha256:") for row in found["items"])
    assert all(need["requests"] or need["todo"] for need in found["needed"])
    labels = {row["item"] for row in found["items"]}
    assert labels == {label for label in whole.bundle.evidence.items if label in store.LABELS}


def test_what_is_lacking_is_listed_with_its_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = whole_bundles.tdx()
    (tmp_path / "b.json").write_bytes(bundles.dump(bare(whole)))
    (tmp_path / "p.toml").write_text(whole.toml)
    assert show(tmp_path, "--at", AT, "--format", "json") == 1
    first = capsys.readouterr().out
    needed = {need["item"]: need for need in json.loads(first)["needed"]}
    assert set(needed) == {"tdx-tcb-info", "tdx-qe-identity", "tdx-root-crl", "tdx-pck-crl"}
    assert needed["tdx-tcb-info"]["requests"][0].endswith("/tdx/certification/v4/tcb?fmspc=00806F050000")
    assert show(tmp_path, "--at", AT, "--format", "json") == 1
    assert capsys.readouterr().out == first
    assert show(tmp_path, "--at", AT) == 1
    assert "tdx-tcb-info: Intel's TCB info for FMSPC 00806f050000: there is none" in capsys.readouterr().out


def test_inspect_says_what_was_added_and_from_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(tmp_path, whole_bundles.snp(), snp_files()) == 0
    assert main(["inspect", str(tmp_path / "full.json")]) == 0
    out = capsys.readouterr().out
    assert "collateral that was added after the bundle was made" in out
    assert "    from vcek.der" in out
    assert str(tmp_path) not in out
    assert "items that were not there: snp-certificates, snp-crl" in out


def test_unreadable_pieces_are_rows_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = whole_bundles.tdx()
    evidence = whole.bundle.evidence
    for label in [one for one in evidence.items if one in store.LABELS]:
        evidence = store.put(evidence, label, b"\x1b[31mnot readable")
    (tmp_path / "b.json").write_bytes(bundles.dump(Bundle(evidence)))
    (tmp_path / "p.toml").write_text(whole.toml)
    assert show(tmp_path, "--at", AT) == 1
    out = capsys.readouterr().out
    assert out.count("unreadable") == 6
    assert "\x1b" not in out
