# SPDX-License-Identifier: Apache-2.0
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from cube_attestation import dsse
from cube_stacks.ca import AK_CERTIFICATE_EKU, EnvironmentCA, environment_ca, tpm_manufacturer
from cube_stacks.keys import environment_key, open_key

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1()).public_key()


@pytest.fixture
def ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EnvironmentCA:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return environment_ca("local", open_key(environment_key("local", "ca")), NOW)


def verify(ca: EnvironmentCA, leaf: x509.Certificate, name: str, at: datetime) -> None:
    verifier = PolicyBuilder().store(Store([ca.certificate])).time(at).build_server_verifier(x509.DNSName(name))
    verifier.verify(leaf, [])


def test_the_ca_is_kept_and_a_new_key_makes_a_new_one(ca: EnvironmentCA) -> None:
    later = NOW + timedelta(days=30)
    assert environment_ca("local", ca.key, later).certificate == ca.certificate
    other = environment_ca("local", open_key(environment_key("local", "control")), later)
    assert other.certificate != ca.certificate
    assert environment_ca("local", ca.key, NOW + timedelta(days=3649)).certificate != ca.certificate


def test_a_leaf_is_for_its_hostnames_and_serves_tls_only(ca: EnvironmentCA) -> None:
    leaf = ca.tls_leaf(KEY, ["localhost", "127.0.0.1"], NOW + timedelta(minutes=15), NOW)
    verify(ca, leaf, "localhost", NOW)
    with pytest.raises(VerificationError):
        verify(ca, leaf, "elsewhere.example", NOW)
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert leaf.public_key() == KEY


def test_a_leaf_ends_with_the_lease_and_within_seven_days(ca: EnvironmentCA) -> None:
    leaf = ca.tls_leaf(KEY, ["localhost"], NOW + timedelta(minutes=15), NOW)
    assert leaf.not_valid_after_utc == NOW + timedelta(minutes=15)
    with pytest.raises(VerificationError):
        verify(ca, leaf, "localhost", NOW + timedelta(minutes=16))
    long = ca.tls_leaf(KEY, ["localhost"], NOW + timedelta(days=30), NOW)
    assert long.not_valid_after_utc == NOW + timedelta(days=7)
    with pytest.raises(ValueError, match="not after now"):
        ca.tls_leaf(KEY, ["localhost"], NOW, NOW)
    with pytest.raises(ValueError, match="hostname"):
        ca.tls_leaf(KEY, [], NOW + timedelta(minutes=1), NOW)


def test_an_ak_certificate_names_its_tpm_and_cannot_serve_tls(ca: EnvironmentCA) -> None:
    ek = "sha256:" + "ab" * 32
    certificate = ca.ak_certificate(KEY, ek, NOW)
    certificate.verify_directly_issued_by(ca.certificate)
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [AK_CERTIFICATE_EKU]
    assert certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)[0].value == "ab" * 32
    with pytest.raises(VerificationError):
        verify(ca, certificate, "localhost", NOW)


def test_a_leaf_cannot_issue(ca: EnvironmentCA) -> None:
    leaf = ca.tls_leaf(KEY, ["localhost"], NOW + timedelta(minutes=15), NOW)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_the_tpm_manufacturer_is_another_trust_root(ca: EnvironmentCA) -> None:
    made = tpm_manufacturer("local", NOW)
    assert tpm_manufacturer("local", NOW).root_spki == made.root_spki
    assert made.root_spki != ca.key.keyid
    issuer, root = made.chain()
    issuer.verify_directly_issued_by(root)
    assert root == made.root_certificate()
    assert dsse.spki_digest(issuer.public_key()) == open_key(f"file:{made.issuer_key}").keyid
