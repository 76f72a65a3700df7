# SPDX-License-Identifier: Apache-2.0
"""The same inputs to dcap-qvl, an independent verifier: same answer, or a difference that is written down here."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cube_attestation.errors import BadInput
from cube_attestation.tdx.appraise import appraise
from cube_attestation.tdx.collateral import STATUSES, from_json
from cube_attestation.tdx.policy import TdxPolicy
from cube_attestation.tdx.verify import verify
from fake_tdx import NOW, FakeTdx, Names

dcap_qvl: Any = pytest.importorskip("dcap_qvl", reason="the independent verifier dcap-qvl is not installed")

SECOND = timedelta(seconds=1)
# dcap-qvl accepts every status but Revoked and reports it; that is a policy of ours
ANY_STATUS = tuple(status for status in STATUSES if status != "Revoked")


def theirs(quote: bytes, collateral: str, now: datetime, root: bytes | None) -> str:
    """Their TCB status, or ``refused: <why>``."""
    try:
        given = dcap_qvl.QuoteCollateralV3.from_json(collateral)
        seconds = int(now.timestamp())
        if root is None:
            report = dcap_qvl.verify(quote, given, seconds)
        else:
            report = dcap_qvl.verify_with_root_ca(quote, given, root, seconds)
    except Exception as error:
        return f"refused: {error}"
    return str(report.status)


def ours(quote: bytes, collateral: str, now: datetime, anchors: tuple[str, ...] | None) -> str:
    """Our TCB status under the policy that dcap-qvl builds in, or ``refused: <codes>``."""
    try:
        given = from_json(collateral.encode())
        found = verify(quote, given, now=now, **({} if anchors is None else {"anchors": anchors}))
    except BadInput as error:
        return f"refused: {error}"
    advisories = found.tcb.advisories if found.tcb else ()
    verdict = appraise(found, TdxPolicy(tcb_statuses=ANY_STATUS, advisories=advisories))
    codes = sorted({reason.code for reason in verdict.reasons} - {"tdx.quote.not_tdx"})
    if codes or found.tcb is None:
        return f"refused: {', '.join(codes)}"
    return found.tcb.status


def both(world: FakeTdx, now: datetime = NOW, quote: bytes | None = None) -> tuple[str, str]:
    root = world.root().public_bytes(serialization.Encoding.DER)
    given, quote = world.collateral_json(), quote or world.quote()
    return ours(quote, given, now, world.anchors), theirs(quote, given, now, root)


def same(pair: tuple[str, str]) -> bool:
    mine, other = (text.partition(":")[0] for text in pair)
    return mine == other


BASE = FakeTdx()


def updated(launched: int, now: int) -> FakeTdx:
    """A TD whose module was another version when it was launched; 4 is up to date, 3 is not."""
    svns = {name: bytes([n, 1, 3]) + bytes(13) for name, n in (("tee_tcb_svn", launched), ("tee_tcb_svn2", now))}
    levels = [BASE.isv_level(svn=4), BASE.isv_level("OutOfDate", 3)]
    return FakeTdx(version=5, body_type=3, td=svns, module_levels=levels)


WORLDS: list[FakeTdx] = [
    FakeTdx(), FakeTdx(version=5), FakeTdx(version=5, body_type=3), FakeTdx(trailing=bytes(100)),
    FakeTdx(version=3, sgx=True, tcb_id="SGX", qe_id="QE"),
    FakeTdx(signer="other"), FakeTdx(qe_bound=False), FakeTdx(qe_signer="other"),
    FakeTdx(qe={"mr_signer": bytes(32)}), FakeTdx(qe={"isv_prod_id": 1}), FakeTdx(qe={"misc_select": b"\1\0\0\0"}),
    FakeTdx(qe={"attributes": b"\x13" + bytes(15)}), FakeTdx(cert_type=3), FakeTdx(pck_issuer="other"),
    FakeTdx(pck_ca_is_ca=False), FakeTdx(pck_dates=(NOW - timedelta(9), NOW - SECOND)),
    FakeTdx(pck_dates=(NOW + SECOND, NOW + timedelta(9))), FakeTdx(revoked=("pck",)), FakeTdx(revoked=("pck-ca",)),
    FakeTdx(revoked=("tcb",)), FakeTdx(pck_has_sgx=False), FakeTdx(module_id="TDX_03"),
    FakeTdx(td={"mr_signer_seam": bytes([1] * 48)}), FakeTdx(td={"seam_attributes": 1}),
    FakeTdx(tcb_dates=(NOW - timedelta(9), NOW - SECOND)), FakeTdx(root_crl_signer="other"),
    FakeTdx(pck_crl_signer="other"), FakeTdx(document_signer="other"), FakeTdx(tcb_fmspc="00806F050001"),
    FakeTdx(tcb_id="SGX"), FakeTdx(next_update=NOW - SECOND), FakeTdx(issued=NOW + SECOND),
    FakeTdx(root_crl_dates=(NOW - timedelta(9), NOW - SECOND)),
    FakeTdx(pck_crl_dates=(NOW - timedelta(9), NOW - SECOND)),
    FakeTdx(td={"attributes": 1 << 28 | 1}), FakeTdx(td={"attributes": 0}),
    FakeTdx(version=5, body_type=3, td={"mr_service_td": b"\1" * 48}),
    FakeTdx(levels=[]), FakeTdx(levels=[BASE.level(pce_svn=12)]), FakeTdx(levels=[BASE.level(sgx=bytes([6] * 16))]),
    updated(launched=4, now=4), updated(launched=4, now=2), updated(launched=2, now=4),
    FakeTdx(td={"tee_tcb_svn": bytes([4, 0, 3]) + bytes(13)}),
    FakeTdx(td={"tee_tcb_svn": bytes([3, 0, 3]) + bytes(13)}),
    *(FakeTdx(levels=[BASE.level(status)]) for status in STATUSES),
    *(FakeTdx(module_levels=[BASE.isv_level(status)]) for status in ("UpToDate", "OutOfDate", "Revoked")),
    *(FakeTdx(qe_levels=[BASE.isv_level(status)]) for status in ("UpToDate", "OutOfDate", "Revoked")),
    *(FakeTdx(levels=[BASE.level(a)], qe_levels=[BASE.isv_level(b)])
      for a in ("SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded")
      for b in ("OutOfDate", "Revoked")),
]  # fmt: skip


@pytest.mark.parametrize("world", WORLDS, ids=range(len(WORLDS)))
def test_signed_worlds(world: FakeTdx) -> None:
    pair = both(world)
    assert same(pair), pair


# What differs and why ours stays: (world, our answer, the beginning of theirs)
DIFFERENT: list[tuple[FakeTdx, str, str]] = [
    # The quote format gives the QE's authentication data a length of its own; dcap-qvl takes 32 bytes only.
    (FakeTdx(auth=b""), "UpToDate", "refused: Verification failed: Invalid QE auth data length"),
    (FakeTdx(auth=bytes(33)), "UpToDate", "refused: Verification failed: Invalid QE auth data length"),
    # A quoting enclave that is to be configured: Intel's converging rules know no such level; dcap-qvl reports the
    # platform's status alone, we report the worst of all parts.
    (FakeTdx(qe_levels=[BASE.isv_level("ConfigurationNeeded")]), "ConfigurationNeeded", "UpToDate"),
    (
        FakeTdx(qe_levels=[BASE.isv_level("OutOfDateConfigurationNeeded")]),
        "OutOfDateConfigurationNeeded",
        "UpToDate",
    ),
    # Levels of modules and enclaves with other statuses: dcap-qvl gives up, we report the worst of all parts.
    (FakeTdx(module_levels=[BASE.isv_level("SWHardeningNeeded")]), "SWHardeningNeeded", "refused: "),
    (FakeTdx(qe_levels=[BASE.isv_level("SWHardeningNeeded")]), "SWHardeningNeeded", "refused: "),
    # After a TD-preserving update Intel advises a relaunch, or looks at the launch alone; for us the worse counts.
    (updated(launched=3, now=4), "OutOfDate", "TDRelaunchAdvised"),
    (updated(launched=4, now=3), "OutOfDate", "UpToDate"),
    # dcap-qvl does not look at when a CRL was issued: one of tomorrow passes there.
    (FakeTdx(pck_crl_dates=(NOW + SECOND, NOW + timedelta(9))), "refused: collateral.not_yet_valid", "UpToDate"),
    (FakeTdx(root_crl_dates=(NOW + SECOND, NOW + timedelta(9))), "refused: collateral.not_yet_valid", "UpToDate"),
    # Roles are told by Intel's names: dcap-qvl takes any certificate under the root as a TCB signer or PCK CA.
    (
        FakeTdx(names=Names(tcb="Intel SGX Other")),
        "refused: collateral.chain.not_tcb_signer, tdx.tcb.unknown",
        "UpToDate",
    ),
    (FakeTdx(names=Names(pck_ca="Intel SGX Other CA")), "refused: tdx.chain.not_pck, tdx.tcb.unknown", "UpToDate"),
]


@pytest.mark.parametrize(("world", "mine", "other"), DIFFERENT, ids=range(len(DIFFERENT)))
def test_known_differences(world: FakeTdx, mine: str, other: str) -> None:
    """If one of these changes, the reason beside it is to be read again."""
    found = both(world)
    assert found[0] == mine
    assert found[1].startswith(other)


def test_real_quotes(vectors: Path) -> None:
    folder = vectors / "tdx"
    cases = [
        ("flashbots_attested-tls/gcp-tdx-1782809233226668671", "flashbots_attested-tls/gcp-tdx-collateral.json"),
        ("flashbots_attested-tls/dcap-tdx-1766059550570652607", "flashbots_attested-tls/gcp-tdx-collateral.json"),
        ("google_go-tdx-guest/ccel/cos-113-tdx-quote.dat", "flashbots_attested-tls/gcp-tdx-collateral.json"),
        ("google_go-tdx-guest/quote_v5_sample.dat", "flashbots_attested-tls/azure-collateral-20260608.json"),
        ("confidential-containers_trustee/tdx_quote_4.dat", "flashbots_attested-tls/gcp-tdx-collateral.json"),
        (
            "confidential-containers_trustee/tdx_quote_5.dat",
            "flashbots_attested-tls/azure-collateral-20260608.json",
        ),
        ("Phala-Network_dcap-qvl/tdx_quote", "Phala-Network_dcap-qvl/tdx_quote_collateral.json"),
        ("Phala-Network_dcap-qvl/sgx_quote", "Phala-Network_dcap-qvl/sgx_quote_collateral.json"),
        ("Phala-Network_dcap-qvl/tdx_quote_outdated", "Phala-Network_dcap-qvl/tdx_quote_outdated_collateral.json"),
    ]
    for quote, collateral in cases:
        data, given = (folder / quote).read_bytes(), (folder / collateral).read_text()
        issued = json.loads(json.loads(given)["tcb_info"])["issueDate"]
        start = datetime.fromisoformat(issued)
        for hours in (-1, 0, 2, 24 * 29, 24 * 31):
            now = start + timedelta(hours=hours)
            pair = ours(data, given, now, None), theirs(data, given, now, None)
            later_crl = hours == 0 and pair == ("refused: collateral.not_yet_valid", "UpToDate")  # see DIFFERENT
            assert same(pair) or later_crl, (quote, hours, pair)


def flips(quote: bytes) -> list[tuple[int, bytes]]:
    return [(at, quote[:at] + bytes([quote[at] ^ 1]) + quote[at + 1 :]) for at in range(0, len(quote), 23)]


def in_root(text: bytes, at: int) -> bool:
    """Whether ``at`` lies in the last certificate, the root: dcap-qvl ignores it and takes its own copy.

    We pin the root's key and check its own signature, so a changed root is no root.
    """
    return at >= text.rindex(b"-----BEGIN CERTIFICATE-----")


@pytest.mark.parametrize("world", [FakeTdx(), FakeTdx(version=5, body_type=3)], ids=["v4", "v5"])
def test_mutants(world: FakeTdx) -> None:
    """One changed bit anywhere in the quote."""
    quote = world.quote()
    for at, mutant in flips(quote):
        pair = both(world, quote=mutant)
        assert same(pair) or (in_root(quote, at) and pair[0].startswith("refused")), (at, pair)


def test_truncated() -> None:
    quote = BASE.quote()
    for end in range(0, len(quote), 97):
        assert same(pair := both(BASE, quote=quote[:end])), (end, pair)


def test_mutants_of_collateral() -> None:
    """One changed character of each piece of collateral: both refuse."""
    quote, given = BASE.quote(), json.loads(BASE.collateral_json())
    root = BASE.root().public_bytes(serialization.Encoding.DER)
    for name, text in given.items():
        if name == "pck_crl_issuer_chain":
            continue  # ours takes the CA from the quote's own chain
        for at in range(60, len(text), max(1, len(text) // 12)):
            changed = text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :]
            collateral = json.dumps({**given, name: changed})
            pair = ours(quote, collateral, NOW, BASE.anchors), theirs(quote, collateral, NOW, root)
            root_only = name.endswith("chain") and in_root(text.encode(), at) and pair[0].startswith("refused")
            assert same(pair) or root_only, (name, at, pair)
