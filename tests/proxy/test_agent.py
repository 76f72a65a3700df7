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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from cube_attestation import cmw, control, dsse, jcs, launch
from cube_attestation.claims import Claims
from cube_attestation.tpm import credential, verify
from cube_attestation.tpm.appraise import launch_pcr

pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed: `make test` builds it")
pytestmark = pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed: apt install swtpm")


@dataclass
class Machine:
    """What runs in a guest, on this host."""

    run: Path
    envoy: Any
    agent: subprocess.Popen[bytes]
    key: ec.EllipticCurvePrivateKey
    envelope: dict[str, Any]
    sent: list[bytes] = field(default_factory=list)

    def get(self, path: str) -> Any:
        return self.envoy.request("GET", path, port=self.envoy.management_port)

    def post(self, path: str, body: object, method: str = "POST") -> Any:
        return self.envoy.request(method, path, None, body, port=self.envoy.management_port)

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/control/v1/state").json
        return found

    def control(self, action: str, body: dict[str, Any], **changes: Any) -> Any:
        state = self.state
        said = {
            "environment": state["environment"],
            "method": control.METHODS[action],
            "path": control.PREFIX + action,
            "boot": state["boot"],
            "tls_spki": state["tls_spki"],
            "generation": state["generation"],
            "time": datetime.now(UTC),
            "body": body,
            **changes,
        }
        message = jcs.dumps(control.ControlMessage(**said).sign(self.key))
        self.sent.append(message)
        return self.post(control.PREFIX + action, message, control.METHODS[action])

    def admit(self, seconds: int = 600) -> Any:
        expires = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
        body = control.Admit(seconds, expires, self.leaf, "sha256:" + "0" * 64).to_json()
        answer = self.control("admit", body)
        self.envoy.trust(self.leaf)
        return answer

    @cached_property
    def leaf(self) -> str:
        """A certificate of some CA for the key that ends TLS here."""
        served = x509.load_pem_x509_certificate(self.envoy.certificate.encode())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")]))
            .public_key(served.public_key())
            .serial_number(7)
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def log(self) -> str:
        return (self.run / "agent.log").read_text()


def wait(what: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    state = tmp_path_factory.mktemp("tpm")
    setup = ["swtpm_setup", "--tpm2", "--tpmstate", str(state), "--create-ek-cert", "--pcr-banks", "sha256"]
    configuration = ["--config", str(_own_ca(state))]
    subprocess.run([*setup, *configuration], check=True, capture_output=True, timeout=60)
    server = f"type=unixio,path={state}/s"
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--server", server]
    command += ["--ctrl", f"type=unixio,path={state}/s.ctrl", "--flags", "startup-clear"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        wait((state / "s").exists)
        yield f"swtpm:path={state}/s"
        process.terminate()


def _own_ca(state: Path) -> Path:
    folder = state / "ca"
    folder.mkdir()
    (folder / "localca.conf").write_text(
        f"statedir = {folder}\nsigningkey = {folder}/key.pem\nissuercert = {folder}/issuer.pem\n"
        f"certserial = {folder}/serial\n"
    )
    (folder / "options").write_text("--platform-manufacturer T\n--platform-version 1\n--platform-model T\n")
    (folder / "setup.conf").write_text(
        f"create_certs_tool = {shutil.which('swtpm_localca')}\n"
        f"create_certs_tool_config = {folder}/localca.conf\ncreate_certs_tool_options = {folder}/options\n"
    )
    return folder / "setup.conf"


def _launch(run: Path, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    model = {"backend": "ollama", "root": "ab" * 32, "hash_offset": 4096, "size": 8192, "serial": "m0"}
    document = {
        "version": 1,
        "environment": "local",
        "revision": 1,
        "control_keys": [pem.decode()],
        "hostnames": ["localhost"],
        "models": {"smollm2": {**model, "file": "model.gguf"}},
        "limits": {"max_body_bytes": 1 << 20},
    }
    envelope = dsse.sign(dsse.LAUNCH, document, key)
    (run / "launch.img").write_bytes(launch.write_volume(envelope))
    return envelope


@pytest.fixture(scope="module")
def machine(
    run: Path, tpm: str, control_key: ec.EllipticCurvePrivateKey, make_envoy: Callable[..., Any]
) -> Iterator[Machine]:
    volume = run / "volume"
    volume.mkdir()
    (volume / "model.gguf").write_bytes(b"GGUF")
    sidecar = {"version": 1, "model": "sha256:" + "cd" * 32, "size": 4, "config": {"model_format": "gguf"}}
    (volume / "ollama.json").write_text(json.dumps({**sidecar, "template": "{{ .Prompt }}", "params": {}}))
    (run / "firmware.log").write_bytes(b"firmware")
    (run / "os-release").write_text('ID=debian\nIMAGE_ID="cube-local"\nIMAGE_VERSION=7\n')
    envelope = _launch(run, control_key)
    group = grp.getgrgid(os.getgid()).gr_name
    (run / "settings.json").write_text(json.dumps({"run": str(run), "tcti": tpm, "group": group}))
    script = Path(__file__).with_name("agent_process.py")
    with (run / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(run / "settings.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    secret = run / "envoy/sds/tls.json"
    wait(lambda: (run / "agent.sock").exists() and secret.exists())
    chain = json.loads(secret.read_text())["resources"][0]["tls_certificate"]["certificate_chain"]["inline_string"]
    envoy = make_envoy(run, chain)
    yield Machine(run, envoy, process, control_key, envelope)
    envoy.close()
    process.kill()
    process.wait()


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
