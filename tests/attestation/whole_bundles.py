# SPDX-License-Identifier: Apache-2.0
"""Whole bundles of every kind of machine, signed by the fake vendors, each with a policy under which it passes."""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from base64 import b64encode
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fake_azure
import fake_nvidia
import fake_snp
import fake_tdx
import fake_tokens
import fake_x509
import fakepki
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cube_attestation import jcs
from cube_attestation.azure.items import LABELS as AZURE_LABELS
from cube_attestation.bundle import Bundle
from cube_attestation.claims import MEDIA_TYPE as CLAIMS
from cube_attestation.claims import Claims
from cube_attestation.cmw import ENDORSEMENTS, EVIDENCE, Collection
from cube_attestation.fields import decode_base64, encode_base64
from cube_attestation.nvidia import abi as nvidia_abi
from cube_attestation.nvidia import items as nvidia
from cube_attestation.nvidia import rim
from cube_attestation.nvidia.appraise import Collateral
from cube_attestation.policy import Policy
from cube_attestation.policy import load as load_policy
from cube_attestation.snp.items import LABELS as SNP_LABELS
from cube_attestation.tdx import ccel
from cube_attestation.tdx.collateral import Signed
from cube_attestation.tdx.items import LABELS as TDX_LABELS
from cube_attestation.tokens import items as tokens
from cube_attestation.tpm import abi as tpm

MACHINE = ("claims", "snp-report", "tdx-quote", "ccel", "azure-hcl", "nvidia-devices", "tokens", "tpm-quote")


@dataclass(frozen=True)
class Whole:
    """A bundle that passes at ``fakepki.NOW`` under the policy of ``toml``."""

    bundle: Bundle
    toml: str

    @property
    def policy(self) -> Policy:
        return load_policy(self.toml.encode())


def _with(collection: Collection, parts: dict[str, bytes], media: dict[str, str]) -> Collection:
    for label, value in parts.items():
        indicator = EVIDENCE if label in MACHINE else ENDORSEMENTS
        collection = collection.with_item(label, media[label], value, indicator)
    return collection


def _kept(collection: Collection, *labels: str) -> Collection:
    return Collection({label: item for label, item in collection.items.items() if label in labels})


def local() -> Whole:
    """A software TPM, with the gate's receipt."""
    world = fakepki.World()
    return Whole(world.receipted(), world.policy_toml())


def snp() -> Whole:
    """An SNP guest without a TPM."""
    world = fakepki.World()
    machine = fake_snp.FakeSnp().with_fields(report_data=world.claims().report_data())
    parts = {
        "snp-report": machine.report(),
        "snp-certificates": machine.leaf.pem + machine.ask.pem + machine.ark.pem,
        "snp-crl": machine.crl,
    }
    evidence = _with(_kept(world.evidence(), "claims", "launch", "image-manifest"), parts, SNP_LABELS)
    roots = "\n".join(f'"{digest}" = "{line}"' for digest, line in machine.roots.items())
    section = f'[snp]\nmeasurements = ["{"11" * 48}"]\nid_keys = ["{"33" * 48}"]\n[snp.roots]\n{roots}\n'
    return Whole(Bundle(evidence), world.policy_toml() + section)


def _rsa_quote(item: bytes, role: str = "AK") -> bytes:
    """The ``tpm-quote`` item signed by an Azure machine's RSA key."""
    value = jcs.loads(item)
    assert isinstance(value, dict)
    attest = decode_base64(str(value["attest"]), where="attest")
    signature = fake_x509.rsa_key(role).sign(attest, padding.PKCS1v15(), hashes.SHA256())
    encoded = struct.pack(">HH", tpm.ALG_RSASSA, tpm.ALG_SHA256) + tpm.sized(signature)
    modulus = fake_x509.rsa_key(role).public_key().public_numbers().n.to_bytes(256, "big")
    head = struct.pack(">HHI", tpm.ALG_RSA, tpm.ALG_SHA256, fakepki.AK_ATTRIBUTES) + tpm.sized(b"")
    scheme = struct.pack(">HHHHI", tpm.ALG_NULL, tpm.ALG_RSASSA, tpm.ALG_SHA256, 2048, 0)
    public = head + scheme + tpm.sized(modulus)
    return jcs.dumps({**value, "signature": encode_base64(encoded), "ak_public": encode_base64(public)})


