# SPDX-License-Identifier: Apache-2.0
"""``attestation check`` and ``import``: whole evidence passes in any encoding and order, one error for the rest."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import struct
import subprocess
import sys
import textwrap
import time
import urllib.parse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fake_azure
import fake_nvidia
import fake_snp
import fake_tdx
import fake_tokens
import fake_x509 as fake
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cube_attestation import bundle as bundles
from cube_attestation.check.result import KINDS
from cube_attestation.cli import check as command
from cube_attestation.cli import main
from cube_attestation.errors import BadInput
from cube_attestation.recognise import Material, protobuf, recognise
from cube_attestation.snp import abi as snp_abi
from hypothesis import given, settings
from hypothesis import strategies as st

SNP, TDX, AZURE, GPU = fake_snp.FakeSnp(), fake_tdx.FakeTdx(), fake_azure.FakeAzure(), fake_nvidia.FakeDevice()
SWITCH = fake_nvidia.FakeDevice(role="switch", switch=True, chip="LS10", pdi=bytes(range(1, 9)))
Files = dict[str, bytes]


def at(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def check(
    folder: Path, kind: str, files: Files, *more: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, object]]:
    """The first file is the evidence, the others follow as certificates, whatever they are."""
    arguments: list[str] = []
    for i, (name, data) in enumerate(files.items()):
        (folder / name).write_bytes(data)
        arguments += [str(folder / name)] if i == 0 else ["--cert", str(folder / name)]
    code = main(["check", kind, *arguments, "--json", *more])
    return code, json.loads(capsys.readouterr().out)


def codes(result: dict[str, object]) -> list[str]:
    found = result["reasons"]
    assert isinstance(found, list)
    return found


# --- whole evidence of each kind, under the root that the caller names ---


def snp_files() -> Files:
    leaf, chain = SNP.certificates()
    return {"report": SNP.report(), "vcek": leaf, "chain": chain, "crl": SNP.crl}


def tdx_files() -> Files:
    return {"quote": TDX.quote(), "collateral.json": TDX.collateral_json().encode()}


def azure_files() -> Files:
    ak, issuers = AZURE.certificates()
    quote = AZURE.quote()
    pcrs = json.dumps([value.hex() for value in quote.pcrs["sha256"].values()]).encode()
    vcek, chain = AZURE.machine().certificates()
    lists = {f"crl{i}": data for i, data in enumerate([*AZURE.crls(), AZURE.machine().crl])}
    return {
        "hcl": AZURE.hcl(), "msg": quote.attest, "sig": quote.signature.value, "pcrs.json": pcrs, "vcek": vcek,
        "chain": chain, "ak": ak, "issuers": issuers, **lists,
    }  # fmt: skip


def quote_files() -> Files:
    files = azure_files()
    return {name: files[name] for name in ("msg", "sig", "pcrs.json", "ak", "issuers", "crl0", "crl1")}


def nvidia_files(device: fake_nvidia.FakeDevice, *rims: fake_nvidia.FakeRim) -> Files:
    evidence = device.evidence()
    given = fake_nvidia.collateral(*rims, devices=(device,))
    more = {f"rim{i}": rim for i, rim in enumerate(given.rims)} | {f"ocsp{i}": o for i, o in enumerate(given.ocsp)}
    return {"report": evidence.report, "chain": evidence.chain, **more}


def rim_files() -> Files:
    rim = fake_nvidia.driver_rim()
    return {"rim": rim.sign(), **{f"ocsp{i}": data for i, data in enumerate(rim.ocsp())}}


def token_files() -> Files:
    keys = fake_tokens.key_set(fake_tokens.jwk("ita", fake_tokens.KIDS["ita"]))
    return {"token": fake_tokens.FakeToken("ita").data(), "keys": keys}


WHOLE: dict[str, tuple[Callable[[], Files], datetime, tuple[str, ...]]] = {
    "snp": (snp_files, fake.NOW, tuple(SNP.roots)),
    "tdx": (tdx_files, fake_tdx.NOW, TDX.anchors),
    "azure-hcl": (azure_files, fake.NOW, (*AZURE.snp.roots, *fake_azure.roots())),
    "tpm-quote": (quote_files, fake.NOW, tuple(fake_azure.roots())),
    "nvidia-gpu": (
        lambda: nvidia_files(GPU, fake_nvidia.driver_rim(), fake_nvidia.vbios_rim()),
        fake_nvidia.NOW,
        (fake_nvidia.spki_digest("nvidia root"), fake_nvidia.spki_digest("rim root")),
    ),
    "nvidia-switch": (
        lambda: nvidia_files(SWITCH, fake_nvidia.switch_rim()),
        fake_nvidia.NOW,
        (fake_nvidia.spki_digest("nvidia root"), fake_nvidia.spki_digest("rim root")),
    ),
    "nvidia-rim": (rim_files, fake_nvidia.NOW, (fake_nvidia.spki_digest("rim root"),)),
    "token": (token_files, fake_tokens.NOW, ()),
}
# Foreign firmware under the fake vendors' roots: Microsoft's key signed no ID block of theirs
EXPECTED = {"azure-hcl": (1, ["snp.id_key.not_allowed"])}


def whole(kind: str) -> tuple[Files, list[str]]:
    make, now, roots = WHOLE[kind]
    return make(), ["--at", at(now), *(part for root in roots for part in ("--root", root))]


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_evidence_passes_with_nothing_missing(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, options = whole(kind)
    code, result = check(tmp_path, kind, files, *options, capsys=capsys)
    assert (code, codes(result)) == EXPECTED.get(kind, (0, []))
    assert result["authentic"] is True


@pytest.mark.parametrize("kind", [kind for kind in WHOLE if kind != "token"])
def test_without_the_callers_root_nothing_passes(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, options = whole(kind)
    code, result = check(tmp_path, kind, files, *options[:2], capsys=capsys)
    assert code == 2
    assert any("untrusted" in reason for reason in codes(result))


@pytest.mark.parametrize("kind", WHOLE)
def test_each_piece_that_is_left_out_is_named(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never a pass by absence. What is not needed: issuers that ship with the verifier, PCR values of a quote."""
    files, options = whole(kind)
    for name in list(files)[1:]:
        rest = {other: data for other, data in files.items() if other != name}
        code, result = check(tmp_path, kind, rest, *options, capsys=capsys)
        if name in ("pcrs.json", "msg"):
            continue
        assert code in (2, 3), name
        assert result["authentic"] is False, name


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "hex": lambda data: data.hex().encode(),
    "hex in lines": lambda data: "\n".join(textwrap.wrap(data.hex(), 64)).upper().encode() + b"\r\n",
    "0x": lambda data: b"0x" + data.hex().encode(),
    "base64": base64.b64encode,
    "base64 in lines": base64.encodebytes,
    "base64url": lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
    "base64 of hex": lambda data: base64.b64encode(data.hex().encode()),
    "a JSON string": lambda data: json.dumps(base64.b64encode(data).decode()).encode(),
    "JSON of bytes": lambda data: json.dumps({"evidence_data": list(data)}).encode(),
    "JSON of hex": lambda data: json.dumps({"result": {"quote": data.hex(), "time": 1}}).encode(),
    "YAML": lambda data: b"name: x\nquote: >-\n  " + base64.b64encode(data) + b"\n",
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data.hex().encode(),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", ["snp", "tdx", "azure-hcl", "nvidia-gpu"])
def test_any_encoding_of_the_evidence(
    kind: str, encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, options = whole(kind)
    first = next(iter(files))
    code, result = check(
        tmp_path, kind, {**files, first: ENCODINGS[encoding](files[first])}, *options, capsys=capsys
    )
    assert (code, codes(result)) == EXPECTED.get(kind, (0, []))


@pytest.mark.parametrize("kind", [kind for kind in WHOLE if kind not in ("token", "nvidia-rim")])
def test_any_order_and_any_option(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last file first, as evidence; the evidence itself under --log. (A token's keys count in options only.)"""
    files, options = whole(kind)
    turned = dict(reversed(files.items()))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    names = ["--log" if i % 2 else "--crl" for i in range(len(turned) - 1)]
    last, *others = turned
    arguments = [
        part for option, name in zip(names, others, strict=True) for part in (option, str(tmp_path / name))
    ]
    assert (
        main(["check", kind, str(tmp_path / last), *arguments, "--json", *options]) == EXPECTED.get(kind, (0,))[0]
    )
    assert json.loads(capsys.readouterr().out)["authentic"] is True


def test_the_nonce(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, good, code in (
        ("snp", SNP.report()[0x50:0x90], "snp.report_data.mismatch"),
        ("tdx", bytes(range(64)), "tdx.report_data.mismatch"),
        ("azure-hcl", fake_azure.NONCE, "tpm.quote.nonce_mismatch"),
        ("tpm-quote", fake_azure.NONCE, "tpm.quote.nonce_mismatch"),
        ("nvidia-gpu", fake_nvidia.NONCE, "nvidia.report.nonce_mismatch"),
    ):
        files, options = whole(kind)
        _, result = check(tmp_path, kind, files, *options, "--nonce", good.hex(), capsys=capsys)
        assert code not in codes(result)
        _, result = check(tmp_path, kind, files, *options, "--nonce", (b"!" + good[1:]).hex(), capsys=capsys)
        assert code in codes(result)
        assert result["acceptable"] is False


def test_a_tokens_keys_with_the_evidence_are_no_trust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = token_files()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    both = [str(tmp_path / name) for name in files]
    assert main(["check", "token", *both, "--json", "--at", at(fake_tokens.NOW)]) == 2
    assert json.loads(capsys.readouterr().out)["reasons"] == ["token.key.untrusted"]


@pytest.mark.parametrize("kind", WHOLE)
def test_a_changed_byte_is_never_authentic(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, options = whole(kind)
    first = next(iter(files))
    data = files[first]
    ends = {"snp": 0x2A0, "tdx": 632, "azure-hcl": 2000}.get(kind, len(data) - 60)
    for position in range(16, ends, max(1, ends // 24)):
        if kind == "tpm-quote" or (kind == "azure-hcl" and position < 32):
            position = min(position, len(data) - 40)
        changed = bytearray(data)
        changed[position] ^= 0x01
        code, result = check(tmp_path, kind, {**files, first: bytes(changed)}, *options, capsys=capsys)
        assert code in (2, 3), position
        assert (result["authentic"], result["acceptable"]) == (False, False), position


def test_revoked_by_its_issuer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, options = whole("tpm-quote")
    bad = AZURE.but(ca24_revoked=True).crls()
    code, result = check(tmp_path, "tpm-quote", {**files, "crl0": bad[0], "crl1": bad[1]}, *options, capsys=capsys)
    assert (code, codes(result)) == (2, ["tpm.ak.revoked"])


@pytest.mark.parametrize(
    ("machine", "code"),
    [
        (AZURE.but(eku=("2.23.133.8.1",)), "tpm.ak.usage"),  # only Google gives that one to AKs
        (AZURE.but(eku=()), "tpm.ak.usage"),
        (AZURE.but(leaf_end=fake.NOW - timedelta(seconds=1)), "tpm.ak.expired"),
        (AZURE.but(leaf_start=fake.NOW + timedelta(seconds=1)), "tpm.ak.not_yet_valid"),
        (AZURE.but(certificate_key="another"), "tpm.quote.signature_invalid"),
    ],
)
def test_an_ak_that_its_certificate_does_not_vouch_for(
    machine: fake_azure.FakeAzure, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, options = whole("tpm-quote")
    ak, issuers = machine.certificates()
    code_, result = check(tmp_path, "tpm-quote", {**files, "ak": ak, "issuers": issuers}, *options, capsys=capsys)
    assert (code_, codes(result)) == (2, [code])


def test_an_ecc_quote_with_its_signature_in_any_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``tpm2_quote --format=plain`` writes DER, otherwise a TPMT_SIGNATURE; the key may be a bare PEM."""
    files, options = whole("tpm-quote")
    key = fake.ec_key("ecc AK", ec.SECP256R1)
    plain = key.sign(files["msg"], ec.ECDSA(hashes.SHA256()))
    numbers = b"".join(b"\0\x20" + n.to_bytes(32, "big") for n in utils.decode_dss_signature(plain))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for signature in (plain, b"\0\x18\0\x0b" + numbers):
        given_files = {"msg": files["msg"], "sig": signature, "pcrs.json": files["pcrs.json"], "ak.pem": public}
        _, result = check(tmp_path, "tpm-quote", given_files, *options, capsys=capsys)
        assert codes(result) == ["tpm.ak.missing"]
        options_ = [*options, "--allow-missing", "tpm.ak-certificate"]
        assert check(tmp_path, "tpm-quote", given_files, *options_, capsys=capsys)[0] == 0
        given_files["msg"] = files["msg"][:60] + b"!" + files["msg"][61:]
        assert "tpm.quote.signature_invalid" in codes(
            check(tmp_path, "tpm-quote", given_files, *options_, capsys=capsys)[1]
        )


def test_a_manifest_without_a_canonical_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Relative names of namespaces can't be canonicalised: no signature could be over such a document."""
    files, options = whole("nvidia-rim")
    files["rim"] = files["rim"].replace(b"Payload", b'Payload xmlns:q="relative"', 1)
    code, result = check(tmp_path, "nvidia-rim", files, *options, capsys=capsys)
    assert (code, codes(result)) == (2, ["nvidia.rim.signature_form"])


# --- bad input ---


BAD: dict[str, tuple[str, bytes, str]] = {
    "nothing": ("snp", b"", "is empty"),
    "a text": ("snp", b"hello, world " * 800, "nothing that this command knows"),
    "a short report": ("snp", SNP.report()[:1000], "1184"),
    "another kind": ("snp", TDX.quote(), "SNP report"),
    "a GPU as a switch": ("nvidia-switch", GPU.report(), "check nvidia-gpu"),
    "broken PEM": ("tdx", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", "base64"),
    "broken JSON": ("tdx", b'{"quote": ', "JSON"),
    "a quote without signature": ("tpm-quote", AZURE.quote().attest, "signature"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_clear_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, data, words = BAD[name]
    (tmp_path / "file").write_bytes(data)
    assert main(["check", kind, str(tmp_path / "file"), "--json"]) == 3
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert words in err
    result = json.loads(out)
    assert (result["kind"], result["authentic"], result["acceptable"]) == (kind, False, False)
    assert result["reasons"] == [KINDS[kind][1]]


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report").write_bytes(SNP.report())
    for arguments in (["check", "sev", "x"], ["check", "snp"], ["check"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 64
    report = str(tmp_path / "report")
    for options, words in (
        (["--allow-missing", "nvidia.fwid"], "snp.crl"),
        (["--nonce", "xyz"], "--nonce"),
        (["--nonce", "00" * 65], "64"),
        (["--at", "noon"], "--at"),
        (["--root", report], "--root"),
    ):
        assert main(["check", "snp", report, *options]) == 3
        assert words in capsys.readouterr().err
    assert set(command.KINDS) == set(KINDS)


# --- containers ---


def _members(*members: tuple[int, int | bytes]) -> bytes:
    return b"".join(fake_tdx.proto(number, value) for number, value in members if value not in (0, b""))


def number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def snp_message(data: bytes) -> bytes:
    """A report field by field, as go-sev-guest's message holds it."""
    family, model, stepping = data[0x188:0x18B]
    fms = (family - 0xF) << 20 | 0xF << 8 | (model >> 4) << 16 | (model & 0xF) << 4 | stepping  # CPUID 1, EAX
    parts = ((11, 0x50, 64), (12, 0x90, 48), (13, 0xC0, 32), (14, 0xE0, 48), (15, 0x110, 48), (16, 0x140, 32),
             (17, 0x160, 32), (19, 0x1A0, 64), (4, 0x10, 16), (5, 0x20, 16), (28, 0x2A0, 512))  # fmt: skip
    return _members(
        *((field, number(data, at, size)) for field, at, size in (
            (1, 0, 4), (2, 4, 4), (3, 8, 8), (6, 0x30, 4), (7, 0x34, 4), (8, 0x38, 8), (9, 0x40, 8), (10, 0x48, 4),
            (18, 0x180, 8), (20, 0x1E0, 8), (27, 0x1F0, 8),
        )),
        (29, fms),
        *((21 + i, data[0x1E8 + i]) for i in range(3)), *((24 + i, data[0x1EC + i]) for i in range(3)),
        *((field, data[at : at + size]) for field, at, size in parts),
    )  # fmt: skip


def tdx_message(data: bytes) -> bytes:
    """A quote v4 field by field, as go-tdx-guest's message holds it."""
    sizes = ((1, 16), (2, 48), (3, 48), (4, 8), (5, 8), (6, 8), (7, 48), (8, 48), (9, 48), (10, 48))
    body, where = b"", 48
    for number, size in sizes:
        body += fake_tdx.proto(number, data[where : where + size])
        where += size
    for _ in range(4):
        body += fake_tdx.proto(11, data[where : where + 48])
        where += 48
    body += fake_tdx.proto(12, data[where : where + 64])
    section = data[636:]
    qe = section[134 : 134 + 384]
    product, svn = struct.unpack_from("<HH", qe, 256)
    enclave = _members((1, qe[:16]), (3, qe[20:48]), (4, qe[48:64]), (5, qe[64:96]), (6, qe[96:128]),
                       (7, qe[128:160]), (8, qe[160:256]), (9, product), (10, svn), (11, qe[260:320]),
                       (12, qe[320:384]))  # fmt: skip
    at = 134 + 384
    signature, size = section[at : at + 64], int.from_bytes(section[at + 64 : at + 66], "little")
    auth, at = section[at + 66 : at + 66 + size], at + 66 + size
    chain = section[at + 6 :]
    pck = _members((1, int.from_bytes(section[at : at + 2], "little")), (2, len(chain)), (3, chain))
    certified = _members((1, enclave), (2, signature), (3, _members((1, size), (2, auth))), (4, pck))
    data_message = _members((1, 6), (2, len(section) - 134), (3, certified))
    signed = _members((1, section[:64]), (2, section[64:128]), (3, data_message))
    head = _members(
        (1, 4), (2, 2), (3, 0x81), (4, data[8:10]), (5, data[10:12]), (6, data[12:28]), (7, data[28:48])
    )
    return _members((1, head), (2, body), (3, len(section)), (4, signed))


AK_PUBLIC = b"\0\1\0\x0b" + bytes(300)


def test_attestation_messages_hold_the_signed_bytes() -> None:
    report = SNP.report()
    message = fake_tdx.proto(1, AK_PUBLIC)
    chain = _members((1, b"vcek"), (2, b"ask"), (3, b"ark"))
    snp = message + fake_tdx.proto(8, _members((1, snp_message(report)), (2, chain)))
    found = protobuf.read_attestation(snp)
    assert found.snp_reports == (report,)
    assert found.certificates == (b"vcek", b"ask", b"ark")
    quote = TDX.quote()
    assert protobuf.read_attestation(message + fake_tdx.proto(9, tdx_message(quote))).tdx_quotes == (quote,)


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_messages_fail_with_one_error_only(data: bytes) -> None:
    for candidate in (data, fake_tdx.proto(1, AK_PUBLIC) + data, fake_tdx.proto(1, AK_PUBLIC) + b"\x42" + data):
        try:
            protobuf.read_attestation(candidate)
        except BadInput:
            continue


def coco_report(data: bytes) -> dict[str, object]:
    """A report as Confidential Containers' attester serialises it."""

    def tcb(at: int) -> dict[str, object]:
        raw = data[at : at + 8]
        return {"fmc": None, "bootloader": raw[0], "tee": raw[1], "_reserved": [0] * 4, "snp": raw[6],
                "microcode": raw[7]}  # fmt: skip

    def firmware(at: int) -> dict[str, int]:
        return {"build": data[at], "minor": data[at + 1], "major": data[at + 2]}

    byte_fields = {
        "family_id": (0x10, 16), "image_id": (0x20, 16), "report_data": (0x50, 64), "measurement": (0x90, 48),
        "host_data": (0xC0, 32), "id_key_digest": (0xE0, 48), "author_key_digest": (0x110, 48),
        "report_id": (0x140, 32), "report_id_ma": (0x160, 32), "chip_id": (0x1A0, 64),
    }  # fmt: skip
    return {
        **{name: number(data, at, size) for name, (at, size) in {
            "version": (0, 4), "guest_svn": (4, 4), "policy": (8, 8), "vmpl": (0x30, 4), "sig_algo": (0x34, 4),
            "plat_info": (0x40, 8), "key_info": (0x48, 4),
        }.items()},
        "current_tcb": tcb(0x38), "reported_tcb": tcb(0x180),
        "cpuid_fam_id": data[0x188], "cpuid_mod_id": data[0x189], "cpuid_step": data[0x18A],
        "committed_tcb": tcb(0x1E0), "current": firmware(0x1E8), "committed": firmware(0x1EC),
        "launch_tcb": tcb(0x1F0),
        "signature": {"r": list(data[0x2A0:0x2E8]), "s": list(data[0x2E8:0x330])},
        **{name: list(data[at : at + size]) for name, (at, size) in byte_fields.items()},
    }  # fmt: skip


def test_coco_snp_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, options = whole("snp")
    chain = [{"cert_type": "VCEK", "data": list(files["vcek"])}, {"cert_type": "OTHER", "data": list(b"x" * 40)}]
    evidence = {"attestation_report": coco_report(files["report"]), "cert_chain": chain}
    given_files = {"evidence.json": json.dumps(evidence).encode(), "chain": files["chain"], "crl": files["crl"]}
    assert check(tmp_path, "snp", given_files, *options, capsys=capsys)[0] == 0


def test_the_files_of_tpm2_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``tpm2_quote -m msg -s sig -o pcrs``: a TPMT_SIGNATURE, and C structures with the PCR values."""
    files, options = whole("tpm-quote")
    values = [bytes.fromhex(value) for value in json.loads(files["pcrs.json"])]
    lists = b""
    for i in range(0, 24, 8):
        entries = b"".join(struct.pack("<H", 32) + value.ljust(64, b"\0") for value in values[i : i + 8])
        lists += struct.pack("<I", 8) + entries
    selection = struct.pack("<IHB4sx", 1, 0xB, 3, b"\xff\xff\xff\0").ljust(132, b"\0")
    pcrs = selection + struct.pack("<I", 3) + lists
    signature = b"\0\x14\0\x0b" + len(files["sig"]).to_bytes(2, "big") + files["sig"]
    files |= {"sig": signature, "pcrs.json": pcrs}
    code, result = check(tmp_path, "tpm-quote", files, *options, capsys=capsys)
    assert (code, codes(result)) == (0, [])
    files["pcrs.json"] = pcrs[:150] + b"!" + pcrs[151:]
    assert codes(check(tmp_path, "tpm-quote", files, *options, capsys=capsys)[1]) == [
        "tpm.quote.pcr_digest_mismatch"
    ]


def test_more_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shapes of other tools' JSON that hold the same evidence."""
    files, options = whole("tdx")
    collateral = json.loads(files["collateral.json"])
    for change in (
        lambda data: base64.b64encode(data).decode(),
        list,
        lambda data: f"-----BEGIN X509 CRL-----\n{base64.encodebytes(data).decode()}-----END X509 CRL-----\n",
    ):
        lists = {name: change(bytes.fromhex(collateral[name])) for name in ("root_ca_crl", "pck_crl")}
        quote = base64.b64encode(files["quote"]).decode()
        answer = {"evidence": quote, "certificate": "none", "more": {"collateral": {**collateral, **lists}}}
        code, result = check(tmp_path, "tdx", {"all.json": json.dumps(answer).encode()}, *options, capsys=capsys)
        assert (code, codes(result)) == (0, [])
    files, options = whole("tpm-quote")
    pcrs = {
        str(i): base64.b64encode(bytes.fromhex(v)).decode() for i, v in enumerate(json.loads(files["pcrs.json"]))
    }
    msg, sig = (base64.b64encode(files[name]).decode() for name in ("msg", "sig"))
    quote_json = {"quote": msg, "rawSig": sig, "pcrs": {"hash": "SHA256", "pcrs": pcrs}}
    rest = {name: files[name] for name in ("ak", "issuers", "crl0", "crl1")}
    message = json.dumps({"quotes": [quote_json], "akCert": base64.b64encode(files["ak"]).decode()}).encode()
    code, result = check(tmp_path, "tpm-quote", {"attestation.json": message, **rest}, *options, capsys=capsys)
    assert (code, codes(result)) == (0, [])


def test_an_auxblob_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, options = whole("snp")
    guids = {kind: guid for guid, kind in snp_abi.TABLE_KINDS.items()}
    entries = {
        guids["vcek"]: files["vcek"],
        guids["ask"]: SNP.ask.der,
        guids["ark"]: SNP.ark.der,
        guids["crl"]: SNP.crl,
    }
    code, _ = check(tmp_path, "snp", {"outblob": files["report"], "auxblob": fake_snp.table(entries)}, *options,
                    capsys=capsys)  # fmt: skip
    assert code == 0


def test_collateral_in_files_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Intel's service gives bodies, lists and URL-encoded chains one by one; the chain may lack the root."""
    _, options = whole("tdx")
    given_collateral = TDX.collateral()
    assert given_collateral.tcb_info is not None
    assert given_collateral.qe_identity is not None
    bodies = {
        name: b'{"%s":%s,"signature":"%s"}' % (name.encode(), signed.content, signed.signature.hex().encode())
        for name, signed in (
            ("tcbInfo", given_collateral.tcb_info),
            ("enclaveIdentity", given_collateral.qe_identity),
        )
    }
    signer = given_collateral.tcb_info_chain.partition(b"-----END CERTIFICATE-----")
    chain = urllib.parse.quote(signer[0] + signer[1] + b"\n").encode()
    files = {"quote": TDX.quote(), **bodies, "chain": chain, "root.crl": TDX.root_crl(),
             "pck.crl": TDX.pck_crl().hex().encode()}  # fmt: skip
    code, result = check(tmp_path, "tdx", files, *options, capsys=capsys)
    assert (code, codes(result)) == (0, [])


def test_dstack_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def event(imr: int, name: str, payload: bytes) -> dict[str, object]:
        said = (0x08000001).to_bytes(4, "little") + b":" + name.encode() + b":" + payload
        return {"imr": imr, "event_type": 0x08000001, "digest": hashlib.sha384(said).hexdigest(), "event": name,
                "event_payload": payload.hex()}  # fmt: skip

    events = [event(3, "app-id", b"\x01\x02"), event(3, "compose-hash", bytes(32))]
    value = bytes(48)
    for one in events:
        value = hashlib.sha384(value + bytes.fromhex(str(one["digest"]))).digest()
    machine = fake_tdx.FakeTdx(td={"rtmrs": (bytes(48), bytes(48), bytes(48), value)})
    answer = {
        "quote": machine.quote().hex(),
        "event_log": json.dumps(events),
        "hash_algorithm": "raw",
        "prefix": "",
    }
    files = {"quote.json": json.dumps(answer).encode(), "collateral": machine.collateral_json().encode()}
    options = ["--at", at(fake_tdx.NOW), *(part for root in machine.anchors for part in ("--root", root))]
    code, result = check(tmp_path, "tdx", files, *options, capsys=capsys)
    assert (code, codes(result)) == (0, [])
    answer["event_log"] = json.dumps(events[:1])
    files["quote.json"] = json.dumps(answer).encode()
    assert codes(check(tmp_path, "tdx", files, *options, capsys=capsys)[1]) == ["tdx.eventlog.replay_mismatch"]
    answer["event_log"] = json.dumps([{**events[0], "event_payload": "00"}])
    files["quote.json"] = json.dumps(answer).encode()
    assert check(tmp_path, "tdx", files, *options, capsys=capsys)[0] == 3


@pytest.mark.parametrize("kind", WHOLE)
def test_import_loses_nothing(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundle that is made of the files gives the same check as the files."""
    files, options = whole(kind)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    target = tmp_path / "bundle.json"
    sources = [str(tmp_path / name) for name in files]
    code = main(["import", *sources, "-o", str(target)])
    if kind == "tpm-quote":
        assert code == 3  # its public area is needed, and only the HCL report or a TPMT_PUBLIC holds it
        assert "public area" in capsys.readouterr().err
        assert not target.exists()
        return
    assert code == 0
    bundles.load(target.read_bytes())
    capsys.readouterr()
    if kind == "token":
        return  # keys of a bundle are evidence, so that they count for nothing here
    assert main(["check", kind, str(target), "--json", *options]) == EXPECTED.get(kind, (0,))[0]
    assert json.loads(capsys.readouterr().out)["authentic"] is True


def test_import_is_about_one_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(SNP.report())
    (tmp_path / "b").write_bytes(SNP.with_fields(guest_svn=9).report())
    assert main(["import", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "out")]) == 3
    assert "one machine" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- bytes from outside ---


@given(st.binary(max_size=600))
@settings(max_examples=300, deadline=None)
def test_recognition_fails_with_one_error_only(data: bytes) -> None:
    for candidate in (data, b"{" + data, b"0x" + data.hex().encode(), b"\x30\x82" + data, b"HCLA" + data):
        try:
            assert isinstance(recognise(candidate), Material)
        except BadInput:
            continue


@given(st.recursive(
    st.none() | st.integers() | st.text(max_size=40) | st.binary(max_size=40).map(lambda b: b.hex()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["quote", "evidence", "certificate", "keys", "kty", "pcrs", "hash", "message", "signature",
                         "tcb_info", "attestation_report", "sha256", "0", "imr", "digest", "event_type", "JWT",
                         "report", "__cmwc_t", "version", "receipt", "attest", "ak_public"]), inner, max_size=6),
    max_leaves=20))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_documents_fail_with_one_error_only(value: object) -> None:
    try:
        recognise(json.dumps(value).encode())
    except BadInput:
        return


def test_recognition_is_quick() -> None:
    """1 MB of anything: no quadratic parsing."""
    for data in (
        b"A" * 1_000_000, b"[" * 1_000_000, b"a: " * 333_333, b"-----BEGIN CERTIFICATE-----\n" * 36_000,
        b"a:\n" * 333_333, b'{"a":' * 20_000, b"\x0a\x80\x02\0\1" + bytes(1_000_000), b"\x30\x80" * 500_000,
        b'["' + b"00" * 499_000 + b'"]', b" - \n" * 250_000, b"a:\n" + b"- " * 100_000,
        b"a:\n" + b"".join(b" " * i + b"a:\n" for i in range(600)),
    ):  # fmt: skip
        start = time.process_time()
        with contextlib.suppress(BadInput):
            recognise(data)
        assert time.process_time() - start < 1.0, data[:20]


def test_it_starts_fast(tmp_path: Path) -> None:
    """Nothing of another kind is imported: an SNP check loads no XML, JOSE or TDX code."""
    (tmp_path / "report").write_bytes(SNP.report())
    program = (
        "import sys; from cube_attestation.cli import main; main(sys.argv[1:]);"
        "print([m for m in ('lxml', 'joserfc', 'cube_attestation.tdx') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program, "check", "snp", str(tmp_path / "report"), "--json"],
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert run.stdout.splitlines()[-1] == "[]"
