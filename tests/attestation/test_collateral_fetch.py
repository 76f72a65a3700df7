# SPDX-License-Identifier: Apache-2.0
"""``attestation collateral fetch``: bundles without their collateral, completed from real servers, verify again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_azure
import fake_nvidia
import fake_snp
import fake_tdx
import fake_tokens
import fake_x509
import fakepki
import pytest
import whole_bundles
from cube_attestation import bundle as bundles
from cube_attestation.bundle import Bundle
from cube_attestation.cli import main
from cube_attestation.cmw import Collection
from cube_attestation.collateral import sources, store
from cube_attestation.snp import abi
from cube_attestation.tokens import items as tokens
from cube_attestation.verifier import verify
from fake_services import FakeServices, Reply, ok, serving
from whole_bundles import Whole

AT = "2026-11-24T12:00:00Z"
DRIVER = f"NV_GPU_DRIVER_GH100_{fake_nvidia.DRIVER}"
VBIOS = "NV_GPU_VBIOS_1010_0200_882_9600AB0001"
STRANGER = fake_nvidia.Cert("stranger", fake_nvidia.name("NVIDIA OCSP"), ca=False)
RIMS = {DRIVER: fake_nvidia.driver_rim(), VBIOS: fake_nvidia.vbios_rim()}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "cache" / "cube-confidential" / "collateral"


def bare(whole: Whole, *kept: str) -> Bundle:
    """The bundle without its collateral; tokens without their keys."""
    items = {k: v for k, v in whole.bundle.evidence.items.items() if k not in store.LABELS or k in kept}
    given = whole.bundle.evidence.items.get("tokens")
    if given is not None:
        emptied = [replace(one, keys=b'{"keys":[]}') for one in tokens.decode(given.value)]
        items["tokens"] = replace(given, value=tokens.encode(emptied))
    return Bundle(Collection(items))


def write(folder: Path, whole: Whole, bundle: Bundle | None = None) -> None:
    (folder / "bundle.json").write_bytes(bundles.dump(bundle or bare(whole)))
    (folder / "policy.toml").write_text(whole.toml)


def fetch(folder: Path, services: FakeServices, *more: str) -> int:
    arguments = ["collateral", "fetch", str(folder / "bundle.json"), "--policy", str(folder / "policy.toml")]
    return main([*arguments, "--at", AT, "--output", str(folder / "full.json"), *services.options(), *more])


def full(folder: Path) -> Bundle:
    return bundles.load((folder / "full.json").read_bytes())


def passes(bundle: Bundle, whole: Whole) -> bool:
    verdict = verify(bundle, whole.policy, now=fakepki.NOW)
    if not verdict.passed:
        print([reason for item in verdict.items for reason in item.reasons])
    return verdict.passed


def snp_services(services: FakeServices) -> None:
    services.amd(fake_snp.FakeSnp())


def gpu_services(services: FakeServices, **given: object) -> None:
    services.nvidia(fake_nvidia.FakeDevice(), rims=RIMS, **given)
    services.keys("/.well-known/jwks.json", "nras")
    services.keys("/certs", "ita")


def azure_services(services: FakeServices) -> None:
    machine = fake_azure.FakeAzure()
    services.amd(machine.machine())
    services.azure(machine)


def azure_tdx_services(services: FakeServices) -> None:
    services.intel(fake_tdx.FakeTdx())
    services.azure(fake_azure.FakeAzure(tee="tdx"))


def tdx_services(services: FakeServices) -> None:
    services.intel(fake_tdx.FakeTdx())


def a3_services(services: FakeServices) -> None:
    tdx_services(services)
    gpu_services(services)


def ncc_services(services: FakeServices) -> None:
    azure_services(services)
    gpu_services(services)


def azure_kept(whole: Whole) -> Bundle:
    """Azure machines bring the AK's certificate themselves, without its issuers."""
    found = bare(whole, "azure-ak-chain")
    own = whole.bundle.evidence.items["azure-ak-chain"]
    first = own.value.split(b"-----END CERTIFICATE-----")[0] + b"-----END CERTIFICATE-----\n"
    return Bundle(Collection({**found.evidence.items, "azure-ak-chain": replace(own, value=first)}))


