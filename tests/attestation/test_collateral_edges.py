# SPDX-License-Identifier: Apache-2.0
"""The edges of collateral: HTTP against servers that misbehave, and a cache that is broken, full or out of date."""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import fake_snp
import fake_tdx
import fake_x509
import fakepki
import pytest
import whole_bundles
from cube_attestation.cmw import Collection, Item
from cube_attestation.collateral import cache as caches
from cube_attestation.collateral import issuers, requests, sources, store
from cube_attestation.collateral.cache import Cache
from cube_attestation.collateral.fetch import Fetcher
from cube_attestation.collateral.http import MAX_WAIT, Client, Refused, Unknown, retry_after
from cube_attestation.collateral.model import Answer, Context, Request
from cube_attestation.collateral.needs import find
from cube_attestation.collateral.services import SERVICES, Endpoints
from cube_attestation.errors import BadInput, NotAuthentic, Unreachable
from cube_attestation.tokens import items as tokens
from cube_attestation.x509.certificate import CRL_POINTS
from fake_services import FakeServices, Reply, ok, serving
from fakemachine import raw_server
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow  # real servers, and waiting for their time limits

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
REQUEST = Request("amd-kds", "/vcek/v1/Milan/crl", requests.DER, 64)
GOOD = ok(b"0123", "application/pkix-crl")


def client(address: str, **more: object) -> Client:
    slept: list[float] = []
    return Client(Endpoints({"amd-kds": address}), sleep=slept.append, **more)  # type: ignore[arg-type]


def served(*replies: Reply) -> tuple[FakeServices, Callable[[bytes], Reply]]:
    """A server that gives one reply after the other, the last one for ever."""
    left = list(replies)
    services = FakeServices()
    handler = lambda _: left.pop(0) if len(left) > 1 else left[0]  # noqa: E731
    services.routes["GET /vcek/v1/Milan/crl"] = handler
    return services, handler


def test_an_answer_with_its_address_and_time() -> None:
    services, _ = served(GOOD)
    with serving(services):
        answer = client(services.address).get(REQUEST)
    assert answer.body == b"0123"
    assert answer.url == f"{services.address}/vcek/v1/Milan/crl"
    assert answer.time is not None
    assert not answer.stored


def test_429_is_tried_again_when_the_service_says() -> None:
    slept: list[float] = []
    said: list[str] = []
    services, _ = served((429, {"Retry-After": "7"}, b""), (503, {}, b""), GOOD)
    with serving(services):
        made = replace(client(services.address), sleep=slept.append, waiting=said.append)
        assert made.get(REQUEST).body == b"0123"
    assert len(services.seen) == 3
    assert slept[0] == 7
    assert 0.7 < slept[1] < 1.3
    assert "answered 429; trying again in 7.0 s" in said


def test_tries_are_bounded_in_number_and_time() -> None:
    services, _ = served((429, {"Retry-After": "20"}, b""))
    with serving(services):
        with pytest.raises(Unreachable, match="answered 429"):
            client(services.address).get(REQUEST)
        assert len(services.seen) == 4
        services.seen.clear()
        with pytest.raises(Unreachable, match="name a mirror with --service"):
            client(services.address, timeout=15.0).get(REQUEST)
        assert len(services.seen) == 1  # the pause would be longer than what is left


def test_what_retry_after_may_say() -> None:
    assert retry_after(None, NOW) == 0
    assert retry_after("3", NOW) == 3
    assert retry_after("86400", NOW) == MAX_WAIT
    assert retry_after(format_datetime(NOW + timedelta(seconds=9), usegmt=True), NOW) == 9
    assert retry_after(format_datetime(NOW - timedelta(seconds=9), usegmt=True), NOW) == 0
    assert retry_after("Tue, 24 Nov 2026 12:00:05", NOW) == 5
    for nonsense in ("soon", "-1", "1e9", "٣", "99999999999999999999"):
        assert retry_after(nonsense, NOW) == 0


