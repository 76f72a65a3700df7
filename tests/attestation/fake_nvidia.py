# SPDX-License-Identifier: Apache-2.0
"""A fake NVIDIA that signs device chains, SPDM reports, manifests and OCSP responses in-process.

Change a ``FakeDevice``'s or ``FakeRim``'s attributes before ``evidence()`` or ``sign()`` for correctly signed
evidence of something wrong. Bytes are put together by hand, apart from the code under test. Keys are made once per
process.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from cube_attestation.nvidia.abi import Evidence
from cube_attestation.nvidia.appraise import Collateral
from cube_attestation.nvidia.policy import NvidiaPolicy
from lxml import etree  # type: ignore[import-untyped]  # lxml ships no types

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
BORN = datetime(2024, 1, 1, tzinfo=UTC)
END = datetime(2034, 1, 1, tzinfo=UTC)
FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
NONCE = bytes(range(32))
DRIVER, VBIOS = "580.99.01", "96.00.AB.00.01"
SWITCH_BIOS = "96.10.73.00.01"
HOPPER_FWID, BLACKWELL_FWID = "2.23.133.5.4.1", "2.23.133.5.4.1.1"
HASHES: dict[str, hashes.SHA256 | hashes.SHA384] = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}
FIRMWARE = hashlib.sha384(b"firmware of the fake device").digest()


def key(role: str, curve: str = "secp384r1") -> ec.EllipticCurvePrivateKey:
    """The key of a role, the same in every process: so are all signatures, and what one changed bit does."""
    return _key(role, curve)


@functools.cache
def _key(role: str, curve: str) -> ec.EllipticCurvePrivateKey:
    secret = int.from_bytes(hashlib.sha256(role.encode()).digest()[:31], "big")
    return ec.derive_private_key(secret, {"secp384r1": ec.SECP384R1(), "secp256r1": ec.SECP256R1()}[curve])


def spki_digest(role: str) -> str:
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return "sha256:" + hashlib.sha256(key(role).public_key().public_bytes(*form)).hexdigest()


def raw_signature(role: str, content: bytes) -> bytes:
    r, s = decode_dss_signature(key(role).sign(content, ec.ECDSA(hashes.SHA384(), deterministic_signing=True)))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    size = (len(body).bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + len(body).to_bytes(size, "big") + body


def fwid_extension(fwid: bytes, oid: str) -> bytes:
    """Hopper: version, key, FWID; Blackwell: a DICE TcbInfo with its FWIDs under [6]."""
    pair = tlv(0x30, bytes.fromhex("0609608648016503040202"), tlv(0x04, fwid))
    if oid == HOPPER_FWID:
        form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        return tlv(0x30, b"\x02\x01\x01", key("gpu leaf").public_key().public_bytes(*form), pair)
    return tlv(0x30, tlv(0x80, b"NVIDIA"), tlv(0xA6, pair))


def name(common: str, serial: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if serial:
        parts.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial))
    return x509.Name(parts)


_made: dict[str, x509.Certificate] = {}


@dataclass
class Cert:
    """One certificate to be made; ``issuer`` is another role's Cert or None for a self-signed root."""

    role: str
    subject: x509.Name
    issuer: Cert | None = None
    ca: bool = True
    path_length: int | None = None
    not_before: datetime = BORN
    not_after: datetime = END
    hashed: str = "sha384"
    curve: str = "secp384r1"
    extensions: list[tuple[x509.ExtensionType, bool]] = field(default_factory=list)
    signer: str = ""  # another role's key in place of the issuer's
    digital_signature: bool = True
    serial: int = 0

    def make(self) -> x509.Certificate:
        """The certificate, made once for the same attributes."""
        known = repr(self)
        if known not in _made:
            _made[known] = self._make()
        return _made[known]

    def _make(self) -> x509.Certificate:
        issuer = self.issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name(issuer.subject)
            .public_key(key(self.role, self.curve).public_key())
            .serial_number(self.serial or int.from_bytes(hashlib.sha256(self.role.encode()).digest()[:10], "big"))
            .not_valid_before(self.not_before)
            .not_valid_after(self.not_after)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=self.digital_signature and not self.ca,
                    content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
                    key_cert_sign=self.ca, crl_sign=self.ca or not self.digital_signature,
                    encipher_only=False, decipher_only=False,
                ),
                True,
            )
        )  # fmt: skip
        if self.ca:
            builder = builder.add_extension(x509.BasicConstraints(True, self.path_length), True)
        for extension, critical in self.extensions:
            builder = builder.add_extension(extension, critical)
        signer = key(self.signer or issuer.role, issuer.curve)
        return builder.sign(signer, HASHES[self.hashed], ecdsa_deterministic=True)


def pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


@dataclass
class FakeDevice:
    """A GPU (``switch`` False) or an NVSwitch. ``role`` tells devices apart: own keys, serial and PDI."""

    role: str = "gpu"
    switch: bool = False
    chip: str = "GH100"
    pdi: bytes = bytes.fromhex("2921ce551e4eeda3")
    driver: str = DRIVER
    vbios: bytes = bytes.fromhex("00ab009601000000")
    fwid: bytes = FIRMWARE
    certified_fwid: bytes = FIRMWARE
    fwid_oid: str = HOPPER_FWID
    nonce: bytes = NONCE
    signer: str = ""
    measurements: dict[int, bytes] = field(default_factory=dict)
    blocks: int = 64
    opaque: dict[int, bytes | None] = field(default_factory=dict)
    changed: dict[str, dict[str, object]] = field(default_factory=dict)

    def certs(self) -> dict[str, Cert]:
        """Leaf, boot ROM, provisioner, identity, root; ``changed`` overrides attributes by these names."""
        family = "LS_10" if self.switch else self.chip
        root = Cert("nvidia root", name("NVIDIA Device Identity CA"), not_after=FOREVER)
        identity = Cert("identity", name("NVIDIA GH100 Identity"), root, not_after=FOREVER)
        ica = Cert(f"{family} ica", name(f"NVIDIA {family} Provisioner ICA 1"), identity, not_after=FOREVER)
        brom_serial = ("50" if self.switch else "41") + self.pdi.hex().upper()
        brom = Cert(f"{self.role} brom", name(f"{family} A01 GSP BROM", brom_serial), ica, not_after=FOREVER)
        serial = hashlib.sha1(self.role.encode()).hexdigest().upper()
        leaf = Cert(
            f"{self.role} leaf", name(f"{family} A01 GSP FMC LF", serial), brom, ca=False, not_after=FOREVER
        )
        value = fwid_extension(self.certified_fwid, self.fwid_oid)
        leaf.extensions = [(x509.UnrecognizedExtension(ObjectIdentifier(self.fwid_oid), value), False)]
        made = {"leaf": leaf, "brom": brom, "ica": ica, "identity": identity, "root": root}
        for which, attributes in self.changed.items():
            for attribute, new in attributes.items():
                setattr(made[which], attribute, new)
        return made

    def chain(self) -> list[x509.Certificate]:
        return [cert.make() for cert in self.certs().values()]

    def fields(self) -> dict[int, bytes]:
        if self.switch:
            fields: dict[int, bytes | None] = {6: SWITCH_BIOS.encode(), 22: self.pdi, 24: b"\0\0", 25: b"\1\0"}
        else:
            fields = {
                6: self.vbios, 14: bytes.fromhex("b1030000"), 15: b"882\0", 17: b"1010\0", 18: b"0200\0",
                3: self.driver.encode() + b"\0", 4: bytes.fromhex("8001000000000000"), 11: b"\x55", 20: self.fwid,
                21: b"\x55", 34: b"\1\0", 36: b"\0\0",
            }  # fmt: skip
        return {kind: value for kind, value in (fields | self.opaque).items() if value is not None}

    def values(self) -> list[bytes]:
        return [self.measurements.get(i, measurement(i)) for i in range(31 if self.switch else self.blocks)]

    def report(self) -> bytes:
        record = b"".join(
            struct.pack("<BBHBH", i + 1, 1, len(v) + 3, 1, len(v)) + v for i, v in enumerate(self.values())
        )
        opaque = b"".join(struct.pack("<HH", kind, len(v)) + v for kind, v in self.fields().items())
        body = (
            b"\x11\xe0\x01\xff" + self.nonce + b"\0"
            + b"\x11\x60\0\0" + bytes([len(self.values())]) + len(record).to_bytes(3, "little") + record
            + hashlib.sha256(self.role.encode()).digest() + struct.pack("<H", len(opaque)) + opaque
        )  # fmt: skip
        return body + raw_signature(self.signer or f"{self.role} leaf", body)

    def evidence(self) -> Evidence:
        return Evidence(self.report(), pem(self.chain()))

    def ocsp(self, **given: object) -> tuple[bytes, ...]:
        """Good responses about boot ROM, provisioner and identity."""
        certs = list(self.certs().values())
        return tuple(status(certs[i], **given) for i in (1, 2, 3))


