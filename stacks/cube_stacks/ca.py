# SPDX-License-Identifier: Apache-2.0
"""The environment's certificates: its CA, TLS leaves, AK certificates, and the CA of its emulated TPMs.

Formats §5: a TLS leaf has EKU serverAuth and nothing else, an AK certificate tcg-kp-AIKCertificate and nothing
else, so neither serves as the other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cube_attestation import dsse

from cube_stacks.keys import SigningKey, environment_file_key, open_key
from cube_stacks.state import state_folder, write_atomically

AK_CERTIFICATE_EKU = x509.ObjectIdentifier("2.23.133.8.3")  # tcg-kp-AIKCertificate
LEAF_MAXIMUM = timedelta(days=7)
_BACKDATE = timedelta(minutes=1)  # as much clock skew as the gate takes
_CA_LIFE = timedelta(days=3650)


class _Delegate(ec.EllipticCurvePrivateKey):
    """Lets x509's builder sign with a key that this process may not hold: it only ever calls `sign`."""

    def __init__(self, key: SigningKey) -> None:
        self._key = key

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:  # noqa: ARG002
        return self._key.sign(bytes(data))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._key.public_key.curve

    @property
    def key_size(self) -> int:
        return self.curve.key_size

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this key signs and does nothing else")

    exchange = private_numbers = private_bytes = _refuse

    def __copy__(self) -> _Delegate:
        return _Delegate(self._key)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Delegate:
        return _Delegate(self._key)


def _now(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(microsecond=0)


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issue(
    subject: x509.Name,
    key: Any,
    issuer: x509.Name,
    signer: SigningKey,
    not_before: datetime,
    not_after: datetime,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(_Delegate(signer), hashes.SHA256())


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _issue_ca(
    name: str, key: Any, issuer: str, signer: SigningKey, path_length: int, now: datetime
) -> x509.Certificate:
    constraints = x509.BasicConstraints(ca=True, path_length=path_length)
    return _issue(
        _common_name(name),
        key,
        _common_name(issuer),
        signer,
        _now(now) - _BACKDATE,
        _now(now) + _CA_LIFE,
        [(constraints, True), (_usage(sign=True), True)],
    )


@dataclass(frozen=True)
class EnvironmentCA:
    """Signs TLS leaves and AK certificates; its certificate is what clients trust."""

    certificate: x509.Certificate
    key: SigningKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def tls_leaf(
        self, key: Any, hostnames: Sequence[str], lease_expires: datetime, now: datetime
    ) -> x509.Certificate:
        """A certificate of the attested public `key` for `hostnames` (DNS names and IP addresses).

        It ends with the lease, at most 7 days from `now`. ValueError: no hostname, or a lease in the past.
        """
        end = min(_now(lease_expires), _now(now) + LEAF_MAXIMUM)
        if not hostnames:
            raise ValueError("a TLS leaf needs at least one hostname")
        if end <= _now(now):
            raise ValueError(f"the lease ends at {end:%Y-%m-%dT%H:%M:%SZ}, which is not after now")
        return _issue(
            _common_name(hostnames[0][:64]),
            key,
            self.certificate.subject,
            self.key,
            _now(now) - _BACKDATE,
            end,
            [
                (x509.SubjectAlternativeName([_general_name(name) for name in hostnames]), False),
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (_usage(sign=False), True),
                (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            ],
        )

    def ak_certificate(self, ak: Any, ek_spki: str, now: datetime) -> x509.Certificate:
        """Vouches that the attestation key `ak` lives in the TPM whose endorsement key has the digest `ek_spki`."""
        name = ek_spki.removeprefix("sha256:")  # the attribute holds at most 64 characters (RFC 5280 A.1)
        subject = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, name)])
        return _issue(
            subject,
            ak,
            self.certificate.subject,
            self.key,
            _now(now) - _BACKDATE,
            self.certificate.not_valid_after_utc,
            [
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (_usage(sign=False), True),
                (x509.ExtendedKeyUsage([AK_CERTIFICATE_EKU]), True),
            ],
        )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def environment_ca(environment: str, key: SigningKey, now: datetime) -> EnvironmentCA:
    """The CA of `environment` under `key`; its certificate is made once and kept: clients trust it for years."""
    path = state_folder(environment) / "ca" / f"{key.keyid.removeprefix('sha256:')[:16]}.pem"
    if path.exists():
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        if (
            dsse.spki_digest(certificate.public_key()) == key.keyid
            and certificate.not_valid_after_utc - LEAF_MAXIMUM > now
        ):
            return EnvironmentCA(certificate, key)
    name = f"Cube environment {environment}"
    certificate = _issue_ca(name, key.public_key, name, key, 0, now)
    write_atomically(path, certificate.public_bytes(serialization.Encoding.PEM))
    return EnvironmentCA(certificate, key)


@dataclass(frozen=True)
class TpmManufacturer:
    """The environment's maker of emulated TPMs: root → issuer → EK certificates (signed by swtpm_localca)."""

    root: Path
    issuer: Path
    issuer_key: Path

    @property
    def root_spki(self) -> str:
        """What a policy lists under `tpm.ek_roots`."""
        return dsse.spki_digest(self.root_certificate().public_key())

    def chain(self) -> list[x509.Certificate]:
        """Issuers of an EK certificate up to the root, included (formats §3, `ek-chain`)."""
        return [x509.load_pem_x509_certificate(self.issuer.read_bytes()), self.root_certificate()]

    def root_certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.root.read_bytes())


def tpm_manufacturer(environment: str, now: datetime) -> TpmManufacturer:
    """The TPM CA of `environment`, made when there is none."""
    folder = state_folder(environment) / "tpm-ca"
    made = TpmManufacturer(folder / "root.pem", folder / "issuer.pem", folder / "issuer-key.pem")
    root_key = open_key(environment_file_key(folder / "root-key.pem"))
    issuer_key = open_key(environment_file_key(made.issuer_key))
    root_name, issuer_name = f"Cube TPM root {environment}", f"Cube TPM issuer {environment}"
    if not made.root.exists():
        root = _issue_ca(root_name, root_key.public_key, root_name, root_key, 1, now)
        write_atomically(made.root, root.public_bytes(serialization.Encoding.PEM))
    if not made.issuer.exists():
        issuer = _issue_ca(issuer_name, issuer_key.public_key, root_name, root_key, 0, now)
        write_atomically(made.issuer, issuer.public_bytes(serialization.Encoding.PEM))
    return made
