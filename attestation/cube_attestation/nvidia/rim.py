# SPDX-License-Identifier: Apache-2.0
"""Reference integrity manifests: SWID tags (ISO/IEC 19770-2) with an enveloped XML signature.

Only one shape of signature is taken: one Signature, child of the root, over the whole document, C14N 1.1,
ECDSA P-384 with SHA-384. For a whole document without ``xml:`` attributes C14N 1.0, which libxml2 offers here,
gives the same bytes as 1.1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.x509 import certificate as x509

from . import abi, chains

if TYPE_CHECKING:
    from lxml import etree  # type: ignore[import-untyped]  # lxml ships no types

MAX_BYTES = 256 << 10
MAX_INDEX = 254
MAX_ALTERNATIVES = 64
MAX_CERTIFICATES = 8
SWID = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
DS = "{http://www.w3.org/2000/09/xmldsig#}"
SHA384 = "{http://www.w3.org/2001/04/xmlenc#sha384}"
C14N11 = "http://www.w3.org/2006/12/xml-c14n11"
ECDSA_SHA384 = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
DIGEST_SHA384 = "http://www.w3.org/2001/04/xmldsig-more#sha384"
ENVELOPED = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"


class Rim(NamedTuple):
    """A manifest's content. ``values``: RIM index → accepted digests, active entries only."""

    product: str
    edition: str
    version: str
    tag_id: str
    values: Mapping[int, tuple[bytes, ...]]

    @property
    def kind(self) -> str:
        """``vbios`` for versions such as 96.00.5E.00.01, which no driver has, else ``driver``."""
        return "vbios" if re.fullmatch(r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}", self.version.upper()) else "driver"


class VerifiedRim(NamedTuple):
    """An authentic manifest with its signers, leaf to root, valid between the two times."""

    rim: Rim
    path: chains.Path

    @property
    def not_before(self) -> datetime:
        return self.path.not_before

    @property
    def not_after(self) -> datetime:
        return self.path.not_after


@lru_cache(maxsize=256)
def parse(data: bytes) -> Rim:
    """The content of a manifest, whoever signed it. Raises BadInput."""
    return _content(_document(data))


_kept: chains.Verified[VerifiedRim] = chains.Verified()


def verify(data: bytes, anchors: frozenset[str], now: datetime, *, allow_expired: bool = False) -> VerifiedRim:
    """A manifest whose signature and chain hold at ``now``; ``allow_expired``: or held when the signer expired.

    Raises BadInput, or NotAuthentic with ``why``: ``digest_mismatch`` (content changed), ``signature_invalid``,
    ``signature_form`` (not the one accepted shape), or ``chain.<problem>``.
    """
    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 10} KiB", where="RIM")
    try:
        return _kept.get(data, anchors, now, lambda: _verify(data, anchors, now))
    except NotAuthentic as error:
        if not allow_expired or error.why != "chain.expired":
            raise
    last = min(now, signers(data)[0].not_after)
    return _kept.get(data, anchors, last, lambda: _verify(data, anchors, last))


def _verify(data: bytes, anchors: frozenset[str], now: datetime) -> VerifiedRim:
    rim = parse(data)
    root = _document(data)
    signature = _the_signature(root)
    info, digest_value, value, key_info = _shape(signature)
    signed = _canonical(info)
    certificates = _certificates(key_info)
    try:
        key = chains.p384_key(certificates[0])
    except NotAuthentic as error:
        raise NotAuthentic(error.what, why="chain.weak") from error
    if not chains.signed_by(key, _base64(value, 96), signed):
        raise NotAuthentic("the signer's key did not sign this manifest", why="signature_invalid")
    _remove(signature)
    digest = hashlib.sha384(_canonical(root.getroottree())).digest()
    if not hmac.compare_digest(digest, _base64(digest_value, 48)):
        raise NotAuthentic("the manifest was changed after it was signed", why="digest_mismatch")
    try:
        path = chains.verify_path(certificates, anchors, now)
    except NotAuthentic as error:
        raise NotAuthentic(error.what, why=f"chain.{error.why}") from error
    return VerifiedRim(rim, path)


