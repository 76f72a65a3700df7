# SPDX-License-Identifier: Apache-2.0
"""The agent as a process with a software TPM and a real Envoy: evidence, lease, domains, and what ends them."""

from __future__ import annotations

import base64
import grp
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from agent_machine import Machine, wait
from cryptography import x509
from cube_attestation import cmw, dsse, jcs
from cube_attestation.claims import Claims
from cube_attestation.tpm import credential, verify
from cube_attestation.tpm.appraise import launch_pcr

pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed: `make test` builds it")
pytestmark = pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed: apt install swtpm")


def evidence(machine: Machine, nonce: bytes = b"n" * 32) -> cmw.Collection:
    answer = machine.post("/attestation", {"nonce": base64.b64encode(nonce).decode()})
    assert answer.status == 200, answer
    return cmw.Collection.from_json(answer.json)


def test_before_the_gate(machine: Machine) -> None:
    assert machine.get("/health").json["status"] == "pass"
    answer = machine.get("/ready")
    assert (answer.status, answer.json["reasons"]) == (
        503,
        ["lease.none", "domains.none", "model.smollm2.opened"],
    )
    assert machine.state["generation"] == 0
    assert machine.envoy.request("GET", "/health").status == 503  # nothing of it on the service port


def test_evidence_is_bound_to_this_key_and_nonce(machine: Machine) -> None:
    found = evidence(machine, b"fresh nonce of this test!")
    assert set(found.items) == {"claims", "tpm-quote", "tcg-eventlog", "launch", "ek-certificate"}
    claims = Claims.decode(found.items["claims"].value)
    served = x509.load_pem_x509_certificate(machine.envoy.certificate.encode())
    payload = dsse.peek(machine.envelope, dsse.LAUNCH)
    assert claims.nonce == b"fresh nonce of this test!"
    assert claims.tls_spki == dsse.spki_digest(served.public_key())
    assert claims.launch == payload.digest
    assert claims.boot == machine.state["boot"]
    assert abs(claims.time - datetime.now(UTC)) < timedelta(seconds=5)
    assert claims.image == "cube-local-7"
    assert (claims.models["smollm2"].root, claims.models["smollm2"].state) == ("ab" * 32, "opened")
    quote = verify.QuoteEvidence.decode(found.items["tpm-quote"].value)
    assert verify.verify_quote(quote) == []
    assert quote.quote.extra_data == claims.extra_data()
    assert quote.pcrs["sha256"][8] == launch_pcr(payload.raw)
    assert jcs.loads(found.items["launch"].value) == machine.envelope
    assert found.items["tcg-eventlog"].value == b"firmware"


def test_the_attestation_key_lives_in_the_tpm_of_the_certificate(machine: Machine) -> None:
    found = evidence(machine)
    ek: Any = x509.load_der_x509_certificate(found.items["ek-certificate"].value).public_key()
    name = verify.QuoteEvidence.decode(found.items["tpm-quote"].value).ak.name()
    challenge = credential.make_credential(ek, name, b"s" * 32)

    def activate(blob: bytes) -> Any:
        body = {"credential_blob": blob, "secret": challenge.secret}
        return machine.post(
            "/attestation/activate", {key: base64.b64encode(value).decode() for key, value in body.items()}
        )

    answer = activate(challenge.credential_blob)
    assert base64.b64decode(answer.json["secret"]) == b"s" * 32
    foreign = credential.make_credential(ek, name[:-1] + bytes([name[-1] ^ 1]), b"s" * 32)
    refused = activate(foreign.credential_blob)
    assert (refused.status, refused.json["error"]["code"]) == (403, "activation.refused")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"report_data": "AAAA", "nonce": "AAAA"}, "report_data.refused"),
        ({"nonce": base64.b64encode(b"short").decode()}, "request.invalid"),
        ({"nonce": base64.b64encode(b"x" * 65).decode()}, "request.invalid"),
        ({"nonce": "not base64"}, "request.invalid"),
        ({}, "request.invalid"),
        ([], "request.invalid"),
    ],
)
def test_bad_evidence_requests(machine: Machine, body: object, code: str) -> None:
    answer = machine.post("/attestation", body)
    assert (answer.status, answer.json["error"]["code"]) == (400, code)


def test_a_flood_of_evidence_requests_is_bounded_and_starves_nobody(machine: Machine) -> None:
    with ThreadPoolExecutor(40) as pool:
        body = {"nonce": base64.b64encode(b"n" * 32).decode()}
        flood = [pool.submit(machine.post, "/attestation", body) for _ in range(80)]
        began = time.monotonic()
        assert machine.get("/control/v1/state").status == 200
        assert time.monotonic() - began < 5
        answers = [found.result() for found in flood]
    statuses = {answer.status for answer in answers}
    assert {200} <= statuses <= {200, 429}, statuses
    assert all("retry-after" in answer.headers for answer in answers if answer.status == 429)


def test_unknown_management_paths(machine: Machine) -> None:
    assert machine.get("/").status == 404
    assert machine.get("/control/v1/admit").status == 404
    assert machine.post("/control/v1/domains", {}).status == 404
    assert machine.get("/control/v1/state?x=1").status == 404


