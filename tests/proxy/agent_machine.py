# SPDX-License-Identifier: Apache-2.0
"""What runs in a guest, on this host: the agent as a process, a software TPM, a real Envoy in front."""

from __future__ import annotations

import grp
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
from cube_attestation import control, dsse, jcs, launch


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

    def kill_agent(self) -> None:
        self.agent.kill()
        self.agent.wait()

    def restart_agent(self) -> None:
        """A new agent with a key of its own behind the same Envoy; the guest's service manager never does that."""
        before = (self.run / "envoy/sds/tls.json").read_bytes()
        self.agent = start_agent(self.run)
        wait(lambda: (self.run / "envoy/sds/tls.json").read_bytes() != before)
        certificate = served_certificate(self.run)
        self.envoy.certificate = certificate
        self.envoy.trust(certificate)
        self.__dict__.pop("leaf", None)
        wait(self._answers)

    def _answers(self) -> bool:
        try:
            return bool(self.get("/health").status == 200)
        except OSError:
            return False

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
    process = start_agent(run)
    secret = run / "envoy/sds/tls.json"
    wait(lambda: (run / "agent.sock").exists() and secret.exists())
    envoy = make_envoy(run, served_certificate(run))
    found = Machine(run, envoy, process, control_key, envelope)
    yield found
    envoy.close()
    found.kill_agent()


def start_agent(run: Path) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("agent_process.py")
    with (run / "agent.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(run / "settings.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def served_certificate(run: Path) -> str:
    secret = json.loads((run / "envoy/sds/tls.json").read_text())
    return str(secret["resources"][0]["tls_certificate"]["certificate_chain"]["inline_string"])
