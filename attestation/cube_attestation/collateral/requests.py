# SPDX-License-Identifier: Apache-2.0
"""The vendors' interfaces: which request gives which piece. Pure; hosts are in ``services``.

AMD publication 57230, chapter 4 (KDS) · Intel SGX and TDX PCS API v4 · NVIDIA RIM service, OCSP service ·
RFC 6960 and 9654 (OCSP) · key sets of NRAS, MAA, Confidential Space and Intel Trust Authority.
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote, urlsplit

from cube_attestation.nvidia import ocsp
from cube_attestation.snp.abi import Tcb
from cube_attestation.tdx.collateral import MAX_CRL, MAX_JSON
from cube_attestation.tokens.abi import MAX_FILE
from cube_attestation.x509 import certificate, crl, der

from .model import Request
from .services import names

JSON = ("application/json", "text/plain")
# Servers tell the types of certificates and lists by their files' names, and Intel's list is called .der
DER = ("application/pkix-cert", "application/x-x509-ca-cert", "application/x-x509-user-cert",
       "application/pkix-crl", "application/x-pkcs7-crl", "application/x-pem-file",
       "application/pem-certificate-chain", "text/plain")  # fmt: skip
NONCE = der.oid("1.3.6.1.5.5.7.48.1.2")
_SHA384 = der.encode(der.SEQUENCE, der.encode(der.OID, der.oid("2.16.840.1.101.3.4.2.2")), der.encode(der.NULL))


def vcek(product: str, hardware_id: bytes, tcb: Tcb) -> Request:
    """The certificate of one chip at one TCB; Turin names the chip by 8 bytes and has the FMC's version too."""
    parts = {"blSPL": tcb.bootloader, "teeSPL": tcb.tee, "snpSPL": tcb.snp, "ucodeSPL": tcb.microcode}
    if product == "Turin":
        parts = {"fmcSPL": tcb.fmc, **parts}
    query = "&".join(f"{name}={value:02d}" for name, value in parts.items())
    path = f"/vcek/v1/{product}/{hardware_id.hex()}?{query}"
    return Request("amd-kds", path, DER, certificate.MAX_BYTES)


def amd_chain(kind: str, product: str) -> Request:
    """Intermediate and root of a product line, PEM; ``kind`` is vcek or vlek."""
    return Request("amd-kds", f"/{kind}/v1/{product}/cert_chain", DER, 4 * certificate.MAX_BYTES)


def amd_crl(kind: str, product: str) -> Request:
    """The root's revocation list."""
    return Request("amd-kds", f"/{kind}/v1/{product}/crl", DER, crl.MAX_BYTES)


def tcb_info(tee: str, fmspc: bytes) -> Request:
    """TCB info of a platform type; ``tee`` is tdx or sgx."""
    return Request("intel-pcs", f"/{tee}/certification/v4/tcb?fmspc={fmspc.hex().upper()}", JSON, MAX_JSON)


def qe_identity(tee: str) -> Request:
    """Identity of the quoting enclave."""
    return Request("intel-pcs", f"/{tee}/certification/v4/qe/identity", JSON, MAX_JSON)


def pck_crl(authority: str) -> Request:
    """The list of the PCK CA ``platform`` or ``processor``."""
    return Request("intel-pcs", f"/sgx/certification/v4/pckcrl?ca={authority}&encoding=der", DER, MAX_CRL)


def intel_root_crl(*, pccs: bool) -> Request:
    """The root CA's list, from Intel or from the PCCS that stands in for it."""
    if pccs:
        return Request("intel-pcs", "/sgx/certification/v4/rootcacrl", DER, MAX_CRL)
    return Request("intel-root-crl", "/IntelSGXRootCA.der", DER, MAX_CRL)


def rim(identifier: str) -> Request:
    """A reference manifest by its name; the answer is JSON around it, half as large again."""
    return Request("nvidia-rim", f"/v1/rim/{quote(identifier, safe='')}", JSON, 512 << 10)


def ocsp_request(subject: certificate.Certificate, issuer: certificate.Certificate, nonce: bytes) -> Request:
    """Is ``subject`` revoked? One CertID with SHA-384, and a nonce (RFC 6960, 4.1.1; RFC 9654)."""
    spki = der.Cursor(issuer.spki, "SubjectPublicKeyInfo").inner()
    spki.whole(der.SEQUENCE)
    size = subject.serial.bit_length() // 8 + 1
    identity = der.encode(
        der.SEQUENCE,
        _SHA384,
        der.encode(der.OCTET_STRING, hashlib.sha384(issuer.subject).digest()),
        der.encode(der.OCTET_STRING, hashlib.sha384(spki.bits()).digest()),
        der.encode(der.INTEGER, subject.serial.to_bytes(size, "big")),
    )
    listed = der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, identity))
    extension = der.encode(
        der.SEQUENCE,
        der.encode(der.OID, NONCE),
        der.encode(der.OCTET_STRING, der.encode(der.OCTET_STRING, nonce)),
    )
    extensions = der.encode(0xA2, der.encode(der.SEQUENCE, extension))
    body = der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, listed, extensions))
    return Request(
        "nvidia-ocsp",
        "/",
        ("application/ocsp-response",),
        ocsp.MAX_BYTES,
        body=body,
        sends="application/ocsp-request",
        about=identity.hex(),
    )


def launch_endorsement(mr_td: bytes) -> Request:
    """Google's signed statement about the firmware with this MRTD."""
    path = f"/gce_tcb_integrity/ovmf_x64_csm/tdx/{mr_td.hex()}.binarypb"
    return Request(
        "google-tcb", path, ("application/octet-stream", "application/x-protobuf", "text/plain"), 256 << 10
    )


def named(url: str, *, media: tuple[str, ...], limit: int) -> Request | None:
    """What a certificate points to, over https whatever it says; None if its host is in no table."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
    except ValueError:
        return None
    path = quote(parts.path or "/", safe="/%") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme not in ("http", "https") or not path.isascii() or not path.isprintable() or " " in path:
        return None
    for service in ("microsoft-pki", "google-pki"):
        if names(service, host):
            return Request(service, path, media, limit, host=host)
    return None


KEY_SETS = {
    "nras": "/.well-known/jwks.json",
    "confidential-space": "/service_accounts/v1/metadata/jwk/signer@confidentialspace-sign.iam.gserviceaccount.com",
    "ita": "/certs",
    "maa": "/certs",
}


def key_set(issuer: str, iss: str) -> Request:
    """The published keys of a token's issuer; ``iss`` is the token's word on which instance."""
    try:
        host = (urlsplit(iss).hostname or "").lower()
    except ValueError:
        host = ""
    return Request(issuer, KEY_SETS[issuer], ("application/jwk-set+json", *JSON), MAX_FILE, host=host)