def test_admit_domains_and_all_that_ends_them(
    machine: Machine, backend: Any, make_tenant: Callable[..., Any]
) -> None:
    acme = make_tenant("acme", ("smollm2",))
    body = {"domains": [acme.body()]}
    chat = f"/{acme.id}/v1/chat/completions"
    question = {"model": "smollm2", "messages": []}

    def ask(token: str = "") -> int:
        return int(machine.envoy.request("POST", chat, token or acme.token(), question).status)

    # messages that are not for this boot change nothing
    for changes, status in (
        ({"boot": "0" * 32}, 403),
        ({"tls_spki": "sha256:" + "0" * 64}, 403),
        ({"environment": "prod"}, 403),
        ({"generation": 5}, 409),
        ({"time": datetime.now(UTC) - timedelta(minutes=2)}, 403),
    ):
        assert machine.control("domains", body, **changes).status == status
    assert machine.state["generation"] == 0

    # domains first: without a lease nothing is served
    answer = machine.control("domains", body)
    assert (answer.status, answer.json["generation"]) == (200, 1)
    assert ask() == 503
    assert evidence_domains(machine) == (1, dsse.digest(jcs.dumps(body)))

    answer = machine.admit()
    assert (answer.status, answer.json["lease"]["state"]) == (200, "valid")
    assert ask() == 200
    # replayed: the generation is past
    assert machine.post("/control/v1/admit", machine.sent[-1]).status == 409
    assert machine.post("/control/v1/domains", machine.sent[-2], "PUT").status == 409

    # a token revoked now is refused now
    token = acme.token(jti="one")
    assert ask(token) == 200
    acme.revoked.append("one")
    assert machine.control("domains", {"domains": [acme.body()]}).status == 200
    assert ask(token) == 401
    assert ask() == 200

    # a lease that runs out
    assert machine.admit(seconds=1).status == 200
    wait(lambda: ask() == 503, 3)
    assert "lease.expired" in machine.get("/ready").json["reasons"]
    assert machine.admit().status == 200
    assert ask() == 200

    # the canary makes the machine ready; the backend of this test answers with the word
    wait(lambda: bool(machine.get("/ready").status == 200), 15)
    assert machine.get("/ready").json["ready"] is True
    assert 'cube_model_state{model="smollm2",state="ready"} 1' in machine.get("/metrics").body.decode()

    # a failed re-verification
    assert machine.control("revoke", {"reason": "tpm.pcr.mismatch"}).status == 200
    assert ask() == 503
    assert "lease.revoked" in machine.get("/ready").json["reasons"]
    assert machine.admit().status == 200
    assert ask() == 200

    # a changed block
    (machine.run / f"{(machine.run / 'opened').read_text()}.corrupted").touch()
    wait(lambda: ask() == 503, 5)
    listed = machine.envoy.request("GET", f"/{acme.id}/v1/models", acme.token())
    assert listed.json["data"] == []
    assert machine.get("/ready").json["reasons"] == ["model.smollm2.failed"]
    claims = Claims.decode(evidence(machine).items["claims"].value)
    assert claims.models["smollm2"].state == "failed"


def evidence_domains(machine: Machine) -> tuple[int, str]:
    domains = Claims.decode(evidence(machine).items["claims"].value).domains
    return domains.generation, domains.digest


def test_secrets_are_in_no_log_and_only_envoys_group_reads_the_key(machine: Machine) -> None:
    secret = machine.run / "envoy/sds/tls.json"
    assert secret.stat().st_mode & 0o777 == 0o640
    assert (machine.run / "agent.sock").stat().st_mode & 0o777 == 0o660
    assert "PRIVATE KEY" not in machine.log()
    assert "pat_" not in machine.log()


def test_one_life_per_boot_and_the_pcr_says_so(machine: Machine, tpm: str) -> None:
    """The last test here: it ends the agent."""
    before = verify.QuoteEvidence.decode(evidence(machine).items["tpm-quote"].value).pcrs["sha256"][8]
    machine.agent.send_signal(signal.SIGKILL)
    machine.agent.wait()
    from cube_proxy.tpm import Tpm

    again = Tpm(tpm)
    again.extend(8, hashlib.sha256(b"a second start").digest())
    again.create_ak()
    assert again.quote(b"x" * 32).pcrs[8] != before


EMPTY_DOCUMENT = (b"CUBELNCH\0\0\0\2{}" + bytes(1 << 20))[: 1 << 20]


@pytest.mark.parametrize(("disk", "words"), [(b"", "CUBELNCH"), (EMPTY_DOCUMENT, "launch")], ids=["none", "empty"])
def test_a_bad_launch_disk_is_one_line(tmp_path: Path, disk: bytes, words: str) -> None:
    (tmp_path / "launch.img").write_bytes(disk)
    group = grp.getgrgid(os.getgid()).gr_name
    (tmp_path / "settings.json").write_text(json.dumps({"run": str(tmp_path), "tcti": "none", "group": group}))
    script = Path(__file__).with_name("agent_process.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path / "settings.json")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("cube: halt: ")
    assert words in line
    assert not (tmp_path / "envoy").exists()
