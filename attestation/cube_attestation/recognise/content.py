# SPDX-License-Identifier: Apache-2.0
"""Recognise a file's bytes: formats with a mark, then text and what it encodes."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import struct
from collections.abc import Callable, Iterator

from cube_attestation.errors import BadInput

from . import documents, protobuf
from .material import Device, Material

MAX_BYTES = 32 << 20
MAX_LAYERS = 4  # hex of base64 of hex …
SNP_BYTES, SNP_ECDSA = 1184, b"\1\0\0\0"
TPM_SIGNATURES = (b"\x00\x14", b"\x00\x16", b"\x00\x18")  # TPM_ALG_RSASSA, RSAPSS, ECDSA
_HEX = re.compile(rb"(?:0[xX])?([0-9a-fA-F]+)")  # pairs are counted apart: repeating a group costs 64 bytes each
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]+={0,2}")
_JWS = re.compile(rb"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_PEM_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
MAX_BLOCKS = 256


def recognise(data: bytes, *, where: str = "file") -> Material:
    """What ``data`` holds. Raises BadInput for what is nothing known, and for known containers that are malformed.

    Bytes without a mark of their own become a blob: a kind that expects a bare signature or PCR values may take it.
    """
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 20} MiB", where=where)
    if not data.strip():
        raise BadInput("is empty", where=where)
    try:
        found = look(data)
    except BadInput as error:
        inner = f"{error.where}: {error.what}" if error.where else error.what
        raise BadInput(inner, where=where, todo=error.todo) from error
    if found is None and len(data) > 4096:
        words = "is nothing that this command knows"
        raise BadInput(words, where=where, todo="see `attestation inspect --help` for what it reads")
    return Material(blobs=(data,)) if found is None else found


def look(data: bytes, layers: int = MAX_LAYERS) -> Material | None:
    """What ``data`` holds, or None when it is nothing known. Raises BadInput for malformed containers."""
    found = _binary(data)
    if found is None and (text := _text(data)) is not None:
        found = _of_text(text, layers)
    return found


def _text(data: bytes) -> bytes | None:
    """The bytes without byte order mark and white space around them if they are printable text, else None."""
    text = data.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n\0")
    if not text or text.translate(None, _TEXT_BYTES):
        return None
    return text


_TEXT_BYTES = bytes((9, 10, 13, *range(32, 127), *range(128, 256)))


# --- binary ---


def _binary(data: bytes) -> Material | None:
    for recognised, make in _MAGIC:
        if recognised(data):
            return make(data)
    return _der(data) if data[:1] == b"\x30" else None


def is_snp_report(data: bytes) -> bool:
    """A report, or one behind its 32-byte message header: known version, policy bit 17, ECDSA P-384."""
    if data[:32] == struct.pack("<II24x", 0, SNP_BYTES):
        data = data[32:]
    return (
        len(data) >= 0x38
        and 1 <= data[0] < 16
        and data[1:4] == bytes(3)
        and bool(data[10] & 2)
        and data[0x34:0x38] == SNP_ECDSA
        and data[0x31:0x34] == bytes(3)
    )


def is_quote(data: bytes) -> bool:
    """An SGX or TDX quote: version 3 to 5, ECDSA key, known TEE."""
    return (
        len(data) >= 48
        and data[:2] in (b"\3\0", b"\4\0", b"\5\0")
        and data[2:4] in (b"\2\0", b"\3\0")
        and data[4:8] in (bytes(4), b"\x81\0\0\0")
    )


def is_log(data: bytes) -> bool:
    """A TCG or CC event log in either format: the header of its first event makes sense."""
    if len(data) < 32:
        return False
    pcr, kind = struct.unpack_from("<II", data)
    (size,) = struct.unpack_from("<I", data, 28)
    known = kind in range(0x14) or kind & 0xFFFFFF00 == 0x80000000
    return pcr < 24 and known and 0 < size <= len(data) - 32 and (kind != 3 or data[8:28] == bytes(20))


def _sized_attest(data: bytes) -> bool:
    return data[2:6] == b"\xffTCG" and int.from_bytes(data[:2], "big") == len(data) - 2


def _sized_public(data: bytes) -> bool:
    return int.from_bytes(data[:2], "big") == len(data) - 2 and is_public(data[2:])


def is_public(data: bytes) -> bool:
    """A TPMT_PUBLIC of an RSA or ECC key named by SHA-256 or SHA-384."""
    return 40 <= len(data) <= 1024 and data[:2] in (b"\0\1", b"\0\x23") and data[2:4] in (b"\0\x0b", b"\0\x0c")


def is_signature(data: bytes) -> bool:
    """A TPMT_SIGNATURE: scheme, hash, and numbers that fill it exactly."""
    if (
        len(data) < 6
        or data[:2] not in TPM_SIGNATURES
        or data[2:4] not in (b"\0\4", b"\0\x0b", b"\0\x0c", b"\0\x0d")
    ):
        return False
    end = 6 + int.from_bytes(data[4:6], "big")
    if data[:2] == b"\0\x18":
        end += 2 + int.from_bytes(data[end : end + 2], "big")
    return end == len(data)


def is_bincode_quote(data: bytes) -> bool:
    """The az-cvm-vtpm tools' quote: signature, message and PCR values, each counted by a u64."""
    if len(data) < 16 or data[2:8] != bytes(6):
        return False
    at = 8 + int.from_bytes(data[:8], "little")
    return data[at + 8 : at + 12] == b"\xffTCG"


