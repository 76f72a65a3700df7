# SPDX-License-Identifier: Apache-2.0
"""Who may call: tokens of an OIDC issuer beside a domain's own, revocation and rotation while clients go on."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cube_attestation import domains
from cube_attestation.errors import BadInput
from joserfc.jwk import ECKey, RSAKey

CHAT = {"model": "smollm2"}


@dataclass
class Login:
    """Two domains of one login service, told apart by a group, and a third that has none."""

    envoy: Any
    backend: Any
    acme: Any
    beta: Any
    own_only: Any
    service: Any

    def chat(self, tenant: Any, token: str) -> Any:
        return self.envoy.request("POST", f"/{tenant.id}/v1/chat/completions", token, CHAT)


@pytest.fixture
def login(
    envoy_process: Any, backend: Any, make_tenant: Any, make_set: Any, make_issuer: Callable[..., Any]
) -> Login:
    service = make_issuer("https://login.example/realms/one", claims={"groups": "acme-llm"})
    other_group = replace(service, claims={"groups": "beta-llm"})
    acme = make_tenant("acme", ("smollm2",), issuers=[service], revoked=["left-the-company"])
    beta = make_tenant("beta", ("smollm2",), issuers=[other_group])
    own_only = make_tenant("gamma", ("smollm2",))
    envoy_process.apply(make_set(acme, beta, own_only))
    return Login(envoy_process, backend, acme, beta, own_only, service)


def test_a_member_is_served_and_the_token_goes_no_further(login: Login) -> None:
    for group in ("acme-llm", ["x", "acme-llm"]):
        answer = login.chat(login.acme, login.service.token(groups=group))
        assert answer.status == 200, answer
    for _, headers, _ in login.backend.requests:
        assert "authorization" not in headers
        assert "a-person" not in str(headers)
    assert login.chat(login.acme, login.acme.token()).status == 200  # the domain's own tokens go on


REFUSED: list[tuple[str, Callable[[Login], str], int, str]] = [
    ("another group", lambda w: w.service.token(groups="beta-llm"), 403, "domain_mismatch"),
    ("no group", lambda w: w.service.token(), 403, "domain_mismatch"),
    ("group as part of a word", lambda w: w.service.token(groups="acme-llm-x acme-llm"), 403, "domain_mismatch"),
    ("revoked", lambda w: w.service.token(groups="acme-llm", jti="left-the-company"), 401, "token_revoked"),
    ("no scope", lambda w: w.service.token(groups="acme-llm", scope=None), 403, "insufficient_scope"),
    ("part of a scope", lambda w: w.service.token(groups="acme-llm", scope="xllm_chat_completions"), 403, ""),
    ("nobody", lambda w: w.service.token(groups="acme-llm", sub=None), 401, "invalid_api_key"),
    ("expired", lambda w: w.service.token(groups="acme-llm", exp=int(time.time()) - 60), 401, "invalid_api_key"),
    ("no expiry", lambda w: w.service.token(groups="acme-llm", exp=None), 401, "invalid_api_key"),
    ("another issuer", lambda w: w.service.token(groups="acme-llm", iss="https://evil.example"), 401, ""),
    ("issuer of our own kind", lambda w: w.service.token(groups="acme-llm", iss=f"cube:{w.acme.id}"), 401, ""),
    ("another audience", lambda w: w.service.token(groups="acme-llm", aud="another-service"), 0, ""),
    ("no audience", lambda w: w.service.token(groups="acme-llm", aud=None), 0, ""),
    ("as one of the domain's own", lambda w: "pat_" + w.service.token(groups="acme-llm"), 401, ""),
    (
        "dressed as the domain's own",
        lambda w: (
            "pat_"
            + w.service.token(
                header={"kid": w.acme.kid, "typ": "cube-pat+jwt"},
                iss=f"cube:{w.acme.id}",
                aud="local",
                domain=w.acme.id,
                scopes=["llm_chat_completions"],
            )
        ),
        401,
        "",
    ),
    (
        "a domain's own as the issuer's",
        lambda w: w.acme.token(iss=w.service.issuer, aud="cube", sub="x", groups="acme-llm").removeprefix("pat_"),
        401,
        "",
    ),
]


@pytest.mark.parametrize(("make", "status", "code"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_who_is_no_member(login: Login, make: Callable[[Login], str], status: int, code: str) -> None:
    answer = login.chat(login.acme, make(login))
    assert answer.status == status or (not status and answer.status in (401, 403)), answer
    assert code in ("", answer.code)
    assert login.backend.requests == []


def test_an_issuers_token_is_nothing_where_the_domain_does_not_name_it(login: Login) -> None:
    token = login.service.token(groups="acme-llm")
    assert login.chat(login.beta, token).status == 403
    assert login.chat(login.own_only, token).status == 401
    assert login.backend.requests == []


@pytest.mark.filterwarnings("ignore:Key size")
def test_rsa_keys_count_and_small_ones_are_refused(login: Login, make_set: Any, make_issuer: Any) -> None:
    service = make_issuer("https://login.example/rsa", keys=[RSAKey.generate_key(2048)])
    login.acme.issuers = [service]
    login.envoy.apply(make_set(login.acme))
    assert login.chat(login.acme, service.token()).status == 200
    login.acme.issuers = [make_issuer("https://login.example/rsa", keys=[RSAKey.generate_key(1024)])]
    with pytest.raises(BadInput, match="an RSA key of 1024 bits"):
        make_set(login.acme)


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "oct", "kid": "x", "k": "c2VjcmV0"},
        {"kty": "RSA", "kid": "x", "n": "AQAB", "e": "AQAB", "alg": "HS256"},
        {"kty": "EC", "crv": "P-256", "kid": "x", "x": "A" * 43, "y": "A" * 43, "d": "A" * 43},
    ],
    ids=["symmetric", "symmetric use of a public key", "private"],
)
def test_keys_that_no_issuer_may_have(login: Login, make_set: Any, key: dict[str, str]) -> None:
    body = login.acme.body()
    body["issuers"][0]["keys"] = [key]
    with pytest.raises(BadInput, match="keys"):
        domains.parse({"domains": [body]})


def test_a_swapped_key_set_counts_at_once_and_the_old_one_no_more(login: Login, make_set: Any) -> None:
    """The token was good and its check is cached; the keys are exchanged under the same key id."""
    token = login.service.token(groups="acme-llm")
    assert [login.chat(login.acme, token).status for _ in range(3)] == [200] * 3
    kid = login.service.keys[0].thumbprint()
    swapped = ECKey.generate_key("P-256")
    body = login.acme.body()
    body["issuers"][0]["keys"][0] |= {name: swapped.as_dict(private=False)[name] for name in ("x", "y")}
    assert body["issuers"][0]["keys"][0]["kid"] == kid
    login.envoy.apply(domains.parse({"domains": [body]}))
    reached = len(login.backend.requests)
    assert login.chat(login.acme, token).code == "invalid_api_key"
    fresh = replace(login.service, keys=[swapped]).token(groups="acme-llm")
    by_kid = login.chat(login.acme, fresh)  # its own key id is not in the set
    assert by_kid.status == 401
    good = replace(login.service, keys=[swapped]).token(groups="acme-llm", header={"kid": kid})
    assert login.chat(login.acme, good).status == 200
    assert len(login.backend.requests) == reached + 1


def test_a_token_does_not_bring_its_own_keys(login: Login) -> None:
    own = ECKey.generate_key("P-256")
    public = {name: own.as_dict(private=False)[name] for name in ("kty", "crv", "x", "y")}
    service = replace(login.service, keys=[own])
    for header in (
        {"jwk": public, "kid": login.service.keys[0].thumbprint()},
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://evil.example/chain", "kid": None},
    ):
        assert login.chat(login.acme, service.token(groups="acme-llm", header=header)).status == 401
    assert login.backend.requests == []


def test_a_revocation_holds_within_a_second_on_open_connections(login: Login, make_set: Any) -> None:
    """From the first write of the files until the answer on connections that were open and in use before."""
    own, issued = login.acme.token(jti="goes-1"), login.service.token(groups="acme-llm", jti="goes-2")
    open_ones = [(login.envoy.connection(), token) for token in (own, issued)]
    path = f"/{login.acme.id}/v1/models"
    for connection, token in open_ones:
        connection.request("GET", path, headers={"authorization": f"Bearer {token}"})
        assert connection.getresponse().read()
    login.acme.revoked += ["goes-1", "goes-2"]
    began = time.monotonic()
    login.envoy.apply(make_set(login.acme, login.beta, login.own_only))
    for connection, token in open_ones:
        connection.request("GET", path, headers={"authorization": f"Bearer {token}"})
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["error"]["code"]) == (401, "token_revoked")
        connection.close()
    assert time.monotonic() - began < 1


def test_keys_rotate_without_a_refused_request(login: Login, make_set: Any, make_issuer: Any) -> None:
    """Old, old and new, new: both kinds of tokens, clients on open connections all the while."""
    service = make_issuer("https://login.example/rotating")
    login.acme.issuers = [service]
    login.envoy.apply(make_set(login.acme))
    tokens = {"own": login.acme.token(), "oidc": service.token()}
    statuses: list[int] = []
    stop = threading.Event()

    def client(kind: str) -> None:
        connection = login.envoy.connection()
        while not stop.is_set():
            headers = {"authorization": f"Bearer {tokens[kind]}"}
            connection.request("GET", f"/{login.acme.id}/v1/models", headers=headers)
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        connection.close()

    clients = [threading.Thread(target=client, args=(kind,)) for kind in ("own", "oidc")]
    for thread in clients:
        thread.start()
    for _ in range(3):
        old_body = login.acme.body()
        old_key, new_key = login.acme.public(), ECKey.generate_key("P-256")
        login.acme.key = new_key
        service.keys = [service.keys[-1], ECKey.generate_key("P-256")]
        both = login.acme.body()
        both["tokens"]["keys"] = [old_key, login.acme.public()]
        assert old_body != both
        login.envoy.apply(domains.parse({"domains": [both]}))
        tokens |= {"own": login.acme.token(), "oidc": service.token()}
        time.sleep(0.3)  # longer than a request of before takes
        service.keys = service.keys[-1:]
        login.envoy.apply(domains.parse({"domains": [login.acme.body()]}))
    stop.set()
    for thread in clients:
        thread.join(20)
    assert len(statuses) > 50
    assert set(statuses) == {200}


def test_a_running_stream_survives_a_change_of_everything(login: Login, make_set: Any) -> None:
    login.backend.delay = 0.3
    connection = login.envoy.connection()
    headers = {"content-type": "application/json", "authorization": f"Bearer {login.acme.token()}"}
    path = f"/{login.acme.id}/v1/chat/completions"
    connection.request("POST", path, json.dumps({**CHAT, "stream": True}), headers)
    response = connection.getresponse()
    first = response.readline()
    login.acme.key = ECKey.generate_key("P-256")
    login.acme.limits = {"requests_per_minute": 5, "concurrent_requests": 2}
    login.envoy.apply(make_set(login.acme))
    asyncio.run(login.envoy.files.in_force())
    rest = response.read()
    connection.close()
    assert (first + rest).count(b"data: ") == 3
