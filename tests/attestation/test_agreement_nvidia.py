# SPDX-License-Identifier: Apache-2.0
"""NVIDIA: manifests to signxml, certificate chains to Go's crypto/x509, OCSP responses to Go's x/crypto/ocsp."""

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
from agreement import ACCEPTED, Difference, Pair, b64, compare, flipped, google, refused, utc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as x509_ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from cube_attestation.anchors import nvidia as anchors
from cube_attestation.errors import BadInput, NotAuthentic
from cube_attestation.nvidia import chains, ocsp, rim, verify
from cube_attestation.x509 import certificate as certificates
from fake_nvidia import NOW, Cert, FakeDevice, FakeRim, name, status

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


def mutants(good: Input, count: int) -> Iterator[Input]:
    """One bit of some bytes, and changes that mean something to XML: each kind somewhere."""
    draw, data = random.Random(SEED), good.data
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
    for kind, changed in changes.items():
        if changed != data:
            yield replace(good, what=f"{good.what}: {kind}", data=changed)


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
    for what, info in FORMS.items():
        yield of(what, replace(fake.driver_rim(), signed_info=info))
    for what, change in {
        "another signer": {"signer": "somebody else"},
        "extra signed": {"extra": "<ns0:Extra a='&lt;'>x</ns0:Extra>"},
        "prefixes": {"extra": "<q:x xmlns:q='urn:q' q:b='1' a='2'><y xmlns=''/></q:x>"},
        "unsorted": {"attributes": "z='1' b='2' xmlns:a='urn:a' a:c='3'"},
        "text": {"extra": "<ns0:Extra>&amp; &#13; é ]]&gt;</ns0:Extra>"},
        "cdata": {"extra": "<ns0:Extra><![CDATA[<&>]]></ns0:Extra>"},
    }.items():  # fmt: skip
        yield of(what, replace(fake.driver_rim(), **change))  # type: ignore[arg-type]


def of(what: str, made: FakeRim) -> Input:
    data = made.sign()
    return Input(f"fake {what}", data, signer(data), frozenset({fake.spki_digest("rim root")}), fake.NOW)


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
    found = [*forms(), *mutants(of("good", fake.driver_rim()), 60)]
    for good in real(vectors):
        found += [good, *mutants(good, 12)]
    compare(judged(found), DIFFERENCES, "signxml")


SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Chain:
    """Certificates in DER, leaf first; ``root`` is trusted: its DER by them, its key by us."""

    what: str
    certificates: tuple[bytes, ...]
    root: bytes
    now: datetime

    def ours(self) -> str:
        try:
            roots = frozenset({certificates.parse(self.root).spki_digest})
            chains.verify_path(tuple(certificates.parse(der) for der in self.certificates), roots, self.now)
        except BadInput as error:
            return refused(error)
        except NotAuthentic as error:
            return refused(error.why)
        return ACCEPTED

    def asked(self) -> dict[str, Any]:
        pem = f"-----BEGIN CERTIFICATE-----\n{b64(self.root)}\n-----END CERTIFICATE-----\n"
        return {"kind": "chain", "now": utc(self.now), "root": pem, "chain": [b64(c) for c in self.certificates]}


def der(made: x509.Certificate) -> bytes:
    return made.public_bytes(Encoding.DER)


def chain_of(what: str, device: FakeDevice) -> Chain:
    return Chain(what, tuple(map(der, device.chain())), der(FakeDevice().certs()["root"].make()), NOW)