WHOLE: dict[str, tuple[Callable[[], Whole], Callable[[FakeServices], None], Callable[[Whole], Bundle]]] = {
    "snp": (whole_bundles.snp, snp_services, bare),
    "tdx": (whole_bundles.tdx, tdx_services, bare),
    "gpu": (whole_bundles.gpu, gpu_services, lambda whole: bare(whole, "ak-chain")),
    "azure": (whole_bundles.azure, azure_services, azure_kept),
    "azure_tdx": (whole_bundles.azure_tdx, azure_tdx_services, azure_kept),
    "a3-highgpu-1g": (whole_bundles.a3_highgpu_1g, a3_services, bare),
    "NCC40ads_H100_v5": (whole_bundles.ncc40ads_h100_v5, ncc_services, azure_kept),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_bundle_without_collateral_is_completed_and_then_verifies(name: str, tmp_path: Path) -> None:
    make, prepare, strip = WHOLE[name]
    whole = make()
    start = strip(whole)
    write(tmp_path, whole, start)
    assert not verify(start, whole.policy, now=fakepki.NOW).passed
    with serving(FakeServices()) as services:
        prepare(services)
        assert fetch(tmp_path, services) == 0
        asked = len(services.seen)
        assert passes(full(tmp_path), whole)
        # all of it is in the cache now
        (tmp_path / "full.json").unlink()
        assert fetch(tmp_path, services, "--offline") == 0
        assert len(services.seen) == asked
    assert passes(full(tmp_path), whole)
    noted = sources.read(full(tmp_path).evidence)
    assert len(noted.sources) >= asked
    assert all(one.source.startswith("http://127.0.0.1:") for one in noted.sources)
    assert bundles.load((tmp_path / "bundle.json").read_bytes()) == start  # untouched


# --- what a service gives must hold ---


def lines(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_the_answer_of_another_platform_is_refused_and_the_rest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = whole_bundles.tdx()
    write(tmp_path, whole)
    with serving(FakeServices()) as services:
        services.intel(fake_tdx.FakeTdx(tcb_fmspc="00606a000000"))
        assert fetch(tmp_path, services) == 2
    (line,) = lines(capsys.readouterr().err, "attestation: tdx-tcb-info")
    assert "/tdx/certification/v4/tcb" in line
    assert "the platform is 00806f050000" in line
    found = full(tmp_path).evidence
    assert "tdx-tcb-info" not in found.items
    assert "tdx-tcb-info-chain" not in found.items
    assert {"tdx-qe-identity", "tdx-root-crl", "tdx-pck-crl"} <= set(found.items)


@pytest.mark.parametrize(
    ("request_", "reply", "words"),
    [
        ("GET /tdx/certification/v4/qe/identity", ok(b"<html>log in</html>", "text/html"), "type 'text/html'"),
        ("GET /IntelSGXRootCA.der", ok(b"\x30\x82\x01", "application/pkix-crl"), "tdx-root-crl"),
        (
            "GET /IntelSGXRootCA.der",
            ok(b"\x30" + bytes(3 << 20), "application/pkix-crl"),
            "more than 2097152 bytes",
        ),
        ("GET /IntelSGXRootCA.der", ok(b"", "application/pkix-crl"), "an empty answer"),
        (
            "GET /tdx/certification/v4/qe/identity",
            ok(b"{}", "application/json"),
            "sgx-enclave-identity-issuer-chain",
        ),
    ],
)
def test_answers_that_are_not_what_was_asked_for(
    request_: str, reply: Reply, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = whole_bundles.tdx()
    write(tmp_path, whole)
    with serving(FakeServices()) as services:
        services.intel(fake_tdx.FakeTdx())
        services.give(request_, reply)
        assert fetch(tmp_path, services) == 2
        assert fetch(tmp_path, services, "--offline") == 4  # the bad answer is not in the cache
    assert lines(capsys.readouterr().err, "attestation: ", words)
    assert len(set(full(tmp_path).evidence.items) & store.LABELS.keys()) in (4, 5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"document_signer": "stranger"}, "is not signed by Intel SGX TCB Signing"),
        ({"next_update": fake_tdx.NOW.replace(hour=11)}, "had to be renewed by"),
        ({"root_role": "other root"}, "no accepted issuer"),
        ({"tcb_id": "SGX"}, "of another kind"),
    ],
)
def test_intel_documents_that_do_not_hold(
    changes: dict[str, object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = whole_bundles.tdx()
    write(tmp_path, whole)
    with serving(FakeServices()) as services:
        services.intel(fake_tdx.FakeTdx(**changes))  # type: ignore[arg-type]
        assert fetch(tmp_path, services) == 2
    assert lines(capsys.readouterr().err, "attestation: tdx-tcb-info", words)
    assert "tdx-tcb-info" not in full(tmp_path).evidence.items


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key_tcb": abi.Tcb(bootloader=4, tee=1, snp=23, microcode=219, fmc=2)}, "reported"),
        ({"hardware_id": bytes(64)}, "chip"),
        ({"leaf_signer": "stranger"}, "is not signed by"),
        ({"leaf_end": fakepki.NOW.replace(hour=11)}, "was valid until"),
    ],
)
def test_a_vcek_of_another_chip_tcb_or_root_is_refused(
    changes: dict[str, object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = whole_bundles.snp()
    write(tmp_path, whole)
    with serving(FakeServices()) as services:
        snp_services(services)
        request = next(request for request in services.routes if "blSPL" in request)
        leaf = fake_snp.FakeSnp().but(**changes).leaf
        services.give(request, ok(leaf.der, "application/pkix-cert"))
        assert fetch(tmp_path, services) == 2
    assert lines(capsys.readouterr().err, "attestation: snp-certificates", words)


def test_a_truncated_vcek_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = whole_bundles.snp()
    write(tmp_path, whole)
    with serving(FakeServices()) as services:
        snp_services(services)
        request = next(request for request in services.routes if "blSPL" in request)
        services.give(request, ok(fake_snp.FakeSnp().leaf.der[:-3], "application/pkix-cert"))
        assert fetch(tmp_path, services) == 2
    assert lines(capsys.readouterr().err, "attestation: snp-certificates", "reaches beyond its container")
    assert "snp-crl" in full(tmp_path).evidence.items


def test_the_vendors_own_anchors_count_without_a_policy(tmp_path: Path) -> None:
    """The fake vendors lead to none of them, so that nothing is stored."""
    for make, prepare, _ in (WHOLE["snp"], WHOLE["tdx"]):
        write(tmp_path, make())
        with serving(FakeServices()) as services:
            prepare(services)
            arguments = ["collateral", "fetch", str(tmp_path / "bundle.json"), "--at", AT]
            assert main([*arguments, "--output", str(tmp_path / "full.json"), *services.options()]) in (2, 4)
        assert full(tmp_path) == bundles.load((tmp_path / "bundle.json").read_bytes())


@pytest.mark.parametrize(
    ("given", "more", "code", "words"),
    [
        ({"echo": bytes(32)}, (), 2, "another request's nonce"),
        ({"echo": None}, (), 2, "carries no nonce"),
        ({"echo": None}, ("--ocsp-nonce", "optional"), 0, ""),
        ({"echo": bytes(32)}, ("--ocsp-nonce", "optional"), 2, "another request's nonce"),
        ({"responder": STRANGER}, (), 2, "no OCSP responder that"),
        (
            {"this": fake_nvidia.NOW.replace(day=20), "next": fake_nvidia.NOW.replace(day=21)},
            (),
            2,
            "was good until",
        ),
    ],
)
def test_ocsp_responses_must_answer_this_request(
    given: dict[str, object],
    more: tuple[str, ...],
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = whole_bundles.gpu()
    write(tmp_path, whole, bare(whole, "ak-chain"))
    with serving(FakeServices()) as services:
        gpu_services(services, **given)
        assert fetch(tmp_path, services, *more) == code
    assert lines(capsys.readouterr().err, "attestation: nvidia-collateral", words) or not code
    assert len(store.nvidia_collateral(full(tmp_path).evidence).ocsp) == (6 if code == 0 else 0)


def test_a_revocation_is_stored_and_then_refused_by_the_verdict(tmp_path: Path) -> None:
    whole = whole_bundles.gpu()
    write(tmp_path, whole, bare(whole, "ak-chain"))
    with serving(FakeServices()) as services:
        gpu_services(services, state="revoked")
        assert fetch(tmp_path, services) == 0
    verdict = verify(full(tmp_path), whole.policy, now=fakepki.NOW)
    assert "nvidia.ocsp.revoked" in {reason.code for item in verdict.items for reason in item.reasons}


def test_a_manifest_for_something_else_or_by_somebody_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = whole_bundles.gpu()
    write(tmp_path, whole, bare(whole, "ak-chain"))
    other = {DRIVER: replace(fake_nvidia.driver_rim(), version="580.99.02"), VBIOS: fake_nvidia.vbios_rim()}
    other[VBIOS].signer = "stranger"
    with serving(FakeServices()) as services:
        services.nvidia(fake_nvidia.FakeDevice(), rims=other)
        services.keys("/.well-known/jwks.json", "nras")
        services.keys("/certs", "ita")
        assert fetch(tmp_path, services) == 2
    err = capsys.readouterr().err
    assert lines(err, "driver manifest 580.99.02", "asked for driver manifest 580.99.01")
    assert lines(err, "the signer's key did not sign this manifest")
    assert store.nvidia_collateral(full(tmp_path).evidence).rims == ()


def test_a_key_set_without_the_key_that_signed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = whole_bundles.gpu()
    write(tmp_path, whole, bare(whole, "ak-chain"))
    with serving(FakeServices()) as services:
        gpu_services(services)
        services.keys("/certs", "maa")
        assert fetch(tmp_path, services) == 2
    assert lines(capsys.readouterr().err, "key set of ita", "no key with id")


def test_a_full_disk_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, whole_bundles.tdx())
    before = (tmp_path / "bundle.json").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    arguments = ["collateral", "fetch", str(tmp_path / "bundle.json"), "--policy", str(tmp_path / "policy.toml")]
    with serving(FakeServices()) as services:
        tdx_services(services)
        monkeypatch.setattr("os.replace", full_disk)
        assert main([*arguments, "--at", AT, "--in-place", *services.options()]) == 3
    assert "bundle.json: can't be written: No space left on device" in capsys.readouterr().err
    assert (tmp_path / "bundle.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"bundle.json", "policy.toml", "cache"}


# --- where requests go ---


def test_a_pccs_serves_the_roots_list_too_in_hex(tmp_path: Path) -> None:
    whole = whole_bundles.tdx()
    write(tmp_path, whole)
    with serving(FakeServices()) as services:
        services.intel(fake_tdx.FakeTdx())
        del services.routes["GET /IntelSGXRootCA.der"]
        arguments = [
            "collateral",
            "fetch",
            str(tmp_path / "bundle.json"),
            "--policy",
            str(tmp_path / "policy.toml"),
        ]
        pccs = ["--service", f"intel-pcs={services.address}/"]
        assert main([*arguments, "--at", AT, "--output", str(tmp_path / "full.json"), *pccs]) == 0
        assert "GET /sgx/certification/v4/rootcacrl" in services.seen
    assert passes(full(tmp_path), whole)


def test_the_configuration_file_names_services_and_options_win(tmp_path: Path) -> None:
    whole = whole_bundles.tdx()
    write(tmp_path, whole)
    folder = tmp_path / "config" / "cube-confidential"
    folder.mkdir(parents=True)
    with serving(FakeServices()) as services:
        services.intel(fake_tdx.FakeTdx())
        configured = 'intel-pcs = "http://127.0.0.1:1"\nintel-root-crl = "' + services.address + '"\n'
        (folder / "collateral.toml").write_text(f"[services]\n{configured}")
        arguments = [
            "collateral",
            "fetch",
            str(tmp_path / "bundle.json"),
            "--policy",
            str(tmp_path / "policy.toml"),
        ]
        arguments += [
            "--at",
            AT,
            "--output",
            str(tmp_path / "full.json"),
            "--service",
            f"intel-pcs={services.address}",
        ]
        assert main(arguments) == 0
    assert passes(full(tmp_path), whole)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("amd-kds=http://kds.example.com", "is not https"),
        ("amd-kds=ftp://127.0.0.1", "is not https"),
        ("amd-kds=https://user:word@kds.example.com", "no base address"),
        ("amd-kds=https://kds.example.com?x=1", "no base address"),
        ("amd-kds=https://[", "no address"),
        ("amd-kds", "no base address"),
        ("kds=https://kds.example.com", "no such service"),
    ],
)
def test_addresses_that_are_not_asked(
    option: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, whole_bundles.snp())
    assert main(["collateral", "show", str(tmp_path / "bundle.json"), "--service", option]) == 3
    assert words in capsys.readouterr().err


VENDORS = (
    "amd.com",
    "intel.com",
    "nvidia.com",
    "microsoft.com",
    "azure.net",
    "windows.net",
    "goog",
    "googleapis.com",
)


def test_only_the_table_names_vendors_hosts() -> None:
    import cube_attestation.collateral

    folder = Path(cube_attestation.collateral.__file__).parent
    for file in [*folder.glob("*.py"), folder.parent / "cli" / "collateral.py"]:
        text = file.read_text().replace("\\", "")
        hosts = [word for word in VENDORS if word in text]
        if file.name == "services.py":
            assert len(hosts) >= 7
        elif file.name == "requests.py":  # the name of a Google account that a path holds
            assert hosts == ["goog"] or not hosts
        else:
            assert not [host for host in hosts if host != "goog"]


def test_dry_run_prints_every_request_and_makes_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, whole_bundles.snp())
    with serving(FakeServices()) as services:
        snp_services(services)
        expected = set(services.routes)
        assert fetch(tmp_path, services, "--dry-run") == 0
        assert services.seen == []
        out = capsys.readouterr().out
    printed = {line.strip().replace(services.address, "") for line in out.splitlines() if line.startswith("  GET")}
    assert printed == expected
    assert not (tmp_path / "full.json").exists()


