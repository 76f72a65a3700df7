# SPDX-License-Identifier: Apache-2.0
"""SNP: the same inputs to Google's go-sev-guest, real ones, correctly signed wrong ones, and mutants."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fake_snp
import fake_x509 as fake
import pytest
from agreement import ACCEPTED, Difference, Pair, b64, compare, flipped, google, refused, utc
from cube_attestation.anchors import amd
from cube_attestation.errors import BadInput
from cube_attestation.snp import abi, appraise, verify
from cube_attestation.x509 import certificate
from fake_snp import FakeSnp

SECOND = timedelta(seconds=1)
SEED = 20261124
# What an operator may choose is open, as in tools/peers/main.go
OPEN = appraise.Rules(any_firmware=True, vmpls=(0, 1, 2, 3), cxl=True, migration_agent=True)


@dataclass(frozen=True)
class Input:
    """``chain``: ASK or ASVK and ARK. ``roots``: what we pin; they trust ``trusted``, which may be the chain."""

    what: str
    report: bytes
    leaf: bytes
    chain: tuple[bytes, bytes]
    crl: bytes | None
    now: datetime
    trusted: tuple[bytes, bytes] | None = None
    line: str = "Milan"
    roots: dict[str, str] | None = None

    def ours(self) -> str:
        allow = [] if self.crl else [verify.ALLOW_MISSING_CRL]
        try:
            report = abi.parse_report(self.report)
            endorsements = verify.read_endorsements([self.leaf, *self.chain], [self.crl] if self.crl else [])
            roots = amd.ROOTS if self.roots is None else self.roots
            found = verify.verify(report, endorsements, now=self.now, roots=roots, allow_missing=allow)
        except BadInput as error:
            return refused(error)
        codes = {reason.code for reason in (*found.forged, *appraise.appraise(found, OPEN).refused)}
        return refused(", ".join(sorted(codes))) if codes else ACCEPTED

    def asked(self) -> dict[str, Any]:
        kind = {True: "vlek"}.get(b"SEV-VLEK" in self.leaf and b"SEV-VLEK-" in self.leaf, "vcek")
        given = {"kind": "snp", "now": utc(self.now), "report": b64(self.report), kind: b64(self.leaf)}
        pem = "".join(
            f"-----BEGIN CERTIFICATE-----\n{b64(der)}\n-----END CERTIFICATE-----\n"
            for der in self.trusted or self.chain
        )
        return given | {"roots": {self.line: pem}} | ({"crl": b64(self.crl)} if self.crl else {})


def of(what: str, snp: FakeSnp, **changes: Any) -> Input:
    chain = (snp.ask.der, snp.ark.der)
    crl = snp.crl if snp.kind == "vcek" else None  # see `snp-vlek-list`
    made = Input(what, snp.report(), snp.leaf.der, chain, crl, fake.NOW, line=snp.product, roots=snp.roots)
    return replace(made, **changes)


def tcb(**changes: int) -> abi.Tcb:
    parts = {name: getattr(fake_snp.TCB, name) for name in ("bootloader", "tee", "snp", "microcode", "fmc")}
    return abi.Tcb(**(parts | changes))


def judged(inputs: Sequence[Input]) -> list[Pair]:
    answers = google(each.asked() for each in inputs)
    return [Pair(each.what, each.ours(), theirs) for each, theirs in zip(inputs, answers, strict=True)]


WORLDS = {
    f"{product} {kind} v{version}": FakeSnp(product=product, kind=kind, version=version)
    for product, kind, version in (
        ("Milan", "vcek", 2), ("Milan", "vcek", 3), ("Milan", "vlek", 3), ("Genoa", "vcek", 5),
        ("Genoa", "vlek", 2), ("Turin", "vcek", 5), ("Turin", "vlek", 5),
    )
}  # fmt: skip


def fields() -> Iterator[tuple[str, int]]:
    """Every field of a report and every gap between two: name and offset of its first and last byte."""
    at = 0
    for name, (start, size) in sorted(fake_snp.LAYOUT.items(), key=lambda item: item[1]):
        for gap in sorted({at, start - 1}) if at < start else ():
            yield f"reserved 0x{gap:x}", gap
        for offset in sorted({start, start + size - 1}):
            yield f"{name}+{offset - start}", offset
        at = start + size
    for offset in (at, 0x29F):
        yield f"reserved 0x{offset:x}", offset


def signed_wrong() -> Iterator[Input]:
    """Each bit of each field's first and last byte, signed again by the right key."""
    for name in ("Milan vcek v2", "Genoa vcek v5", "Milan vlek v3"):
        good = of(name, WORLDS[name])
        for field, at in fields():
            for bit in range(8):
                report = fake_snp.sign(bytearray(flipped(good.report, at, bit)), WORLDS[name].key)
                yield replace(good, what=f"signed {name}: {field} bit {bit}", report=report)


