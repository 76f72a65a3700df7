# SPDX-License-Identifier: Apache-2.0
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cube_stacks import tokens
from cube_stacks.keys import SigningKey, domain_key, open_key
from joserfc import jws
from joserfc.errors import BadSignatureError
from joserfc.jwk import ECKey

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
DOMAIN = "2f0d6d0e-5f0c-4ad4-8a44-5f6f9b2f3c11"


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return open_key(domain_key("local", "acme"))


def issue(key: SigningKey, **changed: Any) -> tuple[str, dict[str, Any]]:
    arguments: dict[str, Any] = {"scopes": ["llm_chat_completions"], "life": timedelta(hours=1)} | changed
    return tokens.issue(key, "local", DOMAIN, arguments["scopes"], arguments["life"], NOW)


def test_another_jose_library_verifies_a_token(key: SigningKey) -> None:
    token, claims = issue(key, scopes=["llm_read", "llm_chat_completions"])
    assert token.startswith("pat_")
    jwk = tokens.token_key(key).to_json()
    public = ECKey.import_key({name: str(jwk[name]) for name in ("kty", "crv", "x", "y")})
    verified = jws.deserialize_compact(token.removeprefix("pat_"), public, algorithms=["ES256"])
    assert verified.protected == {"alg": "ES256", "kid": public.thumbprint(), "typ": "cube-pat+jwt"}
    assert jwk["kid"] == public.thumbprint()
    assert "d" not in jwk
    assert claims == {
        "iss": f"cube:{DOMAIN}",
        "aud": "local",
        "domain": DOMAIN,
        "scopes": ["llm_chat_completions", "llm_read"],
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 3600,
        "jti": claims["jti"],
    }
    other = ECKey.generate_key("P-256")
    with pytest.raises(BadSignatureError):
        jws.deserialize_compact(token.removeprefix("pat_"), other, algorithms=["ES256"])


def test_every_token_has_an_id_of_its_own(key: SigningKey) -> None:
    assert len({issue(key)[1]["jti"] for _ in range(20)}) == 20


@pytest.mark.parametrize("changed", [{"scopes": []}, {"scopes": ["admin"]}])
def test_unknown_scopes_are_refused(key: SigningKey, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="choose among"):
        issue(key, **changed)


@pytest.mark.parametrize("life", [timedelta(0), timedelta(seconds=-5), timedelta(days=366)])
def test_a_life_has_bounds(key: SigningKey, life: timedelta) -> None:
    with pytest.raises(ValueError, match="lives between"):
        issue(key, life=life)


def test_revocations_are_kept_by_domain(key: SigningKey) -> None:
    assert tokens.revoked("local", "acme") == []
    assert tokens.revoke("local", "acme", "b" * 22) == ["b" * 22]
    assert tokens.revoke("local", "acme", "a" * 22) == ["a" * 22, "b" * 22]
    assert tokens.revoke("local", "acme", "a" * 22) == ["a" * 22, "b" * 22]
    assert tokens.revoked("local", "acme") == ["a" * 22, "b" * 22]
    assert tokens.revoked("local", "globex") == []


@pytest.mark.parametrize("jti", ["", "short", "pat_eyJhbGciOi.x.y", "a" * 65, "../../../etc"])
def test_only_a_token_id_can_be_revoked(key: SigningKey, jti: str) -> None:
    with pytest.raises(ValueError, match="not a token id"):
        tokens.revoke("local", "acme", jti)
