# SPDX-License-Identifier: Apache-2.0
"""A fake Intel, platform and TD: signs quotes v3, v4, v5 with their whole collateral in-process.

Change a ``FakeTdx``'s attributes before ``quote()`` and ``collateral()`` for correctly signed evidence of something
wrong. Bytes are put together here by hand, apart from the code under test. Keys are made once per process.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID
from cube_attestation.tdx.collateral import Collateral, Signed

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
BORN = datetime(2024, 1, 1, tzinfo=UTC)
END = datetime(2034, 1, 1, tzinfo=UTC)
SGX_OID = "1.2.840.113741.1.13.1"
UNCRITICAL = (SGX_OID, "2.5.29.31")
QE_SIGNER = bytes(range(32))
INTEL_QE = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")


@functools.cache
def key(role: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of a role, the same in every process: so are all signatures, and what one changed bit does."""
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(role.encode()).digest()[:31], "big"), ec.SECP256R1())


def spki_digest(role: str) -> str:
    spki = (
        key(role)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return "sha256:" + hashlib.sha256(spki).hexdigest()


@functools.cache
def raw_signature(role: str, content: bytes) -> bytes:
    """Made once for the same content, as a platform's and Intel's signatures are."""
    r, s = decode_dss_signature(key(role).sign(content, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def point(role: str) -> bytes:
    return (
        key(role)
        .public_key()
        .public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)[1:]
    )


def tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    if len(content) < 0x100:
        return bytes([tag, 0x81, len(content)]) + content
    return bytes([tag, 0x82]) + len(content).to_bytes(2, "big") + content


def integer(number: int) -> bytes:
    return tlv(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray([first * 40 + second])
    for arc in rest:
        digits = [arc & 0x7F]
        while arc := arc >> 7:
            digits.append(arc & 0x7F | 0x80)
        out += bytes(reversed(digits))
    return tlv(0x06, bytes(out))


@functools.cache
def rsa_key(role: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def proto(number: int, value: int | bytes) -> bytes:
    """One protobuf field."""

    def varint(n: int) -> bytes:
        out = bytearray()
        while n > 0x7F:
            out.append(n & 0x7F | 0x80)
            n >>= 7
        return bytes([*out, n])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


@dataclass
class FakeGoogle:
    """Signs launch endorsements for firmware."""

    mr_td: bytes = bytes([0x22] * 48)
    svn: int = 3
    signer: str = "signer"
    dates: tuple[datetime, datetime] = (BORN, END)
    issuer: str = "google root"

    def _certificate(self, subject: str, role: str, issuer: str, issuer_role: str, *, ca: bool) -> x509.Certificate:
        names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (subject, issuer)]
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        return (
            x509.CertificateBuilder()
            .subject_name(names[0])
            .issuer_name(names[1])
            .public_key(rsa_key(role).public_key())
            .serial_number(7)
            .not_valid_before(BORN if ca else self.dates[0])
            .not_valid_after(END if ca else self.dates[1])
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .sign(rsa_key(issuer_role), hashes.SHA256(), rsa_padding=pss)
        )

    @property
    def roots(self) -> tuple[str, ...]:
        spki = (
            rsa_key("google root")
            .public_key()
            .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return ("sha256:" + hashlib.sha256(spki).hexdigest(),)

    def endorsement(self) -> bytes:
        root = self._certificate("GCE-cc-tcb-root", "google root", "GCE-cc-tcb-root", "google root", ca=True)
        leaf = self._certificate("GCE-uefi-signer", "signer", "GCE-cc-tcb-root", self.issuer, ca=False)
        measurement = proto(1, 234) + proto(2, 1) + proto(3, self.mr_td)
        golden = (
            proto(1, proto(1, 1_790_000_000)) + proto(2, 12345) + proto(3, b"commit")
            + proto(4, leaf.public_bytes(serialization.Encoding.DER)) + proto(5, bytes([0x55] * 48))
            + proto(6, root.public_bytes(serialization.Encoding.PEM))
            + proto(8, proto(1, self.svn) + proto(2, proto(3, bytes(48))) + proto(2, measurement))
        )  # fmt: skip
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        return proto(1, golden) + proto(2, rsa_key(self.signer).sign(golden, pss, hashes.SHA256()))


POINT = x509.CRLDistributionPoints(
    [x509.DistributionPoint([x509.UniformResourceIdentifier("https://fake.test/list")], None, None, None)]
)


@dataclass
class Names:
    root: str = "Intel SGX Root CA"
    pck_ca: str = "Intel SGX PCK Platform CA"
    pck: str = "Intel SGX PCK Certificate"
    tcb: str = "Intel SGX TCB Signing"


@dataclass
class FakeTdx:
    """Everything that can be wrong, right by default."""

    version: int = 4
    td: dict[str, Any] = field(default_factory=dict)  # overrides of td_body's members
    body_type: int = 2
    sgx: bool = False  # quote an enclave, not a TD
    att_key: str = "attestation"
    signer: str = "attestation"
    qe: dict[str, Any] = field(default_factory=dict)
    qe_bound: bool = True
    qe_signer: str = "pck"
    qe_vendor: bytes = INTEL_QE
    auth: bytes = bytes(range(32))
    trailing: bytes = b""
    cert_type: int = 5
    names: Names = field(default_factory=Names)
    root_role: str = "root"
    pck_dates: tuple[datetime, datetime] = (BORN, END)
    tcb_dates: tuple[datetime, datetime] = (BORN, END)
    pck_issuer: str = "pck-ca"
    pck_has_sgx: bool = True
    pck_under_root: bool = False
    pck_extra: tuple[x509.ExtensionType, ...] = ()
    pck_ca_is_ca: bool = True
    pck_ca_crl_sign: bool = True
    fmspc: bytes = bytes.fromhex("00806f050000")
    pce_id: bytes = b"\0\0"
    cpu_svn: bytes = bytes([5] * 16)
    pce_svn: int = 11
    flags: tuple[bool, bool, bool] | None = (True, True, True)
    tcb_fmspc: str | None = None
    issued: datetime = NOW - timedelta(days=2)
    next_update: datetime = NOW + timedelta(days=28)
    root_crl_dates: tuple[datetime, datetime] = (NOW - timedelta(days=100), NOW + timedelta(days=265))
    pck_crl_dates: tuple[datetime, datetime] = (NOW - timedelta(days=2), NOW + timedelta(days=28))
    revoked: tuple[str, ...] = ()  # of pck, pck-ca, tcb
    root_crl_signer: str = "root"
    pck_crl_signer: str = "pck-ca"
    pck_crl_name: str | None = None
    document_signer: str = "tcb"
    tcb_id: str = "TDX"
    qe_id: str = "TD_QE"
    evaluation_number: int = 18
    levels: list[dict[str, Any]] | None = None
    module_levels: list[dict[str, Any]] | None = None
    module_id: str = "TDX_01"
    module_signer: bytes = bytes(48)
    qe_levels: list[dict[str, Any]] | None = None

    # Certificates

    @property
    def anchors(self) -> tuple[str, ...]:
        return (spki_digest("root"),)

    @staticmethod
    def _name(common: str) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, common),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Intel Corporation"),
                x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            ]
        )

    @staticmethod
    @functools.cache
    def _certificate(
        subject: str, role: str, issuer: str, issuer_role: str, *, ca: bool | None, serial: int,
        dates: tuple[datetime, datetime] = (BORN, END), extra: tuple[x509.ExtensionType, ...] = (),
        crl_sign: bool = True, authority: str = "",
    ) -> x509.Certificate:  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(FakeTdx._name(subject))
            .issuer_name(FakeTdx._name(issuer))
            .public_key(key(role).public_key())
            .serial_number(serial)
            .not_valid_before(dates[0])
            .not_valid_after(dates[1])
            .add_extension(x509.BasicConstraints(bool(ca), None), critical=True)
            .add_extension(
                x509.KeyUsage(not ca, False, False, False, False, bool(ca), bool(ca) and crl_sign, False, False),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key(role).public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key(authority or issuer_role).public_key()),
                critical=False,
            )
        )
        for extension in extra:
            builder = builder.add_extension(extension, critical=extension.oid.dotted_string not in UNCRITICAL)
        return builder.sign(key(issuer_role), hashes.SHA256(), ecdsa_deterministic=True)

    def root(self) -> x509.Certificate:
        return self._certificate(
            self.names.root, self.root_role, self.names.root, self.root_role, ca=True, serial=1, extra=(POINT,)
        )

    def pck_ca(self) -> x509.Certificate:
        return self._certificate(
            self.names.pck_ca, "pck-ca", self.names.root, self.root_role, ca=self.pck_ca_is_ca, serial=2,
            crl_sign=self.pck_ca_crl_sign,
        )  # fmt: skip

    def pck(self) -> x509.Certificate:
        extra = self.pck_extra
        if self.pck_has_sgx:
            sgx = x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_OID), self.sgx_extension())
            extra = (sgx, POINT, *extra)
        issuer, role, named = self.names.pck_ca, self.pck_issuer, "pck-ca"
        if self.pck_under_root:
            issuer, role, named = self.names.root, self.root_role, self.root_role
        return self._certificate(
            self.names.pck,
            "pck",
            issuer,
            role,
            ca=False,
            serial=3,
            dates=self.pck_dates,
            extra=extra,
            authority=named,
        )

    def tcb(self) -> x509.Certificate:
        return self._certificate(
            self.names.tcb, "tcb", self.names.root, self.root_role, ca=False, serial=4, dates=self.tcb_dates
        )

    def sgx_extension(self) -> bytes:
        arc = SGX_OID
        tcb = [tlv(0x30, oid(f"{arc}.2.{i + 1}"), integer(svn)) for i, svn in enumerate(self.cpu_svn)]
        tcb.append(tlv(0x30, oid(f"{arc}.2.17"), integer(self.pce_svn)))
        tcb.append(tlv(0x30, oid(f"{arc}.2.18"), tlv(0x04, self.cpu_svn)))
        members = [
            tlv(0x30, oid(f"{arc}.1"), tlv(0x04, bytes(range(16)))),
            tlv(0x30, oid(f"{arc}.2"), tlv(0x30, *tcb)),
            tlv(0x30, oid(f"{arc}.3"), tlv(0x04, self.pce_id)),
            tlv(0x30, oid(f"{arc}.4"), tlv(0x04, self.fmspc)),
            tlv(0x30, oid(f"{arc}.5"), tlv(0x0A, b"\x01")),
        ]
        if self.flags is not None:
            members.append(tlv(0x30, oid(f"{arc}.6"), tlv(0x04, bytes(range(16, 32)))))
            values = [
                tlv(0x30, oid(f"{arc}.7.{i + 1}"), tlv(0x01, b"\xff" if flag else b"\0"))
                for i, flag in enumerate(self.flags)
            ]
            members.append(tlv(0x30, oid(f"{arc}.7"), tlv(0x30, *values)))
        return tlv(0x30, *members)

    @staticmethod
    def _pem(*certificates: x509.Certificate) -> bytes:
        return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)

    def pck_chain(self) -> bytes:
        middle = () if self.pck_under_root else (self.pck_ca(),)
        return self._pem(self.pck(), *middle, self.root())

    def tcb_chain(self) -> bytes:
        return self._pem(self.tcb(), self.root())

    def _crl(self, issuer: str, role: str, dates: tuple[datetime, datetime], serials: list[int]) -> bytes:
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name(issuer))
        builder = builder.last_update(dates[0]).next_update(dates[1])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(key(role).public_key())
        builder = builder.add_extension(x509.CRLNumber(1), critical=False).add_extension(authority, critical=False)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(BORN).build()
            builder = builder.add_revoked_certificate(entry)
        made = builder.sign(key(role), hashes.SHA256(), ecdsa_deterministic=True)
        return made.public_bytes(serialization.Encoding.DER)

    def root_crl(self) -> bytes:
        serials = [serial for name, serial in (("pck-ca", 2), ("tcb", 4)) if name in self.revoked]
        return self._crl(self.names.root, self.root_crl_signer, self.root_crl_dates, serials)

    def pck_crl(self) -> bytes:
        serials = [3] if "pck" in self.revoked else []
        name = self.pck_crl_name or self.names.pck_ca
        return self._crl(name, self.pck_crl_signer, self.pck_crl_dates, serials)

    # Documents

    @staticmethod
    def _time(time: datetime) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ")

    def level(self, status: str = "UpToDate", *, sgx: bytes = bytes([5] * 16), tdx: bytes | None = None,
              pce_svn: int = 11, advisories: tuple[str, ...] = ()) -> dict[str, Any]:  # fmt: skip
        tdx = bytes([4, 0, 3]) + bytes(13) if tdx is None else tdx
        tcb: dict[str, Any] = {"sgxtcbcomponents": [{"svn": svn} for svn in sgx], "pcesvn": pce_svn}
        if self.tcb_id == "TDX":
            tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in tdx]
        found: dict[str, Any] = {"tcb": tcb, "tcbDate": "2026-03-01T00:00:00Z", "tcbStatus": status}
        if advisories:
            found["advisoryIDs"] = list(advisories)
        return found

    @staticmethod
    def isv_level(status: str = "UpToDate", svn: int = 4, advisories: tuple[str, ...] = ()) -> dict[str, Any]:
        found: dict[str, Any] = {"tcb": {"isvsvn": svn}, "tcbDate": "2026-04-01T00:00:00Z", "tcbStatus": status}
        if advisories:
            found["advisoryIDs"] = list(advisories)
        return found

    def tcb_info(self) -> bytes:
        value: dict[str, Any] = {
            "id": self.tcb_id,
            "version": 3,
            "issueDate": self._time(self.issued),
            "nextUpdate": self._time(self.next_update),
            "fmspc": self.tcb_fmspc or self.fmspc.hex().upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": self.evaluation_number,
        }
        module = {
            "mrsigner": self.module_signer.hex(),
            "attributes": "0000000000000000",
            "attributesMask": "FFFFFFFFFFFFFFFF",
        }
        if self.tcb_id == "TDX":
            value["tdxModule"] = module
            levels = self.module_levels if self.module_levels is not None else [self.isv_level()]
            value["tdxModuleIdentities"] = [{"id": self.module_id, **module, "tcbLevels": levels}]
        value["tcbLevels"] = self.levels if self.levels is not None else [self.level()]
        return json.dumps(value, separators=(",", ":")).encode()

    def qe_identity(self) -> bytes:
        value = {
            "id": self.qe_id,
            "version": 2,
            "issueDate": self._time(self.issued),
            "nextUpdate": self._time(self.next_update),
            "tcbEvaluationDataNumber": self.evaluation_number,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": QE_SIGNER.hex().upper(),
            "isvprodid": 2,
            "tcbLevels": self.qe_levels if self.qe_levels is not None else [self.isv_level()],
        }
        return json.dumps(value, separators=(",", ":")).encode()

    def collateral(self) -> Collateral:
        info, identity = self.tcb_info(), self.qe_identity()
        return Collateral(
            root_crl=self.root_crl(),
            pck_crl=self.pck_crl(),
            tcb_info_chain=self.tcb_chain(),
            tcb_info=Signed(info, raw_signature(self.document_signer, info)),
            qe_identity_chain=self.tcb_chain(),
            qe_identity=Signed(identity, raw_signature(self.document_signer, identity)),
        )

    def collateral_json(self) -> str:
        """The same as a QuoteCollateralV3 object, for other verifiers."""
        info, identity = self.tcb_info(), self.qe_identity()
        return json.dumps(
            {
                "pck_crl_issuer_chain": self._pem(self.pck_ca(), self.root()).decode(),
                "root_ca_crl": self.root_crl().hex(),
                "pck_crl": self.pck_crl().hex(),
                "tcb_info_issuer_chain": self.tcb_chain().decode(),
                "tcb_info": info.decode(),
                "tcb_info_signature": raw_signature(self.document_signer, info).hex(),
                "qe_identity_issuer_chain": self.tcb_chain().decode(),
                "qe_identity": identity.decode(),
                "qe_identity_signature": raw_signature(self.document_signer, identity).hex(),
            }
        )

    # The quote

    def td_body(self) -> bytes:
        td: dict[str, Any] = {
            "tee_tcb_svn": bytes([4, 1, 3]) + bytes(13), "mr_seam": bytes([0x11] * 48), "mr_signer_seam": bytes(48),
            "seam_attributes": 0, "attributes": 1 << 28, "xfam": 0x602E7, "mr_td": bytes([0x22] * 48),
            "mr_config_id": bytes(48), "mr_owner": bytes(48), "mr_owner_config": bytes(48),
            "rtmrs": tuple(bytes([0x30 + i] * 48) for i in range(4)), "report_data": bytes(range(64)),
            "tee_tcb_svn2": bytes([4, 1, 3]) + bytes(13), "mr_service_td": bytes(48),
        } | self.td  # fmt: skip
        body: bytes = td["tee_tcb_svn"] + td["mr_seam"] + td["mr_signer_seam"]
        body += struct.pack("<QQQ", td["seam_attributes"], td["attributes"], td["xfam"])
        body += td["mr_td"] + td["mr_config_id"] + td["mr_owner"] + td["mr_owner_config"]
        body += b"".join(td["rtmrs"]) + td["report_data"]
        return body + (td["tee_tcb_svn2"] + td["mr_service_td"] if self.body_type == 3 else b"")

    def enclave(self, report_data: bytes, fields: dict[str, Any]) -> bytes:
        values: dict[str, Any] = {
            "misc_select": bytes(4), "attributes": b"\x11" + bytes(7) + b"\xe7" + bytes(7), "mr_signer": QE_SIGNER,
            "isv_prod_id": 2, "isv_svn": 4,
        } | fields  # fmt: skip
        body: bytes = bytes([7] * 16) + values["misc_select"] + bytes(28) + values["attributes"] + bytes([9] * 32)
        body += bytes(32) + values["mr_signer"] + bytes(96)
        body += struct.pack("<HH", values["isv_prod_id"], values["isv_svn"]) + bytes(60) + report_data
        assert len(body) == 384
        return body

    def quote(self) -> bytes:
        header = struct.pack("<HHIHH", self.version, 2, 0 if self.sgx else 0x81, 0, 0) + self.qe_vendor + bytes(20)
        body = self.enclave(bytes(64), {}) if self.sgx else self.td_body()
        if self.version == 5:
            header += struct.pack("<HI", 1 if self.sgx else self.body_type, len(body))
        signed = header + body
        bound = hashlib.sha256(point(self.att_key) + self.auth).digest() if self.qe_bound else bytes([1] * 32)
        report = self.enclave(bound + bytes(32), self.qe)
        certificates = self.pck_chain() if self.cert_type == 5 else bytes(404)
        qe = report + raw_signature(self.qe_signer, report) + struct.pack("<H", len(self.auth)) + self.auth
        qe += struct.pack("<HI", self.cert_type, len(certificates)) + certificates
        if self.version >= 4:
            qe = struct.pack("<HI", 6, len(qe)) + qe
        section = raw_signature(self.signer, signed) + point(self.att_key) + qe
        return signed + struct.pack("<I", len(section)) + section + self.trailing