def test_in_place_and_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = whole_bundles.snp()
    write(tmp_path, whole)
    before = (tmp_path / "bundle.json").read_bytes()
    arguments = ["collateral", "fetch", str(tmp_path / "bundle.json"), "--policy", str(tmp_path / "policy.toml")]
    with serving(FakeServices()) as services:
        snp_services(services)
        assert main([*arguments, "--at", AT, *services.options()]) == 0
        printed = capsys.readouterr().out.encode()
        assert passes(bundles.load(printed), whole)
        assert (tmp_path / "bundle.json").read_bytes() == before
        assert main([*arguments, "--at", AT, "--in-place", *services.options()]) == 0
        assert passes(bundles.load((tmp_path / "bundle.json").read_bytes()), whole)
        asked = len(services.seen)
        assert main([*arguments, "--at", AT, "--in-place", *services.options()]) == 0
        assert len(services.seen) == asked
    assert "nothing is lacking" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--in-place", "--output", "x"])
    assert caught.value.code == 64


def test_a_receipt_still_holds_when_collateral_is_added_later(tmp_path: Path) -> None:
    whole = whole_bundles.tdx()
    world = fakepki.World()
    toml = whole.toml if "receipt_keys" in whole.toml else whole.toml + "\n"
    write(tmp_path, replace(whole, toml=toml), world.receipted(bare(whole)))
    with serving(FakeServices()) as services:
        services.intel(fake_tdx.FakeTdx())
        assert fetch(tmp_path, services) == 0
    verdict = verify(full(tmp_path), whole.policy, now=fakepki.NOW)
    assert verdict.passed
    assert verdict.freshness == "receipt"
    # evidence may not be changed that way
    items = dict(full(tmp_path).evidence.items)
    del items["ccel"]
    changed = verify(replace(full(tmp_path), evidence=Collection(items)), whole.policy, now=fakepki.NOW)
    assert "receipt.bundle_mismatch" in {reason.code for item in changed.items for reason in item.reasons}