def other_keys() -> Iterator[Input]:
    """Certificates, lists and clocks that are wrong, or just not yet."""
    for name, snp in WORLDS.items():
        yield of(f"{name}: good", snp)
        chip = fake_snp.CHIP
        critical = fake.extension("1.2.3.4", b"\5\0", critical=True)
        changed: dict[str, dict[str, Any]] = {
            "newer bootloader": {"key_tcb": tcb(bootloader=5)},
            "older microcode": {"key_tcb": tcb(microcode=218)},
            "another chip": {"hardware_id": bytes(8) if snp.product == "Turin" else chip[::-1]},
            "short chip": {"hardware_id": chip[:7]},
            "wrapped chip": {"wrapped_id": True},
            "no product": {"dropped": ("2",)}, "no bootloader": {"dropped": ("3.1",)},
            "no microcode": {"dropped": ("3.8",)}, "no chip": {"dropped": ("4",)}, "no csp": {"dropped": ("5",)},
            "no version": {"dropped": ("1",)},
            "of Milan": {"product_name": "Milan-B1"}, "of Genoa": {"product_name": "Genoa-B1"},
            "of Siena": {"product_name": "Siena-A0"}, "of Rome": {"product_name": "Rome-B0"},
            "line only": {"product_name": snp.product},
            "another signer": {"leaf_signer": "other"}, "another root": {"root_role": "other"},
            "ASK revoked": {"revoked": (0x10001,)}, "another revoked": {"revoked": (0x10002,)},
            "leaf revoked": {"revoked": (0,)},
            "leaf expired": {"leaf_end": fake.NOW - SECOND}, "leaf's last second": {"leaf_end": fake.NOW},
            "leaf of tomorrow": {"leaf_start": fake.NOW + SECOND}, "leaf's first second": {"leaf_start": fake.NOW},
            "list expired": {"crl_end": fake.NOW - SECOND}, "list's last second": {"crl_end": fake.NOW},
            "list of tomorrow": {"crl_start": fake.NOW + SECOND}, "list's first second": {"crl_start": fake.NOW},
            "unknown extension": {"extra_extensions": (fake.extension("1.2.3.4", b"\5\0"),)},
            "unknown critical extension": {"extra_extensions": (critical,)},
        }  # fmt: skip
        for what, given in changed.items():
            yield of(f"{name}: {what}", snp.but(**given), trusted=(snp.ask.der, snp.ark.der))
        yield of(f"{name}: without a list", snp, crl=None)
        yield of(f"{name}: with a list", snp, crl=snp.crl)
        for days in (-366, 366):
            yield of(f"{name}: {days} days", snp, now=fake.NOW + timedelta(days=days))
        for flags in range(32):
            yield of(f"{name}: signer flags {flags}", snp.with_fields(flags=flags))
        yield of(f"{name}: masked", snp.with_fields(flags=2 | (snp.kind == "vlek") << 2, chip_id=bytes(64)))
        yield of(f"{name}: signed by another", snp, report=fake_snp.sign(bytearray(snp.report()), fake.ec_key("x")))
        for other_name, other in WORLDS.items():
            if other_name != name:
                yield of(f"{name}: leaf of {other_name}", snp, leaf=other.leaf.der)
                chain = (other.ask.der, other.ark.der)
                yield of(f"{name}: chain of {other_name}", snp, chain=chain, crl=other.crl, line=other.product)


