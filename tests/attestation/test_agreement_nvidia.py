# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's manifests: the same documents to signxml, an independent verifier of XML signatures."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fake_nvidia as fake
import pytest
from agreement import ACCEPTED, Difference, Pair, compare, flipped, refused
from cube_attestation.anchors import nvidia as anchors
from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.nvidia import rim
from cube_attestation.x509 import certificate as certificates
from fake_nvidia import FakeRim

SEED = 20261124


@dataclass(frozen=True)
class Input:
    """A manifest and the signer that it had before it was changed."""

    what: str
    data: bytes
    signer: certificates.Certificate
    roots: frozenset[str]
    now: datetime

    def ours(self) -> str:
        """Of the signature alone: whether the signer may sign is not asked."""
        try:
            rim.verify(self.data, self.roots, self.now)
        except BadInput as error:
            return refused(error)
        except NotAuthentic as error:
            held = error.why.startswith("chain.") and error.why != "chain.weak"  # a key that is none signed nothing
            return ACCEPTED if held else refused(error.why)
        return ACCEPTED

    def theirs(self, signxml: Any, algorithms: Any) -> str:
        config = signxml.SignatureConfiguration(
            signature_methods=frozenset({algorithms.SignatureMethod.ECDSA_SHA384}),
            digest_algorithms=frozenset({algorithms.DigestAlgorithm.SHA384}),
            verification_time=self.now,
        )
        pem = base64.encodebytes(self.signer.der).decode()
        pem = f"-----BEGIN CERTIFICATE-----\n{pem}-----END CERTIFICATE-----\n"
        try:
            signxml.XMLVerifier().verify(self.data, x509_cert=pem, expect_config=config)
        except Exception as error:  # whatever it raises on hostile documents
            return refused(f"{type(error).__name__}: {error}")
        return ACCEPTED


def signer(data: bytes) -> certificates.Certificate:
    found = re.search(r"<ds:X509Certificate>([^<]+)", data.decode())
    assert found is not None
    return certificates.parse(base64.b64decode(found.group(1)))


def judged(inputs: Sequence[Input]) -> list[Pair]:
    signxml = pytest.importorskip("signxml", reason="the independent verifier signxml is not installed")
    algorithms = pytest.importorskip("signxml.algorithms")
    return [Pair(each.what, each.ours(), each.theirs(signxml, algorithms)) for each in inputs]


def successor(character: bytes) -> bytes:
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return bytes([alphabet[alphabet.index(character) + 1]])