def test_what_the_record_may_not_say() -> None:
    whole = whole_bundles.tdx()
    good = sources.record(whole.bundle.evidence, whole.bundle.evidence, [])
    assert sources.received(good) == whole.bundle.evidence
    for change in ({"added": ["claims"]}, {"version": 2}, {"added": ["tokens"], "replaced": {}}):
        value = json.loads(good.items[sources.LABEL].value) | change
        bad = good.with_item(sources.LABEL, sources.MEDIA_TYPE, json.dumps(value).encode())
        assert sources.received(bad) == bad
    assert store.LABELS.keys() == sources.LABELS


def test_anew_asks_for_what_is_in_force_and_keeps_it_where_nobody_answers(tmp_path: Path) -> None:
    whole = whole_bundles.gpu()
    write(tmp_path, whole, whole.bundle)
    with serving(FakeServices()) as services:
        gpu_services(services, state="revoked")
        assert fetch(tmp_path, services) == 0
        assert services.seen == []
        assert fetch(tmp_path, services, "--anew") == 0
        assert services.seen == ["POST /"] * 6
        verdict = verify(full(tmp_path), whole.policy, now=fakepki.NOW)
        assert "nvidia.ocsp.revoked" in {reason.code for item in verdict.items for reason in item.reasons}
        services.routes.clear()
        assert fetch(tmp_path, services, "--anew") == 4
    assert full(tmp_path) == whole.bundle
    for make, prepare, _ in (WHOLE["snp"], WHOLE["azure_tdx"]):
        whole = make()
        write(tmp_path, whole, whole.bundle)
        with serving(FakeServices()) as services:
            prepare(services)
            assert fetch(tmp_path, services, "--anew") == 0
            assert services.seen
            assert passes(full(tmp_path), whole)
            services.routes.clear()
            assert fetch(tmp_path, services, "--anew", "--timeout", "0.3") == 4
        assert full(tmp_path) == whole.bundle


