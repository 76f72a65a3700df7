# SPDX-License-Identifier: Apache-2.0
"""Audit and usage on the real thing: Envoy, the agent as a process, its pipe and its store."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from agent_machine import Machine, wait
from cube_attestation import cmw
from cube_attestation.claims import Claims
from cube_attestation.cli import main

pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed: `make test` builds it")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed: apt install swtpm"),
]

SECRET = "the-secret-of-this-prompt"  # what no record may hold
READ = ["audit_log", "llm_read", "llm_chat_completions"]


class Service:
    """Two domains on one machine."""

    def __init__(self, machine: Machine, make_tenant: Callable[..., Any]) -> None:
        self.machine = machine
        self.acme = make_tenant("acme", ("smollm2",))
        self.beta = make_tenant("beta", ("smollm2",))

    def configure(self) -> None:
        assert self.machine.control("domains", {"domains": [self.acme.body(), self.beta.body()]}).status == 200
        assert self.machine.admit().status == 200

    def get(self, path: str, tenant: Any = None, **token: Any) -> Any:
        tenant = tenant or self.acme
        return self.machine.envoy.request("GET", f"/{tenant.id}{path}", tenant.token(scopes=READ, **token))

    def ask(self, tenant: Any = None, jti: str = "", **body: Any) -> Any:
        tenant = tenant or self.acme
        token = tenant.token(jti=jti) if jti else tenant.token()
        said = {"model": "smollm2", "messages": [{"role": "user", "content": SECRET}], **body}
        return self.machine.envoy.request("POST", f"/{tenant.id}/v1/chat/completions", token, said)

    def records(self, tenant: Any = None, query: str = "limit=1000") -> list[dict[str, Any]]:
        answer = self.get(f"/audit/v1/records?{query}", tenant)
        assert answer.status == 200, answer
        found: list[dict[str, Any]] = answer.json["records"]
        return found

    def requests(self, tenant: Any = None) -> list[dict[str, Any]]:
        return [record for record in self.records(tenant) if record["kind"] == "request"]

    def find(self, what: Callable[[dict[str, Any]], bool], tenant: Any = None) -> dict[str, Any]:
        """The one record that ``what`` is true of; records come within the flush interval."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = filter(what, self.requests(tenant))
            return bool(found)

        wait(there)
        assert len(found) == 1, found
        return found[0]

    def export(self, path: Path, tenant: Any = None) -> None:
        answer = self.get("/audit/v1/records?limit=1000&format=jsonl", tenant)
        assert answer.status == 200
        path.write_bytes(answer.body)


@pytest.fixture(scope="module")
def store(run: Path) -> Iterator[Path]:
    """A small file system of its own for the records, where this user may mount one."""
    folder = run / "audit"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False)
    yield folder
    if done.returncode == 0:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def service(store: Path, machine: Machine, make_tenant: Callable[..., Any]) -> Service:
    found = Service(machine, make_tenant)
    found.configure()
    return found


def test_a_record_for_every_request(service: Service, backend: Any) -> None:
    assert service.ask().status == 200
    record = service.find(lambda record: record["status"] == 200 and record["method"] == "POST")
    assert record["prompt_tokens"] == 7
    assert record["completion_tokens"] == 3
    assert (record["model"], record["path"]) == ("smollm2", "/v1/chat/completions")
    assert record["key"] == service.acme.kid
    assert record["generation"] == 1
    assert record["token"]
    assert record["first_byte_ms"] <= record["duration_ms"]


def test_refused_requests_have_records_too(service: Service, backend: Any) -> None:
    envoy, acme = service.machine.envoy, service.acme
    chat = f"/{acme.id}/v1/chat/completions"
    body = {"model": "smollm2", "messages": [{"role": "user", "content": SECRET}]}
    assert envoy.request("POST", chat, None, body).status == 401
    assert envoy.request("POST", chat, acme.token(scopes=["llm_read"]), body).status == 403
    assert envoy.request("POST", chat, service.beta.token(jti="of-beta"), body).status == 403
    assert envoy.request("POST", chat, acme.token(), {**body, "model": SECRET}).status == 404
    assert envoy.request("POST", chat, acme.token(), {**body, "more": "x" * (2 << 20)}).status == 413
    assert envoy.request("GET", f"/{acme.id}/v1/unknown?{SECRET}", acme.token()).status == 404
    assert service.find(lambda r: r["status"] == 401)["token"] == ""
    own, foreign = (r for r in service.requests() if r["status"] == 403)
    assert (own["key"], foreign["key"], foreign["token"]) == (acme.kid, "", "")
    assert service.find(lambda r: r["status"] == 404 and r["method"] == "POST")["model"] == ""
    assert service.find(lambda r: r["status"] == 413)["token"]
    assert service.find(lambda r: r["path"] == "/v1/unknown")["status"] == 404
    assert not [r for r in service.requests(service.beta) if r["token"] == "of-beta"]