def changed_chains() -> Iterator[Chain]:
    """Devices with one attribute of one certificate changed, correctly signed otherwise."""
    attributes: dict[str, dict[str, Any]] = {
        "expired": {"not_after": NOW - SECOND}, "last second": {"not_after": NOW},
        "not yet": {"not_before": NOW + SECOND}, "first second": {"not_before": NOW},
        "no ca": {"ca": False}, "path length 0": {"path_length": 0}, "path length 1": {"path_length": 1},
        "path length 2": {"path_length": 2}, "path length 3": {"path_length": 3},
        "signer": {"signer": "somebody else"}, "P-256": {"curve": "secp256r1"}, "SHA-256": {"hashed": "sha256"},
        "unknown extension": {"extensions": [(x509.UnrecognizedExtension(OID, b"\5\0"), False)]},
        "unknown critical": {"extensions": [(x509.UnrecognizedExtension(OID, b"\5\0"), True)]},
        "name": {"subject": name("NVIDIA Something Else")}, "serial 1": {"serial": 1},
    }  # fmt: skip
    for which in ("leaf", "brom", "ica", "identity"):
        for what, given in attributes.items():
            yield chain_of(f"{which}: {what}", FakeDevice(changed={which: given}))
    yield chain_of("another root", FakeDevice(changed={"root": {"role": "another root"}}))


OID = x509.ObjectIdentifier("1.2.3.4")


def mutant_chains(good: Chain) -> Iterator[Chain]:
    draw, given = random.Random(SEED), good.certificates
    yield good
    common = certificates.parse(good.root).common_name.encode()
    odd = good.root.replace(common, b"\xff" + common[1:], 1)  # its issuer, which comes before its subject
    yield replace(good, what=f"{good.what}: root byte 0", certificates=(*given[:-1], odd))
    for days in (-4000, 4000):
        yield replace(good, what=f"{good.what}: {days} days", now=good.now + timedelta(days=days))
    for number, one in enumerate(given):
        rest = given[:number], given[number + 1 :]
        for at in range(draw.randrange(9), len(one), 9):
            mutant = (*rest[0], flipped(one, at, draw.randrange(8)), *rest[1])
            part = "root" if one == good.root else f"certificate {number}"
            yield replace(good, what=f"{good.what}: {part} byte {at}", certificates=mutant)
        if len(given) > 1:
            yield replace(good, what=f"{good.what}: without {number}", certificates=rest[0] + rest[1])
        yield replace(good, what=f"{good.what}: with {number} twice", certificates=(*given, one))
    yield replace(good, what=f"{good.what}: in another order", certificates=(given[0], *reversed(given[1:])))


def real_chains(vectors: Path) -> Iterator[Chain]:
    found = {
        file.name: verify.load_chain(file.read_bytes())
        for file in sorted((vectors / "nvidia").rglob("*CertChain*.txt"))
    }
    for file in sorted((vectors / "nvidia").rglob("*")):
        if file.suffix in (".xml", ".swidtag"):
            found[file.name] = rim.signers(file.read_bytes())
    trusted = (*anchors.DEVICE_ROOTS, *anchors.RIM_ROOTS)
    roots = [chain[-1] for chain in found.values() if chain[-1].spki_digest in trusted]
    for file_name, chain in found.items():
        own = [root for root in roots if root.subject == chain[-1].subject] or roots
        now = max(certificate.not_before for certificate in chain) + timedelta(hours=1)
        good = Chain(f"real {file_name}", tuple(c.der for c in chain), own[0].der, now)
        yield from mutant_chains(good) if file_name == "gpuAkCertChain.txt" else [good]


@dataclass(frozen=True)
class Response:
    """An OCSP response about ``certificate``, which ``issuer`` issued (DER)."""

    what: str
    data: bytes
    certificate: bytes
    issuer: bytes
    now: datetime = NOW

    def ours(self) -> str:
        subject, issuer = certificates.parse(self.certificate), certificates.parse(self.issuer)
        try:
            given = ocsp.index([self.data])
            reasons = ocsp.check(subject, issuer, given, self.now, timedelta(days=36500))
        except BadInput as error:
            return refused(error)
        return refused(", ".join(reason.code for reason in reasons)) if reasons else ACCEPTED

    def asked(self) -> dict[str, Any]:
        chain = [b64(self.certificate), b64(self.issuer)]
        return {"kind": "ocsp", "now": utc(self.now), "response": b64(self.data), "chain": chain}


