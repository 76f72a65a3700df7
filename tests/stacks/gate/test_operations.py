# SPDX-License-Identifier: Apache-2.0
"""Gate, domain set and edge as resources, and the `cube` command on them, against a machine of processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cube_attestation import bundle as bundles
from cube_attestation import client, policy, verifier
from cube_stacks import edge, keys, records, tokens
from cube_stacks.ca import tpm_manufacturer
from cube_stacks.cli import main
from cube_stacks.gate import Trust, utc_now
from cube_stacks.launch import SignedLaunch
from cube_stacks.local.ports import free_ports
from cube_stacks.provider.attestation_gate import AttestationGate
from cube_stacks.provider.base import Context, Failed, Properties, State, Unhealthy
from cube_stacks.provider.domain_set import DomainSet
from cube_stacks.provider.edge import Edge

pytestmark = pytest.mark.slow

ACME, GLOBEX = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"


def context(name: str, said: list[str] | None = None) -> Context:
    notes = [] if said is None else said
    return Context(f"urn:pulumi:local::cube::type::{name}", None, notes.append, notes.append)


@pytest.fixture
def gate_inputs(machine: Any, trust: Trust, signed: SignedLaunch, tmp_path: Path) -> Properties:
    source, manifest = tmp_path / "policy.toml", tmp_path / "manifest.json"
    source.write_text(
        'version = 1\nenvironment = "local"\nlowest_tier = "software"\n'
        "[image]\n[launch]\nminimum_revision = 3\n[tpm]\npcrs = [2, 4, 5, 7, 8, 9, 11]\n"
    )
    manifest.write_bytes(trust.manifest)
    return {
        "instanceId": machine.instance,
        "managementAddress": machine.management,
        "console": str(machine.folder / "console.log"),
        "environment": "local",
        "policy": str(source),
        "lowestTier": "software",
        "manifest": str(manifest),
        "launchDigest": signed.digest,
        "ekRoot": machine.maker.root_spki,
        "controlKey": keys.environment_key("local", "control"),
        "caKey": keys.environment_key("local", "ca"),
        "imageSigner": keys.open_key(keys.environment_key("local", "image")).keyid,
        "hostnames": ["localhost"],
        "leaseSeconds": 600,
        "deadlineSeconds": 60,
    }


@pytest.fixture
def passed(gate_inputs: Properties) -> State:
    return AttestationGate().create(context("gate"), gate_inputs)


def domain(id: str, name: str) -> dict[str, Any]:
    key = tokens.token_key(keys.open_key(keys.domain_key("local", name))).to_json()
    return {"id": id, "name": name, "models": ["smollm2"], "tokens": {"keys": [key], "revoked": []}}


@pytest.fixture
def domain_inputs(gate_inputs: Properties, passed: State) -> Properties:
    return {
        "attestedAddress": passed.outputs["attestedAddress"],
        "attestedKey": passed.outputs["attestedKey"],
        "boot": passed.outputs["boot"],
        "environment": "local",
        "domains": [domain(ACME, "acme"), domain(GLOBEX, "globex")],
        "controlKey": gate_inputs["controlKey"],
        "policy": passed.outputs["policy"],
        "manifest": gate_inputs["manifest"],
        "caKey": gate_inputs["caKey"],
    }


@pytest.fixture
def installed(domain_inputs: Properties) -> State:
    return DomainSet().create(context("domains"), domain_inputs)


def read_gate(inputs: Properties, state: State) -> State | None:
    return AttestationGate().read(context("gate"), state.id, inputs, state.outputs)


def cube(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["--stack", "local", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_gates_outputs_let_an_auditor_verify_alone(passed: State, installed: State) -> None:
    assert passed.outputs["tier"] == "software"
    assert len(passed.outputs["verdict"]) == 3
    complete = policy.load(Path(passed.outputs["policy"]).read_bytes())
    for path in (passed.outputs["bundle"], installed.outputs["bundle"]):
        verdict = verifier.verify(bundles.load(Path(path).read_bytes()), complete, now=utc_now())
        assert verdict.passed
        assert verdict.freshness == "receipt"
    assert "BEGIN PRIVATE" not in json.dumps(passed.outputs)


def test_a_healthy_gate_renews_its_lease(gate_inputs: Properties, passed: State) -> None:
    time.sleep(1.1)
    again = read_gate(gate_inputs, passed)
    assert again is not None
    changed = {name for name, value in again.outputs.items() if value != passed.outputs[name]}
    assert changed == {"bundleDigest", "verifiedAt", "leaseExpires"}


def test_a_reboot_is_unhealthy_until_an_update_admits_it(
    machine: Any, gate_inputs: Properties, passed: State, domain_inputs: Properties, installed: State
) -> None:
    machine.reboot()
    with pytest.raises(Unhealthy, match=r"machine\.rebooted"):
        read_gate(gate_inputs, passed)
    assert client.ready(machine.management)[1][0] == "lease.none"
    with pytest.raises(Unhealthy, match="rebooted and has no domains"):
        DomainSet().read(context("domains"), installed.id, domain_inputs, installed.outputs)
    updated = AttestationGate().update(context("gate"), passed.id, passed.outputs, gate_inputs)
    assert updated.outputs["boot"] != passed.outputs["boot"]
    inputs = domain_inputs | {name: updated.outputs[name] for name in ("attestedKey", "boot")}
    restored = DomainSet().update(context("domains"), installed.id, installed.outputs, inputs)
    assert restored.outputs["digest"] == installed.outputs["digest"]
    assert DomainSet().read(context("domains"), installed.id, inputs, restored.outputs) == restored


def test_a_machine_that_no_longer_passes_loses_its_lease(
    machine: Any, gate_inputs: Properties, passed: State, installed: State
) -> None:
    source = Path(gate_inputs["policy"])
    source.write_text(source.read_text().replace("minimum_revision = 3", "minimum_revision = 4"))
    with pytest.raises(Unhealthy) as unhealthy:
        read_gate(gate_inputs, passed)
    assert unhealthy.value.reasons[0].startswith("launch.revision.too_old")
    assert unhealthy.value.reasons[-1] == "its lease is revoked"
    assert client.ready(machine.management)[1] == ("lease.revoked",)
    with pytest.raises(Failed, match=r"not admitted: launch\.revision\.too_old") as failed:
        AttestationGate().update(context("gate"), passed.id, passed.outputs, gate_inputs)
    assert failed.value.code == "FAILED_PRECONDITION"
    refused = records.folder("local", "gates", "gate") / "refused" / "verdict.json"
    assert json.loads(refused.read_text())["passed"] is False


def test_a_man_in_the_middle_of_a_re_verification_is_named(
    machine: Any, gate_inputs: Properties, passed: State, relays: Callable[..., str], tmp_path: Path
) -> None:
    middle = gate_inputs | {"managementAddress": relays(machine.management, tmp_path)}
    with pytest.raises(Unhealthy) as unhealthy:
        read_gate(middle, passed)
    assert unhealthy.value.reasons[0].startswith("claims.tls_key_mismatch")
    assert unhealthy.value.reasons[-1].startswith("its lease could not be revoked and ends at ")
    with pytest.raises(Failed, match=r"claims\.tls_key_mismatch") as failed:
        AttestationGate().create(context("gate"), middle)
    assert failed.value.code == "FAILED_PRECONDITION"


def test_a_refused_machine_is_never_admitted(
    machine: Any, gate_inputs: Properties, machines: Callable[..., Any]
) -> None:
    foreign = gate_inputs | {"ekRoot": tpm_manufacturer("elsewhere", utc_now()).root_spki}
    with pytest.raises(Failed, match=r"tpm\.ek\.untrusted_root") as failed:
        AttestationGate().create(context("gate"), foreign)
    assert failed.value.code == "FAILED_PRECONDITION"
    assert client.ready(machine.management)[1][0] == "lease.none"
    assert records.find("local", "gates", "gate") is None


def test_a_machine_that_was_killed_is_gone(machine: Any, gate_inputs: Properties, passed: State) -> None:
    for process in machine.processes:
        os.kill(process.pid, signal.SIGKILL)
    started = time.monotonic()
    assert read_gate(gate_inputs, passed) is None
    assert time.monotonic() - started < 3


def test_a_machine_that_hangs_does_not_hang_a_preview(
    machine: Any, gate_inputs: Properties, passed: State, domain_inputs: Properties, installed: State
) -> None:
    envoy = machine.processes[-1]
    os.kill(envoy.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(Unhealthy, match=r"machine\.unreachable"):
            read_gate(gate_inputs, passed)
        said: list[str] = []
        assert (
            DomainSet().read(context("domains", said), installed.id, domain_inputs, installed.outputs) == installed
        )
        assert "can't be looked at" in said[0]
        assert time.monotonic() - started < 15
    finally:
        os.kill(envoy.pid, signal.SIGCONT)


def test_deleting_a_gate_takes_its_lease_but_not_its_successors(
    machine: Any, gate_inputs: Properties, passed: State
) -> None:
    AttestationGate().delete(context("gate"), "an earlier instance", passed.outputs)
    assert client.ready(machine.management)[1][0] == "domains.none"
    AttestationGate().delete(context("gate"), passed.id, passed.outputs)
    assert client.ready(machine.management)[1][0] == "lease.revoked"
    assert records.find("local", "gates", "gate") is None
    AttestationGate().delete(context("gate"), passed.id, passed.outputs)


def test_deleting_the_domain_set_takes_every_domain(
    machine: Any, domain_inputs: Properties, installed: State
) -> None:
    DomainSet().delete(context("domains"), installed.id, installed.outputs)
    state = client.state(machine.management, expected_spki=domain_inputs["attestedKey"])
    assert state.domains_digest != installed.outputs["digest"]
    assert records.find("local", "domain-sets", "domains") is None


def test_wrong_domains_are_refused_before_anything_runs() -> None:
    inputs = {"domains": [domain(ACME, "acme"), domain(ACME, "globex")]}
    _, problems = DomainSet().check(inputs)
    assert problems[0][0] == "domains"
    assert DomainSet().check({"domains": [domain(ACME, "acme")]})[1] == []


def test_wrong_inputs_of_a_gate_are_named(gate_inputs: Properties) -> None:
    _, problems = AttestationGate().check(
        gate_inputs | {"lowestTier": "steel", "leaseSeconds": 0, "deadlineSeconds": 9999}
    )
    assert [name for name, _ in problems] == ["lowestTier", "leaseSeconds", "deadlineSeconds"]


def test_reconcile_admits_a_new_boot_and_restores_domains(
    machine: Any, gate_inputs: Properties, passed: State, installed: State, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = cube(capsys, "reconcile")
    assert code == 0, out
    assert "lease renewed" in out
    assert "2 domains in force" in out
    machine.reboot()
    assert cube(capsys, "status")[0] == 1
    code, out, _ = cube(capsys, "reconcile")
    assert code == 0, out
    assert "new boot verified and admitted" in out
    assert "2 domains restored" in out
    # The engine's outputs are of the boot before: its next refresh asks for an update, which finds all in place.
    with pytest.raises(Unhealthy, match=r"machine\.rebooted"):
        read_gate(gate_inputs, passed)


def test_reconcile_watches_until_it_is_interrupted(machine: Any, gate_inputs: Properties, installed: State) -> None:
    """A lease of six seconds stays valid as long as somebody watches, and runs out after that."""
    record = records.find("local", "gates", "gate")
    assert record is not None
    records.keep("local", "gates", "gate", record["inputs"] | {"leaseSeconds": 6}, record["outputs"])
    command = [str(Path(sys.executable).with_name("cube")), "reconcile", "--watch", "--interval", "1"]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 12
        while time.monotonic() < end:
            time.sleep(0.5)
            assert client.ready(machine.management)[0]
    finally:
        watcher.send_signal(signal.SIGINT)
        out, err = watcher.communicate(timeout=20)
    assert watcher.returncode == 130
    assert err == ""
    assert out.count("lease renewed") >= 2
    time.sleep(6.5)
    assert client.ready(machine.management)[1] == ("lease.expired",)


def test_reconcile_does_not_ask_a_refused_machine_twice(
    machine: Any, gate_inputs: Properties, passed: State, installed: State, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(gate_inputs["policy"])
    source.write_text(source.read_text().replace("minimum_revision = 3", "minimum_revision = 4"))
    code, out, _ = cube(capsys, "reconcile")
    assert code == 1
    assert "launch.revision.too_old" in out
    assert "its machine is not admitted" in out
    assert client.ready(machine.management)[1] == ("lease.revoked",)


def test_tokens_are_issued_and_revoked_live(
    machine: Any, domain_inputs: Properties, installed: State, capsys: pytest.CaptureFixture[str]
) -> None:
    code, token, note = cube(capsys, "token", "issue", "acme", "--ttl", "5m")
    assert code == 0
    assert token.startswith("pat_")
    jti = note.split()[1]
    code, out, _ = cube(capsys, "token", "revoke", "--domain", "acme", jti)
    assert code == 0
    assert "is revoked for acme, generation" in out
    state = client.state(machine.management, expected_spki=domain_inputs["attestedKey"])
    assert state.domains_digest != installed.outputs["digest"]
    with pytest.raises(Unhealthy, match=r"domains\.changed"):
        DomainSet().read(context("domains"), installed.id, domain_inputs, installed.outputs)
    code, _, err = cube(capsys, "token", "issue", "--domain", "nobody")
    assert code == 1
    assert "deployed: acme, globex" in err
    code, _, err = cube(capsys, "token", "issue", "acme", "--key", keys.domain_key("local", "globex"))
    assert code == 1
    assert "does not accept tokens of" in err


def test_status_shows_every_part(
    machine: Any,
    gate_inputs: Properties,
    passed: State,
    installed: State,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inputs: Properties = {
        "listen": f"127.0.0.1:{free_ports(1)[0]}",
        "members": [{"serviceAddress": machine.service, "managementAddress": machine.management}],
        "ca": passed.outputs["ca"],
        "hostname": "localhost",
    }
    resource, here = Edge(), context("edge")
    assert resource.check(inputs)[1] == []
    state = resource.create(here, inputs)
    try:
        assert state.outputs["endpoint"] == f"https://localhost:{inputs['listen'].split(':')[1]}"
        code, out, _ = cube(capsys, "status", "--json")
        assert code == 0, out
        assert {line["what"]: line["well"] for line in json.loads(out)} == {
            "gate": True,
            "domains": True,
            "edge": True,
        }
        assert resource.read(here, state.id, inputs, state.outputs) == state
        edge.stop(records.folder("local", "edges", "edge"))
        assert resource.read(here, state.id, inputs, state.outputs) is None
        code, out, _ = cube(capsys, "status")
        assert code == 1
        assert "BAD  edge" in out
        assert cube(capsys, "reconcile")[0] == 0
        assert cube(capsys, "status")[0] == 0
    finally:
        resource.delete(here, state.id, state.outputs)
    assert not records.folder("local", "edges", "edge").exists()


def test_an_empty_environment_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cube(capsys, "status")[0] == 1
    code, _, err = cube(capsys, "reconcile")
    assert code == 1
    assert "nothing is deployed" in err
    assert cube(capsys, "machine", "stop")[0] == 0
    assert cube(capsys, "machine", "reboot")[0] == 1