@pytest.mark.parametrize("status", [400, 401, 403, 418])
def test_other_statuses_are_final(status: int) -> None:
    services, _ = served((status, {}, b""))
    with serving(services), pytest.raises(Unreachable, match=f"answered {status}") as caught:
        client(services.address).get(REQUEST)
    assert len(services.seen) == 1
    assert ("--bearer" in caught.value.todo) == (status in (401, 403))


def test_404_says_that_the_service_does_not_know_it() -> None:
    with serving(FakeServices()) as services, pytest.raises(Unknown, match="does not know it"):
        client(services.address).get(REQUEST)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            ok(b"<html>", "text/html; charset=utf-8"),
            "an answer of type 'text/html', expected application/pkix-cert",
        ),
        (ok(b"{}", "application/json"), "type 'application/json'"),
        (ok(bytes(65), "application/pkix-crl"), "more than 64 bytes"),
        (ok(b"", "application/pkix-crl"), "an empty answer"),
    ],
)
def test_answers_of_another_type_or_size_are_refused(reply: Reply, words: str) -> None:
    services, _ = served(reply)
    with serving(services), pytest.raises(Refused, match=words):
        client(services.address).get(REQUEST)
    assert len(services.seen) == 1


def test_bytes_without_a_type_are_taken() -> None:
    for media in ("application/octet-stream", "binary/octet-stream"):
        services, _ = served(ok(b"0123", media))
        with serving(services):
            assert client(services.address).get(REQUEST).body == b"0123"


def test_redirects_stay_at_their_host() -> None:
    services = FakeServices()
    services.give("GET /moved", GOOD)
    services.give("GET /vcek/v1/Milan/crl", (302, {"Location": "/moved"}, b""))
    with serving(services):
        assert client(services.address).get(REQUEST).body == b"0123"
        for elsewhere in (
            "http://127.0.0.2:1/x",
            services.address.replace("http:", "https:") + "/moved",
            "file:///etc/x",
        ):
            services.give("GET /vcek/v1/Milan/crl", (302, {"Location": elsewhere}, b""))
            with pytest.raises((Refused, Unreachable)) as caught:
                client(services.address).get(REQUEST)
            assert "another place" in caught.value.what or "302" in caught.value.what
        services.give("GET /vcek/v1/Milan/crl", (302, {"Location": "/vcek/v1/Milan/crl"}, b""))
        with pytest.raises(Unreachable):
            client(services.address).get(REQUEST)


