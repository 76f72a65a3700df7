# SPDX-License-Identifier: Apache-2.0
"""Small seeds for every target: the fake vendors' bundles taken apart, and real evidence from a folder of it.

What a file of the folder holds is sorted by the project's own recogniser. Nothing is copied into the project: seeds
lie where the caller says, and go with that folder.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path

import fake_azure
import fake_nvidia
import fake_snp
import fake_tokens
import fakepki
import targets
import whole_bundles
from cube_attestation import bundle, control, dsse, jcs, launch
from cube_attestation.audit.record import Chain, Genesis
from cube_attestation.errors import BadInput
from cube_attestation.nvidia import abi as nvidia
from cube_attestation.recognise import Material, recognise
from cube_attestation.tdx import abi as tdx
from cube_attestation.tpm import verify as tpm_verify
from cube_attestation.x509 import certificate

MAX_REAL = 48 << 10  # larger files slow every mutation down and hold nothing that smaller ones lack
MAX_MADE = 192 << 10  # a whole bundle with its manifests
MAX_SEEDS = 40  # of one target
Seeds = dict[str, list[bytes]]


def write(folder: Path, worlds: Path, vectors: Path | None = None) -> None:
    """``folder/<target>/<digest>`` for every target, and the bundles of ``verify-*`` into ``worlds``."""
    _worlds(worlds)
    found = collect(worlds, vectors)
    for name, seeds in found.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for data in seeds:
            (folder / name / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def _worlds(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in targets.WORLDS:
        whole = whole_bundles.ALL[name]()
        (folder / f"{name}.json").write_bytes(bundle.dump(whole.bundle))
        (folder / f"{name}.toml").write_text(whole.toml)


def collect(worlds: Path, vectors: Path | None) -> Mapping[str, list[bytes]]:
    """Each target's seeds, made ones first, then real ones from small to large; each once."""
    table = targets.table(worlds)
    found: Seeds = defaultdict(list)
    _from_worlds(found, worlds)
    _from_machine(found)
    files = [data for seeds in list(found.values()) for data in seeds if len(data) > 64]
    real = sorted(_small_files(vectors), key=len) if vectors else []
    _from_files(found, table, files + real)
    return {
        name: list(dict.fromkeys(data for data in found[name] if len(data) <= MAX_MADE))[:MAX_SEEDS]
        for name in table
    }


def _from_worlds(found: Seeds, worlds: Path) -> None:
    """Whole bundles, their policies, and every item under the targets that read its label."""
    for name in targets.WORLDS:
        data, toml = (worlds / f"{name}.json").read_bytes(), (worlds / f"{name}.toml").read_bytes()
        found["policy"].append(toml)
        found["bundle"].append(data)
        whole = bundle.load(data)
        if whole.receipt is not None:
            found["receipt"].append(jcs.dumps(whole.receipt))
        for i, label in enumerate(targets.labels(whole)):
            value = whole.evidence.items[label].value
            found[f"verify-{name}"].append(bytes([i]) + value)
            found[f"collateral-{name}"].append(bytes([i]) + value)
            for target in _OF_LABEL.get(label, ()):
                found[target].append(value)
            if value[:1] in b"{[":
                found["json"].append(value)
                found["json-canonical"].append(value)
            if label in ("launch", "image-manifest"):
                found[_OF_LABEL[label][0]].append(base64.b64decode(json.loads(value)["payload"]))
            if label == "launch":
                found["launch-volume"].append(launch.write_volume(jcs.loads(value))[: 12 + len(value)])
            if label == "tpm-quote":
                quote = tpm_verify.QuoteEvidence.decode(value)
                item = json.loads(value)
                found["tpm-attest"].append(quote.attest)
                found["tpm-signature"].append(base64.b64decode(item["signature"]))
                found["tpm-public"].append(base64.b64decode(item["ak_public"]))
            if label == "tokens":
                for entry in json.loads(value):
                    found["token"].append(entry["token"].encode())
                    found["token-keys"].append(entry["keys"].encode())


