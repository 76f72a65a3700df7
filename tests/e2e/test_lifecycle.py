# SPDX-License-Identifier: Apache-2.0
"""The life of a deployment, in order, on one real machine: preview, up, isolation, reboot, expiry, loss, down."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import os
import re
import signal
import ssl
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cube_stacks.local import machine as machines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.image,
    pytest.mark.machine,
    pytest.mark.timeout(420),
]

QUESTION = "What is the capital of France?"


def machine_of(deployment: Any) -> machines.LocalMachine:
    (folder,) = (deployment.state / "machines").iterdir()
    found = machines.load(folder)
    assert found is not None, "no machine is recorded"
    return found


def wait_for(what: str, check: Any, seconds: float = 90) -> Any:
    """The first true result of `check`, polled."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := check():
            return result
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s: {what}")


def answers(deployment: Any, domain: Any, token: str) -> int:
    """The status of one question; 0 while nobody answers."""
    try:
        return int(deployment.ask(domain, token, timeout=60).status)
    except (OSError, ssl.SSLError):
        return 0


def test_preview_of_a_clean_stack_starts_nothing(deployment: Any) -> None:
    told = deployment.pulumi("preview", "--non-interactive", "--color", "never", "--diff").stdout
    assert "MeasuredImage" in told
    assert re.search(r"unknown: not built|[0-9a-f]{64}", told), (
        "neither predicted PCRs nor a word that there are none"
    )
    assert deployment.processes() == []
    assert not (deployment.state / "machines").exists()


def test_up_ends_with_the_models_answer(deployment: Any) -> None:
    told = deployment.local("up", timeout=1800).stdout
    assert "Paris" in told
    assert "PASSED" in told
    outputs = deployment.outputs()
    assert {"endpoint", "ca", "domains", "image", "verdict", "bundle", "policy"} <= set(outputs)
    assert [domain["name"] for domain in outputs["domains"]] == ["acme", "globex"]


def test_the_printed_snippets_work_as_pasted(deployment: Any) -> None:
    told = deployment.local("up").stdout
    snippets = told.split("With curl:")[1]
    curl, sdk = snippets.split("With the OpenAI SDK:")
    sdk = sdk.rsplit("up in", 1)[0]
    for snippet in (curl, sdk):
        script = snippet.replace("$(make -s token DOMAIN=acme)", deployment.token("acme"))
        assert "Paris" in deployment.run("bash", "-ec", script).stdout


def test_streaming_and_model_lists_are_each_domains_own(deployment: Any) -> None:
    acme, globex = deployment.domain("acme"), deployment.domain("globex")
    for domain in (acme, globex):
        token = deployment.token(domain["name"])
        listed = deployment.call("GET", f"/{domain['id']}/v1/models", token=token)
        assert [model["id"] for model in listed.json["data"]] == domain["models"]
        also = deployment.call("GET", f"/proxy/{domain['id']}/v1/models", token=token)
        assert also.json == listed.json
    body = {
        "model": "smollm2",
        "stream": True,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
    }
    streamed = deployment.call(
        "POST", f"/{acme['id']}/v1/chat/completions", token=deployment.token("acme"), body=body | {"max_tokens": 12}
    )
    events = [line[6:] for line in streamed.body.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    text = "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1])
    assert "Paris" in text
    assert len(events) > 4, "the answer did not stream"


def test_up_again_only_renews_the_lease(deployment: Any) -> None:
    before, instance = deployment.outputs(), machine_of(deployment).instance
    time.sleep(1.1)
    told = deployment.up().stdout
    assert machine_of(deployment).instance == instance
    assert not re.search(r"[1-9]\d* (created|deleted|replaced)", told), told
    after = deployment.outputs()
    assert {k: v for k, v in after.items() if k != "bundle"} == {k: v for k, v in before.items() if k != "bundle"}
    status = deployment.cube("status").stdout
    assert "valid" in status


def test_the_bundle_gives_the_same_verdict_offline(deployment: Any) -> None:
    outputs = deployment.outputs()
    command = ["attestation", "verify", outputs["bundle"], "--policy", outputs["policy"], "--format", "json"]
    moment = ["--at", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())]
    first, second = (deployment.run(*command, *moment).stdout for _ in range(2))
    assert first == second
    verdict = json.loads(first)
    assert verdict["passed"]
    assert verdict["tier"] == "software"
    assert verdict["freshness"] == "receipt"
    assert verdict["claims"]["domains"]["generation"] >= 1


@pytest.fixture(scope="module")
def acme(deployment: Any) -> Any:
    return deployment.domain("acme")


@pytest.fixture(scope="module")
def globex(deployment: Any) -> Any:
    return deployment.domain("globex")


def raw(model_members: str) -> bytes:
    return b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":1' + model_members.encode() + b"}"