def mutants() -> Iterator[Input]:
    """One random bit of every ninth byte of everything that is signed, unlike the fields above not signed again."""
    draw = random.Random(SEED)
    for name in ("Milan vcek v3", "Genoa vlek v2"):
        snp = WORLDS[name]
        good = of(name, snp)
        parts = {"report": good.report, "leaf": good.leaf, "intermediate": good.chain[0], "list": good.crl or b""}
        for part, data in parts.items():
            for at in range(draw.randrange(9), len(data), 9):
                mutant = flipped(data, at, draw.randrange(8))
                if part == "intermediate":
                    change: dict[str, Any] = {"chain": (mutant, good.chain[1])}
                else:
                    change = {"crl" if part == "list" else part: mutant}
                yield replace(good, what=f"mutant {name}: {part} byte {at}", **change)
        for size in (0, 1, 1000, 1183):
            yield replace(good, what=f"mutant {name}: {size} bytes", report=good.report[:size])
        if snp.version >= 3:
            yield replace(good, what=f"mutant {name}: stepping", report=flipped(good.report, 0x18A, 7))
        yield replace(good, what=f"mutant {name}: 1 byte more", report=good.report + b"\0")


def real(vectors: Path) -> Iterator[Input]:
    """Every real report with every real key, and mutants of those that fit; no list came with them."""
    folder = vectors / "snp"
    azure = vectors / "azure" / "confidential-containers_trustee" / "az-snp-vtpm"
    genoa = json.loads((azure / "evidence-genoa.json").read_text())

    def read(name: str) -> bytes:
        return (folder / name).read_bytes()

    host = certificate.load(
        read("microsoft_confidential-sidecar-containers/uvm_host_amd_certificate.pem"), where=""
    )
    keys = {
        "virtee": (read("virtee_sev/vcek_milan.der"), "Milan"),
        "virtee turin": (read("virtee_sev/vcek_turin.der"), "Turin"),
        "coco": (read("confidential-containers_trustee/test-vcek.der"), "Milan"),
        "coco forged": (read("confidential-containers_trustee/test-vcek-invalid-legacy.der"), "Milan"),
        "coco forged new": (read("confidential-containers_trustee/test-vcek-invalid-new.der"), "Milan"),
        "coco vlek": (read("confidential-containers_trustee/test-vlek.der"), "Milan"),
        "google": (read("google_go-sev-guest/vcek.testcer"), "Milan"),
        "microsoft": (host[0].der, "Milan"),
        "azure milan": (certificate.load((azure / "vcek.pem").read_bytes(), where="")[0].der, "Milan"),
        "azure genoa": (certificate.load((azure / "vcek-genoa.pem").read_bytes(), where="")[0].der, "Genoa"),
    }
    reports = {
        "virtee": read("virtee_sev/report_milan.bin"),
        "coco": read("confidential-containers_trustee/test-report.bin"),
        "coco vlek": read("confidential-containers_trustee/test-vlek-report.bin"),
        "google": read("google_go-sev-guest/attestation.bin"),
        "microsoft": read("microsoft_confidential-sidecar-containers/snp_report.bin"),
        "microsoft v3": read("microsoft_confidential-sidecar-containers/snp_report_v3_milan_aci.bin"),
        "azure milan": (azure / "hcl-report.bin").read_bytes()[32:1216],
        "azure genoa": bytes(genoa["report"])[32:1216],
    }
    published = {c.common_name: c.der for c in amd.published()}
    draw = random.Random(SEED)
    for name, report in reports.items():
        for owner, (leaf, line) in keys.items():
            middle = f"SEV-VLEK-{line}" if owner == "coco vlek" else f"SEV-{line}"
            chain = (published[middle], published[f"ARK-{line}"])
            good = Input(
                f"real {name}: key of {owner}", report, leaf, chain, None, datetime(2025, 6, 1, tzinfo=UTC)
            )
            good = replace(good, line=line)
            yield good
            if name != owner:
                continue
            for year in (2020, 2026, 2033):
                now = datetime(year, 6, 1, tzinfo=UTC)
                yield replace(good, what=f"real {name}: {year}", now=now)
            for at in range(draw.randrange(16), len(report), 16):
                mutant = flipped(report, at, draw.randrange(8))
                yield replace(good, what=f"real mutant {name}: report byte {at}", report=mutant)
            for at in range(draw.randrange(16), len(leaf), 16):
                yield replace(
                    good, what=f"real mutant {name}: leaf byte {at}", leaf=flipped(leaf, at, draw.randrange(8))
                )