def test_streams_and_streams_that_the_client_leaves(service: Service, backend: Any) -> None:
    assert b'"usage"' in service.ask(jti="stream", stream=True, stream_options={"include_usage": True}).body
    stream = service.find(lambda r: r["token"] == "stream")
    assert (stream["prompt_tokens"], stream["completion_tokens"]) == (7, 3)
    backend.delay = 0.3
    connection = service.machine.envoy.connection()
    body = json.dumps({"model": "smollm2", "messages": [], "stream": True})
    headers = {"authorization": f"Bearer {service.acme.token(jti='leaves')}", "content-type": "application/json"}
    connection.request("POST", f"/{service.acme.id}/v1/chat/completions", body, headers)
    response = connection.getresponse()
    assert response.read(10)
    response.close()
    connection.close()
    left = service.find(lambda r: r["token"] == "leaves")
    backend.delay = 0.0
    assert (left["status"], left["completion_tokens"]) == (200, None)
    assert "DC" in left["flags"]


def test_malformed_requests_are_in_the_machines_own_chain(service: Service) -> None:
    service.machine.envoy.raw(b"GARBAGE\r\n\r\n")
    folder = service.machine.run / "audit"
    wait(lambda: any(b"http1.codec_error" in path.read_bytes() for path in folder.glob("*/machine/*.jsonl")))
    assert service.get("/audit/v1/records", None).status == 200
    elsewhere = service.machine.envoy.request("GET", "/machine/audit/v1/records", service.acme.token(scopes=READ))
    assert elsewhere.status == 404


def test_no_content_in_any_record_or_log(service: Service) -> None:
    time.sleep(0.3)
    for path in (service.machine.run / "audit").rglob("*.jsonl"):
        assert SECRET.encode() not in path.read_bytes()
    assert SECRET not in service.machine.log()
    assert SECRET not in service.machine.envoy.log.read_text()


def test_a_domain_reads_its_own_records_only(service: Service) -> None:
    acme, beta, envoy = service.acme, service.beta, service.machine.envoy
    path = f"/{beta.id}/audit/v1/records"
    assert envoy.request("GET", path, acme.token(scopes=READ)).code == "domain_mismatch"
    assert envoy.request("GET", path, beta.token()).code == "insufficient_scope"
    assert envoy.request("GET", f"/{beta.id}/usage", acme.token(scopes=READ)).code == "domain_mismatch"
    spoofed = envoy.request(
        "GET", f"/{acme.id}/audit/v1/records", acme.token(scopes=READ), headers={"x-cube-domain": beta.id}
    )
    assert {record["domain"] for record in spoofed.json["records"]} == {acme.id}
    inner = envoy.request(
        "GET", "/audit/v1/records", headers={"x-cube-domain": beta.id}, port=envoy.management_port
    )
    assert inner.status == 404


def test_paging_and_time_filters(service: Service) -> None:
    everything = service.records()
    pages, after = [], ""
    while True:
        page = service.get(f"/audit/v1/records?limit=3{after}").json
        pages += page["records"]
        if page["next"] is None or len(pages) >= len(everything):
            break
        after = f"&after={page['next']}"
    assert pages[: len(everything)] == everything
    moment = everything[3]["time"]
    later = service.records(query=f"limit=1000&from={moment.replace(':', '%3A')}")
    assert later[0]["seq"] == min(r["seq"] for r in everything if r["time"] >= moment)
    earlier = service.records(query=f"limit=1000&to={moment}")
    assert [r["seq"] for r in earlier] == [r["seq"] for r in everything if r["time"] < moment]
    for query in ("limit=0", "limit=x", "from=yesterday", "what=1", "limit=1&limit=2", "format=xml", "after=-1"):
        answer = service.get(f"/audit/v1/records?{query}")
        assert (answer.status, answer.code) == (400, "invalid_query"), query


def test_usage_for_the_domain_and_for_the_operator(service: Service, backend: Any) -> None:
    assert service.ask(service.beta).status == 200
    wait(lambda: "smollm2" in service.get("/usage", service.beta).json["models"])
    usage = service.get("/usage", service.beta).json
    assert usage["models"] == {
        "smollm2": {"requests": 1, "prompt_tokens": 7, "completion_tokens": 3, "unmetered": 0}
    }
    assert usage["domain"] == service.beta.id
    metrics = service.machine.get("/metrics").body.decode()
    assert f'cube_tokens_total{{domain="{service.beta.id}",model="smollm2",kind="prompt"}} 7' in metrics
    assert f'cube_requests_total{{domain="{service.beta.id}",model="smollm2",code="200"}} 1' in metrics
    assert "cube_audit_healthy 1" in metrics