_OF_LABEL = {
    "claims": ("claims",),
    "launch": ("launch", "dsse"),
    "image-manifest": ("manifest", "dsse"),
    "tpm-quote": ("tpm-quote-item",),
    "tcg-eventlog": ("tcg-eventlog",),
    "systemd-eventlog": ("systemd-eventlog",),
    "ek-certificate": ("der-certificate", "tls-certificate"),
    "ek-chain": ("pem-chain",),
    "ak-certificate": ("der-certificate", "tls-certificate"),
    "ak-chain": ("pem-chain",),
    "snp-report": ("snp-report",),
    "snp-certificates": ("snp-endorsements", "snp-endorsement-key", "der-certificate"),
    "snp-crl": ("crl",),
    "azure-hcl": ("azure-hcl",),
    "azure-ak-chain": ("pem-chain",),
    "azure-crls": ("crl", "intel-crl"),
    "tdx-quote": ("tdx-quote",),
    "ccel": ("ccel",),
    "tdx-tcb-info": ("tdx-collateral",),
    "tdx-qe-identity": ("tdx-collateral",),
    "tdx-tcb-info-chain": ("pem-chain",),
    "tdx-root-crl": ("intel-crl", "crl"),
    "nvidia-devices": ("nvidia-devices",),
    "nvidia-collateral": ("nvidia-collateral",),
    "tokens": ("token-item",),
}


