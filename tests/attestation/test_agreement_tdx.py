# SPDX-License-Identifier: Apache-2.0
"""TDX: the same inputs to dcap-qvl and Google's go-tdx-guest: real ones, correctly signed wrong ones, mutants."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
from agreement import ACCEPTED, Difference, Pair, b64, compare, flipped, google, refused, utc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cube_attestation.anchors.intel import INTEL_ROOTS
from cube_attestation.errors import BadInput
from cube_attestation.tdx.appraise import appraise
from cube_attestation.tdx.collateral import STATUSES, Collateral, from_json
from cube_attestation.tdx.policy import ALLOW_MISSING, SEPT_VE_DISABLE, TdxPolicy
from cube_attestation.tdx.verify import verify
from fake_tdx import NOW, FakeTdx, Names, raw_signature, spki_digest

SECOND = timedelta(seconds=1)
SEED = 20261124
# dcap-qvl accepts every status but Revoked and reports it; that is a policy of ours
ANY_STATUS = tuple(status for status in STATUSES if status != "Revoked")
# go-tdx-guest accepts UpToDate only, and attributes that dcap-qvl refuses
GOOGLE = TdxPolicy(
    attributes_required=0, attributes_allowed=SEPT_VE_DISABLE | 1 << 30 | 1 << 63, mr_service_td=None
)


@dataclass(frozen=True)
class Input:
    """``collateral``: QuoteCollateralV3 as JSON, or empty for none. ``root``: DER, where it isn't Intel's."""

    what: str
    quote: bytes
    collateral: str
    now: datetime
    root: bytes = b""
    anchors: tuple[str, ...] = INTEL_ROOTS

    def dcap(self, module: Any) -> Pair:
        """Both answers with the TCB status."""
        try:
            given, seconds = module.QuoteCollateralV3.from_json(self.collateral), int(self.now.timestamp())
            if self.root:
                report = module.verify_with_root_ca(self.quote, given, self.root, seconds)
            else:
                report = module.verify(self.quote, given, seconds)
            theirs = f"{ACCEPTED}: {report.status}"
        except Exception as error:  # whatever its bindings raise
            theirs = refused(error)
        return Pair(self.what, self._ours(None, {"tdx.quote.not_tdx"}), theirs)

    def google_request(self) -> dict[str, Any]:
        request: dict[str, Any] = {"kind": "tdx", "now": utc(self.now), "quote": b64(self.quote)}
        if self.root:
            root = x509.load_der_x509_certificate(self.root)
            request["root"] = root.public_bytes(serialization.Encoding.PEM).decode()
        return request | ({"collateral": json.loads(self.collateral)} if self.collateral else {})

    def google_ours(self) -> str:
        found = self._ours(GOOGLE, set() if self.collateral else {"tdx.tcb.unknown"})
        return found.partition(":")[0] if found.startswith(ACCEPTED) else found

    def _ours(self, policy: TdxPolicy | None, ignored: set[str]) -> str:
        """Our answer; without a policy every status is taken as it is, and reported."""
        allow = () if self.collateral else ALLOW_MISSING
        try:
            found = verify(
                self.quote,
                from_json(self.collateral.encode()) if self.collateral else Collateral(),
                now=self.now,
                anchors=self.anchors,
                allow_missing=allow,
            )
        except BadInput as error:
            return refused(error)
        if policy is None:
            advisories = found.tcb.advisories if found.tcb else ()
            policy = TdxPolicy(tcb_statuses=ANY_STATUS, advisories=advisories)
        verdict = appraise(found, replace(policy, allow_missing=allow))
        codes = sorted({reason.code for reason in verdict.reasons} - ignored)
        return refused(", ".join(codes)) if codes else f"{ACCEPTED}: {found.tcb.status if found.tcb else 'unknown'}"


class Fake(FakeTdx):
    """With an FMSPC in lower case in the TCB info, which go-tdx-guest needs."""

    def tcb_info(self) -> bytes:
        named = (self.tcb_fmspc or self.fmspc.hex().upper()).encode()
        return super().tcb_info().replace(named, named.lower())

    # The bytes that are used many times; nothing changes after the first
    @cached_property
    def good_root(self) -> bytes:
        return self.root().public_bytes(serialization.Encoding.DER)

    def input(self, what: str, **changes: Any) -> Input:
        made = Input(what, self.quote(), self.collateral_json(), NOW, self.good_root, self.anchors)
        return replace(made, **changes)


BASE = Fake()


def updated(launched: int, now: int) -> Fake:
    """A TD whose module was another version when it was launched; 4 is up to date, 3 is not."""
    svns = {name: bytes([n, 1, 3]) + bytes(13) for name, n in (("tee_tcb_svn", launched), ("tee_tcb_svn2", now))}
    levels = [BASE.isv_level(svn=4), BASE.isv_level("OutOfDate", 3)]
    return Fake(version=5, body_type=3, td=svns, module_levels=levels)


def old(days: int = 9) -> tuple[datetime, datetime]:
    return NOW - timedelta(days), NOW - SECOND


def new(days: int = 9) -> tuple[datetime, datetime]:
    return NOW + SECOND, NOW + timedelta(days)


def last(days: int = 9) -> tuple[datetime, datetime]:
    return NOW - timedelta(days), NOW


def first(days: int = 9) -> tuple[datetime, datetime]:
    return NOW, NOW + timedelta(days)


@cache
def worlds() -> dict[str, Fake]:
    """Platforms and TDs of every kind, each right or with one thing wrong, all correctly signed."""
    level, isv = BASE.level, BASE.isv_level
    found = {
        "v4": Fake(), "v5": Fake(version=5), "v5 1.5": Fake(version=5, body_type=3),
        "padded": Fake(trailing=bytes(100)), "enclave": Fake(version=3, sgx=True, tcb_id="SGX", qe_id="QE"),
        "signer": Fake(signer="other"), "unbound": Fake(qe_bound=False), "qe signer": Fake(qe_signer="other"),
        "qe mrsigner": Fake(qe={"mr_signer": bytes(32)}), "qe prodid": Fake(qe={"isv_prod_id": 1}),
        "qe miscselect": Fake(qe={"misc_select": b"\1\0\0\0"}),
        "qe attributes": Fake(qe={"attributes": b"\x13" + bytes(15)}), "qe vendor": Fake(qe_vendor=bytes(16)),
        "encrypted ppid": Fake(cert_type=3), "pck issuer": Fake(pck_issuer="other"),
        "pck ca no ca": Fake(pck_ca_is_ca=False), "pck ca no crl sign": Fake(pck_ca_crl_sign=False),
        "pck under root": Fake(pck_under_root=True), "other root": Fake(root_role="other root"),
        "pck revoked": Fake(revoked=("pck",)), "pck ca revoked": Fake(revoked=("pck-ca",)),
        "tcb signer revoked": Fake(revoked=("tcb",)), "no sgx extension": Fake(pck_has_sgx=False),
        "processor ca": Fake(names=Names(pck_ca="Intel SGX PCK Processor CA"), flags=None),
        "unknown pck ca": Fake(names=Names(pck_ca="Intel SGX Other CA")),
        "unknown tcb signer": Fake(names=Names(tcb="Intel SGX Other")),
        "module unknown": Fake(module_id="TDX_03"), "mrsignerseam": Fake(td={"mr_signer_seam": bytes([1] * 48)}),
        "seam attributes": Fake(td={"seam_attributes": 1}), "xfam": Fake(td={"xfam": 0x602E6}),
        "root crl signer": Fake(root_crl_signer="other"), "pck crl signer": Fake(pck_crl_signer="other"),
        "pck crl name": Fake(pck_crl_name="Intel SGX Other CA"), "document signer": Fake(document_signer="other"),
        "fmspc": Fake(tcb_fmspc="00806F050001"), "tcb info of SGX": Fake(tcb_id="SGX"),
        "qe of SGX": Fake(qe_id="QE"),
        "debug": Fake(td={"attributes": 1 << 28 | 1}), "sept_ve": Fake(td={"attributes": 0}),
        "mrservicetd": Fake(version=5, body_type=3, td={"mr_service_td": b"\1" * 48}),
        "no levels": Fake(levels=[]), "pcesvn": Fake(levels=[level(pce_svn=12)]),
        "cpusvn": Fake(levels=[level(sgx=bytes([6] * 16))]), "no qe levels": Fake(qe_levels=[]),
        "qe svn": Fake(qe_levels=[isv(svn=5)]), "no module levels": Fake(module_levels=[]),
        "auth of 0": Fake(auth=b""), "auth of 33": Fake(auth=bytes(33)),
        "updated 4 4": updated(4, 4), "updated 4 2": updated(4, 2), "updated 2 4": updated(2, 4),
        "updated 3 4": updated(3, 4), "updated 4 3": updated(4, 3),
        "module 0 new": Fake(td={"tee_tcb_svn": bytes([4, 0, 3]) + bytes(13)}),
        "module 0 old": Fake(td={"tee_tcb_svn": bytes([3, 0, 3]) + bytes(13)}),
        **{f"status {s}": Fake(levels=[level(s)]) for s in STATUSES},
        **{f"module {s}": Fake(module_levels=[isv(s)]) for s in STATUSES},
        **{f"qe {s}": Fake(qe_levels=[isv(s)]) for s in STATUSES},
        **{f"status {a} qe {b}": Fake(levels=[level(a)], qe_levels=[isv(b)])
           for a in ("SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded")
           for b in ("OutOfDate", "Revoked")},
        "next update past": Fake(next_update=NOW - SECOND), "next update now": Fake(next_update=NOW),
        "issued later": Fake(issued=NOW + SECOND), "issued now": Fake(issued=NOW),
    }  # fmt: skip
    for which in ("pck_dates", "tcb_dates", "root_crl_dates", "pck_crl_dates"):
        for when in (old, new, last, first):
            found[f"{which} {when.__name__}"] = Fake(**{which: when()})  # type: ignore[arg-type]
    return found


def signed() -> Iterator[Input]:
    for name, world in worlds().items():
        # The root that is trusted is always the good one.
        yield world.input(name, root=BASE.good_root)
    upper = FakeTdx.tcb_info(BASE)
    given = json.loads(BASE.collateral_json())
    given |= {"tcb_info": upper.decode(), "tcb_info_signature": raw_signature("tcb", upper).hex()}
    yield BASE.input("fmspc in upper case", collateral=json.dumps(given))


def resigned(quote: bytes, at: int, bit: int) -> bytes:
    """One bit of header, TD report or QE report changed, and that part signed again."""
    body = 584 if quote[0] == 4 else 6 + struct.unpack_from("<I", quote, 50)[0]
    end = 48 + body  # of what the attestation key signs; then length, signature, key, type and length
    report = end + 4 + 128 + 6
    changed = flipped(quote, at, bit)
    if at < end:
        return changed[: end + 4] + raw_signature("attestation", changed[:end]) + changed[end + 68 :]
    return changed[: report + 384] + raw_signature("pck", changed[report : report + 384]) + changed[report + 448 :]


FIELDS = {
    "header": (2, 2, 4, 2, 2, 16, 20),  # version apart, because the layout hangs on it
    "td": (16, 48, 48, 8, 8, 8, 48, 48, 48, 48, 48, 48, 48, 48, 64),
    "td 1.5": (16, 48),
    "qe": (16, 4, 28, 16, 32, 32, 32, 96, 2, 2, 60, 64),
}


def fields(version: int) -> Iterator[tuple[str, int]]:
    """Offsets of the first and last byte of each field that is signed, with a name."""
    parts = [("header", 2), ("td", 48), ("qe", 48 + 584 + 138)]
    if version == 5:
        parts = [("header", 2), ("td", 54), ("td 1.5", 54 + 584), ("qe", 54 + 648 + 138)]
    for part, at in parts:
        for number, size in enumerate(FIELDS[part]):
            for offset in sorted({at, at + size - 1}):
                yield f"{part} field {number} byte {offset - at}", offset
            at += size


def signed_wrong() -> Iterator[Input]:
    for name, world in (("v4", worlds()["v4"]), ("v5", worlds()["v5 1.5"])):
        good = world.input(name)
        for field, at in fields(world.version):
            for bit in range(8):
                yield replace(good, what=f"signed {name}: {field} bit {bit}", quote=resigned(good.quote, at, bit))


def mutants(good: Input, step: int, draw: random.Random) -> Iterator[Input]:
    """One random bit of some bytes of the quote and of everything that comes with it, none signed again."""
    quote, given = good.quote, json.loads(good.collateral)
    root = quote.rindex(b"-----BEGIN CERTIFICATE-----")
    for at in range(draw.randrange(step), len(quote), step):
        part = "root" if root <= at else "quote"
        yield replace(
            good, what=f"mutant {good.what}: {part} byte {at}", quote=flipped(quote, at, draw.randrange(8))
        )
    for size in (0, 1, 47, 48, 631, 632, 700, len(quote) // 2):
        yield replace(good, what=f"mutant {good.what}: {size} bytes", quote=quote[:size])
    for name, text in given.items():
        root = text.rindex("-----BEGIN") if "BEGIN" in text else len(text)
        for at in range(draw.randrange(step), len(text), max(1, len(text) // 40)):
            changed = text[:at] + draw.choice("0123456789abcdef".replace(text[at], "")) + text[at + 1 :]
            part = f"{name} root" if root <= at else name
            collateral = json.dumps({**given, name: changed})
            yield replace(good, what=f"mutant {good.what}: {part} character {at}", collateral=collateral)


def framed() -> Iterator[Input]:
    """What nothing signs: types, lengths, and how the certificates are written."""
    good = BASE.input("v4")
    quote = good.quote
    pem = quote.index(b"-----BEGIN")
    lines, between = quote.index(b"\n", pem + 30), quote.index(b"-----\n-----") + 5
    padded = re.search(rb"(.)(=+)\n-----END", quote[pem:])
    assert padded is not None
    last = pem + padded.start()
    for what, at, new in (
        ("outer type", 764, b"\7\0"),
        ("outer length", 766, struct.pack("<I", len(quote) - 770 - 32)),
        ("whole length", 632, struct.pack("<I", len(quote) - 636 - 32)),
        ("inner type", 1252, b"\6\0"),
        ("inner length", 1254, struct.pack("<I", len(quote) - pem - 32)),
        ("inner length beyond", 1254, struct.pack("<I", len(quote) - pem + 32)),
        ("vertical tab in a line's place", lines, b"\v"),
        ("space in a line's place", lines, b" "),
        ("text between certificates", between, b"*"),
        ("control character between certificates", between, b"\x02"),
        ("unused bits of base64", last, bytes([quote[last] + 1])),
    ):
        yield replace(good, what=f"frame: {what}", quote=quote[:at] + new + quote[at + len(new) :])


def swapped() -> Iterator[Input]:
    """Each part of the collateral of another PKI, and missing."""
    other = Fake(root_role="other root", pck_crl_signer="other", root_crl_signer="other root", document_signer="x")
    good, given, foreign = BASE.input("v4"), json.loads(BASE.collateral_json()), json.loads(other.collateral_json())
    for name in given:
        yield replace(good, what=f"swapped: {name}", collateral=json.dumps({**given, name: foreign[name]}))
        yield replace(good, what=f"empty: {name}", collateral=json.dumps({**given, name: ""}))
    documents = {name: given[name.replace("tcb_info", "qe_identity")] for name in given}
    yield replace(good, what="swapped: documents", collateral=json.dumps(documents))
    lists = {**given, "pck_crl": given["root_ca_crl"], "root_ca_crl": given["pck_crl"]}
    yield replace(good, what="swapped: lists", collateral=json.dumps(lists))
    yield replace(good, what="foreign root", root=other.good_root, anchors=(spki_digest("other root"),))


PHALA, FLASHBOTS, COCO = "Phala-Network_dcap-qvl", "flashbots_attested-tls", "confidential-containers_trustee"
GCP, AZURE = f"{FLASHBOTS}/gcp-tdx-collateral.json", f"{FLASHBOTS}/azure-collateral-20260608.json"
REAL = [
    (f"{FLASHBOTS}/gcp-tdx-1782809233226668671", GCP),
    (f"{FLASHBOTS}/dcap-tdx-1766059550570652607", GCP),
    ("google_go-tdx-guest/ccel/cos-113-tdx-quote.dat", GCP),
    ("google_go-tdx-guest/quote_v5_sample.dat", AZURE),
    ("google_go-tdx-guest/tdx_prod_quote_SPR_E4.dat", GCP),
    (f"{COCO}/tdx_quote_4.dat", GCP),
    (f"{COCO}/tdx_quote_5.dat", AZURE),
    (f"{COCO}/tdx_quote_6.dat", GCP),
    (f"{COCO}/occlum_quote.dat", f"{PHALA}/sgx_quote_collateral.json"),
    (f"{FLASHBOTS}/azure_failed_dcap_quote_10.bin", AZURE),
    (f"{PHALA}/tdx_quote", f"{PHALA}/tdx_quote_collateral.json"),
    (f"{PHALA}/quote-from-tappd.bin", f"{PHALA}/tdx_quote_collateral.json"),
    (f"{PHALA}/tdx-quote-hex.bin", f"{PHALA}/tdx_quote_collateral.json"),
    (f"{PHALA}/sgx_quote", f"{PHALA}/sgx_quote_collateral.json"),
    (f"{PHALA}/tdx_quote_outdated", f"{PHALA}/tdx_quote_outdated_collateral.json"),
    (f"../azure/{FLASHBOTS}/derived_20260608/td-quote.bin", AZURE),
    (f"../azure/{COCO}/az-tdx-vtpm/td-quote.bin", GCP),
]


def real(vectors: Path) -> Iterator[Input]:
    """Every real quote at some clocks with its collateral, and with that of all others at one."""
    folder = vectors / "tdx"
    texts = {name: (folder / name).read_text() for name in dict.fromkeys(name for _, name in REAL)}
    starts = {
        name: datetime.fromisoformat(json.loads(json.loads(text)["tcb_info"])["issueDate"])
        for name, text in texts.items()
    }
    draw = random.Random(SEED)
    for number, (name, own) in enumerate(REAL):
        quote = (folder / name).read_bytes()
        for hours in (-1, 0, 2, 24 * 29, 24 * 31):
            now = starts[own] + timedelta(hours=hours)
            yield Input(f"real {name}: {hours} h", quote, texts[own], now)
        for collateral, text in texts.items():
            if collateral != own:
                yield Input(f"real {name}: {collateral}", quote, text, starts[collateral] + timedelta(hours=2))
        if number in (0, 3, 10):
            good = Input(f"real {name}", quote, texts[own], starts[own] + timedelta(hours=2))
            yield from mutants(good, 61, draw)


PARTS = "SWHardeningNeeded|ConfigurationNeeded|ConfigurationAndSWHardeningNeeded|OutOfDateConfigurationNeeded"
CHANGED = r"(bare )?mutant .*: ((quote|root) byte|(tcb_info|qe_identity)_issuer_chain (root )?character) \d+"
UP_TO_DATE = "accepted: UpToDate"
DCAP = [
    Difference("tdx-root-copy", r"mutant .*\broot (byte|character) \d+", r"refused: .*", UP_TO_DATE),
    Difference("tdx-xfam", r"xfam|signed .*: td field 5 .*", r"refused: tdx\.xfam\.not_allowed", UP_TO_DATE),
    Difference("tdx-attributes", r"signed .*: td field 4 .*", r"refused: tdx\.attributes\.not_allowed", UP_TO_DATE),
    Difference("tdx-qe-data", r"signed .*: qe field 11 byte 63 .*", r"refused: tdx\.qe\.unbound_key", UP_TO_DATE),
    Difference("tdx-roles", r"pck under root|unknown pck ca", r"refused: tdx\.chain\.not_pck.*", UP_TO_DATE),
    Difference("tdx-roles", r"unknown tcb signer", r"refused: collateral\.chain\.not_tcb_signer.*", UP_TO_DATE),
    Difference("tdx-qe-auth", r"auth of (0|33)", UP_TO_DATE, r"refused: .*Invalid QE auth data length"),
    Difference(
        "tdx-frame", rf"{CHANGED}|frame: .*", r"refused: quote: (QE )?certification data of .*", r"accepted: .*"
    ),
    Difference("tdx-pem", rf"{CHANGED}|frame: control .*", r"refused: .*: neither DER nor PEM", r"accepted: .*"),
    Difference("tdx-base64", rf"{CHANGED}|frame: unused .*", r"accepted: .*", r"refused: .*Invalid last symbol.*"),
    Difference(
        "tdx-list-issued", r".*_crl_dates new|real .*: 0 h", r"refused: collateral\.not_yet_valid", UP_TO_DATE
    ),
    Difference("tdx-list-last-second", r".*_crl_dates last", UP_TO_DATE, r"refused: .*CrlExpired.*"),
    Difference("tdx-updated", r"updated 3 4", "accepted: OutOfDate", "accepted: TDRelaunchAdvised"),
    Difference("tdx-updated", r"updated 4 3", "accepted: OutOfDate", UP_TO_DATE),
    Difference("tdx-part-status", rf"(module|qe) ({PARTS})", rf"accepted: ({PARTS})", r"refused: .*Unrecognized.*"),
    Difference("tdx-part-status", r"qe .*ConfigurationNeeded", r"accepted: .*ConfigurationNeeded", UP_TO_DATE),
]
GO = [
    Difference(
        "tdx-v5",
        r"(bare )?(real|mutant real|v5|mrservicetd|updated).*",
        ACCEPTED,
        r"refused: .*quote format not supported",
    ),
    Difference("tdx-fmspc-case", r"(mutant )?real .*|fmspc in upper case", ACCEPTED, r"refused: FMSPC .*"),
    Difference(
        "tdx-qe-vendor", r"qe vendor|signed .*: header field [45] .*", r"refused: tdx\.qe\.unknown_vendor", ACCEPTED
    ),
    Difference(
        "tdx-debug", r"debug|signed .*: td field 4 .*|bare .*", r"refused: tdx\.attributes\.debug", ACCEPTED
    ),
    Difference("tdx-issued", r"issued later|.*_crl_dates new", r"refused: collateral\.not_yet_valid", ACCEPTED),
    Difference("tdx-crl-chain", r".*: pck_crl_issuer_chain.*", ACCEPTED, r"refused: .*"),
    Difference("tdx-pem", rf"{CHANGED}|frame: .*", ACCEPTED, r"refused: .*(incomplete PCK|could not parse PEM).*"),
    Difference("tdx-processor-ca", r"processor ca", ACCEPTED, r"refused: .*\"Intel SGX PCK Processor CA\".*"),
]


def fakes() -> list[Input]:
    draw = random.Random(SEED)
    return [
        *signed(), *signed_wrong(), *framed(), *swapped(), *mutants(BASE.input("v4"), 11, draw),
        *mutants(worlds()["v5 1.5"].input("v5"), 29, draw),
    ]  # fmt: skip


def with_dcap(inputs: Sequence[Input]) -> list[Pair]:
    module = pytest.importorskip("dcap_qvl", reason="the independent verifier dcap-qvl is not installed")
    return [each.dcap(module) for each in inputs]


def with_google(inputs: Sequence[Input]) -> list[Pair]:
    """Of quotes v5, which it does not know, only the unchanged ones."""
    asked = [each for each in inputs if not re.match("(signed|mutant) .*v5", each.what)]
    answers = google(each.google_request() for each in asked)
    return [Pair(each.what, each.google_ours(), theirs) for each, theirs in zip(asked, answers, strict=True)]


@pytest.mark.slow
def test_dcap_qvl_agrees(vectors: Path) -> None:
    compare(with_dcap([*fakes(), *real(vectors)]), DCAP, "dcap-qvl")


@pytest.mark.slow
def test_go_tdx_guest_agrees(vectors: Path) -> None:
    found = [*real(vectors)]
    quotes = {(each.quote, each.now): each for each in reversed(found)}.values()
    bare = [replace(each, what=f"bare {each.what}", collateral="") for each in quotes]
    compare(with_google([*fakes(), *found, *bare]), GO, "go-tdx-guest")