def azure(name: str = "") -> Whole:
    """An Azure confidential VM on SNP; ``name``: another one, with a key, an id and a log of its own."""
    role, world = f"AK{name}", GpuWorld().named(name)
    machine = fake_azure.FakeAzure(
        snp=fake_snp.FakeSnp(chip=name), claims_key=role, quote_key=role, certificate_key=role
    )
    if name:
        machine = machine.but(vm={"vmUniqueId": name})
    processor = machine.machine()
    der, issuers = machine.certificates()
    leaf = b"-----BEGIN CERTIFICATE-----\n" + b64encode(der) + b"\n-----END CERTIFICATE-----\n"
    crls = b"".join(
        b"-----BEGIN X509 CRL-----\n" + b64encode(data) + b"\n-----END X509 CRL-----\n" for data in machine.crls()
    )
    parts = {
        "azure-hcl": machine.hcl(),
        "azure-ak-chain": leaf + issuers,
        "azure-crls": crls,
        "snp-certificates": processor.leaf.pem + processor.ask.pem + processor.ark.pem,
        "snp-crl": processor.crl,
        "tpm-quote": _rsa_quote(world.quote(), role),
    }
    media = {**SNP_LABELS, **AZURE_LABELS, "tpm-quote": "application/vnd.cube.tpm-quote+json"}
    kept = ("claims", "launch", "image-manifest", "tcg-eventlog", "systemd-eventlog")
    evidence = _with(_kept(world.evidence(), *kept), parts, media)
    roots = "\n".join(f'"{digest}" = "{line}"' for digest, line in processor.roots.items())
    section = (
        f'[azure]\nminimum_guest_svn = 7\nid_keys = ["{"33" * 48}"]\nroots = ["{fake_azure.roots()[0]}"]\n'
        f"[snp.roots]\n{roots}\n"
    )
    return Whole(Bundle(evidence), world.policy_toml() + section)


def published(signed: Signed | None, member: str) -> bytes:
    """A document as Intel's service gives it."""
    assert signed is not None
    return b'{"%b":%b,"signature":"%b"}' % (member.encode(), signed.content, signed.signature.hex().encode())


def ccel_log(digests: dict[int, bytes]) -> bytes:
    """A CC event log with one event per register (0: RTMR0)."""
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, 0x0C, 48, 0)
    log = struct.pack("<II", 1, 3) + bytes(20) + struct.pack("<I", len(spec)) + spec
    for register, digest in digests.items():
        log += struct.pack("<IIIH", register + 1, 0x80000007, 1, 0x0C) + digest + struct.pack("<I", 0)
    return log


def tdx(**td: Any) -> Whole:
    """A TD without a TPM, with an event log."""
    world = fakepki.World()
    measured = {i: hashlib.sha384(b"event %d" % i).digest() for i in range(3)}
    rtmrs = (*(hashlib.sha384(bytes(48) + measured[i]).digest() for i in range(3)), bytes(48))
    machine = fake_tdx.FakeTdx(td={"report_data": world.claims().report_data(), "rtmrs": rtmrs, **td})
    given = machine.collateral()
    parts = {
        "tdx-quote": machine.quote(),
        "ccel": ccel_log(measured),
        "tdx-tcb-info": published(given.tcb_info, "tcbInfo"),
        "tdx-tcb-info-chain": given.tcb_info_chain,
        "tdx-qe-identity": published(given.qe_identity, "enclaveIdentity"),
        "tdx-qe-identity-chain": given.qe_identity_chain,
        "tdx-root-crl": given.root_crl or b"",
        "tdx-pck-crl": given.pck_crl or b"",
    }
    evidence = _with(_kept(world.evidence(), "claims", "launch", "image-manifest"), parts, TDX_LABELS)
    pinned = "".join(f'rtmr{i} = ["{value.hex()}"]\n' for i, value in enumerate(rtmrs))
    section = f'[tdx]\nroots = ["{machine.anchors[0]}"]\nmrtd = ["{"22" * 48}"]\n{pinned}'
    return Whole(Bundle(evidence), world.policy_toml() + section)