def test_what_the_policy_goes_on_without_is_asked_for_and_counts_in_no_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = whole_bundles.snp()
    whole = replace(whole, toml=whole.toml.replace("[snp]\n", '[snp]\nallow_missing = ["snp.crl"]\n'))
    write(tmp_path, whole)
    with serving(FakeServices()) as services:
        snp_services(services)
        del services.routes["GET /vcek/v1/Milan/crl"]
        assert fetch(tmp_path, services) == 0
        assert "GET /vcek/v1/Milan/crl" in services.seen
    assert lines(capsys.readouterr().err, "attestation: snp-crl", "the policy goes on without it")
    assert passes(full(tmp_path), whole)
    options = ["--policy", str(tmp_path / "policy.toml"), "--at", AT]
    assert main(["collateral", "show", str(tmp_path / "full.json"), *options]) == 0
    assert "the policy goes on without it" in capsys.readouterr().out


# --- Google, tokens, keys ---


def test_googles_endorsement_is_asked_for_where_a_policy_relies_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, google = whole_bundles.tdx(), fake_tdx.FakeGoogle()
    toml = whole.toml.replace(f'mrtd = ["{"22" * 48}"]', f'endorsement_roots = ["{google.roots[0]}"]')
    assert toml != whole.toml
    whole = replace(whole, toml=toml)
    write(tmp_path, whole)
    path = f"GET /gce_tcb_integrity/ovmf_x64_csm/tdx/{'22' * 48}.binarypb"
    with serving(FakeServices()) as services:
        services.intel(fake_tdx.FakeTdx())
        for other in (replace(google, mr_td=bytes(48)), replace(google, issuer="stranger")):
            services.give(path, ok(other.endorsement(), "application/octet-stream"))
            assert fetch(tmp_path, services) == 2
            assert "gce-launch-endorsement" not in full(tmp_path).evidence.items
        services.give(path, ok(google.endorsement(), "application/octet-stream"))
        assert fetch(tmp_path, services) == 0
    assert passes(full(tmp_path), whole)
    assert "it is about other firmware" in capsys.readouterr().err