def test_the_export_verifies_with_the_machines_key(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    time.sleep(0.3)
    service.export(tmp_path / "chain.jsonl")
    evidence = service.machine.post("/attestation", {"nonce": "bm9uY2Ugb2YgdGhpcyB0ZXN0"}).json
    claims = Claims.decode(cmw.Collection.from_json(evidence).items["claims"].value)
    assert main(["audit", "verify", str(tmp_path / "chain.jsonl"), "--key", claims.audit_spki]) == 0
    report = capsys.readouterr().out
    assert f"boot {claims.boot}" in report
    (tmp_path / "chain.jsonl").write_bytes(
        (tmp_path / "chain.jsonl").read_bytes().replace(b'"status":401', b'"status":200', 1)
    )
    assert main(["audit", "verify", str(tmp_path / "chain.jsonl"), "--key", claims.audit_spki]) == 2
    assert "audit.record.changed" in capsys.readouterr().out


def test_under_load_every_request_has_its_record_and_nothing_seems_lost(service: Service, backend: Any) -> None:
    def many(worker: int) -> None:
        for number in range(60):
            assert service.ask(jti=f"load-{worker}-{number}").status == 200

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(many, range(8)))
    time.sleep(4.5)  # two looks at Envoy's counters
    records = service.records()
    while len(more := service.records(query=f"limit=1000&after={records[-1]['seq']}")):
        records += more
    found = [record["token"] for record in records if record.get("token", "").startswith("load-")]
    assert len(found) == len(set(found)) == 480
    assert not [record for record in records if record["kind"] == "gap"]
    assert "cube_audit_lost_total 0" in service.machine.get("/metrics").body.decode()


def test_nothing_is_served_while_records_cant_be_written(service: Service, store: Path, backend: Any) -> None:
    if not os.path.ismount(store):
        pytest.skip("no right to mount a small file system here")
    filler = store / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    asked = 0
    end = time.monotonic() + 10
    while service.ask().status == 200:
        asked += 1
        assert time.monotonic() < end, "still served"
    assert "cube_audit_healthy 0" in service.machine.get("/metrics").body.decode()
    sent = len(backend.requests)
    assert service.ask().status == 503
    assert len(backend.requests) == sent
    filler.unlink()
    wait(lambda: bool(service.ask().status == 200))
    time.sleep(0.5)
    good = [r for r in service.requests() if r["status"] == 200 and r["method"] == "POST"]
    assert len(good) >= asked
    numbers = [r["seq"] for r in service.records()]
    assert numbers == list(range(len(numbers)))


def test_a_killed_agent_leaves_a_named_gap(
    service: Service, backend: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Envoy goes on here, as no service manager stops it. What is in its pipe is found, what was lost counted."""
    machine = service.machine
    service.ask()
    time.sleep(2.5)  # a look at Envoy's counters
    last = service.records()[-1]
    machine.kill_agent()
    for _ in range(3):
        assert service.ask().status == 200
    time.sleep(0.4)
    thief = os.open(machine.run / "audit.pipe", os.O_RDWR | os.O_NONBLOCK)
    stolen = os.read(thief, 65536)
    os.write(thief, b"".join(stolen.splitlines(keepends=True)[1:]))  # one of them is lost
    os.close(thief)
    machine.restart_agent()
    service.configure()
    wait(lambda: bool(service.ask().status == 200))
    wait(lambda: any(r["kind"] == "gap" for r in service.records()), 15)
    records = service.records()
    genesis = records[0]
    assert genesis["before"]["boot"] == last["boot"] != genesis["boot"]
    assert genesis["before"]["seq"] >= last["seq"]
    gap = next(r for r in records if r["kind"] == "gap")
    assert (gap["cause"], gap["missing"], gap["exact"]) == ("agent.restarted", stolen.count(b"\n") and 1, True)
    service.export(tmp_path / "chain.jsonl")
    assert main(["audit", "verify", str(tmp_path / "chain.jsonl")]) == 0
    assert "audit.gap.named" in capsys.readouterr().out


def test_a_killed_envoy_leaves_a_named_gap(service: Service, backend: Any) -> None:
    machine = service.machine
    machine.envoy.process.kill()
    machine.envoy.process.wait()
    machine.envoy.start()
    wait(lambda: _listens(machine.envoy.service_port))
    wait(lambda: any(r["kind"] == "gap" and r["cause"] == "envoy.restarted" for r in service.records()), 15)
    gap = next(r for r in service.records() if r["kind"] == "gap" and r["cause"] == "envoy.restarted")
    assert gap["exact"] is False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