def azure_tdx() -> Whole:
    """An Azure confidential VM on TDX: the quote is over the paravisor's claims, which name the vTPM's key."""
    start, world = azure(), fakepki.World()
    machine = fake_azure.FakeAzure(tee="tdx")
    td = fake_tdx.FakeTdx(td={"report_data": machine.report_data()})
    given = td.collateral()
    parts = {
        "azure-hcl": machine.hcl(),
        "tdx-quote": td.quote(),
        "tdx-tcb-info": published(given.tcb_info, "tcbInfo"),
        "tdx-tcb-info-chain": given.tcb_info_chain,
        "tdx-qe-identity": published(given.qe_identity, "enclaveIdentity"),
        "tdx-qe-identity-chain": given.qe_identity_chain,
        "tdx-root-crl": given.root_crl or b"",
        "tdx-pck-crl": given.pck_crl or b"",
    }
    kept = Collection({k: v for k, v in start.bundle.evidence.items.items() if not k.startswith("snp-")})
    evidence = _with(kept, parts, {**TDX_LABELS, **AZURE_LABELS})
    pinned = "".join(f'rtmr{i} = ["{f"3{i}" * 48}"]\n' for i in range(4))
    section = (
        f'[azure]\nminimum_guest_svn = 7\nroots = ["{fake_azure.roots()[0]}"]\n'
        f'[tdx]\nroots = ["{td.anchors[0]}"]\nmrtd = ["{"22" * 48}"]\n{pinned}'
    )
    return Whole(Bundle(evidence), world.policy_toml() + section)


class GpuWorld(fakepki.World):
    """A machine whose claims name its GPU's evidence."""

    devices: bytes = b""
    name: str = ""

    def named(self, name: str) -> GpuWorld:
        """The same as machine ``name``: another boot. The first machine has no name."""
        self.name = name
        return self

    def claims(self) -> Claims:
        claims = super().claims()
        if self.name:
            claims = replace(claims, boot=hashlib.sha256(self.name.encode()).hexdigest()[:32])
        if not self.devices:
            return claims
        return replace(claims, gpu="sha256:" + hashlib.sha256(self.devices).hexdigest())


def gpu() -> Whole:
    """A software TPM with a GPU and a token of NVIDIA's service for it."""
    world = GpuWorld()
    nonce = world.claims().gpu_nonce()
    device = fake_nvidia.FakeDevice(nonce=nonce)
    world.devices = nvidia_abi.encode_evidence((device.evidence(),))
    given = fake_nvidia.collateral(fake_nvidia.driver_rim(), fake_nvidia.vbios_rim(), devices=(device,))
    claims = world.claims()
    eat = {"eat_nonce": tokens.expected_nonce("nras", claims)}
    member = fake_tokens.FakeToken("nras", device=True, claims=eat).text()
    answer = fake_tokens.token_set(fake_tokens.FakeToken("nras", claims=eat), GPU_0=member)
    keys = fake_tokens.key_set(fake_tokens.jwk("nras", fake_tokens.KIDS["nras"]))
    ita_nonce = {"verifier_nonce": {"val": tokens.expected_nonce("ita", claims)}}
    ita = fake_tokens.FakeToken("ita", claims=ita_nonce).data()
    ita_keys = fake_tokens.key_set(fake_tokens.jwk("ita", fake_tokens.KIDS["ita"]))
    parts = {
        "nvidia-devices": world.devices,
        "nvidia-collateral": nvidia.encode_collateral(given),
        "tokens": tokens.encode((tokens.Given("nras", answer, keys), tokens.Given("ita", ita, ita_keys))),
    }
    evidence = _with(world.evidence(), parts, {**nvidia.LABELS, **tokens.LABELS})
    assert evidence.items["claims"].media_type == CLAIMS
    section = (
        f'[nvidia]\ndevice_roots = ["{fake_nvidia.spki_digest("nvidia root")}"]\n'
        f'rim_roots = ["{fake_nvidia.spki_digest("rim root")}"]\n'
        f'[[tokens]]\nissuer = "nras"\nkeys = ["{fake_tokens.spki_digest("nras")}"]\n'
        f'[[tokens]]\nissuer = "ita"\nkeys = ["{fake_tokens.spki_digest("ita")}"]\n'
    )
    return Whole(Bundle(evidence), world.policy_toml() + section)