PRIVATE_CA = "privateca-content-62d71773-0000-21da-852e-f4f5e80d7778.storage.googleapis.com"


def test_issuers_of_googles_attestation_keys_come_one_by_one(tmp_path: Path) -> None:
    def ca(name: str, issuer: fake_x509.Issued | None = None) -> fake_x509.Issued:
        extensions = fake_x509.ca_extensions()
        if issuer:
            extensions.append(fake_x509.authority_information(f"http://{PRIVATE_CA}/root/ca.crt"))
        return fake_x509.issue(name, fake_x509.rsa_key(name), issuer, extensions=extensions)

    root = ca("EK/AK CA Root")
    middle = ca("EK/AK CA Intermediate", root)
    points = [fake_x509.authority_information(f"http://{PRIVATE_CA}/middle/ca.crt")]
    leaf = fake_x509.issue("instance", fake_x509.rsa_key("instance"), middle, extensions=points)
    world = fakepki.World()
    toml = world.policy_toml().replace("ak_issuers = [", f'ak_issuers = ["{root.digest}", ')
    assert root.digest in toml
    whole = Whole(Bundle(Collection().with_item("ak-certificate", "application/pkix-cert", leaf.der)), toml)
    write(tmp_path, whole, whole.bundle)
    with serving(FakeServices()) as services:
        services.give("GET /middle/ca.crt", ok(root.der, "application/x-x509-ca-cert"))
        services.give("GET /root/ca.crt", ok(root.der, "application/x-x509-ca-cert"))
        assert fetch(tmp_path, services) == 2  # not the one that signed
        services.give("GET /middle/ca.crt", ok(middle.der, "application/x-x509-ca-cert"))
        assert fetch(tmp_path, services) == 0
    assert full(tmp_path).evidence.get("ak-chain") == middle.pem + root.pem


