# SPDX-License-Identifier: Apache-2.0
"""Real tokens and key sets: every file of the vectors' index gets its expected verdict at a stated clock."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cube_attestation.anchors.nvidia import NRAS_INTERMEDIATE_003, NRAS_ISSUERS
from cube_attestation.errors import BadInput
from cube_attestation.tokens import abi
from cube_attestation.tokens.appraise import TokenPolicy, appraise
from cube_attestation.tokens.verify import verify
from cube_attestation.x509 import certificate as certificates
from cube_attestation.x509 import path

MAA, ITA = "jwt/Azure-Samples_microsoft-azure-attestation", "jwt/intel_trustauthority-client-for-go"
NRAS = "jwt/NVIDIA_attestation-sdk/unit/sample_attestation_data"
KID = "3fd751f2e0d0f52846c0ecd4972c6e99dfc642051cd339dd9b04381af8c0ddb804514a7a1fee4673ac844fd5db7f15fb"
Check = Callable[[Path], None]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ita_keys(vectors: Path) -> tuple[abi.Key, ...]:
    """The key set that Intel's test serves: the signing certificate with its issuer."""
    chain = [
        (vectors / ITA / name).read_bytes() for name in ("ita_validCertHex.der", "ita_validInterCaCertHex.der")
    ]
    x5c = [base64.b64encode(der).decode() for der in chain]
    return abi.load_keys(json.dumps({"keys": [{"kty": "RSA", "kid": KID, "x5c": x5c}]}).encode())


def ita(
    name: str, expected: list[str], now: str = "2025-01-01", anchor: str = "ita_validInterCaCertHex.der"
) -> Check:
    """Signature and key, with the key named itself or by its issuer."""

    def check(vectors: Path) -> None:
        token = abi.parse((vectors / ITA / name).read_bytes())
        issuer = certificates.parse((vectors / ITA / anchor).read_bytes())
        keys = ita_keys(vectors)
        for trusted in ({keys[0].spki}, {issuer.spki_digest}):
            assert [reason.code for reason in verify(token, "ita", keys, trusted, at(now))] == expected

    return check


def ita_claims(vectors: Path) -> None:
    """The genuine token is authentic, and its made-up claims are not acceptable."""
    keys = ita_keys(vectors)
    policy = TokenPolicy("ita", ("https://portal.trustauthority.intel.com",), frozenset({keys[0].spki}))
    (item,) = appraise((vectors / ITA / "ita_token.jwt").read_bytes(), keys, policy, at("2025-01-01"))
    assert item.authentic
    assert sorted(item.reasons[i].code for i in range(len(item.reasons))) == [
        "token.debug.unknown",
        "token.exp.missing",
        "token.iss.not_allowed",
    ]


def amber(vectors: Path) -> None:
    """A token of 2023 whose key nobody has: well-formed, not authentic, long expired."""
    policy = TokenPolicy("ita", ("https://www.intel.com/amber",), frozenset({"sha256:" + "00" * 32}), debug=True)
    (item,) = appraise(
        (vectors / ITA / "ita_amber_sgx_2023.jwt").read_bytes(), ita_keys(vectors), policy, at("2026-01-01")
    )
    assert {"token.key.unknown", "token.exp.expired"} <= {reason.code for reason in item.reasons}


def certificate(name: str, accepted: bool) -> Check:
    """Intel's test certificates: which of them lead to the issuing CA at 2025."""

    def check(vectors: Path) -> None:
        leaf = certificates.parse((vectors / ITA / name).read_bytes())
        ca = certificates.parse((vectors / ITA / "ita_validInterCaCertHex.der").read_bytes())
        anchors = {ca.spki_digest}
        assert bool(path.find(leaf, (ca,), anchors, at("2025-01-01")).problem) != accepted

    return check


def revocation_list(vectors: Path) -> None:
    """A revocation list is no key: the reader says so."""
    data = (vectors / ITA / "ita_crlHex.der").read_bytes()
    assert x509.load_der_x509_crl(data).is_signature_valid is not None
    with pytest.raises(BadInput):
        abi.load_keys(data)


def maa_keys(vectors: Path) -> None:
    """The set is read but for one RSA key of 1024 bits."""
    keys = abi.load_keys((vectors / MAA / "maa_certs_response_2020.json").read_bytes())
    assert len(keys) == 4
    assert all(key.kid and key.chain for key in keys)


def maa_token(vectors: Path) -> None:
    data = (vectors / MAA / "maa_test_sevsnp.jwt").read_bytes()
    keys = abi.load_keys((vectors / MAA / "maa_certs_response_2020.json").read_bytes())
    trusted = frozenset(key.spki for key in keys)
    policy = TokenPolicy("maa", ("https://sharedweu.weu.test.attest.azure.net",), trusted)
    for now, expected in (
        (1744085700, ["token.key.unknown"]),
        (1744114500, ["token.key.unknown"]),
        (1744114501, ["token.exp.expired", "token.key.unknown"]),
        (1744085700 - 61, ["token.key.unknown", "token.time.not_yet_valid"]),
    ):
        (item,) = appraise(data, keys, policy, datetime.fromtimestamp(now, UTC))
        assert sorted({reason.code for reason in item.reasons}) == expected
    assert item.facts["x-ms-attestation-type"] == "sevsnpvm"