def measurement(index: int) -> bytes:
    """What a good device measures at a RIM index."""
    return bytes(48) if index == 0 else hashlib.sha384(b"golden %d" % index).digest()


def status(cert: Cert, **given: object) -> bytes:
    """An OCSP response about ``cert``: ``state`` good, revoked, hold or unknown; ``this`` and ``next`` update."""
    state = given.get("state", "good")
    issuer = cert.issuer or cert
    this, after = given.get("this", NOW - timedelta(hours=1)), given.get("next", NOW + timedelta(hours=23))
    assert isinstance(this, datetime)
    assert after is None or isinstance(after, datetime)
    responder = given.get("responder")
    if responder is None:
        eku = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
        responder = Cert("responder", name("NVIDIA OCSP"), issuer, ca=False, extensions=[(eku, False)])
    assert isinstance(responder, Cert)
    states = {
        "good": ocsp.OCSPCertStatus.GOOD,
        "revoked": ocsp.OCSPCertStatus.REVOKED,
        "hold": ocsp.OCSPCertStatus.REVOKED,
        "unknown": ocsp.OCSPCertStatus.UNKNOWN,
    }
    revoked = state in ("revoked", "hold")
    reasons = {"revoked": x509.ReasonFlags.key_compromise, "hold": x509.ReasonFlags.certificate_hold}
    certificate = responder.make()
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=cert.make(),
            issuer=issuer.make(),
            algorithm=hashes.SHA384(),
            cert_status=states[str(state)],
            this_update=this,
            next_update=after,
            revocation_time=BORN + timedelta(days=400) if revoked else None,
            revocation_reason=reasons[str(state)] if revoked else None,
        )
        .responder_id(given.get("by", ocsp.OCSPResponderEncoding.HASH), certificate)  # type: ignore[arg-type]
    )
    if given.get("embed", True):
        builder = builder.certificates([certificate])
    if (nonce := given.get("nonce")) is not None:
        assert isinstance(nonce, bytes)
        builder = builder.add_extension(x509.OCSPNonce(nonce), False)
    if "extension" in given:
        builder = builder.add_extension(given["extension"], True)  # type: ignore[arg-type]
    signer = str(given.get("signer", responder.role))
    response = builder.sign(key(signer, responder.curve), given.get("hashed", hashes.SHA384()))  # type: ignore[arg-type]
    return response.public_bytes(serialization.Encoding.DER)


SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
DS = "http://www.w3.org/2000/09/xmldsig#"
NAMESPACES = f'xmlns="{SWID}" xmlns:ns0="{SWID}" xmlns:ns2="http://www.w3.org/2001/04/xmlenc#sha384"'
SIGNED_INFO = (
    f'<ds:SignedInfo xmlns:ds="{DS}">'
    '<ds:CanonicalizationMethod Algorithm="http://www.w3.org/2006/12/xml-c14n11"/>'
    '<ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"/>'
    '<ds:Reference URI=""><ds:Transforms>'
    '<ds:Transform Algorithm="http://www.w3.org/2000/09/xmldsig#enveloped-signature"/>'
    '<ds:Transform Algorithm="http://www.w3.org/2006/12/xml-c14n11"/></ds:Transforms>'
    '<ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"/>'
    "<ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
)


