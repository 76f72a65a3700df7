# SPDX-License-Identifier: Apache-2.0
"""Policies are written, refused and explained: no member escapes the words, nothing lax escapes the lint."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import fakepki
import pytest
import whole_bundles
from cube_attestation import jcs, policy_lint, policy_words
from cube_attestation.azure.policy import AzurePolicy
from cube_attestation.cli import main
from cube_attestation.nvidia.policy import NvidiaPolicy
from cube_attestation.policy import Policy, load
from cube_attestation.snp.abi import Tcb
from cube_attestation.snp.policy import SnpPolicy
from cube_attestation.tdx.ccel import EventRule
from cube_attestation.tdx.policy import TdxPolicy
from cube_attestation.tokens.appraise import TokenPolicy
from cube_attestation.verifier import verify

DIGEST = "sha256:" + "0123456789abcdef" * 4
VALUE = bytes(range(48))


# explain


def words(policy: Policy) -> str:
    return policy_words.text(policy_words.explain(policy))


def local() -> Policy:
    return whole_bundles.local().policy


def full() -> Policy:
    """A policy with every section."""
    token = TokenPolicy("nras", ("https://a.example",), frozenset({DIGEST}))
    parts: dict[str, Any] = {"snp": SnpPolicy(), "azure": None, "tdx": TdxPolicy(explain_rtmrs=True)}
    return replace(local(), **parts, nvidia=NvidiaPolicy(), tokens=(token,))


def changed(value: object, name: str) -> object:
    """Another value of the same kind."""
    special: dict[str, object] = {
        "minimum_tcb": {"Genoa": Tcb(1, 2, 3, 4)},
        "events": (EventRule(0, "EV_SEPARATOR", "separator", (VALUE,)),),
        "rtmrs": (None, (VALUE,), None, None),
        "roots": {DIGEST: "Genoa"} if isinstance(value, dict) else (DIGEST,),
        "claims": {"a.b": ("c",)},
        "report_data": VALUE,
        "user_data": VALUE,
        "secure_boot": False,
        "console": "interactive",
        "minimum_firmware": (1, 2, 3),
        "minimum_abi": (1, 51),
        "max_crl_age": timedelta(days=3),
        "fmspcs": (b"\1" * 6,),
        "ppids": (b"\1" * 16,),
        "mr_td": (VALUE,),
        "tcb_statuses": ("OutOfDate",),
        "min_tee_tcb_svn": bytes(range(16)),
        "max_collateral_age_s": 90,
    }
    if name in special:
        return special[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 5
    if isinstance(value, timedelta):
        return value * 3
    if isinstance(value, frozenset):
        return frozenset({*value, "another"})
    if value is None or (isinstance(value, tuple) and name.startswith("mr_")):
        return (VALUE,)
    if isinstance(value, tuple):
        return (*value, 7 if name in ("vmpls", "pcrs") else "another")
    assert isinstance(value, str), name
    return value + "9"


def section(name: str) -> tuple[Any, Callable[[Any], Policy]]:
    policy = full()
    azure = AzurePolicy()
    homes: dict[str, tuple[Any, Callable[[Any], Policy]]] = {
        "image": (policy.image, lambda v: replace(policy, image=v)),
        "launch": (policy.launch, lambda v: replace(policy, launch=v)),
        "tpm": (policy.tpm, lambda v: replace(policy, tpm=v)),
        "snp": (SnpPolicy(), lambda v: replace(policy, snp=v)),
        "snp.rules": (SnpPolicy().rules, lambda v: replace(policy, snp=SnpPolicy(rules=v))),
        "azure": (azure, lambda v: replace(policy, azure=v)),
        "azure.rules": (azure.rules, lambda v: replace(policy, azure=replace(azure, rules=v))),
        "azure.paravisor": (azure.paravisor, lambda v: replace(policy, azure=replace(azure, paravisor=v))),
        "tdx": (TdxPolicy(explain_rtmrs=True), lambda v: replace(policy, tdx=v)),
        "nvidia": (NvidiaPolicy(), lambda v: replace(policy, nvidia=v)),
        "tokens": (policy.tokens[0], lambda v: replace(policy, tokens=(v,))),
    }
    return homes[name]


SECTIONS = ("image", "launch", "tpm", "snp", "snp.rules", "azure", "azure.rules", "azure.paravisor", "tdx")


@pytest.mark.parametrize("name", [*SECTIONS, "nvidia", "tokens"])
def test_every_member_changes_the_words(name: str) -> None:
    start, build = section(name)
    before = words(build(start))
    for field in fields(start):
        if field.name in ("rules", "paravisor"):
            continue  # sections of their own
        after = words(build(replace(start, **{field.name: changed(getattr(start, field.name), field.name)})))
        assert after != before, field.name


@pytest.mark.parametrize(
    ("member", "value"),
    [("environment", "another"), ("lowest_tier", "hardware"), ("max_clock_skew_s", 61), ("receipt_keys", ())],
)
def test_the_top_level_changes_the_words(member: str, value: object) -> None:
    assert words(replace(local(), **{member: value})) != words(local())  # type: ignore[arg-type]


def test_what_is_left_out_is_said() -> None:
    text = words(local())
    assert "No [snp], [azure], [tdx] section: that hardware is not accepted." in text
    assert "no GPU is demanded" in text
    assert "PCR 11: the unified kernel image" in text
    assert "software TPM is accepted below, which protects nothing" in text


@pytest.mark.parametrize("kind", whole_bundles.ALL)
def test_every_kind_is_explained(kind: str) -> None:
    policy = whole_bundles.ALL[kind]().policy
    titles = [part.title for part in policy_words.explain(policy)]
    expected = {
        "snp": "AMD SEV-SNP",
        "azure": "Azure",
        "azure_tdx": "Intel TDX",
        "tdx": "Intel TDX",
        "gpu": "NVIDIA GPUs",
        "a3-highgpu-1g": "Intel TDX",
        "NCC40ads_H100_v5": "Azure",
    }
    assert kind == "local" or expected[kind] in titles
    assert titles[0] == "Policy"
    assert titles[-1] == "Freshness"


# lint


def errors(policy: Policy, source: bytes = b"") -> list[str]:
    return [found.where for found in policy_lint.lint(policy, source) if found.level == policy_lint.ERROR]


def warnings(policy: Policy) -> list[str]:
    return [found.where for found in policy_lint.lint(policy) if found.level == policy_lint.WARNING]


def strict() -> Policy:
    """A policy for production that lint has nothing to say against."""
    text = fakepki.World(policy={"lowest_tier": '"hardware"'}).policy_toml()
    text += '[tdx]\nmrtd = ["' + VALUE.hex() + '"]\n[nvidia]\ndevices = 1\n'
    return load(text.encode())


def lax(name: str) -> Policy:
    policy = strict()
    assert policy.tdx is not None
    assert policy.nvidia is not None
    rules = SnpPolicy().rules
    token = TokenPolicy("nras", ("https://a.example",), frozenset({DIGEST}), debug=True)
    missing = ("tdx.root_crl", "tdx.pck_crl", "tdx.tcb_info", "tdx.qe_identity")
    rims = frozenset({"nvidia.driver_rim", "nvidia.vbios_rim"})
    cases: dict[str, Policy] = {
        "[image] debug": replace(policy, image=replace(policy.image, debug=True)),
        "lowest_tier": replace(policy, tdx=None),
        "[snp] any_firmware": replace(policy, snp=SnpPolicy(rules=replace(rules, any_firmware=True))),
        "[snp]": replace(policy, snp=SnpPolicy()),
        "[tdx] allow_missing": replace(policy, tdx=replace(policy.tdx, allow_missing=missing)),
        "[nvidia] allow_missing": replace(policy, nvidia=replace(policy.nvidia, allow_missing=rims)),
        "[nvidia] devices": replace(policy, nvidia=replace(policy.nvidia, devices=0)),
        "tokens[0].debug": replace(policy, tokens=(token,)),
    }
    return cases[name]


LAX = (
    "[image] debug",
    "lowest_tier",
    "[snp] any_firmware",
    "[snp]",
    "[tdx] allow_missing",
    "[nvidia] allow_missing",
)


@pytest.mark.parametrize("where", [*LAX, "[nvidia] devices", "tokens[0].debug"])
def test_what_lets_anything_through_is_refused(where: str) -> None:
    assert errors(strict()) == []
    assert errors(lax(where)) == [where]


def test_a_good_policy_has_no_warnings() -> None:
    assert warnings(strict()) == []


def test_what_is_weak_is_said() -> None:
    policy = strict()
    assert policy.tdx is not None
    assert policy.nvidia is not None
    azure = AzurePolicy(allow_missing=("azure.crl",))
    azure = replace(azure, rules=replace(azure.rules, console="output", secure_boot=False, tpm=False))
    snp = replace(SnpPolicy().rules, id_keys=("33" * 48,), migration_agent=True, vmpls=(0, 1))
    tdx = replace(
        policy.tdx,
        allow_missing=("tdx.pck_crl",),
        tcb_statuses=("OutOfDate",),
        attributes_allowed=1 << 29,
        mr_service_td=None,
    )
    nvidia = replace(
        policy.nvidia, devices=-1, allow_missing=frozenset({"nvidia.fwid"}), ocsp_max_age=timedelta(days=90)
    )
    token = TokenPolicy("confidential-space", ("https://a.example",), frozenset({DIGEST}))
    weak = replace(
        policy,
        max_clock_skew_s=3600,
        launch=replace(policy.launch, minimum_revision=0),
        azure=azure,
        tdx=tdx,
        nvidia=nvidia,
        tokens=(token,),
    )
    found = warnings(weak) + warnings(replace(policy, snp=SnpPolicy(rules=snp, allow_missing=("snp.crl",))))
    assert set(found) == {
        "max_clock_skew_s",
        "[launch] minimum_revision",
        "[azure] console",
        "[azure] secure_boot",
        "[azure] tpm",
        "[azure] minimum_guest_svn",
        "[azure] allow_missing",
        "[tdx] allow_missing",
        "[tdx] tcb_statuses",
        "[tdx] attributes_allowed",
        "[tdx] mrservicetd",
        "[nvidia] devices",
        "[nvidia] allow_missing",
        "[nvidia] ocsp_max_age_s",
        "tokens[0].audience",
        "[snp] minimum_tcb",
        "[snp] migration_agent",
        "[snp] vmpls",
        "[snp] allow_missing",
    }
    assert warnings(local()) == ["lowest_tier"]


def test_values_of_a_template_are_refused() -> None:
    assert errors(strict(), b'mrtd = ["' + b"00" * 48 + b'"]  # "' + b"00" * 48) == ["line 1"]
    assert errors(strict(), b'\nallowed = ["sha256:' + b"ab" * 32 + b'"]') == ["line 2"]
    assert errors(strict(), b'# mrtd = ["' + b"00" * 48 + b'"]\nmrservicetd = ["' + b"00" * 48 + b'"]') == []


# The commands


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    world = fakepki.World()
    (tmp_path / "manifest.json").write_bytes(jcs.dumps(world.manifest_envelope()))
    (tmp_path / "operator.pem").write_text(fakepki.pem(fakepki.ec_key("operator")))
    (tmp_path / "maker.pem").write_bytes(fakepki.tpm_maker()[0].pem)
    (tmp_path / "ca.pem").write_bytes(fakepki.environment_ca().pem)
    (tmp_path / "policy.toml").write_text(world.policy_toml())
    monkeypatch.chdir(tmp_path)
    return tmp_path


NEW = ["policy", "new", "manifest.json", "--environment", "local", "--machine"]


def test_a_new_policy_accepts_that_image(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["--launch-key", "operator.pem", "--ek-root", "maker.pem", "--ak-issuer", "ca.pem", "--pin"]
    control = ["--receipt-key", fakepki.spki(fakepki.ec_key("control"))]
    assert main([*NEW, "local", *keys, *control, "-o", "new.toml"]) == 0
    assert capsys.readouterr().err == ""
    policy = load((files / "new.toml").read_bytes())
    bundle = fakepki.World().receipted()
    assert verify(bundle, policy, now=fakepki.NOW).passed
    other = fakepki.World(predicted=fakepki.cmdline_changed(), boot=fakepki.cmdline_changed())
    assert verify(other.receipted(), policy, now=fakepki.NOW).codes == ("image.not_allowed",)
    assert main(["policy", "lint", "new.toml"]) == 0
    assert main([*NEW, "local", *keys, "-o", "new.toml"]) == 3  # not over somebody's work
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("machine", "missing"), [("local", "tpm.ek_roots"), ("azure", "minimum_guest_svn"), ("gcp", "mrtd")]
)
def test_what_the_manifest_cant_say_is_left_open(
    machine: str, missing: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*NEW, machine, "--launch-key", "operator.pem", "--gpus", "1"]) == 0
    captured = capsys.readouterr()
    assert missing in captured.err
    assert "TO FILL IN" in captured.out
    value = tomllib.loads(captured.out)
    assert value["nvidia"]["devices"] == 1
    assert "allowed" not in value["image"]
    (files / "new.toml").write_text(captured.out)
    assert main(["policy", "lint", "new.toml"]) == 3  # it accepts nothing until it is completed


def test_an_snp_policy_accepts_nothing_until_it_is_completed(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*NEW, "snp", "--launch-key", "operator.pem", "-o", "new.toml"]) == 0
    assert main(["policy", "lint", "new.toml"]) == 1
    assert "nothing is accepted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["policy", "new", "policy.toml", "--environment", "local", "--machine", "local"], "policy.toml"),
        (
            ["policy", "new", "forged.json", "--environment", "local", "--machine", "local"],
            "no signature of it holds",
        ),
        (["policy", "new", "manifest.json", "--environment", "A b", "--machine", "local"], "--environment"),
        ([*NEW, "local", "--gpus", "-1"], "--gpus"),
        ([*NEW, "local", "--launch-key", "sha256:x"], "sha256:x"),
        ([*NEW, "local", "--launch-key", "policy.toml"], "policy.toml"),
        ([*NEW, "local", "--launch-key", "no.pem"], "no.pem"),
        (["policy", "lint", "manifest.json"], "manifest.json"),
        (["policy", "explain", "no.toml"], "no.toml"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], named: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    envelope = fakepki.World().manifest_envelope()
    other = fakepki.World(flavour="other").manifest_envelope()
    (files / "forged.json").write_bytes(jcs.dumps({**envelope, "signatures": other["signatures"]}))
    assert main(arguments) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error


def test_a_debugging_image_is_not_accepted_by_itself(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = fakepki.World(flavour="local-debug").manifest_envelope()
    (files / "manifest.json").write_bytes(jcs.dumps(manifest))
    assert main([*NEW, "local"]) == 0
    out = capsys.readouterr().out
    assert tomllib.loads(out)["image"]["debug"] is False
    assert "THIS IMAGE IS FOR DEBUGGING" in out


def test_names_in_a_manifest_stay_in_their_comment(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A manifest's own text can't add members to the policy."""
    from cube_attestation import dsse

    payload = {**fakepki.World().manifest_payload(), "id": 'x\nlowest_tier = "software"'}
    envelope = dsse.sign(dsse.IMAGE_MANIFEST, payload, fakepki.ec_key("image"))
    (files / "manifest.json").write_bytes(jcs.dumps(envelope))
    assert main([*NEW, "gcp"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["lowest_tier"] == "hardware"


def test_lint_and_explain(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "lint", "policy.toml"]) == 0
    assert "policy.toml: good" in capsys.readouterr().out
    assert main(["policy", "lint", "--strict", "policy.toml"]) == 1
    assert "policy.toml: REFUSED" in capsys.readouterr().out
    assert main(["policy", "explain", "policy.toml"]) == 0
    assert capsys.readouterr().out.startswith("Policy\n  Accepts machines of environment local only.")