def test_a_server_that_hangs_or_drips_costs_its_time_and_no_more() -> None:
    def hang(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.recv(4096)  # until the client hangs up

    def drip(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/pkix-crl\r\nContent-Length: 60\r\n\r\n")
        for _ in range(9):
            connection.sendall(b"x")
            time.sleep(0.1)

    for behave in (hang, drip):
        with raw_server(behave) as address:
            begun = time.monotonic()
            with pytest.raises(Unreachable, match="no answer"):
                client(f"http://{address}", timeout=0.5).get(REQUEST)
            assert time.monotonic() - begun < 1.4


def test_a_long_wait_is_reported() -> None:
    said: list[str] = []

    def hang(connection: socket.socket) -> None:
        connection.recv(4096)
        time.sleep(2.5)

    with raw_server(hang) as address:
        made = replace(client(f"http://{address}", timeout=2.3), waiting=said.append)
        with pytest.raises(Unreachable):
            made.get(REQUEST)
    assert said[0] == "waiting for 127.0.0.1, 2 s"


def test_a_connection_that_breaks_is_tried_again() -> None:
    def cut(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/pkix-crl\r\nContent-Length: 60\r\n\r\nshort"
        )

    slept: list[float] = []
    with raw_server(cut) as address, pytest.raises(Unreachable, match="answer"):
        replace(client(f"http://{address}"), sleep=slept.append).get(REQUEST)
    assert len(slept) == 3


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable, match="is this machine online"):
        client(f"http://127.0.0.1:{port}").get(REQUEST)


def test_a_key_goes_to_its_service_only_and_is_never_shown() -> None:
    services, _ = served((403, {}, b""))
    with serving(services):
        made = client(services.address, bearer={"amd-kds": "secret-key"})
        with pytest.raises(Unreachable) as caught:
            made.get(REQUEST)
    assert "secret-key" not in str(caught.value) + repr(made)


def test_a_certificate_that_nobody_vouches_for_is_said() -> None:
    from fakemachine import Machine, running

    with running(Machine({})) as machine, pytest.raises((Unreachable, BadInput), match="TLS") as caught:
        client(f"https://{machine.address}").get(REQUEST)
    assert "--ca-file" in caught.value.todo


def test_a_private_authority_is_accepted_when_its_file_is_given(tmp_path: Path) -> None:
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    key, name = fake_x509.ec_key("pccs"), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pccs")])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, True, False, False, False), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA384())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "ca.pem").write_bytes(certificate)
    (tmp_path / "both.pem").write_bytes(certificate + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(4096)
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\n0123")

    with raw_server(answer) as address:
        with pytest.raises(Unreachable, match="TLS"):
            client(f"https://{address}").get(REQUEST)
        made = client(f"https://{address}", authorities=str(tmp_path / "ca.pem"))
        assert made.get(REQUEST).body == b"0123"


def test_authorities_that_cant_be_read_are_said() -> None:
    with pytest.raises(BadInput, match="can't be used"):
        client("https://127.0.0.1:1", authorities="/no/such/file").get(REQUEST)


def test_every_default_is_https_and_every_pattern_is_anchored_to_whole_hosts() -> None:
    for name, service in SERVICES.items():
        assert service.base.startswith("https://") != bool(service.hosts), name
    endpoints = Endpoints({})
    assert endpoints.url("maa", "/certs", "acme.weu.attest.azure.net") == "https://acme.weu.attest.azure.net/certs"
    for host in (
        "attest.azure.net.example.com",
        "acme.weu.attest.azure.net.example.com",
        "",
        "evil",
        "a@b.attest.azure.net",
    ):
        with pytest.raises(BadInput, match="no host of maa"):
            endpoints.url("maa", "/certs", host)
    assert requests.named("http://www.microsoft.com/pkiops/a b.crl", media=(), limit=1) is not None
    for url in ("http://microsoft.com.example.com/x", "ldap://www.microsoft.com/x", "http://[::1", "x"):
        assert requests.named(url, media=(), limit=1) is None


# --- the cache ---


def kept(folder: Path) -> Cache:
    return Cache(folder, Endpoints({}))


def test_an_answer_is_kept_with_its_headers_time_and_address(tmp_path: Path) -> None:
    answer = Answer(b"body", {"tcb-info-issuer-chain": "pem"}, "https://x/y", NOW)
    assert kept(tmp_path / "deep").put(REQUEST, answer) == ""
    assert kept(tmp_path / "deep").get(REQUEST, NOW) == replace(answer, stored=True)
    (file,) = (tmp_path / "deep").iterdir()
    assert file.stat().st_mode & 0o077 == 0


def test_other_requests_and_other_services_have_entries_of_their_own(tmp_path: Path) -> None:
    here = kept(tmp_path)
    here.put(REQUEST, Answer(b"body", {}, "https://x", NOW))
    assert here.get(replace(REQUEST, path="/vcek/v1/Genoa/crl"), NOW) is None
    assert Cache(tmp_path, Endpoints({"amd-kds": "http://127.0.0.1:1"})).get(REQUEST, NOW) is None
    first = replace(REQUEST, body=b"nonce 1", about="certificate 1")
    assert here.path(first) == here.path(replace(first, body=b"nonce 2"))
    assert here.path(first) != here.path(replace(first, about="certificate 2"))


def test_broken_entries_are_none(tmp_path: Path) -> None:
    here = kept(tmp_path)
    here.put(REQUEST, Answer(b"body", {}, "https://x", NOW))
    file = here.path(REQUEST)
    whole = file.read_bytes()
    changed = json.dumps({**json.loads(whole), "body": "Ym9kag=="}).encode()
    for data in (
        b"",
        whole[:-20],
        b"[]",
        b"[" * 100000,
        changed,
        whole.replace(b'"version": 1', b'"version": 2'),
        b"\xff",
    ):
        file.write_bytes(data)
        assert here.get(REQUEST, NOW) is None
    file.unlink()
    file.mkdir()
    assert here.get(REQUEST, NOW) is None


def test_key_sets_are_kept_for_a_day(tmp_path: Path) -> None:
    request = requests.key_set("nras", "")
    kept(tmp_path).put(request, Answer(b"{}", {}, "https://x", NOW))
    assert kept(tmp_path).get(request, NOW + timedelta(hours=23)) is not None
    assert kept(tmp_path).get(request, NOW + timedelta(hours=25)) is None


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert caches.folder() == tmp_path / "cube-confidential" / "collateral"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert caches.folder() == tmp_path / ".cache" / "cube-confidential" / "collateral"


def complete(
    services: FakeServices, cache: Cache, *, now: datetime = NOW, refresh: bool = False
) -> tuple[int, int, list[str]]:
    """Fetch for a TD without collateral: pieces had, pieces not had, and what was said."""
    whole = whole_bundles.tdx()
    evidence = whole.bundle.evidence
    bare = whole_bundles._kept(evidence, "claims", "tdx-quote")
    said: list[str] = []
    context = replace(Context.of(whole.policy, now), pccs=True)
    made = Client(cache.endpoints, sleep=lambda _: None, attempts=1)
    fetcher = Fetcher(made, cache, lambda: NOW, refresh=refresh, say=said.append)
    outcome = fetcher.complete(replace(whole.bundle, evidence=bare), context)
    return len(outcome.got), len(outcome.failed), said


@pytest.fixture
def intel_services() -> FakeServices:
    services = FakeServices()
    services.intel(fake_tdx.FakeTdx())
    return services


def test_entries_that_ran_out_or_broke_are_fetched_anew(tmp_path: Path, intel_services: FakeServices) -> None:
    with serving(intel_services) as services:
        cache = Cache(tmp_path, Endpoints({"intel-pcs": services.address}))
        assert complete(services, cache)[:2] == (4, 0)
        assert len(services.seen) == 4
        assert complete(services, cache)[:2] == (4, 0)
        assert len(services.seen) == 4
        (tmp_path / cache.path(requests.qe_identity("tdx")).name).write_bytes(b'{"version": 1, "bo')
        assert complete(services, cache)[:2] == (4, 0)
        assert services.seen[4:] == ["GET /tdx/certification/v4/qe/identity"]
        assert complete(services, cache, refresh=True)[:2] == (4, 0)
        assert len(services.seen) == 9
        # 29 days later all but the root's list have run out, here and at the service
        assert complete(services, cache, now=NOW + timedelta(days=29))[:2] == (1, 3)
        assert len(services.seen) == 12


def test_a_full_disk_loses_the_cache_and_nothing_else(
    tmp_path: Path, intel_services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with serving(intel_services) as services:
        got, failed, said = complete(services, Cache(tmp_path, Endpoints({"intel-pcs": services.address})))
    assert (got, failed) == (4, 0)
    assert any("not kept for the next time" in line and "No space left" in line for line in said)
    assert list(tmp_path.iterdir()) == []  # nothing half-written either


def test_a_folder_that_cant_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "file" in kept(tmp_path / "file" / "deep").put(REQUEST, Answer(b"body", {}, "https://x", NOW))


def test_a_poisoned_entry_is_checked_like_any_answer(tmp_path: Path, intel_services: FakeServices) -> None:
    with serving(intel_services) as services:
        cache = Cache(tmp_path, Endpoints({"intel-pcs": services.address}))
        complete(services, cache)
        request = requests.tcb_info("tdx", bytes.fromhex("00806f050000"))
        good = cache.get(request, NOW)
        assert good is not None
        cache.put(request, replace(good, body=good.body.replace(b"UpToDate", b"Revoked!"), time=fakepki.NOW))
        assert complete(services, cache)[:2] == (4, 0)
        assert services.seen[4:] == ["GET /tdx/certification/v4/tcb?fmspc=00806F050000"]


# --- bytes from outside ---


def machine_with_everything() -> tuple[Collection, Context]:
    """Evidence of every kind at once, without collateral, and the rules of the fake vendors."""
    parts: dict[str, Item] = {}
    context = Context(NOW)
    for make in (whole_bundles.snp, whole_bundles.tdx, whole_bundles.gpu):
        whole = make()
        parts |= {k: v for k, v in whole.bundle.evidence.items.items() if k not in store.LABELS or k == "tokens"}
        own = Context.of(whole.policy, NOW)
        context = replace(
            context,
            snp=own.snp if make is whole_bundles.snp else context.snp,
            tdx=own.tdx if make is whole_bundles.tdx else context.tdx,
            nvidia=own.nvidia if make is whole_bundles.gpu else context.nvidia,
        )
    emptied = [replace(one, keys=b'{"keys":[]}') for one in tokens.decode(parts["tokens"].value)]
    parts["tokens"] = replace(parts["tokens"], value=tokens.encode(emptied))
    return Collection(parts), context


EVERYTHING, RULES = machine_with_everything()
NEEDS = {need.name: need for need in find(EVERYTHING, RULES)}


def test_everything_at_once_needs_everything() -> None:
    kinds = {name.split(".")[0] for name in NEEDS}
    assert kinds == {"amd", "intel", "nvidia", "tokens"}
    assert len(NEEDS) == 3 + 4 + 2 + 3 + 2


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(NEEDS)),
    st.binary(max_size=400),
    st.sampled_from([b"", b"0\x82\x01\x20", b'{"', b"-----BEGIN "]),
)
def test_answers_of_any_bytes_are_refused_in_words(name: str, body: bytes, start: bytes) -> None:
    headers = {"tcb-info-issuer-chain": "%2D%2D", "sgx-enclave-identity-issuer-chain": "x"}
    accept = NEEDS[name].accept
    assert accept is not None
    with pytest.raises((BadInput, NotAuthentic)):
        accept(Answer(start + body, headers), EVERYTHING)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_good_answer_with_a_changed_byte_is_refused(data: st.DataObject) -> None:
    """But for what no signature covers: none of these answers has such bytes in their first half."""
    machine = fake_tdx.FakeTdx()
    bodies = {
        "intel.pck-crl": machine.collateral().pck_crl or b"",
        "intel.root-crl": machine.collateral().root_crl or b"",
        "amd.crl.vcek.Milan": fake_snp.FakeSnp().crl,
    }
    name = data.draw(st.sampled_from(sorted(bodies)))
    body = bytearray(bodies[name])
    evidence = store.put(EVERYTHING, "snp-certificates", fake_snp.FakeSnp().ark.pem)
    accept = NEEDS[name].accept
    assert accept is not None
    accept(Answer(bytes(body)), evidence)
    at = data.draw(st.integers(0, len(body) // 2))
    body[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((BadInput, NotAuthentic)):
        accept(Answer(bytes(body)), evidence)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=120))
def test_addresses_in_certificates_of_any_bytes(value: bytes) -> None:
    for oid, read in ((issuers._AUTHORITY_INFO, issuers._issuer_addresses), (CRL_POINTS, issuers._points)):
        extension = fake_x509.extension(oid, value)
        made = fake_x509.issue("x", fake_x509.ec_key("x"), extensions=[extension]).parsed
        assert all(isinstance(url, str) for url in read(made))
        for url in read(made):
            requests.named(url, media=(), limit=1)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_records_of_any_bytes_change_nothing(value: bytes) -> None:
    evidence = EVERYTHING.with_item(sources.LABEL, sources.MEDIA_TYPE, value)
    assert sources.received(evidence) == evidence