@pytest.mark.parametrize(
    ("members", "statuses"),
    [
        pytest.param(',"model":"assistant"', {403, 404}, id="another-domains-model"),
        pytest.param(',"model":"nonsense"', {403, 404}, id="unknown"),
        pytest.param("", {400}, id="missing"),
        pytest.param(',"model":"smollm2","model":"assistant"', {400, 403, 404}, id="duplicate-theirs-last"),
        pytest.param(',"model":"assistant","model":"smollm2"', {400, 403, 404}, id="duplicate-theirs-first"),
        pytest.param(',"model":"smollm2","model":"smollm2"', {400}, id="duplicate-same"),
        pytest.param(',"model":"smollm2","Model":"assistant"', {400}, id="case-variant-last"),
        pytest.param(',"MODEL":"assistant","model":"smollm2"', {400}, id="case-variant-first"),
        pytest.param(',"Model":"smollm2"', {400}, id="case-variant-only"),
        pytest.param(',"model":"smollm2","mod\\u0065l":"assistant"', {400, 403, 404}, id="escaped-duplicate"),
        pytest.param(',"model":["smollm2"]', {400}, id="list"),
        pytest.param(',"model":null', {400}, id="null"),
    ],
)
def test_model_names_that_are_not_the_domains_own(
    deployment: Any, acme: Any, members: str, statuses: set[int]
) -> None:
    answer = deployment.call(
        "POST", f"/{acme['id']}/v1/chat/completions", token=deployment.token("acme"), body=raw(members)
    )
    assert answer.status in statuses, answer.body
    assert set(answer.json["error"]) >= {"message", "type"}
    assert b"Paris" not in answer.body


def test_tokens_of_others_forged_expired_or_missing(deployment: Any, acme: Any, globex: Any) -> None:
    path = f"/{globex['id']}/v1/models"
    token = deployment.token("acme")
    assert deployment.call("GET", path, token=token).status == 403
    assert deployment.call("GET", path).status == 401
    own = f"/{acme['id']}/v1/models"
    assert deployment.call("GET", own, token=token).status == 200
    head, payload, signature = token.removeprefix("pat_").split(".")
    flipped = signature[:-2] + ("A" if signature[-2] != "A" else "B") + signature[-1]
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"cube-pat+jwt"}').rstrip(b"=").decode()
    for forged in (
        f"pat_{head}.{payload}.{flipped}",
        f"pat_{none}.{payload}.",
        "pat_x.y.z",
        f"{head}.{payload}.{signature}",
    ):
        assert deployment.call("GET", own, token=forged).status == 401, forged
    short = deployment.token("acme", "--ttl", "1s")
    # The proxy forgives 5 s of clock skew.
    assert wait_for("expiry", lambda: deployment.call("GET", own, token=short).status == 401, 20)
    narrow = deployment.token("acme", "--scopes", "llm_read")
    assert deployment.ask(acme, narrow).status == 403


def test_a_revoked_token_is_refused_at_once(deployment: Any, acme: Any) -> None:
    token = deployment.token("acme")
    payload = token.split(".")[1]
    jti = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["jti"]
    own = f"/{acme['id']}/v1/models"
    assert deployment.call("GET", own, token=token).status == 200
    deployment.cube("token", "revoke", "acme", jti)
    assert wait_for("the revocation", lambda: deployment.call("GET", own, token=token).status == 401, 10)
    assert deployment.call("GET", own, token=deployment.token("acme")).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/pull"),
        ("DELETE", "/api/delete"),
        ("POST", "/{acme}/api/pull"),
        ("POST", "/{acme}/v1/../../api/pull"),
        ("POST", "/{acme}/v1/%2e%2e/api/pull"),
        ("GET", "/{acme}%2fv1%2fmodels"),
        ("GET", "/{acme}/v1/../../{globex}/v1/models"),
        ("GET", "/{acme}/v1/models/../../../{globex}/v1/models"),
        ("POST", "/attestation"),
        ("GET", "/ready"),
        ("GET", "/health"),
        ("GET", "/metrics"),
        ("GET", "/control/v1/state"),
        ("POST", "/control/v1/admit"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/{acme}/v1/completions"),
        ("DELETE", "/{acme}/v1/models"),
    ],
)
def test_paths_that_are_not_on_the_list(deployment: Any, acme: Any, globex: Any, method: str, path: str) -> None:
    target = path.replace("{acme}", acme["id"]).replace("{globex}", globex["id"])
    answer = deployment.call(method, target, token=deployment.token("acme"), body={} if method == "POST" else None)
    assert answer.status in {400, 403, 404, 405}, (answer.status, answer.body)
    assert b"assistant" not in answer.body, "another domain's model is named"