def nras(name: str, iss: str, device: str) -> Check:
    """The digests hold and every claim is good; only the key of that day is not at hand."""

    def check(vectors: Path) -> None:
        data = (vectors / NRAS / name).read_bytes()
        found = abi.parse_set(data)
        issued = found.overall.claims["iat"]
        nonce = found.overall.claims["eat_nonce"]
        assert isinstance(issued, int)
        assert isinstance(nonce, str)
        now = datetime.fromtimestamp(issued, UTC)
        policy = TokenPolicy("nras", (iss,), frozenset(NRAS_ISSUERS))
        items = appraise(data, (), policy, now, nonce=nonce)
        assert [item.item for item in items] == ["token-nras", f"token-nras-{device}"]
        assert {reason.code for item in items for reason in item.reasons} == {"token.key.unknown"}
        late = appraise(data, (), policy, now + timedelta(seconds=3601), nonce="00")
        assert {reason.code for reason in late[0].reasons} == {
            "token.key.unknown",
            "token.exp.expired",
            "token.nonce.mismatch",
        }

    return check


def nras_certificate(vectors: Path) -> None:
    """A signing certificate leads to the pinned intermediate for its two days, and not beside them."""
    folder = vectors / "jwt/openpcc_openpcc"
    (leaf,) = certificates.load((folder / "test_nvidia_cert.pem").read_bytes(), where="leaf")
    issuers = certificates.load((folder / "trust/nras_root.pem").read_bytes(), where="issuers")
    first, last = leaf.not_before, leaf.not_after
    second = timedelta(seconds=1)
    for now, problem in ((first, ""), (last, ""), (first - second, "not_yet_valid"), (last + second, "expired")):
        assert path.find(leaf, issuers, {NRAS_INTERMEDIATE_003}, now).problem == problem


def nras_roots(vectors: Path) -> None:
    """The pinned keys are those of the published intermediates."""
    data = (vectors / "jwt/openpcc_openpcc/trust/nras_root.pem").read_bytes()
    found = [c.spki_digest for c in certificates.load(data, where="nras")]
    assert sorted(found) == sorted(NRAS_ISSUERS)


CASES: dict[str, list[Check]] = {
    f"{MAA}/maa_certs_response_2020.json": [maa_keys],
    f"{MAA}/maa_test_sevsnp.jwt": [maa_token],
    f"{NRAS}/hopperClaimsv3_detached_eat.json": [
        nras("hopperClaimsv3_detached_eat.json", "https://nras.attestation.nvidia.com", "gpu-0")
    ],
    f"{NRAS}/switch_detached_eat.json": [
        nras("switch_detached_eat.json", "https://nras.attestation-stg.nvidia.com", "switch-0")
    ],
    f"{ITA}/ita_amber_sgx_2023.jwt": [amber],
    f"{ITA}/ita_token.jwt": [
        ita("ita_token.jwt", []),
        ita("ita_token.jwt", [], now="2023-07-04"),
        ita("ita_token.jwt", ["token.key.expired"], now="2028-05-18"),
        ita_claims,
    ],
    f"{ITA}/ita_tokenInvalid.jwt": [ita("ita_tokenInvalid.jwt", ["token.signature.invalid"])],
    f"{ITA}/ita_tokenInvalidKID.jwt": [ita("ita_tokenInvalidKID.jwt", ["token.kid.invalid"])],
    f"{ITA}/ita_tokenMissingKID.jwt": [ita("ita_tokenMissingKID.jwt", ["token.kid.invalid"])],
    f"{ITA}/ita_tokenWrongKID.jwt": [ita("ita_tokenWrongKID.jwt", ["token.kid.invalid"])],
    f"{ITA}/ita_crlHex.der": [revocation_list],
    f"{ITA}/ita_validCertHex.der": [certificate("ita_validCertHex.der", True)],
    f"{ITA}/ita_validInterCaCertHex.der": [certificate("ita_validInterCaCertHex.der", False)],
    f"{ITA}/ita_invalidCACertHex.der": [certificate("ita_invalidCACertHex.der", False)],
    f"{ITA}/ita_invalidCRLCertHex.der": [certificate("ita_invalidCRLCertHex.der", False)],
    "jwt/openpcc_openpcc/test_nvidia_cert.pem": [nras_certificate],
    "jwt/openpcc_openpcc/trust/nras_root.pem": [nras_roots],
}


@pytest.mark.parametrize("file", sorted(CASES))
def test_expected_verdict(file: str, vectors: Path) -> None:
    for check in CASES[file]:
        check(vectors)


def test_no_file_is_left_out(vectors: Path) -> None:
    with (vectors / "INDEX.tsv").open(newline="") as index:
        rows = [row["file"] for row in csv.DictReader(index, delimiter="\t") if row["kind"] == "jwt"]
    assert rows
    assert set(rows) - set(CASES) == set()