DIFFERENCES = [
    Difference("snp-reserved", r"signed .*: (reserved|cpuid|flags|version).*", ACCEPTED, r"refused: mbz range .*"),
    Difference("snp-stepping", r"signed .*: cpuid\+2 bit [4-7]", ACCEPTED, r"refused: report signature .*"),
    Difference("snp-stepping", r"mutant .*: stepping", r"refused: snp\.signature\.invalid", ACCEPTED),
    Difference("snp-turin", r"Turin .*", ACCEPTED, r"refused: not an AMD KDS OID: 1\.3\.6\.1\.4\.1\.3704\.1\.3\.9"),
    Difference("snp-vmpl", r"signed .*: vmpl.*", r"refused: snp\.vmpl\.not_allowed", ACCEPTED),
    Difference("snp-product", r".*: of (Milan|Genoa|Siena)", r"refused: snp\.product\.mismatch", ACCEPTED),
    Difference("snp-no-cpuid", r"signed .* v2: version.*", r"refused: snp\.product\.mismatch", ACCEPTED),
    Difference("snp-product", r".*: of Rome", r"refused: snp\.certificate\.malformed", ACCEPTED),
    Difference("snp-product-name", r".*: line only", ACCEPTED, r"refused: unknown product name .*"),
    Difference("snp-product-name", r".* vlek v2: of .*", ACCEPTED, r"refused: unknown AMD SEV product: .*"),
    Difference("snp-extensions", r".*: no version", ACCEPTED, r"refused: no extension for field StructVersion"),
    Difference("snp-extensions", r".*: unknown extension", ACCEPTED, r"refused: not an AMD KDS OID: 1\.2\.3\.4"),
    Difference("snp-list-dates", r".*: list expired", r"refused: collateral\.expired", ACCEPTED),
    Difference("snp-list-dates", r".*: list of tomorrow", r"refused: collateral\.not_yet_valid", ACCEPTED),
    Difference("snp-vlek-list", r".* vlek .*: with a list", ACCEPTED, r"refused: panic: .*"),
    Difference("snp-own-chain", r".*: another root", r"refused: snp\.chain\.untrusted_root", ACCEPTED),
    Difference("snp-trailing", r"mutant .*: 1 byte more", r"refused: .*1 bytes after the report.*", ACCEPTED),
]


@pytest.mark.slow
def test_go_sev_guest_agrees_on_what_a_fake_amd_signed() -> None:
    compare(judged([*other_keys(), *signed_wrong(), *mutants()]), DIFFERENCES, "go-sev-guest")


@pytest.mark.slow
def test_go_sev_guest_agrees_on_real_evidence(vectors: Path) -> None:
    compare(judged([*real(vectors)]), [], "go-sev-guest")


def test_sev_snp_measure_knows_the_same_processors() -> None:
    """Nothing here predicts launch digests, its subject; but both know whose TCB layout a CPUID has."""
    types = pytest.importorskip("sevsnpmeasure.vcpu_types", reason="sev-snp-measure is not installed")
    for name, signature in types.CPU_SIGS.items():
        family = (signature >> 8 & 0xF) + (signature >> 20 & 0xFF)
        model = signature >> 12 & 0xF0 | signature >> 4 & 0xF
        line = name.removeprefix("EPYC").lstrip("-").partition("-")[0]
        expected = line if line in ("Milan", "Genoa", "Turin") else ""  # the others have no SNP
        assert abi.product_of_cpuid(family, model) == expected, name
    assert {"EPYC-Milan", "EPYC-Genoa", "EPYC-Turin"} <= set(types.CPU_SIGS)