@dataclass(frozen=True)
class H100:
    """A GPU, the collateral about it, and the policy's section."""

    device: fake_nvidia.FakeDevice
    collateral: Collateral
    section: str


REAL_RIMS = (
    "nvidia/NVIDIA_attestation-sdk/unit/NV_GPU_DRIVER_GH100_550.144.03.xml",
    "nvidia/NVIDIA_nvtrust/1010_0200_882_96005E0001_PROD.swidtag",
)
REAL_LOG = "tdx/cohere-ai_cvm-measure/ccel_a3-highgpu-1g.bin"
REAL_VALUES = "tdx/cohere-ai_cvm-measure/golden_a3-highgpu-1g.json"


@functools.cache
def h100(name: str = "", real: Path | None = None) -> H100:
    """The GPU of machine ``name``; with the folder of real evidence it measures what NVIDIA's own manifests say.

    Its report is always signed by the fake chain: only a real GPU's key could answer our nonce.
    """
    device = fake_nvidia.FakeDevice(role=f"gpu{name}")
    if name:
        device.pdi = hashlib.sha256(name.encode()).digest()[:8]
    section = f'[nvidia]\ndevice_roots = ["{fake_nvidia.spki_digest("nvidia root")}"]\n'
    if real is None:
        given = fake_nvidia.collateral(fake_nvidia.driver_rim(), fake_nvidia.vbios_rim(), devices=(device,))
        return H100(device, given, section + f'rim_roots = ["{fake_nvidia.spki_digest("rim root")}"]\n')
    manifests = tuple((real / path).read_bytes() for path in REAL_RIMS)
    driver, vbios = (rim.parse(data) for data in manifests)
    version = bytes.fromhex(vbios.version.replace(".", ""))
    device.driver, device.vbios = driver.version, version[3::-1] + version[4:] + bytes(3)
    device.measurements = {i: values[0] for one in (driver, vbios) for i, values in one.values.items()}
    # nobody kept OCSP responses about these manifests' signers, and the VBIOS manifest's signer has run out
    section += 'allow_missing = ["nvidia.rim_ocsp"]\nallow_expired_rim = true\n'
    return H100(device, Collateral(manifests, device.ocsp()), section)


def _with_gpu(start: Whole, world: GpuWorld, gpu: H100) -> Whole:
    """The same machine with an H100; ``world`` gets its evidence, so that claims made from then on name it."""
    device = replace(gpu.device, nonce=world.claims().gpu_nonce())
    world.devices = nvidia_abi.encode_evidence((device.evidence(),))
    parts = {"nvidia-devices": world.devices, "nvidia-collateral": nvidia.encode_collateral(gpu.collateral)}
    return Whole(Bundle(_with(start.bundle.evidence, parts, nvidia.LABELS)), start.toml + gpu.section)


