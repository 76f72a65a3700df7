# SPDX-License-Identifier: Apache-2.0
"""Against a real (software) TPM: credentials that only it can open, quotes that verify."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator

import pytest
import tpmclient
from cube_attestation import jcs
from cube_attestation.fields import encode_base64
from cube_attestation.tpm import abi, credential, verify
from tpmclient import Key, Tpm, TpmRefused

pytestmark = pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tpm]:
    with tpmclient.software_tpm(tmp_path_factory.mktemp("tpm")) as running:
        yield running


@pytest.fixture(scope="module")
def ak(tpm: Tpm) -> Key:
    return tpm.create_primary(tpmclient.AK_P256)


EKS = [
    pytest.param(tpmclient.EK_RSA, True, id="rsa-2048"),
    pytest.param(tpmclient.EK_P256, True, id="p-256"),
    pytest.param(tpmclient.EK_P384, False, id="p-384"),
]


@pytest.mark.parametrize(("template", "policy"), EKS)
def test_only_that_tpm_opens_the_credential(tpm: Tpm, ak: Key, template: bytes, policy: bool) -> None:
    ek = tpm.create_primary(template)
    try:
        public = abi.parse_public(ak.public)
        assert public.name() == ak.name
        key = abi.parse_public(ek.public).key()
        secret = b"only for this TPM's ears........"
        challenge = credential.make_credential(key, ak.name, secret)
        assert tpm.activate(ak, ek, challenge.credential_blob, challenge.secret, policy=policy) == secret

        foreign = credential.make_credential(key, ak.name[:-1] + bytes([ak.name[-1] ^ 1]), secret)
        with pytest.raises(TpmRefused):
            tpm.activate(ak, ek, foreign.credential_blob, foreign.secret, policy=policy)
    finally:
        tpm.flush(ek.handle)


def test_a_short_credential_comes_back_as_it_is(tpm: Tpm, ak: Key) -> None:
    ek = tpm.create_primary(tpmclient.EK_P256)
    try:
        challenge = credential.make_credential(abi.parse_public(ek.public).key(), ak.name, b"x")
        assert tpm.activate(ak, ek, challenge.credential_blob, challenge.secret, policy=True) == b"x"
    finally:
        tpm.flush(ek.handle)


@pytest.mark.parametrize("template", [tpmclient.AK_P256, tpmclient.AK_RSA], ids=["ecdsa", "rsassa"])
def test_a_real_quote_verifies_and_a_changed_one_does_not(tpm: Tpm, template: bytes) -> None:
    key = tpm.create_primary(template)
    try:
        pcrs = (0, 11, 15)
        extra = hashlib.sha256(b"claims").digest()
        attest, signature = tpm.quote(key, extra, pcrs)
        values: dict[str, jcs.Json] = {str(pcr): "00" * 32 for pcr in pcrs}
        item: dict[str, jcs.Json] = {
            "attest": encode_base64(attest),
            "signature": encode_base64(signature),
            "ak_public": encode_base64(key.public),
            "pcrs": {"sha256": values},
        }
        evidence = verify.QuoteEvidence.decode(jcs.dumps(item))
        assert verify.verify_quote(evidence) == []
        assert evidence.quote.extra_data == extra
        assert verify.quoted(evidence, "sha256") == {pcr: bytes(32) for pcr in pcrs}

        changed = attest[:-1] + bytes([attest[-1] ^ 1])
        evidence = verify.QuoteEvidence.decode(jcs.dumps({**item, "attest": encode_base64(changed)}))
        codes = {reason.code for reason in verify.verify_quote(evidence)}
        assert codes == {"tpm.quote.signature_invalid", "tpm.quote.pcr_digest_mismatch"}
    finally:
        tpm.flush(key.handle)


def test_pcr_8_after_the_agent_extended_it(tpm: Tpm, ak: Key) -> None:
    from cube_attestation.tpm.appraise import launch_pcr

    payload = b'{"version":1}'
    tpm.extend(8, hashlib.sha256(payload).digest())
    attest, _ = tpm.quote(ak, b"", (8,))
    assert abi.parse_quote(attest).pcr_digest == hashlib.sha256(launch_pcr(payload)).digest()