@pytest.mark.parametrize(
    ("iss", "code"),
    [("https://acme.weu.attest.azure.net", 0), ("https://acme.weu.attest.azure.net.example.com", 2)],
)
def test_only_microsofts_instances_are_asked_for_keys(iss: str, code: int, tmp_path: Path) -> None:
    token = fake_tokens.FakeToken("maa", claims={"iss": iss}).data()
    given = tokens.encode([tokens.Given("maa", token, b'{"keys":[]}')])
    evidence = Collection().with_item("tokens", tokens.LABELS["tokens"], given)
    (tmp_path / "bundle.json").write_bytes(bundles.dump(Bundle(evidence)))
    arguments = ["collateral", "fetch", str(tmp_path / "bundle.json"), "--at", AT]
    arguments += ["--output", str(tmp_path / "full.json")]
    if code:
        assert main(arguments) == code
        return
    with serving(FakeServices()) as services:
        services.keys("/certs", "maa")
        assert main([*arguments, "--service", f"maa={services.address}"]) == 0
    keys = tokens.decode(full(tmp_path).evidence.get("tokens") or b"")[0].keys
    assert keys == services.routes["GET /certs"](b"")[2]


def test_a_service_gets_its_key_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = whole_bundles.gpu()
    write(tmp_path, whole, bare(whole, "ak-chain"))
    (tmp_path / "key").write_text("nvapi-secret\n")
    with serving(FakeServices()) as services:
        gpu_services(services)
        assert fetch(tmp_path, services, "--bearer", f"nvidia-rim=file:{tmp_path / 'key'}") == 0
        wanted = {request for request, key in zip(services.seen, services.keys_given, strict=True) if key}
        assert wanted == {f"GET /v1/rim/{DRIVER}", f"GET /v1/rim/{VBIOS}"}
        assert set(services.keys_given) == {None, "Bearer nvapi-secret"}
    assert "nvapi-secret" not in (tmp_path / "full.json").read_text() + capsys.readouterr().err
    for bad in ("nvidia-rim=nvapi-secret", "other=file:key", f"nvidia-rim=file:{tmp_path / 'none'}"):
        assert fetch(tmp_path, services, "--bearer", bad) == 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--attempts", "0"), "must be positive"),
        (("--timeout", "0"), "must be positive"),
        (("--offline", "--refresh"), "leaves nothing to ask"),
        (("--offline", "--anew"), "leaves nothing to ask"),
        (("--config", "/no/such/file"), "can't be read"),
        (("--config", __file__), "not TOML"),
        (("--at", "yesterday"), "is not a time"),
        (("--output", "/no/such/folder/bundle.json"), "can't be written"),
    ],
)
def test_options_that_make_no_sense(
    more: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, whole_bundles.snp())
    assert fetch(tmp_path, FakeServices(address="http://127.0.0.1:1"), *more) == 3
    assert words in capsys.readouterr().err
    assert not (tmp_path / "full.json").exists()


