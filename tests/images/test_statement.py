# SPDX-License-Identifier: Apache-2.0
"""Signing an image: expiry, signing anew, and provenance that has to be about the very image."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cube_attestation import dsse
from cube_attestation import manifest as format_
from cube_attestation.dsse import LocalSigner
from cube_attestation.errors import AttestationError, BadInput, NotAuthentic
from cube_images import cli, lock, verification
from cube_images.errors import ImageError
from cube_images.provenance import described, statement
from cube_images.provenance.described import Described
from hypothesis import given
from hypothesis import strategies as st
from manifests import manifest_payload

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a payload of the lock at hand (and no disk: this is about what is signed)."""
    payload = manifest_payload() | {"lock": f"sha256:{lock.load('local').digest()}"}
    (tmp_path / "payload.json").write_text(json.dumps(payload))
    return tmp_path


def _sign(folder: Path, signer: LocalSigner, now: datetime = NOW, days: int = 30) -> Described:
    image = Described(described.load(folder / "payload.json").payload, folder)
    statement.sign(image, signer, now=now, days=days)
    return image


def _verify(folder: Path, signer: LocalSigner, now: datetime) -> list[str]:
    return verification.verify(folder, dsse.spki_digest(signer.spki), now)


def test_good_until_the_expiry_and_not_a_second_longer(folder: Path, signer: LocalSigner) -> None:
    _sign(folder, signer)
    end = NOW + timedelta(days=30)
    assert "good until 2026-12-24T12:00:00Z" in _verify(folder, signer, end - timedelta(seconds=1))
    with pytest.raises(ImageError, match=r"was good until 2026-12-24T12:00:00Z .*measured-image sign"):
        _verify(folder, signer, end)


def test_signing_anew_keeps_the_image_and_moves_the_expiry(folder: Path, signer: LocalSigner) -> None:
    image = _sign(folder, signer)
    first = _verify(folder, signer, NOW)
    _sign(folder, signer, NOW + timedelta(days=60))
    again = _verify(folder, signer, NOW + timedelta(days=61))
    assert f"image {image.digest}" in first
    assert f"image {image.digest}" in again
    assert first[1] != again[1]
    envelope = json.loads((folder / "manifest.json").read_text())
    payload = dsse.peek(envelope, dsse.IMAGE_MANIFEST)
    assert isinstance(payload.payload, dict)
    assert format_.identity(payload.payload) == image.digest != payload.digest
    assert len(envelope["signatures"]) == 1, "a signature over the earlier expiry is gone"


def test_provenance_is_in_toto_with_every_locked_input(folder: Path, signer: LocalSigner) -> None:
    image = _sign(folder, signer)
    envelope = json.loads((folder / "provenance.json").read_text())
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    found: Any = dsse.verify(envelope, statement.PAYLOAD_TYPE, [signer.spki]).payload
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    assert found["subject"][0] == {
        "name": "payload.json",
        "digest": {"sha256": image.digest.removeprefix("sha256:")},
    }
    locked = lock.load("local")
    inputs = found["predicate"]["buildDefinition"]["resolvedDependencies"]
    hashes = {row["digest"]["sha256"] for row in inputs}
    assert hashes >= {item.sha256 for item in locked.packages()} | {item.sha256 for item in locked.wheels}
    assert all(len(row["digest"]["sha256"]) == 64 for row in inputs)


def test_provenance_of_another_image_is_not_authentic(folder: Path, signer: LocalSigner) -> None:
    image = _sign(folder, signer)
    other = statement.statement({**image.payload, "image": f"sha256:{'1' * 64}"}, lock.load("local"))
    (folder / "provenance.json").write_text(json.dumps(dsse.sign(statement.PAYLOAD_TYPE, other, signer)))
    with pytest.raises(NotAuthentic, match="another image"):
        _verify(folder, signer, NOW)


def test_provenance_of_a_stranger_is_not_authentic(folder: Path, signer: LocalSigner) -> None:
    image = _sign(folder, signer)
    stranger = LocalSigner(ec.generate_private_key(ec.SECP256R1()))
    said = statement.statement(image.payload, lock.load("local"))
    (folder / "provenance.json").write_text(json.dumps(dsse.sign(statement.PAYLOAD_TYPE, said, stranger)))
    with pytest.raises(NotAuthentic, match="none of the accepted keys"):
        _verify(folder, signer, NOW)


json_values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["subject", "predicate", "name", "digest"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(value=json_values)
def test_any_statement_gives_a_clear_error(
    value: object, tmp_path_factory: pytest.TempPathFactory, signer: LocalSigner
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    said = {
        "_type": statement.STATEMENT,
        "predicateType": statement.PREDICATE,
        "predicate": value,
        "subject": value,
    }
    for content in (value, said):
        path.write_text(json.dumps(dsse.sign(statement.PAYLOAD_TYPE, content, signer)))
        with pytest.raises(AttestationError):
            statement.check(path, [signer.spki], manifest_payload())


def test_another_lock_and_odd_days_are_refused_before_anything_is_written(
    folder: Path, signer: LocalSigner
) -> None:
    image = Described(described.load(folder / "payload.json").payload, folder)
    for days in (0, -1, 3651):
        with pytest.raises(ImageError, match="not between 1 and 3650"):
            statement.sign(image, signer, now=NOW, days=days)
    other = Described({**image.payload, "lock": f"sha256:{'0' * 64}"}, folder)
    with pytest.raises(ImageError, match="another lock"):
        statement.sign(other, signer, now=NOW, days=1)
    assert [path.name for path in folder.iterdir()] == ["payload.json"]


def test_an_expiry_that_is_no_time_is_malformed(folder: Path, signer: LocalSigner) -> None:
    payload = {**described.load(folder / "payload.json").payload, "expires": "tomorrow"}
    (folder / "manifest.json").write_text(json.dumps(dsse.sign(dsse.IMAGE_MANIFEST, payload, signer)))
    with pytest.raises(BadInput, match="is not a time"):
        _verify(folder, signer, NOW)


def test_command(folder: Path, signer: LocalSigner, capsys: pytest.CaptureFixture[str]) -> None:
    key = folder / "key.pem"
    key.write_bytes(
        signer.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    (folder / "disk.img").write_bytes(b"")
    words = ["sign", str(folder), "--key", f"file:{key}", "--days", "7", "--builder", "https://ci.example/builder"]
    assert cli.main(words) == 0
    assert dsse.spki_digest(signer.spki) in capsys.readouterr().out
    (folder / "disk.img").unlink()
    assert cli.main(["verify-manifest", str(folder), "--key", dsse.spki_digest(signer.spki)]) == 0
    assert "inputs by https://ci.example/builder" in capsys.readouterr().out
    assert cli.main(["sign", str(folder / "payload.json"), "--key", f"file:{key}", "--days", "7"]) == 1
    assert "only a built image can be signed" in capsys.readouterr().err
