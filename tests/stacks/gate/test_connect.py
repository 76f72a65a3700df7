# SPDX-License-Identifier: Apache-2.0
"""``attestation connect`` through the edge to the real agent, Envoy and swtpm: admitted, rebooted, changed."""

import contextlib
import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cube_attestation import bundle as bundles
from cube_stacks import domain_set, edge, gate, keys, tokens
from cube_stacks.ca import tpm_manufacturer
from cube_stacks.edge import Edge, Member
from cube_stacks.gate import Trust
from cube_stacks.launch import SignedLaunch
from cube_stacks.local.ports import free_ports
from cube_stacks.policy_resolve import Anchors, resolve

pytestmark = pytest.mark.slow

DOMAIN = "00000000-0000-4000-8000-000000000001"
POLICY = b"""
version = 1
environment = "local"
lowest_tier = "software"
[image]
[launch]
minimum_revision = 3
[tpm]
pcrs = [2, 4, 5, 7, 8, 9, 11]
"""


@pytest.fixture
def policy(tmp_path: Path, trust: Trust) -> Path:
    image = keys.open_key(keys.environment_key("local", "image"))
    root = tpm_manufacturer("local", datetime.now(UTC)).root_spki
    anchors = Anchors(image.keyid, trust.control.keyid, root, trust.ca.key.keyid, trust.control.keyid)
    (tmp_path / "policy.toml").write_bytes(resolve(POLICY, anchors, "local", "software"))
    return tmp_path / "policy.toml"


@pytest.fixture
def front(tmp_path: Path, machine: Any, trust: Trust) -> Iterator[str]:
    """The edge before the machine: it forwards the service port and no other."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    folder = tmp_path / "edge"
    folder.mkdir()
    edge.apply(folder, Edge(address, (Member(machine.service, machine.management),), trust.ca.pem, "localhost"))
    yield address
    edge.stop(folder)


def admit(machine: Any, trust: Trust, signed: SignedLaunch, bundle: Path) -> None:
    """Let the machine in, set its domain, and write the gate's bundle of it."""
    examined = gate.examine(machine.management, trust, launch_digest=signed.digest)
    assert examined.passed, examined.refusal()
    gate.admit(examined, machine.management, trust, ["localhost"], timedelta(minutes=5))
    assert examined.claims is not None
    key = tokens.token_key(acme()).to_json()
    domain = {"id": DOMAIN, "name": "acme", "models": ["smollm2"], "tokens": {"keys": [key], "revoked": []}}
    domain_set.install(machine.management, examined.tls_spki, examined.claims.boot, [domain], trust)
    bundle.write_bytes(bundles.dump(examined.bundle))


def acme() -> keys.SigningKey:
    return keys.open_key(keys.domain_key("local", "acme"))


@contextlib.contextmanager
def connecting(folder: Path, *given: str) -> Iterator[tuple[str, Path]]:
    """The command as a process: where it listens, and its log."""
    log = folder / "connect.log"
    command = [sys.executable, "-m", "cube_attestation.cli", "connect", *given, "--listen", "127.0.0.1:0"]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        end = time.monotonic() + 20
        while not (found := re.search(r"listening on http://(\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield found.group(1), log
    finally:
        process.terminate()
        assert process.wait(20) == 0, log.read_text()


def models(address: str) -> tuple[int, str]:
    """Status and error code (or first model) of the list of models, asked for in plain HTTP; 0 if it was cut."""
    scopes = ["llm_read"]
    token, _ = tokens.issue(acme(), "local", DOMAIN, scopes, timedelta(minutes=5), datetime.now(UTC))
    with contextlib.closing(http.client.HTTPConnection(address, timeout=20)) as connection:
        try:
            connection.request("GET", f"/{DOMAIN}/v1/models", headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            value = json.loads(answer.read())
        except OSError:
            return 0, ""
    return answer.status, value["error"]["code"] if "error" in value else value["data"][0]["id"]


def until(expected: tuple[int, str], address: str, seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while models(address) != expected:
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def test_a_reboot_is_followed_and_what_it_became_is_judged(
    machine: Any, trust: Trust, signed: SignedLaunch, policy: Path, front: str, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.json"
    admit(machine, trust, signed, bundle)
    given = [f"https://{front}", "--evidence", f"https://{machine.management}", "--policy", str(policy)]
    time.sleep(3)  # the edge looks at its members every two seconds
    with connecting(tmp_path, *given, "--endorsements", str(bundle)) as (address, log):
        assert models(address) == (200, "smollm2")
        machine.reboot()
        admit(machine, trust, signed, tmp_path / "next.json")
        assert until((200, "smollm2"), address), log.read_text()  # the AK outlives a reboot, and so its certificate
        assert log.read_text().count("attested key") == 2
        assert "freshness nonce" in log.read_text()

    # The next boot runs something else. No gate would let it in, so that the service port is asked directly.
    given[0] = f"https://{machine.service}"
    with connecting(tmp_path, *given, "--endorsements", str(bundle)) as (address, log):
        machine.events = [*machine.events[:-1], (11, 0xD, "another .cmdline")]
        machine.reboot()
        assert until((502, "tpm.pcr.mismatch"), address), log.read_text()
        assert "refused: tpm.pcr.mismatch" in log.read_text()


def test_a_bundle_serves_where_the_management_port_is_out_of_reach(
    machine: Any, trust: Trust, signed: SignedLaunch, policy: Path, front: str, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.json"
    admit(machine, trust, signed, bundle)
    time.sleep(3)
    given = [f"https://{front}", "--evidence", str(bundle), "--policy", str(policy)]
    with connecting(tmp_path, *given) as (address, log):
        assert models(address) == (200, "smollm2")
        assert "freshness receipt" in log.read_text()
        machine.reboot()
        admit(machine, trust, signed, tmp_path / "next.json")
        assert until((502, "claims.tls_key_mismatch"), address), log.read_text()
        (tmp_path / "next.json").replace(bundle)
        assert until((200, "smollm2"), address), log.read_text()
