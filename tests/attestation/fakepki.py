# SPDX-License-Identifier: Apache-2.0
"""A whole fake world that signs real bundles in-process: TPM maker, environment CA, operator, image key, gate, TPM.

Change a ``World``'s attributes before ``bundle()`` to get correctly signed evidence of something wrong; change the
bundle's items after it to get tampered evidence. Keys are made once per process.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID, ObjectIdentifier
from cube_attestation import bundle as bundles
from cube_attestation import dsse, jcs
from cube_attestation.bundle import Bundle
from cube_attestation.claims import MEDIA_TYPE as CLAIMS
from cube_attestation.claims import Claims, DomainsClaim, ModelClaim
from cube_attestation.cmw import ENDORSEMENTS, REFERENCE_VALUES, Collection
from cube_attestation.fields import encode_base64
from cube_attestation.launch import MEDIA_TYPE as LAUNCH
from cube_attestation.manifest import MEDIA_TYPE as MANIFEST
from cube_attestation.policy import Policy
from cube_attestation.policy import load as load_policy
from cube_attestation.tpm import abi, eventlog

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
NONCE = bytes(range(32))
AK_EKU = "2.23.133.8.3"
AK_ATTRIBUTES = 0x00050072  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign
_TYPE_CODES = {name: code for code, name in eventlog.TYPES.items()}

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@functools.cache
def ec_key(role: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of a role."""
    return ec.generate_private_key(ec.SECP256R1())


@functools.cache
def rsa_key(role: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def spki(key: PrivateKey) -> str:
    return dsse.spki_digest(key.public_key())


@dataclass(frozen=True)
class Identity:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def spki(self) -> str:
        return spki(self.key)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def issue(
    name: str,
    key: PrivateKey,
    issuer: Identity | None = None,
    *,
    ca: bool = False,
    path_length: int | None = None,
    start: datetime = NOW - timedelta(days=30),
    end: datetime = NOW + timedelta(days=30),
    serial_name: str = "",
    eku: Sequence[str] = (),
    cert_sign: bool = True,
    critical_san: bool = False,
    unknown_critical: bool = False,
) -> Identity:
    """A certificate for ``key``, signed by ``issuer`` or by itself."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    if serial_name:
        attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_name))
    subject = x509.Name(attributes)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(True, path_length), critical=True)
        usage = x509.KeyUsage(
            digital_signature=not cert_sign,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=cert_sign,
            crl_sign=cert_sign,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
    if eku:
        purposes = x509.ExtendedKeyUsage([ObjectIdentifier(oid) for oid in eku])
        builder = builder.add_extension(purposes, critical=False)
    if critical_san:  # as swtpm's CA does: TPM manufacturer, model and version (TCG EK Credential Profile 3.2.9)
        maker = ((1, "id:1014"), (2, "swtpm"), (3, "id:20191023"))
        tcg = [x509.NameAttribute(ObjectIdentifier(f"2.23.133.2.{n}"), text) for n, text in maker]
        names = x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(tcg))])
        builder = builder.add_extension(names, critical=True)
    if unknown_critical:
        extension = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
        builder = builder.add_extension(extension, critical=True)
    signing = issuer.key if issuer else key
    return Identity(builder.sign(signing, hashes.SHA256()), key)


@dataclass(frozen=True)
class Step:
    """One measured event of a boot. ``digest`` defaults to SHA-256 of ``data``."""

    pcr: int
    type: str
    what: str
    data: bytes
    digest: bytes = b""

    @property
    def sha256(self) -> bytes:
        return self.digest or hashlib.sha256(self.data).digest()


def phase(name: str) -> Step:
    """A systemd boot phase of PCR 11 (systemd-pcrphase)."""
    return Step(11, "systemd.phase", f"systemd boot phase {name}", name.encode())


def section(name: str, content: bytes) -> list[Step]:
    """The two PCR 11 events of systemd-stub for one section: its name, then its content."""
    label = f"{name}\0".encode()
    return [
        Step(11, "EV_IPL", f"name of UKI section {name}", label),
        Step(11, "EV_IPL", f"UKI section {name}", label, hashlib.sha256(content).digest()),
    ]


def default_boot() -> list[Step]:
    """A small boot in the shape of the local target's."""
    separators = [Step(pcr, "EV_SEPARATOR", "separator", bytes(4)) for pcr in (2, 5, 7)]
    return [
        Step(7, "EV_EFI_VARIABLE_DRIVER_CONFIG", "Secure Boot state", b"SecureBoot off"),
        *separators,
        Step(4, "EV_EFI_ACTION", "start of the boot option", b"Calling EFI Application from Boot Option"),
        Step(4, "EV_SEPARATOR", "separator", bytes(4)),
        Step(4, "EV_EFI_BOOT_SERVICES_APPLICATION", "the unified kernel image", b"uki"),
        *section(".linux", b"kernel"),
        *section(".cmdline", b"roothash=00"),
        *section(".initrd", b"initrd"),
        Step(9, "EV_EVENT_TAG", "kernel command line", b"r\0o\0"),
        Step(9, "EV_EVENT_TAG", "initrd", b"initrd"),
        phase("sysinit"),
        phase("ready"),
    ]


def cmdline_changed() -> list[Step]:
    """The default boot with another kernel command line in its UKI."""
    steps = default_boot()
    at = next(i for i, step in enumerate(steps) if step.what == "UKI section .cmdline")
    return [*steps[:at], section(".cmdline", b"init=/bin/sh")[1], *steps[at + 1 :]]


def replay(steps: Sequence[Step]) -> dict[int, bytes]:
    values = eventlog.initial("sha256")
    for step in steps:
        values[step.pcr] = hashlib.sha256(values[step.pcr] + step.sha256).digest()
    return values


def tcg_log(steps: Sequence[Step]) -> bytes:
    """``binary_bios_measurements`` in the crypto-agile format with a SHA-256 bank."""
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 1) + struct.pack("<HH", 0x0B, 32) + b"\0"
    out = struct.pack("<II", 0, 3) + bytes(20) + struct.pack("<I", len(spec)) + spec
    for step in steps:
        if step.type.startswith("systemd."):
            continue
        out += struct.pack("<IIIH", step.pcr, _TYPE_CODES[step.type], 1, 0x0B) + step.sha256
        out += struct.pack("<I", len(step.data)) + step.data
    return out