@dataclass
class FakeRim:
    """A manifest of a driver or VBIOS version. ``values``: index → accepted digests of active entries."""

    version: str = DRIVER
    product: str = "GH100"
    values: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    signed_info: str = SIGNED_INFO
    extra: str = ""  # inside the root element, signed
    attributes: str = ""  # of the root element
    signer: str = ""
    changed: dict[str, dict[str, object]] = field(default_factory=dict)
    resources: int = 64
    chain_names: tuple[str, ...] = ("l4", "l3", "ca", "root")

    def certs(self) -> dict[str, Cert]:
        root = Cert("rim root", name("NVIDIA CoRIM signing Root CA"))
        ca = Cert("rim ca", name("NVIDIA Reference Value GH100 CA"), root)
        l3 = Cert("rim l3", name("NVIDIA Reference Value L3 GH100 001"), ca, path_length=0)
        l4 = Cert("rim l4", name("HCC RIM L4 Signer"), l3, ca=False, not_after=NOW + timedelta(days=365))
        made = {"l4": l4, "l3": l3, "ca": ca, "root": root}
        for which, attributes in self.changed.items():
            for attribute, new in attributes.items():
                setattr(made[which], attribute, new)
        return made

    def body(self) -> str:
        rows = []
        for i in range(self.resources):
            digests = self.values.get(i, (bytes(48),))
            hashed = " ".join(f'ns2:Hash{n}="{digest.hex()}"' for n, digest in enumerate(digests))
            rows.append(
                f'<ns0:Resource type="Measurement" index="{i}" active="{i in self.values}" '
                f'alternatives="{len(digests)}" {hashed} name="Measurement_{i}" size="48"/>'
            )
        tag_id = hashlib.sha384(self.version.encode()).hexdigest()
        return (
            f'<SoftwareIdentity {NAMESPACES} name="{self.product}" tagId="{tag_id}" {self.attributes}>\n'
            f'<ns0:Meta colloquialVersion="{self.version}" edition="GPU" product="{self.product}"/>\n'
            f"<ns0:Payload>\n{chr(10).join(rows)}\n</ns0:Payload>{self.extra}\n{{signature}}</SoftwareIdentity>\n"
        )

    def sign(self) -> bytes:
        body = self.body()
        whole = etree.fromstring(body.replace("{signature}", "").encode())
        digest = base64.b64encode(hashlib.sha384(etree.tostring(whole, method="c14n")).digest()).decode()
        info = self.signed_info.replace("{digest}", digest)
        nested = etree.fromstring(
            body.replace("{signature}", f'<ds:Signature xmlns:ds="{DS}">{info}</ds:Signature>')
        )
        canonical = etree.tostring(nested.findall(f"{{{DS}}}Signature")[-1][0], method="c14n")
        value = base64.b64encode(raw_signature(self.signer or "rim l4", canonical)).decode()
        certs = self.certs()
        chain = "".join(
            "<ds:X509Certificate>"
            + base64.encodebytes(certs[which].make().public_bytes(serialization.Encoding.DER)).decode()
            + "</ds:X509Certificate>"
            for which in self.chain_names
        )
        signature = (
            f'<ds:Signature xmlns:ds="{DS}">{info}<ds:SignatureValue>{value}</ds:SignatureValue>'
            f"<ds:KeyInfo><ds:X509Data>{chain}</ds:X509Data></ds:KeyInfo></ds:Signature>"
        )
        return body.replace("{signature}", signature).encode()

    def ocsp(self, **given: object) -> tuple[bytes, ...]:
        """Good responses about every certificate but the root."""
        return tuple(status(cert, **given) for cert in list(self.certs().values())[:-1])


def driver_rim() -> FakeRim:
    return FakeRim(values={i: (measurement(i), hashlib.sha384(b"another").digest()) for i in range(16, 37)})


def vbios_rim() -> FakeRim:
    return FakeRim(version=VBIOS, values={i: (measurement(i),) for i in range(12)})


def switch_rim() -> FakeRim:
    return FakeRim(version=SWITCH_BIOS, product="LS_10", values={i: (measurement(i),) for i in range(8)})


def rules(**given: object) -> NvidiaPolicy:
    """The fake roots and otherwise the defaults."""
    roots = {
        "device_roots": frozenset({spki_digest("nvidia root")}),
        "rim_roots": frozenset({spki_digest("rim root")}),
    }
    return NvidiaPolicy(**(roots | given))  # type: ignore[arg-type]


def collateral(*rims: FakeRim, devices: tuple[FakeDevice, ...] = (), **given: object) -> Collateral:
    """Signed manifests, and good OCSP responses about all signers and devices, each once."""
    responses: dict[bytes, None] = {}
    for rim in rims[:1]:
        responses |= dict.fromkeys(rim.ocsp(**given))
    for device in devices:
        responses |= dict.fromkeys(device.ocsp(**given))
    return Collateral(tuple(rim.sign() for rim in rims), tuple(responses))