def test_a_lease_that_runs_out_closes_the_machine_until_reconcile(deployment: Any, acme: Any) -> None:
    token = deployment.token("acme")
    deployment.configure("cube:attestation.lease", "15s")
    try:
        deployment.up()
        assert answers(deployment, acme, token) == 200
        wait_for("the lease to end", lambda: answers(deployment, acme, token) in (0, 503), 40)
        status = deployment.cube("status", check=False)
        assert "expired" in status.stdout
    finally:
        deployment.pulumi("config", "rm", "--path", "cube:attestation.lease")
    deployment.up()
    assert wait_for("an answer", lambda: answers(deployment, acme, token) == 200, 30)


def test_a_rebooted_guest_answers_nothing_until_it_is_verified_again(deployment: Any, acme: Any) -> None:
    token = deployment.token("acme")
    before = machine_of(deployment)
    boot = deployment.cube("status", "--json").stdout
    before.reboot()
    seen: set[int] = set()
    end = time.monotonic() + 45
    ready_again = False
    while time.monotonic() < end:
        seen.add(answers(deployment, acme, token))
        direct = direct_status(deployment, before, acme, token)
        seen.add(direct)
        if direct == 503:
            ready_again = True  # the new boot is up: it answers, and refuses
        elif ready_again:
            break
        time.sleep(0.5)
    assert ready_again, f"the machine did not come back: {seen}"
    assert 200 not in seen, "an unverified boot answered"
    deployment.cube("reconcile")
    assert machine_of(deployment).instance == before.instance
    assert wait_for("an answer", lambda: answers(deployment, acme, token) == 200, 60)
    assert deployment.cube("status", "--json").stdout != boot


def direct_status(deployment: Any, machine: machines.LocalMachine, domain: Any, token: str) -> int:
    """The machine's own service port, past the edge and without a look at its certificate."""
    import http.client

    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", machine.service_port, context=trust, timeout=10)
    try:
        connection.request("GET", f"/{domain['id']}/v1/models", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def test_control_messages_of_the_earlier_boot_are_refused(deployment: Any) -> None:
    """Signed by the right key and for the right generation, but for a boot that is over."""
    from datetime import UTC, datetime

    from cube_attestation import client
    from cube_attestation.control import ControlMessage
    from cube_attestation.errors import Unreachable
    from cube_stacks import keys

    machine = machine_of(deployment)
    fetched = client.fetch(machine.management_address, os.urandom(32), timeout=20)
    state = client.state(machine.management_address, expected_spki=fetched.tls_spki, timeout=10)
    key = keys.open_key(f"file:{deployment.state / 'keys' / 'control.pem'}")
    good: dict[str, Any] = {
        "environment": "local",
        "method": "POST",
        "path": "/control/v1/revoke",
        "boot": state.boot,
        "tls_spki": fetched.tls_spki,
        "generation": state.generation,
        "time": datetime.now(UTC),
        "body": {"reason": "test.replay"},
    }
    old_boot = good | {"boot": "0" * 32}
    old_key = good | {"tls_spki": "sha256:" + "0" * 64}
    other = good | {"environment": "other"}
    past = good | {"generation": state.generation - 1}
    for message in (old_boot, old_key, other, past):
        with pytest.raises(Unreachable) as refused:
            client.control_call(
                machine.management_address,
                "revoke",
                ControlMessage(**message).sign(key),
                expected_spki=fetched.tls_spki,
                timeout=10,
            )
        assert refused.value.status in (403, 409)
    after = client.state(machine.management_address, expected_spki=fetched.tls_spki, timeout=10)
    assert replace(after, time=state.time) == state


def test_a_lost_machine_is_made_anew_and_clients_go_on(deployment: Any, acme: Any) -> None:
    token = deployment.token("acme")
    ca = (deployment.state / "ca.pem").read_text()
    lost = machine_of(deployment)
    assert lost.qemu is not None
    os.kill(lost.qemu.pid, signal.SIGKILL)
    wait_for("QEMU's end", lambda: not lost.alive(), 10)
    deployment.up()
    assert machine_of(deployment).instance != lost.instance
    assert wait_for("an answer", lambda: answers(deployment, acme, token) == 200, 60)
    assert deployment.outputs()["ca"] == ca


def test_concurrent_questions_are_all_answered(deployment: Any, acme: Any, globex: Any) -> None:
    pairs = [(acme, deployment.token("acme")), (globex, deployment.token("globex"))] * 2
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda pair: deployment.ask(*pair), pairs))
    assert [reply.status for reply in replies] == [200] * 4
    assert all("Paris" in reply.json["choices"][0]["message"]["content"] for reply in replies)