# --- AMD's other machines ---


def snp_bundle(machine: fake_snp.FakeSnp) -> Bundle:
    return Bundle(Collection().with_item("snp-report", "application/vnd.cube.snp-report", machine.report()))


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        (
            {"product": "Turin"},
            "GET /vcek/v1/Turin/0102030405060708?fmcSPL=02&blSPL=04&teeSPL=01&snpSPL=24&ucodeSPL=219",
        ),
        ({"product": "Genoa"}, "/vcek/v1/Genoa/"),
        ({"product": "Genoa", "version": 2}, "/vcek/v1/Milan/"),
    ],
)
def test_product_lines_and_reports_that_do_not_name_theirs(
    changes: dict[str, object], asked: str, tmp_path: Path
) -> None:
    machine = fake_snp.FakeSnp().but(**changes)
    roots = "\n".join(f'"{digest}" = "{line}"' for digest, line in machine.roots.items())
    toml = fakepki.World().policy_toml() + f"[snp]\nany_firmware = true\n[snp.roots]\n{roots}\n"
    whole = Whole(snp_bundle(machine), toml)
    write(tmp_path, whole, whole.bundle)
    with serving(FakeServices()) as services:
        services.amd(machine)
        assert fetch(tmp_path, services) == (2 if changes.get("version") == 2 else 0)
        assert [request for request in services.seen if asked in request]
    if changes.get("version") == 2:  # nothing named the line before the VCEK, and the fake root is not published
        return
    assert {"snp-certificates", "snp-crl"} <= set(full(tmp_path).evidence.items)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (fake_snp.FakeSnp(kind="vlek"), "a VLEK is the provider's"),
        (fake_snp.FakeSnp().with_fields(flags=2, chip_id=bytes(64)), "the host hides the chip's id"),
    ],
)
def test_keys_that_no_service_gives(
    machine: fake_snp.FakeSnp, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Whole(snp_bundle(machine), whole_bundles.snp().toml)
    write(tmp_path, whole, whole.bundle)
    with serving(FakeServices()) as services:
        services.amd(machine)
        assert fetch(tmp_path, services) == 4
    assert lines(capsys.readouterr().err, "attestation: snp-certificates", words)
    assert "snp-crl" in full(tmp_path).evidence.items


def test_evidence_that_cant_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Collection().with_item("snp-report", "application/vnd.cube.snp-report", b"short")
    broken = broken.with_item("tdx-quote", "application/vnd.cube.tdx-quote", b"short")
    (tmp_path / "bundle.json").write_bytes(bundles.dump(Bundle(broken)))
    assert main(["collateral", "fetch", str(tmp_path / "bundle.json"), "--offline", "--output", "/dev/null"]) == 4
    err = capsys.readouterr().err
    assert lines(err, "SNP report", "5 bytes")
    assert lines(err, "quote", "5 bytes")
