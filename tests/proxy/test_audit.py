# SPDX-License-Identifier: Apache-2.0
"""Audit without processes: lines, chains, the store and its room, and the count against Envoy's."""

from __future__ import annotations

import errno
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from cube_attestation.audit import record as records
from cube_attestation.audit.verify import Given, examine
from cube_attestation.domains import Domain, DomainSet, TokenKey
from cube_proxy import audit_line, audit_store
from cube_proxy.audit import Auditor, Origin
from cube_proxy.audit_api import AuditApi
from cube_proxy.audit_line import Seen
from cube_proxy.audit_pipe import Count, Gap, Ledger, compare, parse_counters
from cube_proxy.audit_store import Store
from cube_proxy.envoy_admin import Answer
from cube_proxy.http import Request
from cube_proxy.tls import TlsKey
from hypothesis import given
from hypothesis import strategies as st

BOOT, DIGEST = "ab" * 16, "sha256:" + "1" * 64
A, B = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
NOW = 1795534020.0


def domain(identity: str, *models: str) -> Domain:
    return Domain(identity, identity[:4], models, (TokenKey(f"key of {identity}", "x", "y"),), ())


SET = DomainSet((domain(A, "m", "shown=large"), domain(B, "other")), DIGEST)


def seen(where: str = A, **changes: Any) -> Seen:
    facts = {
        "began": str(int(NOW * 1000)),
        "duration": 5,
        "status": 200,
        "why": "via_upstream",
        "method": "POST",
        "path": f"/{where}/v1/chat/completions",
        "model": "m",
        "domain": where,
        "token": "jti",
        "key": f"key-of-{where}",
        "received": 10,
        "sent": 20,
    }
    found = audit_line.parse(json.dumps(facts | changes).encode())
    assert found is not None
    return found


class World:
    def __init__(self, folder: Path, room: int = audit_store.ROOM_BYTES, boot: str = BOOT) -> None:
        self.key = TlsKey.generate()
        self.store = Store(folder, boot, room)
        self.auditor = Auditor(Origin("local", boot, DIGEST, DIGEST), self.key, self.store)
        self.auditor.configured(SET, 1, 0)

    def take(self, *entries: Seen, now: float = NOW) -> None:
        self.auditor.take(list(entries), now)

    def lines(self, chain: str = A) -> list[bytes]:
        return self.auditor.page(chain, 0, "", "", 10**6)

    def values(self, chain: str = A) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines(chain)]

    def check(self, chain: str = A, **given: Any) -> Any:
        head = self.auditor.head(chain, NOW)
        assert head is not None
        data = b"".join(line + b"\n" for line in [*self.lines(chain), records.encode(head)])
        return examine(data, Given(key=self.key.spki, **given))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "audit")


def test_each_domain_has_its_own_chain_that_verifies(world: World) -> None:
    world.auditor.admitted(DIGEST)
    world.take(seen(A), seen(B, model="other"), seen(A))
    world.take(seen(A, path=f"/proxy/{A}/v1/models"), seen("nobody", path="/x", domain=None))
    assert world.check(A).passed
    assert world.check(B).passed
    assert world.check(records.MACHINE).passed
    assert [value["kind"] for value in world.values(A)] == ["genesis", "request", "request", "request"]
    assert world.values(A)[0]["evidence"] == DIGEST
    assert world.values(A)[3]["path"] == "/v1/models"
    assert world.values(records.MACHINE)[1]["path"] == "/x"


def test_new_evidence_and_gaps_are_told_before_the_next_record(world: World) -> None:
    world.take(seen())
    world.auditor.admitted(DIGEST)
    world.auditor.gap("lines.lost", 3, exact=True, since=NOW - 2, now=NOW)
    world.take(seen(), seen(B))
    assert [value["kind"] for value in world.values(A)] == ["genesis", "request", "admission", "gap", "request"]
    assert [value["kind"] for value in world.values(B)] == ["genesis", "gap", "request"]
    report = world.check(A)
    assert (report.passed, report.gaps) == (True, 1)
    assert world.auditor.lost == 3