def _from_machine(found: Seeds) -> None:
    """What no bundle holds: control messages, HTTP answers, Azure's containers, devices' certificates, lists."""
    world = fakepki.World()
    admit = control.Admit(300, fakepki.NOW, "-----BEGIN CERTIFICATE-----\n", "sha256:" + "00" * 32)
    message = control.ControlMessage(
        "local", "POST", "/control/v1/admit", "44" * 16, world.tls_spki, 1, fakepki.NOW, admit.to_json()
    )
    state = {
        "boot": "44" * 16, "environment": "local", "tls_spki": world.tls_spki, "generation": 1,
        "lease": {"state": "valid", "expires": "2026-11-24T12:00:00Z"},
        "domains": {"generation": 0, "digest": ""}, "time": "2026-11-24T12:00:00Z",
    }  # fmt: skip
    domain = {
        "id": "6f1d3f1e-5d0c-4b43-9d2f-0c1f4b6f0001", "name": "demo", "models": ["smollm2"],
        "tokens": {"keys": [], "revoked": []},
    }  # fmt: skip
    found["control-message"].append(jcs.dumps(message.sign(fakepki.ec_key("control"))))
    found["dsse"].append(found["control-message"][0])
    found["control-body"] += [
        jcs.dumps(admit.to_json()), jcs.dumps({"reason": "gate.removed"}), jcs.dumps(state),
        jcs.dumps({"domains": [domain]}),
    ]  # fmt: skip
    for choice, status, body in (
        (0, "200 OK", jcs.dumps(world.evidence().to_json())),
        (0x40, "200 OK", jcs.dumps(state)),
        (0x80, "503 Service Unavailable", jcs.dumps({"reasons": ["lease.none"]})),
        (0xC0, "409 Conflict", jcs.dumps({"error": {"code": "x", "message": "y"}, "state": state})),
    ):
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        found["http-answer"].append(bytes([choice]) + head.encode() + body)
    found["http-answer"].append(b"\0HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    found["proxy-http-head"].append(b"GET /ready HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    sidecar = {"version": 1, "model": "sha256:" + "00" * 32, "size": 1, "config": {}, "template": "", "params": {}}
    found["proxy-sidecar"].append(jcs.dumps(sidecar))
    found["connect-head"].append(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
    found["proxy-audit-line"].append(b'{"began":1,"status":200,"method":"GET","path":"/v1/models"}')
    digest = "sha256:" + "11" * 32
    born = Genesis("local", digest, digest, digest, digest, 1, fakepki.NOW)
    record, _ = Chain("44" * 16, "00000000-0000-4000-8000-000000000001").append("genesis", born.to_json())
    found["audit-export"].append(record + b"\n")
    found["time"] += [b"2026-11-24T12:00:00Z", b"2026-11-24T12:00:00+01:00"]
    found["base64"] += [b"aGVsbG8=", b""]
    found["address"] += [b"https://127.0.0.1:8444", b"[::1]:1", b"host"]
    _from_vendors(found)


def _from_vendors(found: Seeds) -> None:
    azure = fake_azure.FakeAzure()
    found["azure-claims"].append(azure.claims_bytes())
    quote = azure.quote()
    message, signature = quote.attest, quote.signature.value
    values = [list(value) for value in quote.pcrs["sha256"].values()]
    hcl = list(azure.hcl())
    container = {"quote": {"signature": list(signature), "message": list(message), "pcrs": values}, "report": hcl}
    found["azure-container"].append(json.dumps(container).encode())
    counted = b"".join(len(part).to_bytes(8, "little") + part for part in (signature, message))
    found["azure-bincode"].append(counted + (24).to_bytes(8, "little") + b"".join(map(bytes, values)))
    device = fake_nvidia.FakeDevice()
    evidence = device.evidence()
    found["nvidia-report"].append(evidence.report)
    found["nvidia-chain"].append(evidence.chain)
    found["nvidia-fwid"].append(bytes.fromhex("301e06096086480165030402020411") + bytes(17))
    given = fake_nvidia.collateral(fake_nvidia.vbios_rim(), devices=(device,))
    found["nvidia-rim"] += given.rims
    found["nvidia-collateral"].append(b'{"ocsp":["MAMKAQA="],"rims":["PGEvPg=="]}')
    found["nvidia-ocsp"] += given.ocsp
    found["nvidia-ocsp-index"] += given.ocsp
    found["token"].append(fake_tokens.FakeToken("maa").data())
    found["token-keys"].append(fake_tokens.key_set(fake_tokens.jwk("maa", "k")))
    machine = fake_snp.FakeSnp()
    guid = "63da758d-e664-4564-adc5-f4b93be8accd"  # VCEK
    found["snp-table"].append(fake_snp.table({guid: machine.leaf.der}))
    found["snp-endorsement-key"].append(machine.leaf.der)
    found["spki"].append(dsse.spki(fakepki.ec_key("ak").public_key()))
    found["spki"].append(dsse.spki(fakepki.rsa_key("ek").public_key()))
    whole = whole_bundles.ALL["tdx"]().bundle
    parsed = tdx.parse_quote(whole.evidence.items["tdx-quote"].value)
    for one in certificate.load(parsed.cert_data, where="PCK chain", padding=True):
        found["der-certificate"].append(one.der)
        extension = one.value(targets.INTEL_SGX)
        if extension is not None:
            found["tdx-pck-extension"].append(extension)
    td = bytearray(1024)
    td[0] = tdx.TEE_TDX
    td[80:128], td[32:80] = hashlib.sha384(td[512:]).digest(), hashlib.sha384(td[256:495]).digest()
    found["tdx-report"].append(bytes(td))
    found["tdx-endorsement"].append(_endorsement(machine.leaf.der))
    switch = fake_nvidia.FakeDevice(switch=True).evidence()
    found["nvidia-devices"].append(nvidia.encode_evidence((switch,)))


def _endorsement(signer: bytes) -> bytes:
    """A VMLaunchEndorsement with every field that is read, signed by nobody."""

    def member(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(data)) + data

    measurement = member(3, bytes(48))
    golden = member(1, b"\x08\x01") + member(4, signer) + member(5, bytes(48)) + member(8, member(2, measurement))
    return member(1, golden) + member(2, bytes(256))


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def _small_files(folder: Path) -> Iterable[bytes]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size <= MAX_REAL:
            yield path.read_bytes()


def _from_files(found: Seeds, table: Mapping[str, targets.Target], files: Iterable[bytes]) -> None:
    """Every file as it is, and what the recogniser finds in it under the targets that read such parts."""
    readers: dict[str, list[str]] = defaultdict(list)
    for target in table.values():
        for part in target.material:
            readers[part].append(target.name)
    for data in files:
        try:
            material = recognise(data)
        except BadInput:
            continue
        kinds = _kinds(material)
        for name in readers["files"]:
            if name in ("recognise", "import") or name.removeprefix("check-") in kinds:
                found[name].append(data)
        for part, names in readers.items():
            values = [d.report for d in material.devices] if part == "reports" else getattr(material, part, ())
            for value in values:
                for name in names:
                    found[name].append(_pem(value) if name in ("pem-chain", "nvidia-chain") else value)


_NEEDS = {
    "snp": ("snp_reports",), "tdx": ("tdx_quotes",), "tpm-quote": ("quotes", "attests"),
    "tpm-eventlog": ("logs", "systemd_logs"), "ccel": ("logs", "cc_events"), "azure-hcl": ("hcl_reports",),
    "nvidia-gpu": ("devices",), "nvidia-switch": ("devices",), "nvidia-rim": ("rims",), "token": ("tokens",),
}  # fmt: skip


def _kinds(material: Material) -> set[str]:
    present = {one.name for one in fields(material) if getattr(material, one.name)}
    return {kind for kind, parts in _NEEDS.items() if present.intersection(parts)}


def _pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