def test_state_and_logs_hold_no_secret_and_no_prompt(deployment: Any, acme: Any) -> None:
    marker = "zanzibar-quokka-7301"
    token = deployment.token("acme")
    body = {"model": "smollm2", "max_tokens": 1, "messages": [{"role": "user", "content": marker}]}
    assert deployment.call("POST", f"/{acme['id']}/v1/chat/completions", token=token, body=body).status == 200
    time.sleep(11)  # Envoy flushes its access log every 10 s
    exported = deployment.pulumi("stack", "export").stdout
    private: list[str] = []
    for path in (deployment.state / "keys").rglob("*.pem"):
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        scalar = key.private_numbers().private_value
        # The scalar in any notation, and the lines of the file that hold it (the last one is the public half).
        private += [f"{scalar:064x}", base64.b64encode(scalar.to_bytes(32, "big"))[:40].decode()]
        private += path.read_text().splitlines()[1:3]
    secrets = [*private, token, (deployment.state / "passphrase").read_text().strip()]
    assert len(private) >= 4 * 5
    machine = machine_of(deployment)
    texts = {"state": exported, "console": machine.console.read_text(errors="replace")}
    for log in deployment.state.rglob("*.log"):
        texts[str(log)] = log.read_text(errors="replace")
    for name, text in texts.items():
        assert marker not in text, f"prompt text in {name}"
        assert not [secret for secret in secrets if secret and secret in text], f"a secret in {name}"
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                line = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            assert not [secret for secret in secrets if secret and secret in line], (
                f"a secret in an argument: {line}"
            )


def test_the_domains_records_stand_hold_no_prompt_and_verify_offline(
    deployment: Any, acme: Any, globex: Any, tmp_path: Path
) -> None:
    """Each request of this boot is in its domain's audit chain, and the key of the chain is the evidence's."""
    marker = "zanzibar-quokka-7302"
    body = {"model": "smollm2", "max_tokens": 1, "messages": [{"role": "user", "content": marker}]}
    path = f"/{acme['id']}/v1/chat/completions"
    asked = deployment.call("POST", path, token=deployment.token("acme"), body=body)
    assert asked.status == 200
    assert deployment.call("POST", path, token=deployment.token("globex"), body=body).status == 403
    auditor = deployment.token("acme", "--scopes", "audit_log")
    assert deployment.call("GET", f"/{acme['id']}/audit/v1/records", token=deployment.token("acme")).status == 403
    assert deployment.call("GET", f"/{globex['id']}/audit/v1/records", token=auditor).status == 403

    def exported() -> Any:
        reply = deployment.call(
            "GET", f"/{acme['id']}/audit/v1/records?limit=1000&format=jsonl", token=auditor
        ).body.decode()
        kept = [json.loads(line) for line in reply.splitlines()]
        served = [each for each in kept if each.get("status") == 200 and each.get("path") == "/v1/chat/completions"]
        return (reply, served[-1]) if served and any(each.get("status") == 403 for each in kept) else None

    text, record = wait_for("a record of the question", exported, 30)
    assert record["model"] == "smollm2"
    assert record["prompt_tokens"] > 0
    assert record["completion_tokens"] == 1
    assert marker not in text
    export = tmp_path / "records.jsonl"
    export.write_text(text)
    outputs = deployment.outputs()
    moment = ["--at", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())]
    command = ["attestation", "audit", "verify", str(export), "--bundle", outputs["bundle"], *moment]
    deployment.run(*command, "--policy", outputs["policy"])
    export.write_text(text.replace('"model":"smollm2"', '"model":"smollm3"', 1))
    changed = deployment.run(*command, "--policy", outputs["policy"], check=False)
    assert changed.returncode == 2, changed.stdout
    used = deployment.call("GET", f"/{acme['id']}/usage", token=auditor).json
    assert used["models"]["smollm2"]["requests"] >= 1


def test_refresh_finds_nothing_to_change(deployment: Any) -> None:
    told = deployment.pulumi("refresh", "--yes", "--non-interactive", "--color", "never", "--skip-preview").stdout
    assert not re.search(r"[1-9]\d* (created|deleted|replaced)", told), told


def test_down_leaves_nothing_behind(deployment: Any) -> None:
    mounts = Path("/proc/mounts").read_text()
    deployment.local("down")
    wait_for("every process to end", lambda: deployment.processes() == [], 15)
    with pytest.raises(OSError):
        deployment.call("GET", "/", timeout=3)
    assert str(deployment.home) not in mounts
    assert str(deployment.home) not in Path("/proc/mounts").read_text()
    resources = json.loads(deployment.pulumi("stack", "export").stdout)["deployment"].get("resources", [])
    assert [r["type"] for r in resources if r["type"].startswith("cube-confidential:")] == []
    done = subprocess.run(["git", "status", "--short"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert "Pulumi.local.yaml" not in done.stdout