def responses() -> Iterator[Response]:
    certs = FakeDevice().certs()
    subject, issuer = certs["ica"], certs["identity"]

    def about(what: str, **given: Any) -> Response:
        return Response(what, status(subject, **given), der(subject.make()), der(issuer.make()))

    signing = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False)
    other_use = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)

    def responder(**changes: Any) -> Cert:
        given: dict[str, Any] = {"issuer": issuer, "ca": False, "extensions": [signing]} | changes
        return Cert("responder", name("NVIDIA OCSP"), **given)

    for state in ("good", "revoked", "hold", "unknown"):
        yield about(state, state=state)
    for what, offset in (("past", -SECOND), ("now", timedelta()), ("future", SECOND), ("far", timedelta(days=1))):
        yield about(f"this update {what}", this=NOW + offset)
        yield about(f"next update {what}", next=NOW + offset)
    yield about("no next update", next=None)
    for by in x509_ocsp.OCSPResponderEncoding:
        yield about(f"by {by.value}", by=by)
        yield about(f"by {by.value}, not embedded", by=by, embed=False)
    yield about("critical extension", extension=x509.UnrecognizedExtension(OID, b"\5\0"))
    for what, made in {
        "no use": responder(extensions=[]), "another use": responder(extensions=[other_use]),
        "of the root": responder(issuer=certs["root"]), "of the certificate itself": responder(issuer=subject),
        "signed by another": responder(signer="somebody else"), "expired": responder(not_after=NOW - SECOND),
        "not yet": responder(not_before=NOW + SECOND), "a ca": responder(ca=True),
        "no signature use": responder(digital_signature=False), "P-256": responder(curve="secp256r1"),
    }.items():  # fmt: skip
        yield about(f"responder {what}", responder=made)
    yield about("responder the issuer", responder=issuer)
    yield about("responder the issuer, not embedded", responder=issuer, embed=False)
    yield about("responder the certificate itself", responder=subject)
    good = about("good")
    other = certs["brom"]
    yield replace(good, what="about another", certificate=der(other.make()), issuer=der(subject.make()))
    yield replace(good, what="of another issuer", issuer=der(certs["root"].make()))
    draw = random.Random(SEED)
    for at in range(draw.randrange(5), len(good.data), 5):
        yield replace(good, what=f"byte {at}", data=flipped(good.data, at, draw.randrange(8)))
    for size in (0, 1, 100, len(good.data) - 1):
        yield replace(good, what=f"{size} bytes", data=good.data[:size])
    yield replace(good, what="1 byte more", data=good.data + b"\0")


CHAINS = [
    Difference("chain-weak", r".*: (P-256|SHA-256)", r"refused: weak", ACCEPTED),
    Difference("chain-root-text", r".*: root byte \d+", ACCEPTED, r"refused: certificate \d: x509: invalid RDN.*"),
    Difference("chain-own-root", r".*: (root byte \d+|without 4)", r"refused: .*", ACCEPTED),
]
UNTRUSTED = r"refused: nvidia\.ocsp\.untrusted_responder"
RESPONSES = [
    Difference("ocsp-skew", r"this update future", ACCEPTED, r"refused: not yet valid"),
    Difference("ocsp-critical", r"critical extension", r"refused: nvidia\.ocsp\.signature_invalid", ACCEPTED),
    Difference("ocsp-responder", r"responder (no use|another use|expired|not yet|.* itself)", UNTRUSTED, ACCEPTED),
    Difference("ocsp-issuer", r"responder the issuer", ACCEPTED, r"refused: bad OCSP signature.*"),
]


@pytest.mark.slow
def test_go_agrees_on_certificate_chains(vectors: Path) -> None:
    found = [*changed_chains(), *mutant_chains(chain_of("fake", FakeDevice())), *real_chains(vectors)]
    answers = google(each.asked() for each in found)
    pairs = [Pair(each.what, each.ours(), theirs) for each, theirs in zip(found, answers, strict=True)]
    compare(pairs, CHAINS, "crypto/x509")


@pytest.mark.slow
def test_go_agrees_on_ocsp_responses() -> None:
    found = [*responses()]
    answers = google(each.asked() for each in found)
    pairs = [Pair(each.what, each.ours(), theirs) for each, theirs in zip(found, answers, strict=True)]
    compare(pairs, RESPONSES, "x/crypto/ocsp")