def mutants(good: Input, count: int, draw: random.Random) -> Iterator[Input]:
    """One bit of some bytes, and changes that mean something to XML: each kind somewhere."""
    data = good.data
    parts = {
        "content": (0, data.index(b"<ds:Signature")),
        "signature": (data.index(b"<ds:Signature"), data.index(b"<ds:KeyInfo")),
        "certificates": (data.index(b"<ds:KeyInfo"), data.index(b"</ds:Signature>")),
        "end": (data.index(b"</ds:Signature>"), len(data)),
    }
    for part, (start, end) in parts.items():
        for at in sorted(draw.sample(range(start, end), min(count, end - start))):
            yield replace(good, what=f"{good.what}: {part} byte {at}", data=flipped(data, at, draw.randrange(7)))
    meta, close = re.search(rb"<(?:ns0:|)Meta ", data), data.rindex(b"</")
    assert meta is not None
    at = meta.start()
    changes = {
        "a comment": data[:at] + b"<!-- no part of it -->" + data[at:],
        "a processing instruction": data[:at] + b"<?x y?>" + data[at:],
        "white space": data[:at] + b" " + data[at:],
        "white space within a tag": data.replace(b"<ds:SignedInfo", b"<ds:SignedInfo ", 1),
        "another element": data[:at] + b"<x/>" + data[at:],
        "an element at the end": data[:close] + b"<x/>" + data[close:],
        "a comment in the signature": data.replace(b"<ds:SignedInfo", b"<!-- x --><ds:SignedInfo", 1),
        "a comment in the signed part": data.replace(b"<ds:SignatureMethod", b"<!-- x --><ds:SignatureMethod", 1),
        "quotes": data.replace(b'active="True"', b"active='True'", 1),
        "a character reference": data.replace(b'active="True"', b'active="&#84;rue"', 1),
        "an attribute": data.replace(b'active="True"', b'active="True" x="1"', 1),
        "an unused namespace": data.replace(b'active="True"', b'active="True" xmlns:q="urn:q"', 1),
        "an xml attribute": data.replace(b'active="True"', b'active="True" xml:lang="en"', 1),
        "an entity": b'<!DOCTYPE SoftwareIdentity [<!ENTITY e "x">]>' + data[data.index(b"<SoftwareIdentity") :],
        "a document type": b"<!DOCTYPE SoftwareIdentity>" + data[data.index(b"<SoftwareIdentity") :],
        "a byte order mark": b"\xef\xbb\xbf" + data,
        "UTF-16": data.decode().encode("utf-16"),
        "something after it": data + b"<!-- after -->",
        "twice": data + data,
        "cut": data[: len(data) // 2],
        "no signature": re.sub(rb"<ds:Signature .*</ds:Signature>", b"", data, flags=re.DOTALL),
        "two signatures": re.sub(rb"(<ds:Signature .*</ds:Signature>)", rb"\1\1", data, flags=re.DOTALL),
        "wrapped": b"<Whole>" + data[data.index(b"<SoftwareIdentity") :] + b"</Whole>",
        "line ends": data.replace(b"\n", b"\r\n"),
        "no certificates": re.sub(rb"<ds:KeyInfo>.*</ds:KeyInfo>", b"", data, flags=re.DOTALL),
    }
    padded = re.search(rb"(.)(=+)\s*</ds:X509Certificate>", data)
    if padded is not None:  # the last bits of this character stand for nothing
        changes["unused bits of base64"] = (
            data[: padded.start()] + successor(padded[1]) + data[padded.start() + 1 :]
        )
    for name, changed in changes.items():
        if changed != data:
            yield replace(good, what=f"{good.what}: {name}", data=changed)


INFO = fake.SIGNED_INFO
FORMS = {
    "good": INFO,
    "sha256 digest": INFO.replace("xmldsig-more#sha384", "xmlenc#sha256").replace(
        "2001/04/xmlenc", "2001/04/xmlenc"
    ),
    "ecdsa-sha256": INFO.replace("ecdsa-sha384", "ecdsa-sha256"),
    "rsa": INFO.replace("ecdsa-sha384", "rsa-sha384"),
    "hmac": INFO.replace("ecdsa-sha384", "hmac-sha384"),
    "c14n 1.0": INFO.replace(
        "http://www.w3.org/2006/12/xml-c14n11", "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"
    ),
    "with comments": INFO.replace("xml-c14n11", "xml-c14n11#WithComments"),
    "not enveloped": INFO.replace(
        '<ds:Transform Algorithm="http://www.w3.org/2000/09/xmldsig#enveloped-signature"/>', ""
    ),
    "transforms the other way round": re.sub(r"(<ds:Transform [^>]*>)(<ds:Transform [^>]*>)", r"\2\1", INFO),
    "only enveloped": INFO.replace('<ds:Transform Algorithm="http://www.w3.org/2006/12/xml-c14n11"/>', ""),
    "xpath": INFO.replace(
        '<ds:Transform Algorithm="http://www.w3.org/2006/12/xml-c14n11"/>',
        '<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xpath-19991116"><ds:XPath>1</ds:XPath></ds:Transform>',
    ),
    "reference to a part": INFO.replace('URI=""', 'URI="#part"'),
    "reference to a file": INFO.replace('URI=""', 'URI="file:///etc/hostname"'),
    "no reference": re.sub(r"<ds:Reference .*</ds:Reference>", "", INFO),
    "two references": re.sub(r"(<ds:Reference .*</ds:Reference>)", r"\1\1", INFO),
    "an id": INFO.replace("<ds:SignedInfo ", '<ds:SignedInfo Id="x" '),
}


def forms() -> Iterator[Input]:
    """Signatures of other forms, each made by the right key over the right digest."""
    for name, info in FORMS.items():
        made = replace(fake.driver_rim(), signed_info=info)
        yield of(name, made)
    for name, change in {
        "another signer": {"signer": "somebody else"},
        "extra signed": {"extra": "<ns0:Extra a='&lt;'>x</ns0:Extra>"},
        "prefixes": {"extra": "<q:x xmlns:q='urn:q' q:b='1' a='2'><y xmlns=''/></q:x>"},
        "unsorted": {"attributes": "z='1' b='2' xmlns:a='urn:a' a:c='3'"},
        "text": {"extra": "<ns0:Extra>&amp; &#13; é ]]&gt;</ns0:Extra>"},
        "cdata": {"extra": "<ns0:Extra><![CDATA[<&>]]></ns0:Extra>"},
    }.items():  # fmt: skip
        yield of(name, replace(fake.driver_rim(), **change))  # type: ignore[arg-type]


def of(name: str, made: FakeRim) -> Input:
    data = made.sign()
    return Input(f"fake {name}", data, signer(data), frozenset({fake.spki_digest("rim root")}), fake.NOW)


def real(vectors: Path) -> Iterator[Input]:
    for file in sorted((vectors / "nvidia").rglob("*")):
        if file.suffix in (".xml", ".swidtag"):
            data = file.read_bytes()
            leaf = signer(data)
            now = leaf.not_before + timedelta(hours=1)
            assert now.tzinfo is UTC
            yield Input(f"real {file.name}", data, leaf, frozenset(anchors.RIM_ROOTS), now)


FORM = r"refused: signature_form"
DIFFERENCES = [
    Difference("rim-form", r"fake (c14n 1\.0|with comments|transforms .*|only enveloped|xpath)", FORM, ACCEPTED),
    Difference("rim-form", r".*: (a comment in the sign.*|no certificates)", FORM, ACCEPTED),
    Difference("rim-certificates", r".*: certificates byte \d+", r"refused: .*", ACCEPTED),
    Difference(
        "rim-base64", r".*: (unused bits.*|certificates byte \d+)", ACCEPTED, r"refused: DocumentInvalid: .*"
    ),
    Difference("rim-encoding", r".*: UTF-16", r"refused: RIM: not UTF-8", ACCEPTED),
]


@pytest.mark.slow
def test_signxml_agrees(vectors: Path) -> None:
    draw = random.Random(SEED)
    found = [*forms(), *mutants(of("good", fake.driver_rim()), 60, draw)]
    for good in real(vectors):
        found += [good, *mutants(good, 12, draw)]
    compare(judged(found), DIFFERENCES, "signxml")