def systemd_log(steps: Sequence[Step]) -> bytes:
    out = b""
    for step in steps:
        if step.type.startswith("systemd."):
            record = {
                "pcr": step.pcr,
                "digests": [{"hashAlg": "sha256", "digest": step.sha256.hex()}],
                "content_type": "systemd",
                "content": {"string": step.data.decode(), "eventType": step.type.partition(".")[2]},
            }
            out += b"\x1e" + jcs.dumps(record) + b"\n"
    return out


def ecc_public(key: ec.EllipticCurvePrivateKey, attributes: int = AK_ATTRIBUTES) -> bytes:
    """TPMT_PUBLIC of a P-256 ECDSA signing key."""
    numbers = key.public_key().public_numbers()
    x, y = (abi.sized(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
    head = struct.pack(">HHI", abi.ALG_ECC, abi.ALG_SHA256, attributes) + abi.sized(b"")
    return head + struct.pack(">HHHHH", abi.ALG_NULL, abi.ALG_ECDSA, abi.ALG_SHA256, 3, abi.ALG_NULL) + x + y


def attest(extra: bytes, pcr_digest: bytes, selected: Sequence[int], public: bytes) -> bytes:
    """TPMS_ATTEST of a quote over the SHA-256 bank by the endorsement primary with the TPMT_PUBLIC ``public``."""
    signer = abi.parse_public(public).qualified_name(abi.RH_ENDORSEMENT)
    bits = sum(1 << pcr for pcr in selected).to_bytes(3, "little")
    return (
        struct.pack(">IH", abi.GENERATED_VALUE, abi.ST_ATTEST_QUOTE)
        + abi.sized(signer)
        + abi.sized(extra)
        + struct.pack(">QIIBQ", 123456, 1, 0, 1, 0x2023_0000)
        + struct.pack(">IHB", 1, abi.ALG_SHA256, 3)
        + bits
        + abi.sized(pcr_digest)
    )


def tpm_sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """TPMT_SIGNATURE, ECDSA with SHA-256."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    head = struct.pack(">HH", abi.ALG_ECDSA, abi.ALG_SHA256)
    return head + abi.sized(r.to_bytes(32, "big")) + abi.sized(s.to_bytes(32, "big"))


def pem(key: PrivateKey) -> str:
    encoding, shape = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, shape).decode()


@functools.cache
def tpm_maker() -> tuple[Identity, Identity]:
    """Root and issuer of the software TPM's maker."""
    root = issue("TPM root", ec_key("tpm-root"), ca=True, end=NOW + timedelta(days=3650))
    return root, issue("TPM issuer", ec_key("tpm-issuer"), root, ca=True, path_length=0)


@functools.cache
def environment_ca() -> Identity:
    return issue("environment CA", ec_key("ca"), ca=True)


def _launch() -> dict[str, jcs.Json]:
    model: jcs.Json = {
        "backend": "ollama",
        "root": "ab" * 32,
        "hash_offset": 4096,
        "size": 8192,
        "serial": "model-0",
        "file": "model.gguf",
    }
    return {
        "version": 1,
        "environment": "local",
        "revision": 3,
        "control_keys": [pem(ec_key("control"))],
        "hostnames": ["localhost"],
        "models": {"smollm2": model},
        "limits": {"max_body_bytes": 1 << 20},
    }


@dataclass
class World:
    """Everything about one machine and its policy. The defaults pass."""

    now: datetime = NOW
    environment: str = "local"
    nonce: bytes = NONCE
    tls_spki: str = "sha256:" + "11" * 32
    guest_time: datetime = NOW
    boot: list[Step] = field(default_factory=default_boot)
    predicted: list[Step] = field(default_factory=default_boot)
    launch: dict[str, jcs.Json] = field(default_factory=_launch)
    launch_key: str = "operator"
    claimed_launch: str = ""
    pcr8_payload: bytes | None = None
    models: dict[str, ModelClaim] = field(default_factory=lambda: {"smollm2": ModelClaim("ab" * 32, "ready")})
    flavour: str = "local"
    image_key: str = "image"
    quoted_pcrs: tuple[int, ...] = tuple(range(16))
    ak_attributes: int = AK_ATTRIBUTES
    ek: Identity | None = None
    ek_issuers: tuple[Identity, ...] | None = None
    ak_issuer: Identity | None = None
    ak_eku: tuple[str, ...] = (AK_EKU,)
    ak_serial: str = ""
    ak_key: str = "ak"
    ak_certified: str = "ak"
    ak_valid: tuple[datetime, datetime] = (NOW - timedelta(days=1), NOW + timedelta(days=7))
    ak_unknown_critical: bool = False
    receipt_key: str = "control"
    receipt_time: datetime = NOW
    receipt_nonce: bytes = NONCE
    receipt_environment: str = "local"
    policy: dict[str, str] = field(default_factory=dict)

    def the_ek(self) -> Identity:
        return self.ek or issue("", rsa_key("ek"), tpm_maker()[1], critical_san=True, eku=["2.23.133.8.1"])

    def launch_envelope(self) -> dict[str, jcs.Json]:
        return dsse.sign(dsse.LAUNCH, self.launch, ec_key(self.launch_key))

    def manifest_payload(self) -> dict[str, jcs.Json]:
        values = replay(self.predicted)
        pcrs: dict[str, jcs.Json] = {str(pcr): values[pcr].hex() for pcr in (2, 4, 5, 7, 9, 11)}
        events: list[jcs.Json] = []
        for step in self.predicted:
            event: dict[str, jcs.Json] = {"pcr": step.pcr, "sha256": step.sha256.hex(), "type": step.type}
            events.append({**event, "what": step.what, "from": "the image's definition"})
        digest = "sha256:" + "22" * 32
        return {
            "version": 1,
            "flavour": self.flavour,
            "id": "cube-local-1",
            "image": digest,
            "uki": digest,
            "uki_authenticode": digest,
            "root": "33" * 32,
            "lock": digest,
            "definition": digest,
            "firmware": {"code": digest, "vars": digest},
            "packages": [],
            "binaries": [],
            "reference": {"pcrs": {"sha256": pcrs}, "events": events},
            "recorded": {"pcrs": {}, "from": "nothing"},
        }

    def manifest_envelope(self) -> dict[str, jcs.Json]:
        return dsse.sign(dsse.IMAGE_MANIFEST, self.manifest_payload(), ec_key(self.image_key))

    def claims(self) -> Claims:
        return Claims(
            nonce=self.nonce,
            environment=self.environment,
            boot="44" * 16,
            tls_spki=self.tls_spki,
            audit_spki="sha256:" + "55" * 32,
            time=self.guest_time,
            launch=self.claimed_launch or dsse.digest(jcs.dumps(self.launch)),
            domains=DomainsClaim(),
            models=self.models,
            image="cube-local-1",
        )

    def quote(self, extra: bytes | None = None) -> bytes:
        """The ``tpm-quote`` item."""
        values = replay(self.boot)
        payload = jcs.dumps(self.launch) if self.pcr8_payload is None else self.pcr8_payload
        values[8] = hashlib.sha256(bytes(32) + hashlib.sha256(payload).digest()).digest()
        listed = {pcr: values[pcr] for pcr in self.quoted_pcrs}
        digest = hashlib.sha256(b"".join(listed.values())).digest()
        key = ec_key(self.ak_key)
        public = ecc_public(key, self.ak_attributes)
        message = attest(self.claims().extra_data() if extra is None else extra, digest, self.quoted_pcrs, public)
        return jcs.dumps(
            {
                "attest": encode_base64(message),
                "signature": encode_base64(tpm_sign(key, message)),
                "ak_public": encode_base64(public),
                "pcrs": {"sha256": {str(pcr): value.hex() for pcr, value in listed.items()}},
            }
        )

    def ak_certificate(self) -> Identity:
        return issue(
            "attestation key",
            ec_key(self.ak_certified),
            self.ak_issuer or environment_ca(),
            serial_name=self.ak_serial or self.the_ek().spki.removeprefix("sha256:"),
            eku=self.ak_eku,
            start=self.ak_valid[0],
            end=self.ak_valid[1],
            unknown_critical=self.ak_unknown_critical,
        )

    def evidence(self) -> Collection:
        root, issuer = tpm_maker()
        issuers = (issuer, root) if self.ek_issuers is None else self.ek_issuers
        pems, x509_type = "application/pem-certificate-chain", "application/pkix-cert"
        return (
            Collection()
            .with_item("claims", CLAIMS, self.claims().encode())
            .with_item("tpm-quote", "application/vnd.cube.tpm-quote+json", self.quote())
            .with_item("tcg-eventlog", eventlog.TCG_MEDIA_TYPE, tcg_log(self.boot))
            .with_item("systemd-eventlog", eventlog.SYSTEMD_MEDIA_TYPE, systemd_log(self.boot))
            .with_item("launch", LAUNCH, jcs.dumps(self.launch_envelope()))
            .with_item("ek-certificate", x509_type, self.the_ek().der, ENDORSEMENTS)
            .with_item("ek-chain", pems, b"".join(i.pem for i in issuers), ENDORSEMENTS)
            .with_item("ak-certificate", x509_type, self.ak_certificate().der, ENDORSEMENTS)
            .with_item("ak-chain", pems, (self.ak_issuer or environment_ca()).pem, ENDORSEMENTS)
            .with_item("image-manifest", MANIFEST, jcs.dumps(self.manifest_envelope()), REFERENCE_VALUES)
        )

    def bundle(self) -> Bundle:
        """Without a receipt, as the gate sees it."""
        return Bundle(self.evidence())

    def receipted(self, bundle: Bundle | None = None) -> Bundle:
        """With the gate's receipt."""
        return bundles.with_receipt(
            bundle or self.bundle(),
            nonce=self.receipt_nonce,
            time=self.receipt_time,
            environment=self.receipt_environment,
            key=ec_key(self.receipt_key),
        )

    def policy_toml(self) -> str:
        """``policy`` overrides single values by ``section.member`` (TOML text; empty: left out)."""
        values = {
            "version": "1",
            "environment": '"local"',
            "lowest_tier": '"software"',
            "image.signers": f'["{spki(ec_key("image"))}"]',
            "launch.signers": f'["{spki(ec_key("operator"))}"]',
            "launch.minimum_revision": "3",
            "tpm.ek_roots": f'["{tpm_maker()[0].spki}"]',
            "tpm.ak_issuers": f'["{environment_ca().spki}"]',
            "tpm.pcrs": "[2, 4, 5, 7, 8, 9, 11]",
            "freshness.receipt_keys": f'["{spki(ec_key("control"))}"]',
            **self.policy,
        }
        top = [f"{name} = {value}" for name, value in values.items() if "." not in name and value]
        sections: dict[str, list[str]] = {}
        for name, value in values.items():
            if "." in name and value:
                section_name, member = name.split(".", 1)
                sections.setdefault(section_name, []).append(f"{member} = {value}")
        parts = ["\n".join(top), *(f"[{name}]\n" + "\n".join(lines) for name, lines in sections.items())]
        return "\n".join(parts) + "\n"

    def the_policy(self) -> Policy:
        return load_policy(self.policy_toml().encode())