@functools.cache
def _td(name: str, real: Path | None) -> tuple[Whole, dict[str, Any]]:
    """A TD with its log, and what its report says beside the claims' digest; with a real machine's log its values.

    What of the real log's RTMR0 nobody can predict (TD HOB, ACPI tables) the policy takes as recorded.
    """
    if real is None:
        events = {i: hashlib.sha384(b"event %d%b" % (i, name.encode())).digest() for i in range(3)}
        rtmrs = (*(hashlib.sha384(bytes(48) + events[i]).digest() for i in range(3)), bytes(48))
        start = tdx(rtmrs=rtmrs)
        evidence = _with(start.bundle.evidence, {"ccel": ccel_log(events)}, TDX_LABELS)
        head = start.toml[: start.toml.index("rtmr0 = ")]
        pins = "".join(f'rtmr{i} = ["{value.hex()}"]\n' for i, value in enumerate(rtmrs))
        return Whole(Bundle(evidence), head + pins), {"rtmrs": rtmrs}
    data = (real / REAL_LOG).read_bytes()
    firmware = json.loads((real / REAL_VALUES).read_text())["mrtd"]
    log = ccel.parse(data)
    uki, kernel = ccel.programs(log)
    rules = (*ccel.record(log, 0), *ccel.rules_for_uki(uki, kernel, ccel.sections(log)))
    start = tdx()
    evidence = _with(start.bundle.evidence, {"ccel": data}, TDX_LABELS)
    toml = start.toml[: start.toml.index("mrtd = ")] + f'mrtd = ["{firmware}"]\nrtmr3 = ["{"00" * 48}"]\n'
    for rule in rules:
        digests = ", ".join(f'"{digest.hex()}"' for digest in rule.digests)
        toml += f'[[tdx.events]]\nrtmr = {rule.rtmr}\ntype = "{rule.type}"\nlabel = "{rule.label}"\n'
        toml += f"digests = [{digests}]\n"
    return Whole(Bundle(evidence), toml), {"rtmrs": ccel.replay(log), "mr_td": bytes.fromhex(firmware)}


@functools.cache
def _cvm(name: str) -> Whole:
    return azure(name)


def a3_highgpu_1g(nonce: bytes = fakepki.NONCE, *, name: str = "", real: Path | None = None) -> Whole:
    """Google's machine: a TD with its CC event log, and an H100. Its own evidence answers ``nonce``.

    ``name``: another machine of this type, with its own GPU, boot and log. ``real``: the folder of real evidence.
    """
    world = GpuWorld(nonce=nonce).named(name)
    start, report = _td(name, real)
    found = _with_gpu(start, world, h100(name, real))
    quote = fake_tdx.FakeTdx(td={"report_data": world.claims().report_data(), **report}).quote()
    parts = {"claims": world.claims().encode(), "tdx-quote": quote}
    return replace(found, bundle=Bundle(_with(found.bundle.evidence, parts, {**TDX_LABELS, "claims": CLAIMS})))


def ncc40ads_h100_v5(nonce: bytes = fakepki.NONCE, *, name: str = "", real: Path | None = None) -> Whole:
    """Microsoft's machine: an SNP guest with paravisor and virtual TPM, and an H100."""
    world = GpuWorld(nonce=nonce).named(name)
    found = _with_gpu(_cvm(name), world, h100(name, real))
    parts = {"claims": world.claims().encode(), "tpm-quote": _rsa_quote(world.quote(), f"AK{name}")}
    media = {"claims": CLAIMS, "tpm-quote": "application/vnd.cube.tpm-quote+json"}
    return replace(found, bundle=Bundle(_with(found.bundle.evidence, parts, media)))


def local_machine(nonce: bytes = fakepki.NONCE, *, name: str = "") -> Whole:
    """A machine of the local target: a software TPM of its own, and no GPU."""
    world = GpuWorld(nonce=nonce).named(name)
    if name:
        ek = fakepki.issue("", fakepki.rsa_key(f"ek{name}"), fakepki.tpm_maker()[1], critical_san=True)
        world.ek, world.ak_key, world.ak_certified = ek, f"ak{name}", f"ak{name}"
    return Whole(world.bundle(), world.policy_toml())


ALL = {
    "local": local, "snp": snp, "azure": azure, "azure_tdx": azure_tdx, "tdx": tdx, "gpu": gpu,
    "a3-highgpu-1g": a3_highgpu_1g, "NCC40ads_H100_v5": ncc40ads_h100_v5,
}  # fmt: skip