def _is_table(data: bytes) -> bool:
    from cube_attestation.snp import abi

    return abi.is_table(data)


def _bincode(data: bytes) -> Material:
    from cube_attestation.azure import containers

    return documents.vtpm_quote(containers.read_bincode_quote(data))


def _is_endorsement(data: bytes) -> bool:
    """Google's VMLaunchEndorsement: a signed message first, then a signature of 256 or 512 bytes."""
    return data[:1] == b"\x0a" and any(mark in data[-600:] for mark in (b"\x12\x80\x02", b"\x12\x80\x04"))


_MAGIC: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], Material]], ...] = (
    (lambda d: d[:4] == b"HCLA", lambda d: Material(hcl_reports=(d,))),
    (lambda d: d[:4] == b"\xffTCG", lambda d: Material(attests=(d,))),
    (_sized_attest, lambda d: Material(attests=(d[2:],))),
    (lambda d: d[:2] == b"\x11\xe0" and len(d) > 37, lambda d: Material(devices=(Device(d),))),
    (lambda d: d[:2] == b"\x1e{", lambda d: Material(systemd_logs=(d,))),
    (is_snp_report, lambda d: Material(snp_reports=(d,))),
    (is_quote, lambda d: Material(tdx_quotes=(d,))),
    (lambda d: len(d) == 1024 and d[0] == 0x81, lambda d: Material(td_reports=(d,))),
    (lambda d: d[:4] == b"CCEL" and len(d) < 256, lambda _: Material(notes=("ACPI table of a CC log",))),
    (_is_table, lambda d: Material(snp_tables=(d,))),
    (is_signature, lambda d: Material(signatures=(d,))),
    (is_public, lambda d: Material(publics=(d,))),
    (_sized_public, lambda d: Material(publics=(d[2:],))),
    (protobuf.is_attestation, protobuf.read_attestation),
    (is_bincode_quote, _bincode),
    (is_log, lambda d: Material(logs=(d,))),
    (_is_endorsement, lambda d: Material(endorsements=(d,))),
)  # fmt: skip


def _der(data: bytes) -> Material | None:
    """Certificates (zero-padded or several in a row), revocation lists, OCSP responses, public keys, by shape."""
    from cube_attestation.x509 import der

    rest, found = data, Material()
    while rest.strip(b"\0"):
        try:
            end = der.total(rest, "DER")
            whole, rest = rest[:end], rest[end:]
            one = _der_element(whole)
        except BadInput:
            return None
        if one is None:
            return None
        found += one
    return found


def _der_element(data: bytes) -> Material | None:
    from cube_attestation.x509 import der

    outer = der.Cursor(data, "DER").inner()
    first = outer.peek()
    if first == 0x0A:
        return Material(ocsp=(data,))
    if first != der.SEQUENCE:
        return None
    inner = outer.inner()
    tag = inner.peek()
    if tag == 0xA0:
        return Material(certificates=(data,))
    if tag == der.INTEGER:
        return Material(crls=(data,))
    if tag == der.OID:
        return Material(keys=(_pem(b"PUBLIC KEY", data),))
    return None