def signers(data: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates that a manifest carries, its signer's first; nothing is verified. Raises as ``verify``."""
    return _certificates(_shape(_the_signature(_document(data)))[-1])


def _canonical(node: etree._Element | etree._ElementTree) -> bytes:
    """C14N of an element or a document. Raises NotAuthentic where there is none (relative namespace names)."""
    from lxml import etree

    try:
        text: bytes = etree.tostring(node, method="c14n", exclusive=False, with_comments=False)
    except etree.C14NError as error:
        raise _form("the manifest has no canonical form") from error
    return text


def _document(data: bytes) -> etree._Element:
    """The root element. No DTD, no entities, no network, UTF-8 only."""
    from lxml import etree

    if len(data) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 10} KiB", where="RIM")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput("not UTF-8", where="RIM") from error
    if "\0" in text or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise BadInput("holds a document type or null characters, which no manifest needs", where="RIM")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False,
        attribute_defaults=False, encoding="utf-8", recover=False,
    )  # fmt: skip
    try:
        root = etree.fromstring(text.encode(), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise BadInput(f"not XML: {str(error)[:100]}", where="RIM") from error
    if root.tag != f"{SWID}SoftwareIdentity":
        raise BadInput(f"the root element is {str(root.tag)[:80]}, not a SoftwareIdentity", where="RIM")
    return root


def _content(root: etree._Element) -> Rim:
    metas, payloads = root.findall(f"{SWID}Meta"), root.findall(f"{SWID}Payload")
    if len(metas) != 1 or len(payloads) != 1:
        raise BadInput(f"{len(metas)} Meta and {len(payloads)} Payload elements instead of one each", where="RIM")
    values: dict[int, tuple[bytes, ...]] = {}
    seen: set[int] = set()
    for resource in payloads[0].iterchildren(f"{SWID}Resource"):
        if resource.get("type") != "Measurement":
            continue
        index = _integer(resource, "index", MAX_INDEX)
        if index in seen:
            raise BadInput(f"index {index} occurs twice", where="RIM")
        seen.add(index)
        active = resource.get("active")
        if active == "False":
            continue
        if active != "True":
            raise BadInput(f"index {index} is neither active nor inactive", where="RIM")
        if _integer(resource, "size", 64) != abi.DIGEST_BYTES:
            raise BadInput(f"index {index} is no SHA-384 value", where="RIM")
        count = _integer(resource, "alternatives", MAX_ALTERNATIVES)
        digests = tuple(_digest(resource.get(f"{SHA384}Hash{i}"), index) for i in range(count))
        if not digests:
            raise BadInput(f"index {index} is active without a value", where="RIM")
        values[index] = digests
    meta = metas[0]
    return Rim(
        product=_text(meta.get("product"), "product"),
        edition=_text(meta.get("edition"), "edition"),
        version=_text(meta.get("colloquialVersion"), "colloquialVersion"),
        tag_id=_text(root.get("tagId"), "tagId"),
        values=values,
    )


def _text(value: str | None, name: str) -> str:
    if value is None or not re.fullmatch(r"[A-Za-z0-9._ -]{1,128}", value):
        raise BadInput(f"{name} is missing or not a name", where="RIM")
    return value


def _integer(element: etree._Element, name: str, high: int) -> int:
    text = element.get(name, "")
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) > high:
        raise BadInput(f"{name} of a resource is not between 0 and {high}", where="RIM")
    return int(text)


def _digest(text: str | None, index: int) -> bytes:
    if text is None or not re.fullmatch(r"[0-9a-fA-F]{96}", text):
        raise BadInput(f"index {index} lacks one of its values", where="RIM")
    return bytes.fromhex(text)


def _form(words: str) -> NotAuthentic:
    return NotAuthentic(f"{words}; only one form of signature is accepted", why="signature_form")


def _the_signature(root: etree._Element) -> etree._Element:
    """The one signature, a child of the root; ``xml:`` attributes would make C14N 1.0 and 1.1 differ."""
    found = list(root.iter(f"{DS}Signature"))
    if len(found) != 1 or found[0].getparent() is not root:
        raise _form(f"{len(found)} signatures instead of one that envelops the whole document")
    if root.xpath("boolean(//@xml:*)"):
        raise _form("an xml: attribute")
    return found[0]


def _children(element: etree._Element, *names: str) -> list[etree._Element]:
    """The element's children, which must be exactly ``names`` in this order."""
    children = list(element)
    if [child.tag for child in children] != [DS + name for name in names]:
        raise _form(f"{etree_name(element)} holds something else than {', '.join(names)}")
    return children


def etree_name(element: etree._Element) -> str:
    """An element's local name."""
    return str(element.tag).rpartition("}")[2]


def _algorithm(element: etree._Element, expected: str) -> None:
    if dict(element.attrib) != {"Algorithm": expected} or len(element):
        raise _form(f"{etree_name(element)} is not {expected}")


def _shape(signature: etree._Element) -> tuple[etree._Element, ...]:
    """SignedInfo, DigestValue, SignatureValue and KeyInfo of the accepted shape. Raises NotAuthentic."""
    info, value, key_info = _children(signature, "SignedInfo", "SignatureValue", "KeyInfo")
    canonical, method, reference = _children(info, "CanonicalizationMethod", "SignatureMethod", "Reference")
    _algorithm(canonical, C14N11)
    _algorithm(method, ECDSA_SHA384)
    if dict(reference.attrib) != {"URI": ""}:
        raise _form("the reference is not to the whole document")
    transforms, digest_method, digest_value = _children(reference, "Transforms", "DigestMethod", "DigestValue")
    enveloped, canonical = _children(transforms, "Transform", "Transform")
    _algorithm(enveloped, ENVELOPED)
    _algorithm(canonical, C14N11)
    _algorithm(digest_method, DIGEST_SHA384)
    return info, digest_value, value, key_info


def _certificates(key_info: etree._Element) -> tuple[x509.Certificate, ...]:
    (data,) = _children(key_info, "X509Data")
    count = len(data)
    if not 1 <= count <= MAX_CERTIFICATES:
        raise _form(f"{count} certificates")
    return tuple(x509.parse(_base64(element, None)) for element in _children(data, *["X509Certificate"] * count))


def _base64(element: etree._Element, size: int | None) -> bytes:
    """The element's text, base64 with line breaks; ``size`` bytes if given."""
    try:
        data = base64.b64decode("".join((element.text or "").split()).encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError) as error:
        raise _form(f"{etree_name(element)} is not base64") from error
    if len(element) or (size is not None and len(data) != size):
        raise _form(f"{etree_name(element)} of {len(data)} bytes")
    return data


def _remove(element: etree._Element) -> None:
    """Take an element out and leave the text behind it where it is (the enveloped-signature transform)."""
    parent, before = element.getparent(), element.getprevious()
    if parent is None:
        return
    if before is not None:
        before.tail = (before.tail or "") + (element.tail or "")
    else:
        parent.text = (parent.text or "") + (element.tail or "")
    element.tail = None
    parent.remove(element)