def test_a_route_or_a_token_tells_the_domain_where_the_path_was_rewritten(world: World) -> None:
    world.take(seen(path="/v1/chat/completions", route=f"{A}/vllm", domain=None))
    world.take(seen(path="/v1/chat/completions", domain=A))
    assert len(world.lines(A)) == 3


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, True),
        ({"domain": B}, False),
        ({"status": 403, "key": "foreign"}, False),
        ({"status": 403, "key": f"key of {A}"}, False),  # no form that an id has
        ({"status": 200, "domain": None}, True),  # an issuer's token names no domain
        ({"status": 401, "domain": None}, False),
    ],
)
def test_whose_token_it_was_is_told_to_its_own_domain_only(
    world: World, changes: dict[str, Any], known: bool
) -> None:
    world.take(seen(**changes))
    assert bool(world.values(A)[1]["token"]) is known


@pytest.mark.parametrize("name", ["path", "method", "model", "token", "key", "subject", "request", "why", "flags"])
@given(text=st.text(max_size=300))
def test_no_field_carries_text_of_the_clients_choice(name: str, text: str) -> None:
    words = "a prompt, with blanks"
    found = audit_line.parse(json.dumps({"began": "1", name: f"{words} {text}"}).encode())
    assert found is not None
    assert getattr(found, name) == ""


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.floats(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_line(line: bytes) -> None:
    audit_line.parse(line)


@given(
    st.dictionaries(
        st.sampled_from(["began", "status", "path", "token", "prompt_tokens", "received"]),
        st.text() | st.integers() | st.floats() | st.none(),
    )
)
def test_any_facts_make_a_record_that_can_be_read(facts: dict[str, Any]) -> None:
    found = audit_line.parse(json.dumps({"began": "1", **facts}).encode())
    if found is None:
        return
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.take(found)
        for chain in (A, records.MACHINE):
            for line in world.lines(chain):
                records.parse(line)


def test_a_model_that_the_domain_may_not_use_is_not_named(world: World) -> None:
    world.take(seen(model="shown"), seen(model="large"), seen(model="other"))
    assert [value["model"] for value in world.values(A)[1:]] == ["shown", "", ""]


def test_the_generation_is_that_of_the_requests_beginning(world: World) -> None:
    world.auditor.configured(SET, 5, int(NOW * 1000) + 100)
    world.take(seen(), seen(began=str(int(NOW * 1000) + 100)))
    assert [value["generation"] for value in world.values(A)] == [5, 1, 5]


def test_time_never_goes_back(world: World) -> None:
    world.take(seen(), now=NOW)
    world.take(seen(), now=NOW - 500)
    times = [value["time"] for value in world.values(A)]
    assert times == sorted(times)


def test_a_full_disk_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.take(seen())
    real = os.write

    calls: list[int] = []

    def half(descriptor: int, data: Any) -> int:
        if calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        calls.append(descriptor)
        return real(descriptor, bytes(data)[:10])

    monkeypatch.setattr(os, "write", half)
    world.take(seen(request="kept"))
    assert "No space left" in world.auditor.problem
    monkeypatch.setattr(os, "write", real)
    assert world.check().records == 2  # the torn write is gone
    world.auditor.retry(NOW)
    assert world.auditor.healthy
    assert world.values()[-1]["request"] == "kept"
    assert world.check().passed


def test_the_room_is_bounded_and_a_flood_removes_its_own_records_only(tmp_path: Path) -> None:
    world = World(tmp_path / "audit", room=256 << 10)
    world.take(seen(B))
    for _ in range(40):
        world.take(*[seen(A) for _ in range(50)])
        assert world.auditor.room <= 256 << 10
    stored = sum(path.stat().st_size for path in (tmp_path / "audit").rglob("*.jsonl"))
    assert stored <= 256 << 10
    assert len(world.values(B)) == 2
    oldest = world.values(A)[0]
    assert oldest["seq"] > 0
    assert [f.code for f in world.check(A).findings] == ["audit.chain.beginning_missing"]
    assert world.check(A, after=oldest["previous"]).passed  # for whoever read it in time


def test_the_next_boot_names_the_last_record_of_the_one_before(tmp_path: Path) -> None:
    first = World(tmp_path / "audit")
    first.take(seen(), seen())
    last = first.values()[-1]
    second = World(tmp_path / "audit", boot="cd" * 16)
    second.take(seen())
    before = second.values()[0]["before"]
    assert before == {"boot": BOOT, "seq": last["seq"], "head": records.digest(first.lines()[-1])}
    assert second.check().passed
    World(tmp_path / "audit", boot="ef" * 16)
    assert not (tmp_path / "audit" / BOOT).exists()  # only the newest one before is kept


def looked(due: int, received: int, covered: int) -> Ledger:
    return Ledger(7, due, NOW, received, covered)


@pytest.mark.parametrize(
    ("ledger", "count", "gap"),
    [
        (looked(10, 12, 10), Count(7, 14), None),
        (looked(10, 12, 9), Count(7, 14), Gap("lines.lost", 1, exact=True)),
        (looked(10, 12, 10), Count(8, 2), Gap("envoy.restarted", 0, exact=False)),
        (looked(10, 9, 9), Count(8, 2), Gap("envoy.restarted", 1, exact=False)),
    ],
)
def test_envoys_count_against_the_lines(ledger: Ledger, count: Count, gap: Gap | None) -> None:
    after, found = compare(ledger, count, NOW + 2)
    assert found == gap
    assert (after.process, after.due) == (count.process, count.finished)
    if gap is None or gap.cause == "lines.lost":
        assert after.covered == after.received == ledger.received + (gap.missing if gap else 0)


def test_a_loss_shows_under_constant_traffic() -> None:
    """Lines of requests that ended after the look stand for none before it."""
    ledger = looked(due=10, received=8, covered=8)
    late = seen(began=str(int((NOW + 1) * 1000)))
    ledger = ledger.with_lines([seen(began=str(int((NOW - 1) * 1000))), *[late] * 50])
    assert (ledger.received, ledger.covered) == (59, 9)
    _, gap = compare(ledger, Count(7, 60), NOW + 2)
    assert gap == Gap("lines.lost", 1, exact=True)


def test_counters() -> None:
    text = "http.service.downstream_rq_active: 2\nhttp.service.downstream_rq_total: 9\n"
    assert parse_counters(Answer(7, text)) == Count(7, 7)
    assert parse_counters(Answer(7, "")) is None


def ask(world: World, target: str, name: str = A, method: str = "GET") -> Any:
    api = AuditApi(world.auditor, BOOT, "2026-11-24T12:00:00Z")
    request = Request(method, target, {"x-cube-domain": name}, b"")
    return api.answer(request, NOW) if api.answers(request) else None


def test_what_is_no_request_of_a_domain_is_left_to_the_agent(world: World) -> None:
    assert ask(world, "/metrics") is None
    assert ask(world, "/usage", method="POST") is None
    assert ask(world, "/usage", records.MACHINE).status == 404
    assert ask(world, "/usage", "").status == 404


def test_an_empty_page_and_an_empty_export(world: World) -> None:
    page = json.loads(ask(world, "/audit/v1/records").body)
    assert (page["next"], [r["kind"] for r in page["records"]]) == (None, ["genesis"])
    beyond = json.loads(ask(world, "/audit/v1/records?after=5").body)
    assert beyond["records"] == []
    assert ask(world, "/audit/v1/records?after=5&format=jsonl").body == b""


def test_pages_joined_are_an_export(world: World) -> None:
    world.take(*[seen() for _ in range(20)])
    found, after = b"", ""
    while True:
        answer = ask(world, f"/audit/v1/records?limit=6{after}")
        found += answer.body
        following = json.loads(answer.body)["next"]
        if following is None:
            break
        after = f"&after={following}"
    report = examine(found, Given(key=world.key.spki))
    assert (report.passed, report.records) == (True, 21)
    jsonl = ask(world, "/audit/v1/records?limit=1000&format=jsonl").body
    assert examine(jsonl, Given(key=world.key.spki)).records == 21