def _pem(label: bytes, data: bytes) -> bytes:
    body = base64.encodebytes(data)
    return b"-----BEGIN " + label + b"-----\n" + body + b"-----END " + label + b"-----\n"


# --- text ---


def _of_text(text: bytes, layers: int) -> Material | None:
    if b"-----BEGIN%20" in text[:64]:  # the URL-encoded header of Intel's issuer chains
        text = _unquoted(text)
    if b"-----BEGIN " in text and text[:1] not in b"{[\"'" and not _is_yaml(text):
        return _of_pem(text)
    if text[:1] == b"<":
        return Material(rims=(text,)) if b"SoftwareIdentity" in text[:4096] else None
    if text[:1] in b"{[":
        return documents.of_json(text, layers)
    if text[:1] in b"\"'" and text[-1:] == text[:1]:
        return look(text[1:-1], layers - 1) if layers else None
    if text[:7].lower() == b"bearer ":
        text = text[7:].strip()
    packed = _packed(text)
    if _JWS.fullmatch(packed):
        return Material(tokens=(packed,))
    if layers:
        for decoded in decodings(packed):
            found = look(decoded, layers - 1)
            if found is not None:
                return found
    return documents.of_yaml(text, layers) if _is_yaml(text) else None


def decodings(packed: bytes) -> list[bytes]:
    """What text without white space decodes to: hex first, then base64 in either alphabet."""
    found: list[bytes] = []
    if (match := _HEX.fullmatch(packed)) and len(match.group(1)) % 2 == 0:
        found.append(bytes.fromhex(match.group(1).decode()))
    if len(packed) >= 16 and _BASE64.fullmatch(packed):
        bare = packed.rstrip(b"=").translate(_STANDARD)
        with contextlib.suppress(binascii.Error, ValueError):
            found.append(base64.b64decode(bare + b"=" * (-len(bare) % 4), validate=True))
    return found


_STANDARD = bytes.maketrans(b"-_", b"+/")


def _packed(text: bytes) -> bytes:
    """``text`` without white space; not by splitting it, which takes 70 bytes for each word."""
    return text.translate(None, b" \t\n\r\x0b\x0c")


def _is_yaml(text: bytes) -> bool:
    # The first repetition gives nothing back (*+): a megabyte of comments would have to be remembered line by line
    return re.match(rb"(?:---\s*\n|#[^\n]*\n)*+[A-Za-z_][A-Za-z0-9_-]*:[ \n\r]", text) is not None


def _unquoted(text: bytes) -> bytes:
    import urllib.parse

    return urllib.parse.unquote_to_bytes(text)


def _blocks(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Label and base64 of each PEM block; text around them is left alone. Raises BadInput for an endless one."""
    at = 0
    for _ in range(MAX_BLOCKS):
        begin = _PEM_BEGIN.search(text, at)
        if begin is None:
            return
        end = b"-----END " + begin.group(1) + b"-----"
        stop = text.find(end, begin.end())
        if stop < 0:
            raise BadInput(f"{begin.group(1).decode()} without an end", where="PEM")
        yield begin.group(1), _packed(text[begin.end() : stop])
        at = stop + len(end)
    raise BadInput(f"more than {MAX_BLOCKS} blocks", where="PEM")


def _of_pem(text: bytes) -> Material | None:
    found = Material()
    for label, packed in _blocks(text):
        try:
            data = base64.b64decode(packed, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadInput(f"{label.decode()} with broken base64", where="PEM") from error
        if label in (b"CERTIFICATE", b"TRUSTED CERTIFICATE", b"X509 CERTIFICATE"):
            found += Material(certificates=(_trimmed(data),))
        elif label == b"X509 CRL":
            found += Material(crls=(data,))
        elif label in (b"PUBLIC KEY", b"RSA PUBLIC KEY"):
            found += Material(keys=(_pem(label, data),))
        else:
            found += look(data, 0) or Material(notes=(f"PEM block {label.decode()}",))
    return found or None


def _trimmed(data: bytes) -> bytes:
    """A certificate without the zeros that pad it in a TPM's index."""
    from cube_attestation.x509 import der

    try:
        end = der.total(data, "certificate")
    except BadInput:
        return data
    return data if data[end:].strip(b"\0") else data[:end]
